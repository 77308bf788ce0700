"""Streamed training text: blocks are made while training reads them, and are not stored on disk.

The order depends on the seed alone: the shards (files) are read one after the other in a random order, then the blocks
of each buffer are shuffled. So a resumed run reads exactly the tokens it would have read. `datasets`' own
`IterableDataset.shuffle(buffer_size)` is not used because its state omits the contents of the buffer: a resumed
stream skips those rows.
"""

import itertools
import json
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset

from helpers.data.duplicates import HeldOut
from helpers.data.run_data import PreparedData, load_run_tokenizer
from helpers.data.sources import Source
from helpers.data.tokens import TokenStream, batches_of
from helpers.files import write_atomically
from helpers.settings import DataSettings, SettingsError, run_folder

if TYPE_CHECKING:
    from datasets import Dataset

Shards = Sequence[Callable[[], Iterator[str]]]  # each call yields a shard's documents from the start


def open_training_blocks(
    data: PreparedData, settings: DataSettings, *, n_processes: int = 1
) -> "Dataset | BlockStream":
    """Return the blocks that a run trains on: those of `train`, or with `streaming` a stream of the whole text.

    The number of blocks per epoch is a multiple of `n_processes`: otherwise accelerate would fill the last batch with
    the epoch's first blocks, which a resumed run has skipped. `SettingsError`: the source of a stream is gone, or the
    Hub does not answer.
    """
    if "stream" not in data.facts:
        return data.blocks["train"]
    stream, info = data.facts["stream"], data.facts["documents"]
    as_recorded = {"document_separator": info["separator"], "source_revision": stream["revision"]}
    source = Source(settings.model_copy(update=as_recorded))
    held_out = (text for part in ("validation", "test") for text in data.documents[part]["text"])
    return BlockStream(
        source.training_shards(is_continuous=info["is_continuous"]),
        TokenStream(load_run_tokenizer(settings)),
        n_blocks=max(1, stream["blocks"] // n_processes) * n_processes,
        block_size=settings.block_size,
        seed=settings.seed,
        held_out=HeldOut(held_out, finds_near=settings.near_duplicates != "keep" and not info["is_continuous"]),
        positions=run_folder(settings.run) / "data" / "positions.json",
        buffer_blocks=stream["buffer_blocks"],
        with_ends=not info["is_continuous"],
    )


class Position(NamedTuple):
    """Where a buffer begins.

    Attributes:
        block: number of blocks in the epoch before it.
        shard: number of shards before the one where it begins; keeps counting when the source is read again.
        document: number of documents in that shard before the batch where it begins.
        token: number of tokens in that batch before it.
    """

    block: int
    shard: int
    document: int
    token: int


class BlockStream(IterableDataset):
    """The blocks of a training text, made as they are read; each epoch has the same blocks in another order.

    Args:
        shards: the training text.
        tokens: turns documents into ids.
        n_blocks: blocks per epoch. A text with fewer blocks is read again from its first shard, with a warning.
        block_size: tokens in a block.
        seed: determines the order of shards and of blocks.
        held_out: the documents that must not be trained on.
        positions: the file that stores where each buffer begins, so that a resumed run can start reading there: it
            skips earlier shards, and the earlier documents of its shard, which took 8 s in a 500 MB Parquet file.
        buffer_blocks: blocks that are shuffled together; memory holds this many twice.
        with_ends: whether an end-of-text token follows each document.
    """

    def __init__(
        self,
        shards: Shards,
        tokens: TokenStream,
        *,
        n_blocks: int,
        block_size: int,
        seed: int,
        held_out: Container[str],
        positions: Path,
        buffer_blocks: int,
        with_ends: bool = True,
    ) -> None:
        self._shards, self._tokens, self._held_out, self._with_ends = shards, tokens, held_out, with_ends
        self._n_blocks, self._block_size, self._buffer_blocks, self._seed = n_blocks, block_size, buffer_blocks, seed
        self._path, self._epoch, self._resumed = positions, 0, (0, 0)

    def __len__(self) -> int:
        """Return the number of blocks in an epoch."""
        return self._n_blocks

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the next iteration; the Trainer calls this."""
        self._epoch = epoch

    def resume_after(self, n_blocks: int) -> None:
        """Skip the first blocks of a training run, counted over all epochs.

        The Trainer still requests the skipped blocks of the current epoch and discards them: it gets zeros.
        """
        self._resumed = divmod(n_blocks, self._n_blocks)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the blocks of the epoch; `input_ids` of `block_size` tokens."""
        epoch, n_read = self._resumed
        n_read = n_read if epoch == self._epoch else 0
        yield from itertools.repeat({"input_ids": torch.zeros(self._block_size, dtype=torch.int64)}, n_read)
        for first, blocks in _prefetch(self._buffers(n_read)):
            order = np.random.default_rng([self._seed, self._epoch, first]).permutation(len(blocks))
            for row in order[max(0, n_read - first) :]:
                yield {"input_ids": torch.from_numpy(blocks[row].astype(np.int64))}

    def _buffers(self, n_read: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each buffer's first block number and its blocks, starting with the buffer that holds block `n_read`."""
        positions = self._read_positions()
        known = [position for position in positions if position.block <= n_read]
        at = known[-1] if known else Position(0, 0, 0, 0)
        batches, leftover = self._batches(at), np.empty(0, self._tokens.dtype)
        n_batch_tokens, n_used = 0, at.token  # leading tokens that an earlier buffer used
        while at.block < self._n_blocks:
            n_tokens = self._block_size * min(self._buffer_blocks, self._n_blocks - at.block)
            pieces, n_buffered = [leftover], len(leftover)
            while n_buffered < n_tokens:
                shard, document, ids = next(batches)
                n_batch_tokens = len(ids)
                pieces.append(ids[n_used:])
                # A run of an older version had longer batches, so a buffer may have used more than one of today's.
                n_buffered, n_used = n_buffered + len(pieces[-1]), max(0, n_used - len(ids))
                at = at._replace(shard=shard, document=document)
            stream = np.concatenate(pieces)
            blocks, leftover = stream[:n_tokens].reshape(-1, self._block_size), stream[n_tokens:].copy()
            first, at = at.block, at._replace(block=at.block + len(blocks), token=n_batch_tokens - len(leftover))
            if not positions or positions[-1].block < at.block:
                positions.append(at)
                write_atomically(self._path, json.dumps(positions))
            yield first, blocks

    def _batches(self, start: Position) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield batches endlessly from a position: the shard, its number of earlier documents, and the ids."""
        n_shards, n_tokens = len(self._shards), 0
        for shard in itertools.count(start.shard):
            times_read, index = divmod(shard, n_shards)
            if shard - start.shard >= n_shards and not n_tokens:
                raise SettingsError("Nothing is left to train on: all text is in validation and test.")
            if times_read == 1 and index == 0 and shard > start.shard:
                note = "The text has fewer tokens than max_tokens: it is read again from its beginning."
                warnings.warn(note, stacklevel=2)
            order = np.random.default_rng([self._seed, times_read]).permutation(n_shards)
            n_before = start.document if shard == start.shard else 0
            for batch in batches_of(itertools.islice(self._shards[order[index]](), n_before, None)):
                kept = [text for text in batch if text.strip() and text not in self._held_out]
                ids, _ = self._tokens.encode(kept, with_ends=self._with_ends)
                n_tokens += len(ids)
                yield shard, n_before, ids
                n_before += len(batch)

    def _read_positions(self) -> list[Position]:
        try:
            return [Position(*row) for row in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):  # no file yet, or a damaged one: read the epoch from its beginning
            return []


def _prefetch(buffers: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """Read the next buffer in a thread while training uses the current one; the tokenizer releases the GIL."""
    with ThreadPoolExecutor(1, thread_name_prefix="stream") as reader:
        future = reader.submit(next, buffers, None)
        while (buffer := future.result()) is not None:
            future = reader.submit(next, buffers, None)
            yield buffer
