"""The first pass over a source: each document is read once, tokenised once, and laid on the disk beside its marks.

In memory there are a batch of about a million letters and, for each document, a few bytes and what
`helpers.data.duplicates` keeps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from helpers.data.duplicates import Marks
from helpers.data.store import read_batches
from helpers.data.tokens import TokenStream

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test")
_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2**20, 4096


class Staging:
    """Documents on their way from a source to the parts of a split.

    Args:
        folder: an empty folder for a file of texts, one of tokens, and one of sketches.
        tokens: turns texts into ids.
        near: whether near duplicates will be looked for.

    Attributes:
        parts: the part each document comes from, a place in `SPLITS`; -1: not split yet. (documents,)
        n_tokens: of each document, with its end-of-text. (documents,)
        n_bytes: of each document, in UTF-8. (documents,)
        n_characters: of all documents.
        n_empty: documents that held nothing, and were left out.
    """

    def __init__(self, folder: Path, tokens: TokenStream, *, near: bool) -> None:
        import pyarrow as pa

        self._folder, self._tokens = folder, tokens
        self.marks = Marks(folder / "sketches" if near else None)
        self.n_characters = self.n_empty = 0
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._open = ExitStack()
        self._token_file = self._open.enter_context((folder / "tokens").open("wb"))
        file = self._open.enter_context(pa.OSFile(str(folder / "texts"), "wb"))
        self._writer = self._open.enter_context(pa.ipc.new_stream(file, pa.schema([("text", pa.string())])))

    def read(self, texts: Iterable[str], part: str, *, budget: int = 0, tell: Callable[[int, int], None]) -> None:
        """Take in the texts of a part.

        Args:
            texts: one a document; empty ones are counted and left out.
            part: 'train', 'validation' or 'test', or '' for what is to be split.
            budget: stop before the document with which there would be more tokens; 0: never.
            tell: called with the bytes of text and the tokens of each batch.
        """
        for batch in self._batched(texts):
            ids, n_tokens = self._tokens.encode(batch)
            n_taken = max(1, int(np.searchsorted(n_tokens.cumsum(), budget, "right"))) if budget else len(batch)
            ids = ids[: n_tokens[:n_taken].sum()]
            tell(self._add(batch[:n_taken], ids, n_tokens[:n_taken], part), len(ids))
            if budget and (n_taken < len(batch) or len(ids) >= budget):
                break
            budget -= len(ids) if budget else 0

    def _add(self, batch: list[str], ids: np.ndarray, n_tokens: np.ndarray, part: str) -> int:
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_arrays([pa.array(batch, pa.string())], names=["text"]))
        self._token_file.write(memoryview(ids))
        self.marks.add(batch)
        n_bytes = np.array([len(text) if text.isascii() else len(text.encode()) for text in batch], np.int32)
        code = np.full(len(batch), SPLITS.index(part) if part else -1, np.int8)
        self._rows.append((code, n_tokens.astype(np.int32), n_bytes))
        self.n_characters += sum(map(len, batch))
        return int(n_bytes.sum())

    def _batched(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Yield documents that together have about a million letters, in lists that are never empty."""
        batch, n_characters = [], 0
        for text in texts:
            if not text or text.isspace():
                self.n_empty += 1
                continue
            batch.append(text)
            n_characters += len(text)
            if n_characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
                yield batch
                batch, n_characters = [], 0
        if batch:
            yield batch

    def finish(self) -> None:
        """End the first pass: what was read can now be given out again."""
        self._open.close()
        empty = (np.empty(0, np.int8), np.empty(0, np.int32), np.empty(0, np.int32))
        self.parts, self.n_tokens, self.n_bytes = map(np.concatenate, zip(empty, *self._rows, strict=True))
        self._rows = []

    def batches(self) -> Iterator[tuple["pa.Array", np.ndarray, slice]]:
        """Yield texts, their tokens one after the other, and which documents they are."""
        first = 0
        with (self._folder / "tokens").open("rb") as file:
            for texts in read_batches(self._folder / "texts"):
                documents = slice(first, first + texts.num_rows)
                n_tokens = int(self.n_tokens[documents].sum())
                yield texts.column(0), np.fromfile(file, self._tokens.dtype, n_tokens), documents
                first = documents.stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
        self.marks.close()
