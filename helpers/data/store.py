"""Tables written row by row into folders that `datasets.load_from_disk` opens, never more than a batch in memory."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


class TableWriter:
    """Writes one data set: `with TableWriter(folder, schema) as table: table.write(batch)`.

    Args:
        folder: where it goes; it is made.
        schema: of the Arrow batches.
        torch: whether the data set is to give torch tensors.
    """

    def __init__(self, folder: Path, schema: "pa.Schema", *, torch: bool = False) -> None:
        import pyarrow as pa
        from datasets import Dataset

        folder.mkdir(parents=True)
        self.folder, self.n_rows = folder, 0
        self._empty: Dataset = Dataset(schema.empty_table()).with_format("torch" if torch else None)
        self._rows = folder / "data-00000-of-00001.arrow"
        self._schema = self._empty.features.arrow_schema
        self._open = ExitStack()
        file = self._open.enter_context(pa.OSFile(str(self._rows), "wb"))
        self._writer = self._open.enter_context(pa.ipc.new_stream(file, self._schema))

    def write(self, batch: "pa.RecordBatch") -> None:
        """Add the rows of a batch."""
        if batch.num_rows:
            self._writer.write_batch(batch.cast(self._schema))
            self.n_rows += batch.num_rows

    def close(self, fingerprint: str) -> None:
        """Finish the folder; `fingerprint` tells this content from any other, for the library's own caches."""
        from datasets import Dataset

        self._open.close()
        named = Dataset(self._empty.data, fingerprint=fingerprint).with_format(self._empty.format["type"])
        named.save_to_disk(self.folder)  # the library writes all but the rows
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        state["_data_files"] = [{"filename": self._rows.name}]
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()


class BlockWriter(TableWriter):
    """Writes a stream of tokens as rows of `block_size`, and keeps what is not a whole row yet for the next call."""

    def __init__(self, folder: Path, block_size: int) -> None:
        super().__init__(folder, block_schema(block_size), torch=True)
        self.block_size, self.n_tokens = block_size, 0
        self._rest = np.empty(0, np.int32)

    def add(self, ids: np.ndarray) -> None:
        """Go on with the stream. ids: (tokens,)."""
        import pyarrow as pa

        self.n_tokens += len(ids)
        rows, self._rest = cut(np.concatenate([self._rest, ids.astype(np.int32)]), self.block_size)
        self.write(pa.RecordBatch.from_arrays([rows], names=["input_ids"]))


def cut(stream: np.ndarray, block_size: int) -> tuple["pa.FixedSizeListArray", np.ndarray]:
    """Return the whole blocks of a stream of tokens, and the tokens that are left over."""
    import pyarrow as pa

    whole = len(stream) - len(stream) % block_size
    return pa.FixedSizeListArray.from_arrays(pa.array(stream[:whole], pa.int32()), block_size), stream[whole:]


def block_schema(block_size: int) -> "pa.Schema":
    """Return the schema of blocks: `input_ids`, a list of `block_size` int32."""
    import pyarrow as pa

    return pa.schema([("input_ids", pa.list_(pa.int32(), block_size))])


def save_splits(folder: Path, names: list[str]) -> None:
    """Make a folder of data sets one `DatasetDict`."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": names}), encoding="utf-8")


def as_dataset(rows: "pa.FixedSizeListArray", block_size: int) -> "Dataset":
    """Return blocks as a data set in memory."""
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.Table.from_arrays([rows], schema=block_schema(block_size))).with_format("torch")


def read_batches(path: Path) -> Any:
    """Yield the batches of a stream file, read and not memory-mapped, so that what is done with leaves the memory."""
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as batches:
        yield from batches
