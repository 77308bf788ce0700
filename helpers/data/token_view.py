"""Tokens made visible: a text in coloured pieces."""

import html
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.data.tokens import BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLOURS = ("#cfe8f7", "#fbe5b6", "#c9ecdd", "#f7d5c4", "#e4daf0")  # light, for black letters


@dataclass(frozen=True)
class TokenView:
    """A text in its tokens; a notebook shows each in a colour, and its id under the pointer.

    Attributes:
        pieces: each token as text; bytes that are not a complete character are written `<e7 8b>`.
        ids: each token's id.
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
    """Split a text into its tokens, to look at."""
    ids = tokenizer.encode(text, verbose=False)
    return TokenView([_piece(token) for token in tokenizer.convert_ids_to_tokens(ids)], ids)


def _piece(token: str) -> str:
    """Return the text of a token, or its bytes when they are only a part of a character."""
    if not all(character in BYTES for character in token):
        return token  # not made of the alphabet, such as <|endoftext|> in some vocabularies
    raw = bytes(BYTES[character] for character in token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"<{raw.hex(' ')}>"


def _visible(piece: str) -> str:
    return html.escape(piece).replace("\n", "\u21b5\n")
