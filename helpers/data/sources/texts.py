"""Text files cut into documents: at blank lines, at lines, at a separator of your own, or not at all."""

import re
from collections.abc import Iterable, Iterator

from helpers.settings import SettingsError

MAX_DOCUMENT_CHARACTERS = 2**26  # a novel has a million; what is longer is no document, and would not stay in memory
_PATTERNS = {"line": r"\n", "blank line": r"\n[^\S\n]*\n"}


def split_text(chunks: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    r"""Yield the documents of a text without the white space around them; none is empty.

    Args:
        chunks: the text, piece by piece.
        separator: 'file', 'blank line', 'line', or the text that stands between documents.
        name: what the text is called in an error.

    Raises:
        SettingsError: one document has more than 64 million characters.

    >>> list(split_text(["a\n", "\nb", "\n \n\nc"], "blank line", name="x"))
    ['a', 'b', 'c']
    """
    pattern = None if separator == "file" else re.compile(_PATTERNS.get(separator, re.escape(separator)))
    for pieces in _pieces(chunks, pattern, name):
        yield from filter(None, map(str.strip, pieces))


def _pieces(chunks: Iterable[str], pattern: re.Pattern[str] | None, name: str) -> Iterator[list[str]]:
    """Yield what stands between the matches of a pattern; a long piece is searched anew only when it has doubled."""
    rest, new, n_new = "", [], 0
    for chunk in chunks:
        new.append(chunk)
        n_new += len(chunk)
        if n_new >= len(rest):
            text = "".join([rest, *new])
            *whole, rest = pattern.split(text) if pattern else [text]
            new, n_new = [], 0
            yield whole
        check_length(len(rest) + n_new, f"{name} has a document")
    yield pattern.split("".join([rest, *new])) if pattern else ["".join([rest, *new])]


def lines_of(chunks: Iterable[str], *, name: str) -> Iterator[str]:
    """Yield the lines of a text without their ends; what follows the last end is one where it is not empty."""
    last = None
    for pieces in _pieces(chunks, re.compile("\n"), name):
        for piece in pieces:
            if last is not None:
                yield last
            last = piece
    if last:
        yield last


def check_length(n_characters: int, what: str) -> None:
    """Raise `SettingsError` for a text that is too long to be one document."""
    if n_characters > MAX_DOCUMENT_CHARACTERS:
        raise SettingsError(
            f"{what} of more than {MAX_DOCUMENT_CHARACTERS // 2**20} million characters: split it into documents; "
            "for text files set document_separator to 'line', 'blank line' or the text between two documents."
        )
