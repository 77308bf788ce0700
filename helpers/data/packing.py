"""Packing: cut a stream of tokens into blocks without padding; labels can leave tokens out of the loss."""

import numpy as np
import pyarrow as pa

from helpers.settings import SettingsError

IGNORED = -100  # a label that the loss ignores, as everywhere in transformers
BLOCK_COLUMNS = ["input_ids", "labels"]


def training_stream(ids: np.ndarray, is_prompt: np.ndarray | None) -> np.ndarray:
    """Return tokens and, if prompts are given, a second row with labels; (1 or 2, tokens) int32."""
    ids = ids.astype(np.int32)
    return np.stack([ids] if is_prompt is None else [ids, np.where(is_prompt, np.int32(IGNORED), ids)])


def cut_blocks(stream: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a stream from `training_stream` into complete blocks, and return them and the rest.

    With labels, blocks in which no token is learned are dropped. The first label of a block is ignored because nothing
    predicts it, so it must not be counted either.

    Returns:
        (1 or 2, blocks, block_size), and (1 or 2, tokens).
    """
    end = stream.shape[1] - stream.shape[1] % block_size
    blocks = stream[:, :end].reshape(len(stream), -1, block_size).copy()
    if len(blocks) == 2:
        blocks[1, :, 0] = IGNORED
        blocks = blocks[:, (blocks[1] != IGNORED).any(axis=1)]
    return blocks, stream[:, end:]


def block_batch(blocks: np.ndarray) -> pa.RecordBatch:
    """Return blocks as rows of a data set: `input_ids`, and `labels` if there are any."""
    columns = [pa.FixedSizeListArray.from_arrays(values.ravel(), blocks.shape[2]) for values in blocks]
    return pa.RecordBatch.from_arrays(columns, names=BLOCK_COLUMNS[: len(columns)])


def check_enough(name: str, n_tokens: int, block_size: int) -> None:
    """Raise `SettingsError` when a part of the split has less than one block of text."""
    if n_tokens < block_size:
        larger_share = "" if name == "train" else f"a larger {name}_share, "
        raise SettingsError(
            f"The {name} text has {n_tokens} tokens, less than one block of {block_size}: "
            f"use {larger_share}more text or a smaller block_size."
        )
