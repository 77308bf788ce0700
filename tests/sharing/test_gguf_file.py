"""Checked against llama.cpp itself: the same tokens, logits, perplexity and greedy text as transformers."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from helpers.model import load_model, load_tokenizer, train_tokenizer
from helpers.settings import EvaluationSettings, SettingsError
from helpers.sharing.gguf_file import write_gguf
from tests.sharing.llama_cpp import LlamaCpp

GPT2_FILES = Path(__file__).parents[3] / "shared" / "data" / "gpt2-tokenizer"
PIECES = (
    "The fox went home", "don't, we'll, I'VE", "  two  spaces and a tail  ", "\n\n\n", "\t\tif x:\r\n", "αβγ Ωμέγα",
    "中文字符和标点。", "日本語テキスト", "한국어", "Привет, мир", "مرحبا", "हिन्दी", "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 é", "\u200b\u00a0\u3000x", "\x01\x07\x1b[0m\x7f", "x = [i**2 for i in range(10)]  # ²",
    "<b>&amp;</b>", "1,234.5e-6", "١٢٣ ½ Ⅷ", "_snake_case__", "ﬁ ß İ ı", "<|endoftext|>", "\ufffd\ufeff",
    "$$\\frac{1}{2}$$",
)  # fmt: skip
TEXTS = [*PIECES, *("".join(pair) for pair in itertools.islice(itertools.permutations(PIECES, 2), 0, 525, 3))]


def pocket():
    return load_model("pocket").eval(), load_tokenizer("pocket")


def gpt2():
    """Return a small model whose random weights differ enough to prefer a token, and GPT-2's real tokenizer."""
    if not GPT2_FILES.exists():
        pytest.skip("needs GPT-2's tokenizer files next to this checkout")
    tokenizer = GPT2Tokenizer(vocab=str(GPT2_FILES / "vocab.json"), merges=str(GPT2_FILES / "merges.txt"))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50257, n_positions=128, n_embd=64, n_layer=2, n_head=2, n_inner=96, initializer_range=0.15
    )
    return GPT2LMHeadModel(config).eval(), tokenizer


@pytest.fixture(scope="module", params=[pocket, gpt2], ids=lambda make: make.__name__)
def exported(request, tmp_path_factory):
    """Return a model, its tokenizer, and both of them in llama.cpp."""
    model, tokenizer = request.param()
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, model, tokenizer, name="test")
    return model, tokenizer, LlamaCpp(path)


@pytest.fixture(scope="module")
def ids(exported):
    text = "The fox went to the well.\n\nThe hen, who had seen it all, said nothing. 中文 😀\n\tdef f(x):\n" * 2
    return exported[1].encode(text)[:100]


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def nats(scores, ids):
    """Return the mean surprise at each token but the first."""
    scores = scores[:-1].astype(np.float64)
    top = scores.max(-1, keepdims=True)
    log_p = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
    return -log_p[np.arange(len(ids) - 1), ids[1:]].mean()


def test_two_hundred_texts_have_the_same_tokens(exported):
    _, tokenizer, llama = exported
    assert len(set(TEXTS)) == 200
    different = [text for text in TEXTS if llama.tokens(text) != tokenizer.encode(text, verbose=False)]
    assert different == []


def test_logits_and_perplexity_are_the_same(exported, ids):
    model, _, llama = exported
    expected, found = logits(model, ids), llama.logits(ids)
    # The pocket model's logits are between -24 and 18. llama.cpp keeps keys and values in fp16 and reads GELU from an
    # fp16 table: even with float32 weights, some of its logits differ from ours by 0.03.
    difference = np.abs(expected - found)
    assert difference.mean() < 1e-2 / 2
    assert difference.max() < 2e-2 * expected.std()
    assert np.exp(nats(found, ids) - nats(expected, ids)) == pytest.approx(1, abs=5e-3)


def test_fifty_tokens_of_greedy_text_are_the_same(exported, ids):
    model, _, llama = exported
    start = ids[:8]
    found = llama.greedy(start, 50)
    scores = logits(model, [*start, *found])[len(start) - 1 : -1]
    # Two logits can be so close that fp16 and float32 order them differently.
    assert (scores.max(-1) - scores[np.arange(50), found]).max() < 2e-2 * max(1, scores.std())


