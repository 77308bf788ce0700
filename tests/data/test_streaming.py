import gc
import itertools
import tracemalloc

import pytest
import torch
from datasets import Dataset

from helpers.data.duplicates import HeldOut
from helpers.data.preparation import prepare, sample_settings
from helpers.data.streaming import BlockStream, open_training_blocks
from helpers.data.tokens import TokenStream
from helpers.model import load_tokenizer
from helpers.settings import DataSettings, SettingsError


@pytest.fixture(scope="module")
def tokens():
    return TokenStream(load_tokenizer("pocket"))


def story(shard, number):
    return f"Story {number} of shard {shard}: the fox went to well {number * number} and came home at {shard + 5}."


SHARDS = [[story(shard, number) for number in range(40)] for shard in range(5)]


@pytest.fixture
def new_stream(tokens, tmp_path):
    """Return a function that makes a stream with small buffers."""

    def make(shards=SHARDS, **how):
        given = {"n_blocks": 200, "block_size": 16, "seed": 1, "held_out": frozenset(), "buffer_blocks": 32}
        given |= {"positions": tmp_path / "positions.json", **how}
        return BlockStream([lambda shard=shard: iter(shard) for shard in shards], tokens, **given)

    return make


def rows(stream):
    return [tuple(row["input_ids"].tolist()) for row in stream]


@pytest.fixture
def short_batches(monkeypatch):
    """Encode seven documents at once, so that a shard has several batches."""
    monkeypatch.setattr("helpers.data.tokens._BATCH_DOCUMENTS", 7)


def test_unshuffled_blocks_match_the_text_cut_by_hand(new_stream, tokens, short_batches):
    ids, _ = tokens.encode(SHARDS[0])
    by_hand = ids[: 40 * 16].reshape(40, 16).tolist()
    stream = new_stream(SHARDS[:1], n_blocks=40, buffer_blocks=1)
    assert rows(stream) == [tuple(row) for row in by_hand]
    assert next(iter(stream))["input_ids"].dtype == torch.int64, "an embedding does not accept 16-bit ids"


def test_each_epoch_has_the_same_blocks_in_a_different_order(new_stream):
    stream = new_stream()
    first = rows(stream)
    stream.set_epoch(1)
    second = rows(stream)
    assert len(first) == len(stream) == 200
    assert first != second
    assert sorted(first) == sorted(second)
    assert rows(new_stream()) == first, "the seed determines the order"
    assert rows(new_stream(seed=2)) != first


@pytest.mark.parametrize("positions", ["kept", "missing", "[[0, 0, 0", "[[1, 2]", "[3]"])
def test_a_stream_resumes_at_the_exact_token_after_any_block(new_stream, positions, tmp_path, short_batches):
    stream = new_stream()
    orders = [(stream.set_epoch(epoch), rows(stream))[1] for epoch in range(3)]
    for n_blocks in (1, 31, 32, 33, 100, 199, 200, 250):
        if positions == "missing":
            (tmp_path / "positions.json").unlink(missing_ok=True)
        elif positions != "kept":
            (tmp_path / "positions.json").write_text(positions)
        resumed, (epoch, n_read) = new_stream(), divmod(n_blocks, 200)
        resumed.resume_after(n_blocks)
        resumed.set_epoch(epoch)
        assert rows(resumed)[n_read:] == orders[epoch][n_read:], f"after block {n_blocks}"
        resumed.set_epoch(epoch + 1)
        assert rows(resumed) == orders[epoch + 1], "the next epoch skips nothing"


def test_a_resume_does_not_open_finished_shards(new_stream, tokens, tmp_path):
    rows(new_stream())
    opened = []
    shards = [lambda place=place: (opened.append(place), iter(SHARDS[place]))[1] for place in range(5)]
    options = {"block_size": 16, "seed": 1, "held_out": frozenset(), "buffer_blocks": 32}
    stream = BlockStream(shards, tokens, n_blocks=200, positions=tmp_path / "positions.json", **options)
    stream.resume_after(190)
    rows(stream)
    assert len(opened) < 3


def test_held_out_documents_and_their_copies_are_in_no_block(new_stream, tokens):
    copy = SHARDS[4][3].upper().replace(" ", "  ")
    held_out = HeldOut([*SHARDS[2], SHARDS[4][3]], finds_near=False)
    read = rows(new_stream([*SHARDS, [copy]], held_out=held_out, n_blocks=180))
    text = tokens._tokenizer.decode(list(itertools.chain.from_iterable(read)))
    assert "of shard 1:" in text
    assert "of shard 2:" not in text
    assert "Story 3 of shard 4:" not in text
    assert "STORY" not in text


@pytest.mark.parametrize("finds_near", [True, False])
def test_near_duplicates_of_held_out_documents_are_skipped_unless_they_are_kept(new_stream, tokens, finds_near):
    long = " ".join(SHARDS[0][:4])
    copy = long.replace("came home", "came back", 1)
    held_out = HeldOut([long], finds_near=finds_near)
    shards, n_blocks = [SHARDS[1][:10], [copy]], 15 if finds_near else 20
    read = rows(new_stream(shards, held_out=held_out, n_blocks=n_blocks, buffer_blocks=1))
    text = tokens._tokenizer.decode(list(itertools.chain.from_iterable(read)))
    assert SHARDS[1][3] in text
    assert (SHARDS[0][1] in text) is not finds_near


def test_a_text_that_is_too_short_is_read_again_with_a_warning(new_stream):
    with pytest.warns(UserWarning, match="fewer tokens than max_tokens: it is read again"):
        read = rows(new_stream(SHARDS[:1], n_blocks=200))
    assert len(read) == 200


