"""The second pass: each part's documents and blocks, written side by side while the staged text is read once."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from helpers.data.leakage import Leakage
from helpers.data.splitting import TRAIN
from helpers.data.staging import SPLITS, Staging
from helpers.data.store import BlockWriter, TableWriter, save_splits
from helpers.settings import DataSettings, SettingsError


def distribute(
    staging: Staging, code: np.ndarray, settings: DataSettings, folder: Path, leakage: Leakage
) -> dict[str, dict[str, Any]]:
    """Write each part's documents and blocks in one pass; return what `data.json` says of the parts.

    Raises:
        SettingsError: a part has less than one block.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(Part(name, settings, folder)) for name in SPLITS]
        for texts, ids, documents in staging.batches():
            for place, part in enumerate(parts):
                mine = code[documents] == place
                my_ids = ids[np.repeat(mine, staging.n_tokens[documents])]
                part.add(texts.filter(mine), my_ids, staging.n_tokens[documents][mine])
                if place == TRAIN:
                    leakage.add_train(my_ids)
        facts = {part.name: part.finish() for part in parts}
    save_splits(folder / "blocks", [name for name in SPLITS if name != "test"])
    save_splits(folder / "documents", list(SPLITS))
    return facts


class Part:
    """One part of the split while it is written."""

    def __init__(self, name: str, settings: DataSettings, folder: Path) -> None:
        import pyarrow as pa

        self.name, self._digest = name, hashlib.sha256()
        self._n_bytes = self._n_tokens = 0
        self._schema = pa.schema([("text", pa.string()), ("n_tokens", pa.int32())])
        self._documents = TableWriter(folder / "documents" / name, self._schema)
        # the test text is scored by sliding windows, not in blocks
        self._blocks = BlockWriter(folder / "blocks" / name, settings.block_size) if name != "test" else None

    def add(self, texts: Any, ids: np.ndarray, n_tokens: np.ndarray) -> None:
        """Add documents: their texts, their tokens one after the other, and the tokens of each."""
        import pyarrow as pa

        self._documents.write(pa.RecordBatch.from_arrays([texts, pa.array(n_tokens, pa.int32())], schema=self._schema))
        for text in texts:
            encoded = text.as_buffer()
            self._digest.update(encoded)
            self._digest.update(b"\0")
            self._n_bytes += encoded.size
        self._n_tokens += len(ids)
        if self._blocks:
            self._blocks.add(ids)

    def finish(self) -> dict[str, Any]:
        """Close the files and return the counts; raise `SettingsError` when there is less than a block."""
        counts: dict[str, Any] = {"documents": self._documents.n_rows, "bytes": self._n_bytes}
        counts |= {"sha256": self._digest.hexdigest(), "tokens": self._n_tokens}
        if self._blocks:
            check_enough(self.name, self._n_tokens, self._blocks.block_size)
            dropped = self._n_tokens - self._blocks.n_rows * self._blocks.block_size
            counts |= {"blocks": self._blocks.n_rows, "tokens_dropped": dropped}
            self._blocks.close(f"{self._blocks.block_size}-{counts['sha256']}")
        self._documents.close(counts["sha256"])
        return counts

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *error: object) -> None:
        for table in filter(None, (self._documents, self._blocks)):
            table.__exit__(None, None, None)


def check_enough(name: str, n_tokens: int, block_size: int) -> None:
    """Raise `SettingsError` when a part of the split has less than one block of text."""
    if n_tokens < block_size:
        larger_share = "" if name == "train" else f"a larger {name}_share, "
        raise SettingsError(
            f"The {name} text has {n_tokens} tokens, less than one block of {block_size}: "
            f"use {larger_share}more text or a smaller block_size."
        )