def test_end_of_text_stops_generation_and_no_token_is_put_before_a_prompt(exported):
    _, tokenizer, llama = exported
    assert llama.vocab.is_eog(tokenizer.eos_token_id)
    assert llama.vocab.token_bos() == llama.vocab.token_eos() == tokenizer.eos_token_id
    assert not llama.vocab.get_add_bos()


def test_q8_0_hardly_changes_the_perplexity(tmp_path):
    from gguf import GGUFReader

    model, tokenizer = pocket()
    write_gguf(tmp_path / "small.gguf", model, tokenizer, name="test", gguf_type="q8_0")
    file = GGUFReader(tmp_path / "small.gguf")
    assert file.fields["general.file_type"].contents() == 7, "q8_0"
    assert file.fields["general.quantization_version"].contents() == 2
    types = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert types.pop("position_embd.weight") == "F16"
    assert {name.endswith(".weight") and "norm" not in name: kind for name, kind in types.items()} == {
        True: "Q8_0", False: "F32",
    }  # fmt: skip
    assert (tmp_path / "small.gguf").stat().st_size < 0.3 * 4 * model.num_parameters()
    ids = tokenizer.encode("Return the index of the Series. If the file exists, it is read again.")
    found = LlamaCpp(tmp_path / "small.gguf").logits(ids)
    assert np.exp(nats(found, ids) - nats(logits(model, ids), ids)) == pytest.approx(1, abs=0.02)


def test_an_untied_head_and_embeddings_without_a_token_are_kept(tmp_path):
    tokenizer = train_tokenizer(["a fox and a hen"] * 9, vocab_size=300)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=24, n_layer=1, n_head=2, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    write_gguf(tmp_path / "model.gguf", model, tokenizer, name="test", gguf_type="q8_0")
    ids = tokenizer.encode("a fox and a hen")
    assert np.abs(LlamaCpp(tmp_path / "model.gguf").logits(ids) - logits(model, ids)).max() < 1e-2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_function": "relu"}, "activation_function = 'relu', but llama.cpp computes"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"eos_token_id": 7}, "different vocabularies"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_differently_is_refused(tiny_model, tmp_path, change, words):
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(SettingsError, match=words):
        write_gguf(tmp_path / "model.gguf", model, tokenizer, name="test")


def test_a_vocabulary_that_does_not_match_the_embeddings_is_refused(tiny, tmp_path):
    small = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(SettingsError, match="The tokenizer has 4096 tokens and the model 100 embeddings"):
        write_gguf(tmp_path / "model.gguf", small, tiny[1], name="test")


def test_a_tokenizer_that_llama_cpp_cannot_reproduce_is_refused(tiny, tiny_model, tmp_path):
    from transformers import AutoTokenizer

    parts = json.loads((tiny_model / "tokenizer.json").read_text(encoding="utf-8"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    parts["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    with pytest.raises(SettingsError, match="not of GPT-2's kind"):
        write_gguf(tmp_path / "model.gguf", tiny[0], tokenizer, name="test")


def test_without_the_gguf_package_the_error_names_the_install_command(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[export\]"'):
        write_gguf(tmp_path / "model.gguf", *tiny, name="test")


def test_a_chat_models_template_is_in_the_file(tiny, chat_tokenizer, tmp_path):
    from gguf import GGUFReader

    model, tokenizer = tiny
    for name, written in (("chat", chat_tokenizer), ("plain", tokenizer)):
        write_gguf(tmp_path / f"{name}.gguf", model, written, name="test")
    chat, plain = (GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("chat", "plain"))
    assert chat["tokenizer.chat_template"].contents() == chat_tokenizer.chat_template
    assert "tokenizer.chat_template" not in plain


def test_the_sampling_settings_are_in_the_file(tiny, tmp_path):
    from gguf import GGUFReader

    write_gguf(tmp_path / "model.gguf", *tiny, name="test", sampling=EvaluationSettings(temperature=0.5, top_k=7))
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.name"].contents() == "test"
    assert fields["general.file_type"].contents() == 1, "f16"
    assert fields["general.sampling.temp"].contents() == pytest.approx(0.5)
    assert fields["general.sampling.top_k"].contents() == 7
    assert fields["general.sampling.min_p"].contents() == 0
    assert fields["general.sampling.penalty_last_n"].contents() == 64, "the penalty covers the whole context"
    assert fields["gpt2.context_length"].contents() == 64
