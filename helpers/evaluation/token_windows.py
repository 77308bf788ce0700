"""Text of any length as windows of tokens, a few at a time: what a sliding window scores, and for which document."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_PIECE_CHARACTERS = 100_000  # text that is tokenised at once
_CUT = re.compile(r"(?<=\S)(?=[ \n])")  # GPT-2 never joins a character to the white space behind it


def pieces(text: str, size: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Yield a text in pieces of about `size` characters, cut where GPT-2's tokens never go across.

    >>> list(pieces("One fox, two  foxes.", 5))
    ['One fox,', ' two  foxes.']
    """
    start = 0
    while len(text) - start > size and (cut := _CUT.search(text, start + size)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def token_stream(
    documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", *, with_ends: bool, advance: Any
) -> Iterator["np.ndarray"]:
    """Yield (2, n) arrays: the next tokens of the stream, and the document that each belongs to."""
    import numpy as np

    ends = [tokenizer.eos_token_id] if with_ends else []
    yield np.array([ends, [0] * len(ends)], np.int64)
    for batch in _text_batches(documents):
        rows = tokenizer([piece for _, piece, _ in batch], verbose=False)["input_ids"]
        rows = [ids + ends if is_last else ids for ids, (_, _, is_last) in zip(rows, batch, strict=True)]
        owners = np.repeat([number for number, _, _ in batch], [len(ids) for ids in rows])
        yield np.stack([np.array([token for ids in rows for token in ids], np.int64), owners])
        advance(sum(len(piece.encode()) for _, piece, _ in batch))


def _text_batches(documents: Iterable[str]) -> Iterator[list[tuple[int, str, bool]]]:
    """Yield some text at a time, as (document, piece of it, whether the piece is its last)."""
    batch, n_characters = [], 0
    for number, text in enumerate(documents):
        n_left = len(text)
        for piece in pieces(text):
            n_left -= len(piece)
            batch.append((number, piece, n_left == 0))
            n_characters += len(piece)
            if n_characters >= _PIECE_CHARACTERS:
                yield batch
                batch, n_characters = [], 0
    if batch:
        yield batch


def windows(stream: Iterable["np.ndarray"], stride: int, width: int) -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """Yield (tokens of a window (T + 1,), documents of the last of them, which it scores (scored,)).

    >>> import numpy as np
    >>> [(ids.tolist(), len(owners)) for ids, owners in windows([np.stack([np.arange(8)] * 2)], 2, 5)]
    [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2), ([4, 5, 6, 7], 1)]
    """
    import numpy as np

    kept = np.empty((2, 0), np.int64)
    seen = 1  # tokens at its start that cannot be scored: the first of a window, and those of the window before
    for arrived in stream:
        kept = np.concatenate([kept, arrived], axis=1)
        while kept.shape[1] >= width:
            yield kept[0, :width], kept[1, seen:width]
            kept, seen = kept[:, stride:], max(1, width - stride)
    if kept.shape[1] > seen:
        yield kept[0], kept[1, seen:]


def batches(
    windows: Iterator[tuple["np.ndarray", "np.ndarray"]], size: int
) -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """Yield up to `size` windows of one shape at a time: ids (B, T + 1) and owners (B, scored)."""
    import numpy as np

    for _, same in groupby(windows, key=lambda window: (len(window[0]), len(window[1]))):
        while rows := list(islice(same, size)):
            yield np.stack([ids for ids, _ in rows]), np.stack([owners for _, owners in rows])
