"""The rows of a table of separated values: its delimiter and its header are found, whatever the name of the file."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from helpers.data.sources.rows import Row, check_names
from helpers.data.sources.texts import MAX_DOCUMENT_CHARACTERS, split_lines
from helpers.settings import SettingsError

_DELIMITERS = ",\t;|"  # Excel writes semicolons in much of Europe, and tabs as "Unicode text"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_HEAD_LINES = 4  # a `sep=` line or a title, an empty line, the header and a row
_MERGED_LINES = 3


def csv_rows(name: str, chunks: Iterable[str], *, delimiter: str, notes: list[str]) -> Iterator[Row]:
    """Yield the rows of a table with a header line.

    Args:
        name: how an error calls the table.
        chunks: its text, piece by piece.
        delimiter: what separates values if the header has none.
        notes: gets a sentence for each thing that may have been misread.

    Raises:
        SettingsError: a row is broken or does not fit the header, or a name occurs twice in the header.
    """
    # csv.Sniffer is no help: it raises on a table of one column, and takes letters of the text for delimiters.
    lines = split_lines(chunks, name=name)
    head = list(islice(lines, _HEAD_LINES))
    if head and (named := re.fullmatch(r"sep=(.)\s*", head[0])):  # a line for Excel alone
        delimiter, n_skipped = named[1], 1
    else:
        n_skipped = 0
    if len(head) > 2 and not _counts(head[0]) and head[0].strip() and not head[1].strip() and _counts(head[2]):
        notes.append(f"{name}: line 1, {head[0].strip()[:40]!r}, was taken as a title and left out.")
        n_skipped = 1
    while n_skipped < len(head) and not head[n_skipped].strip():
        n_skipped += 1
    header = head[n_skipped] if n_skipped < len(head) else ""
    counts = _counts(header)
    delimiter = max(counts, key=lambda one: (counts[one], one == delimiter)) if counts else delimiter
    lines = (f"{line}\n" for line in chain(head[n_skipped:], lines))
    yield from _rows(name, lines, delimiter=delimiter, n_skipped=n_skipped, header=header, notes=notes)


def _counts(line: str) -> dict[str, int]:
    """Return how often each delimiter is in a line, outside quotation marks."""
    bare = _QUOTED.sub("", line)
    return {one: bare.count(one) for one in _DELIMITERS if one in bare}


def _rows(
    name: str, lines: Iterable[str], *, delimiter: str, n_skipped: int, header: str, notes: list[str]
) -> Iterator[Row]:
    csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the library's own limit is 131,072 characters
    has_spaces = f"{delimiter} " in header
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=has_spaces)
    begin = n_skipped + 1  # the line in which the present row begins
    try:
        columns = [column.strip() for column in next(reader, [])]
        check_names(columns, name)
        _note_text_in_header(columns, name, line=begin, notes=notes)
        begin = n_skipped + reader.line_num + 1
        for values in reader:
            end = n_skipped + reader.line_num
            if len(values) > len(columns):
                raise SettingsError(
                    f"{name}, line {end}: {len(values)} values under {len(columns)} columns, the names in line "
                    f"{n_skipped + 1}: put text that holds the delimiter {delimiter!r} into double quotes, or delete "
                    "the lines above the header."
                )
            if end - begin >= _MERGED_LINES:
                _note_merged(values, len(columns), delimiter, f"{name}, line {begin}", notes)
            if values:
                yield f"line {end}", dict(zip(columns, values, strict=False))
            begin = end + 1
    except csv.Error as error:
        end = n_skipped + reader.line_num
        start = f"; its row begins in line {begin}" if begin < end else ""
        raise SettingsError(f"{name}, line {end} is broken ({error}{start}): fix the line.") from None


def _note_text_in_header(columns: list[str], name: str, *, line: int, notes: list[str]) -> None:
    for column in columns:
        if len(column.split()) > 6 or column.endswith((".", "!", "?")) or column.isdecimal():
            notes.append(
                f"{name}, line {line}: {column[:40]!r} looks like a value and not like the name of a column, but the "
                "first line of a table is its header and is left out. Add a line with the names, such as 'text'."
            )
            return


def _note_merged(values: list[str], n_columns: int, delimiter: str, place: str, notes: list[str]) -> None:
    """Note a row over many lines that look like rows themselves: a quotation mark swallowed them."""
    within = [line for value in values for line in value.split("\n")[1:-1]]
    n_like_rows = sum(line.count(delimiter) == n_columns - 1 for line in within)
    if n_columns > 1 and n_like_rows > len(within) / 2 and len(notes) < 10:
        notes.append(
            f"{place}: a quotation mark opens here and makes one row of {len(within) + 2:,} lines, which look like "
            "rows of their own. If it is a part of the text, write it twice and put the value into quotation marks."
        )