def test_a_stream_of_only_held_out_documents_is_refused(new_stream):
    with pytest.raises(SettingsError, match="Nothing is left to train on"):
        rows(new_stream(SHARDS[:1], held_out=HeldOut(SHARDS[0], finds_near=False)))


def test_memory_does_not_grow_with_the_text(new_stream):
    def generated(shard):
        return (story(shard, number) * 40 for number in range(50))

    def peak(n_shards):
        stream = new_stream([*range(n_shards)], n_blocks=n_shards * 3000, buffer_blocks=500)
        stream._shards = [lambda shard=shard: generated(shard) for shard in range(n_shards)]
        gc.collect()
        tracemalloc.start()
        n_blocks = sum(1 for _ in stream)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return n_blocks, highest

    (n_few, few), (n_many, many) = peak(2), peak(6)
    assert n_many == 3 * n_few
    assert many < 1.2 * few


def write_shards(folder, names, *, first=0):
    folder.mkdir(exist_ok=True)
    for shard, name in enumerate(names, first):
        Dataset.from_dict({"text": [story(shard, number) for number in range(40)]}).to_parquet(
            folder / f"{name}.parquet"
        )
    return folder


def streaming(folder, tiny_model, **more):
    given = {"block_size": 16, "streaming": True, "max_tokens": 1500, "model_name_or_path": str(tiny_model)}
    return DataSettings(run="stream", source=str(folder), **given, **more)


@pytest.mark.parametrize(
    ("third", "separator"), [("train-2", "row"), ("test-0", "row"), ("validation-0", "row"), ("train-2", "7 rows"),
                             ("train-2", "file")],
)  # fmt: skip
def test_no_validation_or_test_document_is_trained_on(third, separator, tiny_model, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr("helpers.data.preparation._BUFFER_BLOCKS", 1)  # unshuffled, so that documents stay readable
    names = [f"{name}-of-00003" for name in ("train-0", "train-1", third)]  # the shards of one table
    settings = streaming(write_shards(tmp_path / "shards", names), tiny_model, document_separator=separator)
    data = prepare(settings)
    stream = open_training_blocks(data, settings)
    text = tokens._tokenizer.decode(list(itertools.chain.from_iterable(rows(stream))))
    assert len(stream) == 1500 // 16
    stories = {story(shard, number) for shard in range(3) for number in range(40)}
    for part in ("validation", "test"):
        held_out = "\n".join(data.documents[part]["text"])
        own = {line for line in stories if line in held_out}
        assert own
        assert not [line for line in own if line in text]
    assert sum(line in text for line in stories) > 40


def test_training_cuts_documents_as_the_preparation_did_whichever_shard_it_reads_first(tiny_model, tmp_path):
    folder = write_shards(tmp_path / "shards", "b")  # alone, each row would be a document
    lines = itertools.chain.from_iterable((text[:30], text[30:], "") for text in SHARDS[0])
    Dataset.from_dict({"text": [*lines]}).to_parquet(folder / "a.parquet")
    settings = streaming(folder, tiny_model)
    stream = open_training_blocks(prepare(settings), settings)
    assert [len(list(shard())) for shard in reversed(stream._shards)] == [1, 40]


def test_a_stream_of_one_continuous_text_has_no_end_of_text_tokens(tiny_model, tmp_path, tokens):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(itertools.chain(*SHARDS)))
    settings = streaming(folder, tiny_model, document_separator="file")
    read = rows(open_training_blocks(prepare(settings), settings))
    assert tokens._tokenizer.eos_token_id not in itertools.chain(*read)


@pytest.mark.parametrize(("near_duplicates", "is_held_out"), [("report", True), ("keep", False)])
def test_a_setting_decides_whether_near_duplicates_of_held_out_documents_are_trained_on(
    near_duplicates, is_held_out, tiny_model, tmp_path
):
    folder = write_shards(tmp_path / "shards", "abc")
    settings = streaming(folder, tiny_model, document_separator="7 rows", near_duplicates=near_duplicates)
    data = prepare(settings)
    copy = data.documents["validation"]["text"][0].replace("came home", "came back", 1)
    assert (copy in open_training_blocks(data, settings)._held_out) is is_held_out


def test_a_streamed_run_stores_only_the_beginning_and_says_so(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.data.preparation._SAMPLE_TOKENS", 600)
    settings = streaming(write_shards(tmp_path / "shards", "abc"), tiny_model)
    data = prepare(settings)
    assert data.facts["tokens"] < 600
    blocks = [len(open_training_blocks(data, settings, n_processes=n)) for n in (1, 2, 4, 100)]
    assert blocks == [93, 92, 92, 100], "the same number for each process"
    assert "Training reads 1,500 tokens of the text as a stream" in data.facts["notes"][-1]
    copied = sample_settings(settings).model_copy(update={"run": "copied"})
    assert torch.equal(prepare(copied).blocks["train"]["input_ids"][:], data.blocks["train"]["input_ids"][:])


def test_a_changed_folder_is_detected_by_names_and_sizes(tiny_model, tmp_path):
    settings = streaming(write_shards(tmp_path / "shards", "abc"), tiny_model)
    prepare(settings)
    (tmp_path / "runs/stream/settings.json").write_text('{"settings": {}}')
    write_shards(tmp_path / "shards", "d", first=9)
    with pytest.raises(SettingsError, match="was trained on other data"):
        prepare(settings)


def test_prompts_cannot_be_masked_in_a_stream(tiny_model, tmp_path):
    settings = streaming(write_shards(tmp_path / "shards", "ab"), tiny_model, train_on="completion")
    with pytest.raises(SettingsError, match="streaming = True trains on all of the text"):
        prepare(settings)
