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
    rest = ""
    for chunk in chunks:
        pieces = [rest + chunk] if pattern is None else pattern.split(rest + chunk)
        *whole, rest = pieces
        yield from filter(None, map(str.strip, whole))
        check_length(rest, f"{name} has a document")
    yield from filter(None, [rest.strip()])


def check_length(text: str, what: str) -> None:
    """Raise `SettingsError` for a text that is too long to be one document."""
    if len(text) > MAX_DOCUMENT_CHARACTERS:
        raise SettingsError(
            f"{what} of more than {MAX_DOCUMENT_CHARACTERS // 2**20} million characters: split it into documents; "
            "for text files set document_separator to 'line', 'blank line' or the text between two documents."
        )
