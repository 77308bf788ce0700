r"""What is a document? `document_separator` says how the rows of a table, or the lines of a text, become documents.

A text's lines are its rows, so every value means the same for both:

- `row` (or `line`): each row is a document;
- `blank line`: an empty row ends a document;
- `heading`: a row such as WikiText's ` = Title = ` or Markdown's `# Title`, after an empty row, starts one;
- `pattern:REGEX`: a row that matches the regular expression anywhere starts one;
- `100 rows`: every 100 rows are a document;
- `file`: all rows of a file, or of a table in several files; a single one is a continuous text, cut into passages;
- anything else: the text between two documents.

In every case, an end-of-text marker ends a document: inside a document, the model would learn a false end.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from helpers.settings import SettingsError

END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r" ?= (?!=).*(?<!=) = ?")
_MARKDOWN_HEADING = re.compile(r"# .*\S.*")  # `auto` does not look for it: elsewhere it is a comment
PASSAGE_CHARACTERS = 1000  # about 250 tokens: a short text has enough passages to be split and bootstrapped
_MARKERS = re.compile(r"<\|(?:startoftext|endoftext)\|>")  # fine-tuning tools for GPT-2 write this pair
MAX_DOCUMENT_CHARACTERS = 2**26  # a novel has a million; more is not one document and may not fit in memory
_PATTERNS = {"row": r"\n", "line": r"\n", "blank line": r"\n[^\S\n]*\n", "file": r"(?!)"}  # the last never matches
_ROW_COUNT = re.compile(r"(\d+) rows?")
# Cut before white space: GPT-2's tokenizer starts a new token there anyway, so passages keep the text's tokens.
_LINE_END, _WORD_END = re.compile(r"(?<=\S)(?=\n)"), re.compile(r"(?<=\S)(?=\s)")
_MAX_RATIO = 4  # passages without a line end are cut between words by this length, or anywhere if there are no spaces


def text_documents(chunks: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    r"""Yield the documents of a text file, stripped of white space; empty ones are left out.

    If rows start documents, as with `heading`, only line ends are stripped. `separator` is as in
    `document_separator`, but not 'auto'; `name` identifies the text in errors.

    >>> list(text_documents(["a\n", "\nb", "\n \n\nc"], "blank line", name="x"))
    ['a', 'b', 'c']
    """
    if begins := _start_test(separator):
        texts = _group(split_lines(chunks, name=name), begins, name)
    else:
        pieces = _pieces(chunks, _PATTERNS.get(separator, re.escape(separator)), name)
        texts = map(str.strip, chain.from_iterable(pieces))
    return filter(str.strip, _end_at_markers(texts))


def row_documents(rows: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    """Yield the documents of a table's texts, as `text_documents`; with `row`, unchanged and including empty ones.

    Empty ones are counted later. If rows start documents, a row that contains line ends is still one row.
    """
    if separator in ("row", "line"):
        return _end_at_markers(rows)
    begins = _start_test(separator)
    if begins:
        return filter(str.strip, _end_at_markers(_group((row.removesuffix("\n") for row in rows), begins, name)))
    return text_documents(row_lines(rows), separator, name=name)


def row_lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield each row with exactly one line end, so that joining the rows gives a text."""
    return (row.removesuffix("\n") + "\n" for row in rows)


def passages(chunks: Iterable[str]) -> Iterator[str]:
    """Yield one continuous text in pieces of 1,000 to 4,000 characters, cut at line ends if possible.

    Each piece starts with the white space before it. Joined, the pieces are the text without its end-of-text markers,
    the white space at its end, and pieces that would be only white space.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while cut := _passage_end(rest, start):
            yield from filter(str.strip, _MARKERS.split(rest[start:cut]))
            start = cut
        rest = rest[start:]
    yield from filter(str.strip, _MARKERS.split(rest.rstrip()))


def _passage_end(text: str, start: int) -> int | None:
    """Return where the passage that begins at `start` ends; None if more text is needed to decide."""
    earliest, latest = start + PASSAGE_CHARACTERS, start + _MAX_RATIO * PASSAGE_CHARACTERS
    if line_end := _LINE_END.search(text, earliest, latest):
        return line_end.start()
    if len(text) < latest:
        return None
    word_end = _WORD_END.search(text, earliest, latest)
    return word_end.start() if word_end else latest


def _start_test(separator: str) -> Callable[[int, str, str], bool] | None:
    """Return a test of (row number, row, previous row) for the start of a document; None if rows do not start one."""
    if separator == "heading":
        headings = (HEADING, _MARKDOWN_HEADING)
        return lambda _, row, before: not before.strip() and any(kind.fullmatch(row) for kind in headings)
    if count := _ROW_COUNT.fullmatch(separator):
        return lambda number, *_: number % int(count[1]) == 0
    if separator.startswith("pattern:"):
        pattern = re.compile(separator.removeprefix("pattern:"))
        return lambda _, row, __: bool(pattern.search(row))
    return None


def _group(rows: Iterable[str], begins: Callable[[int, str, str], bool], name: str) -> Iterator[str]:
    """Yield groups of rows joined by line ends; `begins` decides where a group starts."""
    group: list[str] = []
    n_characters, before = 0, ""
    for number, row in enumerate(rows):
        if begins(number, row, before):
            yield "\n".join(group).strip("\n")
            group, n_characters = [], 0
        group.append(row)
        n_characters += len(row) + 1
        check_length(n_characters, f"{name} has a document")
        before = row
    yield "\n".join(group).strip("\n")


def _end_at_markers(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if "<|" in text and _MARKERS.search(text):  # never in chat data: `render_chat` removes them
            yield from filter(None, map(str.strip, _MARKERS.split(text)))
        else:
            yield text


def remove_markers(text: str) -> str:
    """Return a text with each start or end-of-text marker replaced by a space."""
    return _MARKERS.sub(" ", text) if "<|" in text else text


def replace_lone_surrogates(text: str) -> str:
    """Replace unpaired surrogates with U+FFFD: JSON can contain them, but no encoding can write them."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _pieces(chunks: Iterable[str], separator: str, name: str) -> Iterator[list[str]]:
    """Yield the text between matches of a regular expression, each piece as soon as it is complete."""
    rest, new, n_new = "", [], 0
    for chunk in chunks:
        new.append(chunk)
        n_new += len(chunk)
        if n_new >= len(rest):  # search again only when the text has doubled, or a long piece would take quadratic time
            text = "".join([rest, *new])
            *complete, rest = re.split(separator, text)
            new, n_new = [], 0
            yield complete
        check_length(len(rest) + n_new, f"{name} has a document")
    yield re.split(separator, "".join([rest, *new]))


def split_lines(chunks: Iterable[str], *, name: str) -> Iterator[str]:
    r"""Yield the lines of a text without line ends; a non-empty last line without one counts too.

    Unlike `str.splitlines`, only `\n` ends a line: JSON and CSV values may contain other line separators.
    """
    last = None
    for pieces in _pieces(chunks, "\n", name):
        for piece in pieces:
            if last is not None:
                yield last
            last = piece
    if last:
        yield last


def check_length(n_characters: int, subject: str) -> None:
    """Raise `SettingsError` if a text is too long to be one document; `subject` starts the sentence."""
    if n_characters > MAX_DOCUMENT_CHARACTERS:
        raise SettingsError(
            f"{subject} of more than {MAX_DOCUMENT_CHARACTERS // 2**20} million characters: split it into documents; "
            "for text files set document_separator to 'line', 'blank line' or the text between two documents."
        )
