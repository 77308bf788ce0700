"""Show the tokens of a text as coloured pieces."""

import html
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.data.sources.chat import Dialogue
from helpers.data.sources.documents import replace_lone_surrogates
from helpers.data.tokens import BYTES, TokenStream
from helpers.display import PlainTextMixin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLOURS = ("#cfe8f7", "#fbe5b6", "#c9ecdd", "#f7d5c4", "#e4daf0")  # light, for black text
_NOT_LEARNED = ("#e6e6e6", "#d6d6d6")


@dataclass(frozen=True)
class TokenView(PlainTextMixin):
    """A text as tokens; a notebook shows each in a colour, with its id on hover.

    Attributes:
        pieces: each token as text; bytes that are not a complete character are written `<e7 8b>`.
        ids: each token's id.
        is_learned: whether training learns to predict the token; those that are not learned are grey.
    """

    pieces: list[str]
    ids: list[int]
    is_learned: list[bool]

    def _repr_html_(self) -> str:
        colours = {True: itertools.cycle(_COLOURS), False: itertools.cycle(_NOT_LEARNED)}
        spans = "".join(
            f"<span style='background:{next(colours[learned])};color:black' "
            f"title='{token}{'' if learned else ', not learned'}'>{_visible(piece)}</span>"
            for piece, token, learned in zip(self.pieces, self.ids, self.is_learned, strict=True)
        )
        return f"<div style='white-space:pre-wrap;font-family:monospace;line-height:1.7'>{spans}</div>"

    def __str__(self) -> str:
        """Return the pieces with bars between them."""
        return "|".join(self.pieces)


def view_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> TokenView:
    """Split a text into tokens for display; a dialogue from `render_chat` also gets its end-of-text token."""
    if isinstance(text, Dialogue):
        array, _, is_prompt = TokenStream(tokenizer).encode_dialogues([text])
        ids, is_learned = array.tolist(), (~is_prompt).tolist()
    else:
        ids = tokenizer.encode(replace_lone_surrogates(text), verbose=False)
        is_learned = [True] * len(ids)
    return TokenView([piece_of(token) for token in tokenizer.convert_ids_to_tokens(ids)], ids, is_learned)


def piece_of(token: str) -> str:
    """Return the text of a token, or its bytes if they are only part of a character."""
    if not all(character in BYTES for character in token):
        return token  # not in the byte alphabet, such as <|endoftext|> in some vocabularies
    raw = bytes(BYTES[character] for character in token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"<{raw.hex(' ')}>"


def _visible(piece: str) -> str:
    return html.escape(piece).replace("\n", "\u21b5\n")
