import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Tokenizer

from helpers.data.sources import FABLES
from helpers.data.tokens import TokenStream, _has_ranks, batches_of
from helpers.model import load_tokenizer
from helpers.paths import POCKET

SHARED = Path(__file__).parents[3] / "shared" / "data"
ODD = [
    *("", " ", "\n\n\n", "a  b   c\t\td \n", "don't we'll I'VE they're 'tis", "x" * 3000, " " * 3000, "1234 12.5e-3"),
    *("café naïve Ω≈ç√ 狐狸走到井边 🦊👩\u200d👩\u200d👧 \u200d\ufeff\u00a0\u3000end", "\x00\x01\x7f"),
    *("http://a.b/c?d=e&f=[g]{h}", "```py\n\tif x:\n```"),
]


@pytest.fixture(params=["pocket", "gpt2"], scope="module")
def tokenizer(request):
    if request.param == "pocket":
        return load_tokenizer("pocket")
    files = SHARED / "gpt2-tokenizer"
    if not files.exists():
        pytest.skip("needs GPT-2's tokenizer files next to this checkout")
    return GPT2Tokenizer(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))


def expected(tokenizer, texts):
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, verbose=False)["input_ids"]]


def random_texts(n):
    draw = random.Random(0)
    characters = [*"abcdeXYZ", *"   \n\t'.,-_0123", *"éßłжक狐🦊\u0301\u00a0"]
    return ["".join(draw.choices(characters, k=draw.randrange(1, 80))) for _ in range(n)]


@pytest.mark.parametrize(
    "texts", [ODD, random_texts(2000), [path.read_text(encoding="utf-8") for path in sorted(FABLES.glob("*.md"))]]
)
def test_the_fast_path_gives_the_tokenizers_own_ids(tokenizer, texts):
    stream = TokenStream(tokenizer)
    ids, n_tokens = stream.encode(texts)
    rows = expected(tokenizer, texts)
    assert ids.tolist() == [token for row in rows for token in row]
    assert n_tokens.tolist() == [len(row) for row in rows]
    assert stream.is_fast


def test_a_document_that_contains_the_end_of_text_keeps_its_length(tokenizer):
    texts = ["one fox", f"two{tokenizer.eos_token}owls", "three hens"]
    ids, n_tokens = TokenStream(tokenizer).encode(texts)
    rows = expected(tokenizer, texts)
    assert ids.tolist() == [token for row in rows for token in row]
    assert n_tokens.tolist() == [len(row) for row in rows]


def test_the_tokenizer_itself_is_used_when_the_fast_ids_differ(tokenizer, monkeypatch):
    stream = TokenStream(tokenizer)
    monkeypatch.setattr(stream, "_encode_fast", lambda texts: np.zeros(3, np.uint32))
    assert stream.encode(["one fox"])[0].tolist() == expected(tokenizer, ["one fox"])[0]
    assert not stream.is_fast


def test_other_kinds_of_tokenizer_are_used_directly_and_may_have_ids_above_16_bits():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {f"word{number}": number for number in range(2**16)} | {"<end>": 2**16}
    words = Tokenizer(models.WordLevel(ids, unk_token="word0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    stream = TokenStream(other)
    assert stream.encode(["word1 word0", "word1"])[0].tolist() == [1, 0, 2**16, 1, 2**16]
    assert not stream.is_fast


BROKEN = {  # the compared samples may not reveal these
    "a different model": lambda parts: parts["model"].update(type="WordPiece"),
    "dropout": lambda parts: parts["model"].update(dropout=0.1),
    "byte fallback": lambda parts: parts["model"].update(byte_fallback=True),
    "a normalizer": lambda parts: parts.update(normalizer={"type": "NFC"}),
    "no pre-tokenizer": lambda parts: parts.update(pre_tokenizer=None),
    "no regex split": lambda parts: parts["pre_tokenizer"].update(use_regex=False),
    "a prefix space": lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True),
    "an end-of-text that strips spaces": lambda parts: parts["added_tokens"][0].update(rstrip=True),
    "merges in another order": lambda parts: parts["model"]["merges"].reverse(),
    "a merge without a token": lambda parts: parts["model"]["vocab"].pop("the"),
    "a token without a merge": lambda parts: parts["model"]["vocab"].update(crocodile=4096),
}


@pytest.mark.parametrize("break_tokenizer", BROKEN.values(), ids=BROKEN)
def test_tiktoken_is_used_only_for_tokenizers_that_it_reproduces(break_tokenizer):
    parts = json.loads((POCKET / "tokenizer.json").read_text(encoding="utf-8"))
    assert _has_ranks(parts)
    break_tokenizer(parts)
    assert not _has_ranks(parts)


def test_a_batch_is_limited_in_characters_and_documents(monkeypatch):
    monkeypatch.setattr("helpers.data.tokens._BATCH_CHARACTERS", 4)
    monkeypatch.setattr("helpers.data.tokens._BATCH_DOCUMENTS", 3)
    batches = [["abcd"], ["a", "b", "c"], ["ab", "cd"], ["e"]]
    assert list(batches_of(text for batch in batches for text in batch)) == batches


def test_no_documents_give_no_tokens(tokenizer):
    ids, n_tokens = TokenStream(tokenizer).encode([])
    assert len(ids) == len(n_tokens) == 0
