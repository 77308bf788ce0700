from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk

from helpers.data.duplicates import Fingerprints
from helpers.data.packing import cut_blocks
from helpers.data.sources.chat import Dialogue
from helpers.data.splitting import TEST, TRAIN, UNDECIDED
from helpers.data.tokens import TokenStream
from helpers.data.writing import BlockWriter, Staging, TableWriter
from helpers.model import load_tokenizer, quiet

SCHEMA = pa.schema([("text", pa.string())])


def batch(*texts):
    return pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=SCHEMA)


def test_batches_are_written_to_one_data_set_that_datasets_can_open(tmp_path):
    with quiet(), TableWriter(tmp_path / "t", SCHEMA) as table:
        for texts in (("one", "two"), (), ("three",)):
            table.write(batch(*texts))
        table.finish("some-content")
    opened = load_from_disk(tmp_path / "t")
    assert opened["text"][:] == ["one", "two", "three"]
    assert table.n_rows == 3
    assert opened.cache_files[0]["filename"].startswith(str(tmp_path)), "memory-mapped, not read"


def test_batch_boundaries_do_not_change_the_blocks_of_a_token_stream(tmp_path):
    stream = np.arange(1000)
    with quiet(), BlockWriter(tmp_path / "b", 16) as blocks:
        for piece in np.split(stream, [3, 3, 50, 51, 700]):
            blocks.add(piece)
        blocks.finish("some-content")
    ((rows,), (rest,)) = cut_blocks(stream[None], 16)
    written = load_from_disk(tmp_path / "b")["input_ids"][:]
    assert written.tolist() == rows.tolist()
    assert written.flatten().tolist() == stream[: len(stream) - len(rest)].tolist()
    assert (blocks.n_rows, len(rest)) == (62, 8)


def test_different_content_has_different_fingerprints_and_equal_content_the_same(tmp_path):
    fingerprints = []
    for place, name in enumerate(("a", "b", "a")):
        with quiet(), TableWriter(tmp_path / str(place), SCHEMA) as table:
            table.write(batch(name))
            table.finish(name)
        fingerprints.append(load_from_disk(tmp_path / str(place))._fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_an_error_leaves_no_data_set_that_can_be_opened(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"), TableWriter(tmp_path / "t", SCHEMA) as table:
        table.write(batch("one"))
        raise RuntimeError("stopped")
    with pytest.raises(FileNotFoundError):
        load_from_disk(tmp_path / "t")


@pytest.fixture
def staging(tmp_path, request):
    tokens = TokenStream(load_tokenizer("pocket"))
    with closing(Fingerprints(None)) as found, Staging(tmp_path, tokens, found) as staging:
        staging.has_prompts = getattr(request, "param", False)
        yield staging


def test_staged_documents_come_back_batch_by_batch_with_their_tokens(staging, monkeypatch):
    monkeypatch.setattr("helpers.data.tokens._BATCH_DOCUMENTS", 3)
    texts, reports = ["one fox", "two owls", "three hens", "vier Füchse"], []
    staging.add(["", *texts[:3], " \n"], "train", on_batch=lambda *counts: reports.append(counts))
    staging.add(texts[3:], "", on_batch=lambda *counts: reports.append(counts))
    staging.finish()
    batches = list(staging.batches())
    assert [batch["text"].to_pylist() for batch, *_ in batches] == [texts[:2], texts[2:3], texts[3:]]
    tokens = TokenStream(load_tokenizer("pocket"))
    for batch, ids, is_prompt, _ in batches:
        assert ids.tolist() == tokens.encode(batch["text"].to_pylist())[0].tolist()
        assert is_prompt.size == 0
    assert [range(4)[documents] for *_, documents in batches] == [range(2), range(2, 3), range(3, 4)]
    assert staging.parts.tolist() == [TRAIN, TRAIN, TRAIN, UNDECIDED]
    assert staging.n_bytes.tolist() == [len(text.encode()) for text in texts]
    assert (staging.n_empty, staging.n_characters) == (2, sum(map(len, texts)))
    assert [n_bytes for n_bytes, _ in reports] == [15, 10, 12]
    assert sum(n_tokens for _, n_tokens in reports) == staging.n_tokens.sum()
    part = np.array([TRAIN, TEST, TRAIN, TRAIN])
    assert list(staging.training_texts(part)) == [texts[0], *texts[2:]], "a tokenizer never sees the test split"
    monkeypatch.setattr("helpers.data.writing.TOKENIZER_CHARACTERS", len(texts[0]) + 1)
    assert list(staging.training_texts(part)) == [texts[0], texts[2]], "the text that reaches the limit is complete"


@pytest.mark.parametrize("staging", [False, True], indirect=True, ids=["texts", "dialogues"])
def test_a_budget_takes_complete_documents_and_at_least_one(staging):
    one, two = (Dialogue(text, [3]) for text in ("one fox", "two owls"))
    assert staging.add(["", one, "", *[one] * 9, ""], "train", budget=1, on_batch=lambda *_: None)
    assert not staging.add([two], "test", on_batch=lambda *_: None)
    staging.finish()
    assert staging.n_empty == 1, "documents beyond the budget are not counted"
    tokens = TokenStream(load_tokenizer("pocket"))
    alone = [tokens.encode_dialogues([text]) for text in (one, two)]
    expected = [(ids.tolist(), is_prompt.tolist() if staging.has_prompts else []) for ids, _, is_prompt in alone]
    for _ in range(2):
        assert [(ids.tolist(), is_prompt.tolist()) for _, ids, is_prompt, _ in staging.batches()] == expected
        staging.reencode(tokens)


def test_a_budget_is_not_exceeded_by_the_first_document_of_a_batch(staging, monkeypatch):
    monkeypatch.setattr("helpers.data.tokens._BATCH_DOCUMENTS", 1)
    texts = ["one fox"] * 3 + ["one fox and many more of them"]
    each = len(load_tokenizer("pocket").encode("one fox")) + 1
    assert staging.add(texts, "", budget=3 * each + 1, on_batch=lambda *_: None)
    staging.finish()
    assert staging.n_tokens.tolist() == [each] * 3


def test_a_batch_of_only_empty_documents_is_counted(staging, monkeypatch):
    monkeypatch.setattr("helpers.data.tokens._BATCH_DOCUMENTS", 2)
    assert not staging.add(["", " ", "\n", "", "", "one fox", ""], "", budget=99, on_batch=lambda *_: None)
    staging.finish()
    assert (staging.n_empty, len(staging.n_tokens)) == (6, 1)


def test_passages_are_staged_without_an_end_of_text(staging):
    staging.is_continuous = True
    assert not staging.add(["one fox", "\nran home"], "", on_batch=lambda *_: None)
    staging.finish()
    tokenizer = load_tokenizer("pocket")
    ((_, ids, _, _),) = staging.batches()
    assert ids.tolist() == tokenizer.encode("one fox\nran home")


def test_an_empty_staging_has_no_documents(staging):
    staging.finish()
    assert list(staging.batches()) == []
    assert len(staging.parts) == len(staging.n_tokens) == len(staging.n_bytes) == 0
