"""Text cut into pieces: at blank lines, at line ends, at a separator of your own, or not at all."""

import re
from collections.abc import Iterable, Iterator

from helpers.settings import SettingsError

MAX_DOCUMENT_CHARACTERS = 2**26  # a novel has a million; anything longer is not one document and may not fit in memory
_PATTERNS = {"row": r"\n", "line": r"\n", "blank line": r"\n[^\S\n]*\n"}


def split_text(chunks: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    r"""Yield the pieces of a text, without the white space around them; empty ones are left out.

    Args:
        chunks: the text, piece by piece.
        separator: 'file', 'blank line', 'row' or 'line', or the text between two pieces.
        name: how an error calls the text.

    Raises:
        SettingsError: one document has more than 64 million characters.

    >>> list(split_text(["a\n", "\nb", "\n \n\nc"], "blank line", name="x"))
    ['a', 'b', 'c']
    """
    pattern = None if separator == "file" else re.compile(_PATTERNS.get(separator, re.escape(separator)))
    for pieces in _pieces(chunks, pattern, name):
        yield from filter(None, map(str.strip, pieces))


def _pieces(chunks: Iterable[str], pattern: re.Pattern[str] | None, name: str) -> Iterator[list[str]]:
    """Yield the text between the matches of a pattern, as soon as each piece is complete."""
    rest, new, n_new = "", [], 0
    for chunk in chunks:
        new.append(chunk)
        n_new += len(chunk)
        if n_new >= len(rest):  # search again only when the text has doubled: else a long piece takes quadratic time
            text = "".join([rest, *new])
            *complete, rest = pattern.split(text) if pattern else [text]
            new, n_new = [], 0
            yield complete
        check_length(len(rest) + n_new, f"{name} has a document")
    yield pattern.split("".join([rest, *new])) if pattern else ["".join([rest, *new])]


def split_lines(chunks: Iterable[str], *, name: str) -> Iterator[str]:
    r"""Yield the lines of a text without their ends; what follows the last end counts when it is not empty.

    Unlike `str.splitlines`, only `\n` ends a line: JSON and CSV may hold other line separators inside a value.
    """
    last = None
    for pieces in _pieces(chunks, re.compile("\n"), name):
        for piece in pieces:
            if last is not None:
                yield last
            last = piece
    if last:
        yield last


def check_length(n_characters: int, subject: str) -> None:
    """Raise `SettingsError` when a text is too long to be one document; `subject` begins the sentence."""
    if n_characters > MAX_DOCUMENT_CHARACTERS:
        raise SettingsError(
            f"{subject} of more than {MAX_DOCUMENT_CHARACTERS // 2**20} million characters: split it into documents; "
            "for text files set document_separator to 'line', 'blank line' or the text between two documents."
        )
