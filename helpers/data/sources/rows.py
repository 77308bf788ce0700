"""Read CSV and JSON files row by row: a row is its place, for error messages, and its values.

The delimiter and the header of a CSV file are detected, whatever its name; JSON is read in the usual forms of tables
in JSON.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from helpers.data.sources.documents import MAX_DOCUMENT_CHARACTERS, check_length, split_lines
from helpers.settings import SettingsError

Row = tuple[str, Mapping[str, Any]]

_DELIMITERS = ",\t;|"  # Excel writes semicolons in much of Europe, and tabs as "Unicode text"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_MERGED_LINES = 3


def check_names(columns: Sequence[str], name: str) -> None:
    """Raise `SettingsError` if two columns share a name or none has one: the text column would be ambiguous."""
    for column, n_times in Counter(columns).items():
        if column and n_times > 1:
            raise SettingsError(f"{name} has {n_times} columns called {column!r}: rename all but one.")
    if columns and not any(columns):
        raise SettingsError(f"{name} has no column names in its first line: write them there, such as 'text'.")


def csv_rows(name: str, chunks: Iterable[str], *, delimiter: str, note: Callable[..., None]) -> Iterator[Row]:
    """Yield the rows of a table with a header line; `note` gets each possible misreading, and its place as `file`.

    `delimiter` applies if the header contains none; `name` identifies the table in errors. `SettingsError`: a row is
    malformed or does not fit the header, or the header repeats a name.
    """
    # csv.Sniffer does not help: it raises on a one-column table, and mistakes letters of the text for delimiters.
    numbered = enumerate(split_lines(chunks, name=name))
    filled = (pair for pair in numbered if pair[1].strip())
    n_skipped, header = next(filled, (0, ""))
    if declared := re.fullmatch(r"sep=(.)\s*", header):  # a line only for Excel
        delimiter = declared[1]
        n_skipped, header = next(filled, (1, ""))
    unquoted = _QUOTED.sub("", header)
    counts = {candidate: unquoted.count(candidate) for candidate in _DELIMITERS if candidate in unquoted}
    delimiter = max(counts, key=lambda candidate: (counts[candidate], candidate == delimiter)) if counts else delimiter
    lines = (f"{line}\n" for line in chain([header], (line for _, line in numbered)))
    yield from _rows(name, lines, delimiter=delimiter, n_skipped=n_skipped, header=header, note=note)


def _rows(
    name: str, lines: Iterable[str], *, delimiter: str, n_skipped: int, header: str, note: Callable[..., None]
) -> Iterator[Row]:
    csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the library's own limit is 131,072 characters
    has_spaces = f"{delimiter} " in header
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=has_spaces)
    begin = n_skipped + 1  # the line where the current row begins
    try:
        columns = [column.strip() for column in next(reader, [])]
        while columns[-2:] == ["", ""]:  # of a sheet that was wider once, or has a title above its header
            columns.pop()
        check_names(columns, name)
        if any(len(column.split()) > 6 or column.endswith((".", "!", "?")) or column.isdecimal() for column in columns):
            advice = "Add a line with the names of the columns, such as 'text'."
            note(f"this header looks like a row, and is left out. {advice}", file=f"{name}, line {begin}")
        begin = n_skipped + reader.line_num + 1
        for values in reader:
            end = n_skipped + reader.line_num
            while len(values) > len(columns) and not values[-1]:
                values.pop()
            if len(values) > len(columns):
                raise SettingsError(
                    f"{name}, line {end}: {len(values)} values, and the header in line {n_skipped + 1} names "
                    f"{len(columns)}: put text that contains the delimiter {delimiter!r} in double quotes, or delete "
                    "the lines above the header."
                )
            if end - begin >= _MERGED_LINES and _has_rows_inside(values, len(columns), delimiter):
                advice = "If it is part of the text, double it and put the value in quotation marks."
                merges = "a quotation mark opens here and merges lines that look like rows into one row"
                note(f"{merges}. {advice}", file=f"{name}, line {begin}")
            if values:
                yield f"line {end}", dict(zip(columns, values, strict=False))
            begin = end + 1
    except csv.Error as error:
        end = n_skipped + reader.line_num
        start = f"; its row begins in line {begin}" if begin < end else ""
        raise SettingsError(f"{name}, line {end} is broken ({error}{start}): fix the line.") from None


def _has_rows_inside(values: list[str], n_columns: int, delimiter: str) -> bool:
    """Return whether most lines of a row that spans many look like rows: a quotation mark swallowed them."""
    inside = [line for value in values for line in value.split("\n")[1:-1]]
    n_like_rows = sum(line.count(delimiter) == n_columns - 1 for line in inside)
    return n_columns > 1 and n_like_rows > len(inside) / 2


def json_rows(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of a JSON or JSON Lines file.

    It may be a list of objects or of texts, objects one after the other, in one line each or in several, or a single
    object: a row with a `text`, a list of rows in one field, a list per column, or an object per row or column, as
    pandas writes them.
    """
    values = _json_values(name, chunks)
    first = list(islice(values, 2))
    for line, value, is_in_list in chain(first, values):
        rows = [{"text": value}] if is_in_list and isinstance(value, str) else [value]
        if not is_in_list and isinstance(value, dict) and len(first) == 1:
            rows = _rows_of_object(value)
        for each in rows:
            yield f"line {line}", _check_object(each, f"{name}, line {line}")


