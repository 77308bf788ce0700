import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk

from helpers.data.store import BlockWriter, TableWriter, as_dataset, cut, read_batches
from helpers.model import quiet

SCHEMA = pa.schema([("text", pa.string())])


def batch(*texts):
    return pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=SCHEMA)


def test_what_is_written_batch_by_batch_is_opened_as_one_data_set(tmp_path):
    with quiet(), TableWriter(tmp_path / "t", SCHEMA) as table:
        for texts in (("one", "two"), (), ("three",)):
            table.write(batch(*texts))
        table.close("some-content")
    opened = load_from_disk(tmp_path / "t")
    assert opened["text"][:] == ["one", "two", "three"]
    assert table.n_rows == 3
    assert opened.cache_files[0]["filename"].startswith(str(tmp_path)), "memory-mapped, not read"


def test_a_stream_is_cut_where_it_would_be_cut_in_one_piece(tmp_path):
    stream = np.arange(1000, dtype=np.uint16)
    with quiet(), BlockWriter(tmp_path / "b", 16) as blocks:
        for piece in np.split(stream, [3, 3, 50, 51, 700]):
            blocks.add(piece)
        blocks.close("some-content")
    rows, rest = cut(stream, 16)
    written = load_from_disk(tmp_path / "b")["input_ids"][:]
    assert written.tolist() == as_dataset(rows, 16)["input_ids"][:].tolist()
    assert written.flatten().tolist() == stream[: len(stream) - len(rest)].tolist()
    assert blocks.n_tokens == 1000


def test_two_contents_have_two_fingerprints_and_one_content_one(tmp_path):
    found = []
    for place, name in enumerate(("a", "b", "a")):
        with quiet(), TableWriter(tmp_path / str(place), SCHEMA) as table:
            table.write(batch(name))
            table.close(name)
        found.append(load_from_disk(tmp_path / str(place))._fingerprint)
    assert found[0] == found[2] != found[1]


def test_a_file_that_was_not_finished_is_closed_by_the_error_that_stopped_it(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"), TableWriter(tmp_path / "t", SCHEMA) as table:
        table.write(batch("one"))
        raise RuntimeError("stopped")
    with pytest.raises(FileNotFoundError):
        load_from_disk(tmp_path / "t")


def test_a_stream_file_is_read_batch_by_batch(tmp_path):
    with pa.OSFile(str(tmp_path / "s"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(batch("one", "two"))
        writer.write_batch(batch("three"))
    assert [part.column(0).to_pylist() for part in read_batches(tmp_path / "s")] == [["one", "two"], ["three"]]
