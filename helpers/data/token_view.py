"""Tokens made visible: a text in coloured pieces, and the merges by which byte-level BPE builds a word."""

import html
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.data.tokens import BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLOURS = ("#cfe8f7", "#fbe5b6", "#c9ecdd", "#f7d5c4", "#e4daf0")  # light, so that black letters stand out on them


@dataclass(frozen=True)
class TokenView:
    """A text in its tokens; in a notebook each has a colour, and its number shows under the pointer.

    Attributes:
        pieces: each token as text; bytes that are no whole letter stand as `<e7 8b>`.
        ids: each token's number.
    """

    pieces: list[str]
    ids: list[int]

    def _repr_html_(self) -> str:
        spans = "".join(
            f"<span style='background:{colour};color:black' title='{token}'>{_visible(piece)}</span>"
            for piece, token, colour in zip(self.pieces, self.ids, itertools.cycle(_COLOURS), strict=False)
        )
        return f"<div style='white-space:pre-wrap;font-family:monospace;line-height:1.7'>{spans}</div>"

    def __str__(self) -> str:
        """Return the pieces with bars between them."""
        return "|".join(self.pieces)


def view_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> TokenView:
    """Return a text in its tokens."""
    ids = tokenizer.encode(text, verbose=False)
    return TokenView([_piece(sign) for sign in tokenizer.convert_ids_to_tokens(ids)], ids)


def merge_steps(tokenizer: "PreTrainedTokenizerBase", word: str) -> list[str]:
    """Return how byte-level BPE builds a word: its bytes, then the pieces after each merge, with bars between them.

    The pair that stands first in the tokenizer's list of merges is joined first
    (https://arxiv.org/abs/1508.07909, algorithm 1).
    """
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    signs = {byte: sign for sign, byte in BYTES.items()}
    pieces = [signs[byte] for byte in word.encode()]
    steps = [pieces]
    while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
        pieces = _joined(pieces, min(pairs, key=ranks.__getitem__))
        steps.append(pieces)
    return ["|".join(map(_piece, step)) for step in steps]


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join a pair wherever it stands, from the left."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _piece(signs: str) -> str:
    """Return what a token of the vocabulary stands for: text, or bytes where it is a part of a letter."""
    if not all(sign in BYTES for sign in signs):
        return signs  # a token beside the alphabet, such as <|endoftext|>
    raw = bytes(BYTES[sign] for sign in signs)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"<{raw.hex(' ')}>"


def _visible(piece: str) -> str:
    return html.escape(piece).replace("\n", "\u21b5\n")