def _rows_of_object(value: Mapping[str, Any]) -> Iterable[Any]:
    """Return the rows that a single object contains, or the object itself if it is a row."""
    if isinstance(value.get("text"), str):  # its other fields, such as a list of authors, are about that text
        return [value]
    fields = list(value.values())
    inside = [field for field in fields if isinstance(field, list) and field and isinstance(field[0], dict)]
    if len(inside) == 1 and not is_message(inside[0][0]):
        return inside[0]
    if fields and all(isinstance(field, list) and len(field) == len(fields[0]) for field in fields) and not inside:
        return (dict(zip(value, row, strict=True)) for row in zip(*fields, strict=True))
    if fields and all(isinstance(field, dict) for field in fields):
        if all(key.isdecimal() for field in fields for key in field):  # pandas: column -> row number -> value
            return ({column: field.get(key) for column, field in value.items()} for key in fields[0])
        if len(fields) > 1:
            return fields
    return [value]


def is_message(item: Any) -> bool:
    """Return whether a value is a chat message."""
    return isinstance(item, dict) and ({"role", "content"} <= set(item) or {"from", "value"} <= set(item))


def _check_object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f'{place}: a row must be an object such as {{"text": "..."}}, not {json.dumps(value)[:40]}.'
        )
    return value


def _json_values(name: str, chunks: Iterable[str]) -> Iterator[tuple[int, Any, bool]]:
    """Yield for each value its first line, the value, and whether the values are in a list.

    `json.load` and the JSON reader of `datasets` both need the whole file in memory.
    """
    decode, buffer, line, is_list = json.JSONDecoder().raw_decode, "", 1, None
    for chunk in chain(chunks, [None]):  # None marks the end of the file
        buffer += chunk or ""
        position = 0  # everything before it has been decoded
        while True:
            begin = re.compile(r"[\s,\]]*" if is_list else r"\s*").match(buffer, position).end()
            line += buffer.count("\n", position, begin)
            position = begin
            if begin == len(buffer):
                break
            if is_list is None:
                is_list = buffer[begin] == "["
                position += is_list
                continue
            try:
                value, end = decode(buffer, begin)
            except json.JSONDecodeError as error:
                if chunk is None or _is_broken(error, buffer):
                    last_line = line + buffer.count("\n", begin, error.pos)
                    start = f"; its value begins in line {line}" if line < last_line else ""
                    raise SettingsError(
                        f"{name}, line {last_line} is broken JSON ({error.msg}{start}): fix the line."
                    ) from None
                check_length(len(buffer) - begin, f"{name}, line {line} has a value")
                break
            except (RecursionError, ValueError) as error:  # valid JSON that Python cannot decode
                is_deep = isinstance(error, RecursionError)
                reason = "is nested too deeply" if is_deep else "holds a number of more than 4,300 digits"
                raise SettingsError(
                    f"{name}, line {line} {reason}: it is not a row of text, so delete or fix it."
                ) from None
            yield line, value, is_list
            line, position = line + buffer.count("\n", begin, end), end
        buffer = buffer[position:]


def _is_broken(error: json.JSONDecodeError, buffer: str) -> bool:
    """Return whether an error is inside the buffer, not at its end, where the next chunk may complete the value."""
    # Near the end, the cause may be a word such as `false`, or an escape, that was cut in two by the chunk's end.
    return error.pos < len(buffer) - 64 and not error.msg.startswith("Unterminated")
