"""The rows of JSON Lines and JSON files, in the forms in which tables are written there."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from helpers.data.sources.rows import Row
from helpers.data.sources.texts import check_length, split_lines
from helpers.settings import SettingsError


def json_lines(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; empty lines are skipped.

    A file of that name with one list, or with objects over several lines, is read as JSON.
    """
    chunks = iter(chunks)
    head = ""
    for chunk in chunks:
        head += chunk
        if "\n" in head.lstrip():
            break
    chunks = chain([head], chunks)
    first_line = head.lstrip().partition("\n")[0].rstrip()
    if first_line == "{" or re.match(r"\[\s*(\{|$)", first_line):
        yield from json_rows(name, chunks)
        return
    for number, line in enumerate(split_lines(chunks, name=name), start=1):
        if line and not line.isspace():
            yield f"line {number}", _check_object(_loads(json.loads, line, name, number), f"{name}, line {number}")


def json_rows(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of a JSON file.

    It may be a list of objects or of texts, objects one after the other, or one object: a list of rows in one of its
    fields, a list for each column, or an object for each row or column, as pandas writes them.
    """
    for number, (line, value, is_in_list) in enumerate(_json_values(name, chunks)):
        values = [{"text": value}] if is_in_list and isinstance(value, str) else [value]
        if not is_in_list and isinstance(value, dict) and number == 0:
            values = _rows_of_object(value)
        for each in values:
            yield f"line {line}", _check_object(each, f"{name}, line {line}")


def _rows_of_object(value: Mapping[str, Any]) -> Iterable[Any]:
    """Return the rows that one object holds; itself where it is a row."""
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
    """Return whether a value is a message of a conversation."""
    return isinstance(item, dict) and ({"role", "content"} <= set(item) or {"from", "value"} <= set(item))


def _check_object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f'{place}: a row must be an object such as {{"text": "..."}}, not {json.dumps(value)[:40]}.'
        )
    return value


def _loads(load: Callable[..., Any], text: str, name: str, line: int, *place: int) -> Any:
    """Decode JSON; raise `SettingsError` for what is no error of its grammar but cannot be decoded either."""
    try:
        return load(text, *place)
    except json.JSONDecodeError as error:
        if place:
            raise
        raise SettingsError(f"{name}, line {line} is broken JSON ({error.msg}): fix the line.") from None
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError:  # Python refuses to read such a number, because that takes quadratic time
        reason = "holds a number of more than 4,300 digits"
    raise SettingsError(f"{name}, line {line} {reason}: it is not a row of text, so delete or fix it.")


def _json_values(name: str, chunks: Iterable[str]) -> Iterator[tuple[int, Any, bool]]:
    """Yield the line each value begins at, the value, and whether a list is around the values.

    Not `json.load`, and not the JSON reader of `datasets`: both need the whole file in memory.
    """
    decode, buffer, line, is_list = json.JSONDecoder().raw_decode, "", 1, None
    for chunk in chain(chunks, [None]):  # None: the end of the file
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
                value, end = _loads(decode, buffer, name, line, begin)
            except json.JSONDecodeError as error:
                if chunk is None or _is_broken(error, buffer):
                    error_line = line + buffer.count("\n", begin, error.pos)
                    raise SettingsError(
                        f"{name}, line {error_line} is broken JSON ({error.msg}): fix the line."
                    ) from None
                check_length(len(buffer) - begin, f"{name}, line {line} has a value")
                break
            yield line, value, is_list
            line, position = line + buffer.count("\n", begin, end), end
        buffer = buffer[position:]


def _is_broken(error: json.JSONDecodeError, buffer: str) -> bool:
    """Return whether an error is inside the buffer, and not at its end where the next chunk may complete the value."""
    # Near the end, the cause may be a word such as `false`, or an escape, that the end of the chunk cut in two.
    return error.pos < len(buffer) - 64 and not error.msg.startswith("Unterminated")
