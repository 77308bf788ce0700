r"""What is a document? The rows of a table, or the lines of a text, become documents as `document_separator` says.

A text's lines are its rows, so every value means the same for both:

- `row` (or `line`): each is a document;
- `blank line`: a run of rows up to an empty one;
- `heading`: a row such as WikiText's ` = Title = ` or Markdown's `# Title`, with an empty row before it, starts one;
- `pattern:REGEX`: a row in which the regular expression is found starts one;
- `100 rows`: so many;
- `file`: all rows of a file, or of a table in several files; one alone is a continuous text, which is cut in passages;
- anything else: the text between two documents.

Whatever the value, an end-of-text marker ends a document: inside one, the model would learn a false end.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from helpers.settings import SettingsError

END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r" ?= (?!=).*(?<!=) = ?")
_MARKDOWN_HEADING = re.compile(r"# .*\S.*")  # `auto` does not look for it: in other texts it is a comment
PASSAGE_CHARACTERS = 1000  # about 250 tokens: enough passages to split a short text, and to draw them in a bootstrap
_MARKERS = re.compile(r"<\|(?:startoftext|endoftext)\|>")  # the pair is a convention of fine-tuning tools for GPT-2
MAX_DOCUMENT_CHARACTERS = 2**26  # a novel has a million; anything longer is not one document and may not fit in memory
_PATTERNS = {"row": r"\n", "line": r"\n", "blank line": r"\n[^\S\n]*\n"}
_COUNT = re.compile(r"(\d+) rows?")
# Cut before white space: there GPT-2's tokenizer starts a new token anyway, so passages have the text's own tokens.
_LINE_END, _WORD_END = re.compile(r"(?<=\S)(?=\n)"), re.compile(r"(?<=\S)(?=\s)")
_LONGEST = 4  # a passage without a line end is cut between words by then, and without white space anywhere


def text_documents(chunks: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    """Yield the documents of a text file, without white space around them; empty ones are left out.

    Where rows begin documents, as with `heading`, only line ends are taken from around them.
    `separator` is as in `document_separator`, but not 'auto'; `name` is how an error calls the text.
    """
    begins = _beginning(separator)
    texts = _group(split_lines(chunks, name=name), begins, name) if begins else split_text(chunks, separator, name=name)
    return filter(str.strip, _end_at_markers(texts))


def row_documents(rows: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    """Yield the documents of a table's texts: as `text_documents`, but with `row` as they are, empty ones too.

    Empty ones are counted later. Where rows begin documents, a row with line ends in it is still one row.
    """
    if separator in ("row", "line"):
        return _end_at_markers(rows)
    begins = _beginning(separator)
    if begins:
        return filter(str.strip, _end_at_markers(_group((row.removesuffix("\n") for row in rows), begins, name)))
    return text_documents(row_lines(rows), separator, name=name)


def row_lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield each row with one line end behind it: the text that the rows are when they are joined."""
    return (row.removesuffix("\n") + "\n" for row in rows)


def passages(chunks: Iterable[str]) -> Iterator[str]:
    """Yield one continuous text in pieces of 1,000 to 4,000 characters that end at line ends where there are any.

    Each begins with the white space before it. The pieces joined are the text, but for markers of its end, the white
    space at its end, and white space that would fill a piece.
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
    """Return where the passage ends that begins at `start`; None: more text is needed to know."""
    earliest, latest = start + PASSAGE_CHARACTERS, start + _LONGEST * PASSAGE_CHARACTERS
    if line_end := _LINE_END.search(text, earliest, latest):
        return line_end.start()
    if len(text) < latest:
        return None
    word_end = _WORD_END.search(text, earliest, latest)
    return word_end.start() if word_end else latest


def _beginning(separator: str) -> Callable[[int, str, str], bool] | None:
    """Return whether a row starts a document, by its number, itself and the row before; None: not decided by rows."""
    if separator == "heading":
        headings = (HEADING, _MARKDOWN_HEADING)
        return lambda _, row, before: not before.strip() and any(kind.fullmatch(row) for kind in headings)
    if count := _COUNT.fullmatch(separator):
        return lambda number, *_: number % int(count[1]) == 0
    if separator.startswith("pattern:"):
        pattern = re.compile(separator.removeprefix("pattern:"))
        return lambda _, row, __: bool(pattern.search(row))
    return None


def _group(rows: Iterable[str], begins: Callable[[int, str, str], bool], name: str) -> Iterator[str]:
    """Yield runs of rows joined by line ends; `begins` says where one starts."""
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
        if "<|" in text and _MARKERS.search(text):  # not in chat data, whose messages are freed of them before
            yield from filter(None, map(str.strip, _MARKERS.split(text)))
        else:
            yield text


def without_markers(text: str) -> str:
    """Return a text with a space in place of each marker of its end or beginning."""
    return _MARKERS.sub(" ", text) if "<|" in text else text


def replace_half_characters(text: str) -> str:
    """Replace half of a surrogate pair with U+FFFD: JSON can hold one, but no encoding can write it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_text(chunks: Iterable[str], separator: str, *, name: str) -> Iterator[str]:
    r"""Yield the pieces of a text, without the white space around them; empty ones are left out.

    The separator is 'file', 'blank line', 'row' or 'line', or the text between two pieces.

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
