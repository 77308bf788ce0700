"""Tables read row by row: JSON lines, JSON, CSV, TSV, Parquet; the column that holds the text is found or asked for."""

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from helpers.data.sources.compression import read_chunks
from helpers.data.sources.texts import MAX_DOCUMENT_CHARACTERS, check_length, lines_of
from helpers.display import first_line
from helpers.settings import SettingsError

Row = tuple[str, Mapping[str, Any]]  # where it stands, for an error, and its values
_BATCH = 256  # rows of a Parquet file at once
_NUMBER = re.compile(r"[-+]?\d*[.,]?\d+([eE][-+]?\d+)?")


def find_column(row: Mapping[str, Any], wanted: str, *, name: str) -> str:
    """Return the column that holds the text: the one asked for, one called `text`, or the only one with words.

    Raises:
        SettingsError: there is none, or there are several; the columns are listed.
    """
    worded = [column for column, value in row.items() if isinstance(value, str) and not _NUMBER.fullmatch(value)]
    if wanted in row:
        return wanted
    if not wanted and ("text" in row or len(worded) == 1):
        return "text" if "text" in row else worded[0]
    missing = f"no column {wanted!r}" if wanted else "no column 'text' and not one column of words alone"
    raise SettingsError(f"{name} has {missing}: set text_column to one of {list(row)}.")


def text_of(row: Row, column: str, *, name: str) -> str:
    """Return a row's text; nothing there gives an empty text.

    Raises:
        SettingsError: what stands there is no text, or far too long.
    """
    place, values = row
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SettingsError(
            f"{name}, {place}: column {column!r} holds {json.dumps(value, default=str)[:40]}, not text. "
            "Set text_column to a column of text, or mend the row."
        )
    check_length(len(value), f"{name}, {place} has a text")
    return value


def json_lines(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the objects of JSON lines; empty lines are passed over."""
    for number, line in enumerate(lines_of(chunks, name=name), start=1):
        if line and not line.isspace():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise SettingsError(f"{name}, line {number} is broken JSON ({error.msg}): mend the line.") from None
            yield f"line {number}", _object(value, f"{name}, line {number}")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f'{place}: a row must be an object such as {{"text": "..."}}, not {json.dumps(value)[:40]}.'
        )
    return value


def json_rows(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the objects of one JSON list, of the one list that a JSON object holds, or of objects in a row."""
    for line, value in _json_values(name, chunks):
        if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
            values = next(iter(value.values()))
        else:
            values = [value]
        for each in values:
            yield f"line {line}", _object(each, f"{name}, line {line}")


def _json_values(name: str, chunks: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield JSON values and the line each begins at; a list around them and commas between them are passed over."""
    decode, buffer, line, is_list = json.JSONDecoder().raw_decode, "", 1, None
    for chunk in chain(chunks, [None]):  # None: the end
        buffer += chunk or ""
        at = 0
        while True:
            begin = re.compile(r"[\s,\]]*" if is_list else r"\s*").match(buffer, at).end()
            if begin == len(buffer):
                line, at = line + buffer.count("\n", at), begin
                break
            if is_list is None:
                is_list = buffer[begin] == "["
                at, line = begin + is_list, line + buffer.count("\n", at, begin)
                continue
            line += buffer.count("\n", at, begin)
            at = begin
            try:
                value, end = decode(buffer, begin)
            except json.JSONDecodeError as error:
                if chunk is None or _is_broken(error, buffer):
                    at_line = line + buffer.count("\n", begin, error.pos)
                    raise SettingsError(
                        f"{name}, line {at_line} is broken JSON ({error.msg}): mend the line."
                    ) from None
                check_length(len(buffer) - begin, f"{name}, line {line} has a value")
                break
            yield line, value
            line, at = line + buffer.count("\n", begin, end), end
        buffer = buffer[at:]


def _is_broken(error: json.JSONDecodeError, buffer: str) -> bool:
    """Tell an error amid the buffer from one that more text may heal: a value that is not all there yet."""
    return error.pos < len(buffer) - 64 and not error.msg.startswith("Unterminated")


def csv_rows(name: str, chunks: Iterable[str], *, delimiter: str | None) -> Iterator[Row]:
    """Yield the rows of a table with a header line; the delimiter is found when it is None."""
    lines = (f"{line}\n" for line in lines_of(chunks, name=name))
    header = next(lines, "")
    delimiter = delimiter or (";" if header.count(";") > header.count(",") else ",")
    csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the library's own limit is a hundred thousand
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        for values in reader:
            if len(values) > len(columns):
                raise SettingsError(
                    f"{name}, line {reader.line_num}: {len(values)} values under {len(columns)} columns: put text "
                    "that holds the delimiter into double quotes."
                )
            if values:
                yield f"line {reader.line_num}", dict(zip(columns, values, strict=False))
    except csv.Error as error:
        raise SettingsError(f"{name}, line {reader.line_num} is broken ({error}): mend the line.") from None


def parquet_rows(file: Path, wanted: str, *, advance: Callable[[int], None] | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file, of which only the column of the text is read.

    Raises:
        SettingsError: it is no Parquet file, or it is not told which column holds the text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_bytes = file.stat().st_size
    try:
        with tempfile.TemporaryFile() as unpacked:
            table = pq.ParquetFile(_seekable(file, unpacked), buffer_size=2**20, pre_buffer=False)
            column = find_column(_sketch(table.schema_arrow), wanted, name=str(file))
            n_rows = 0
            for batch in table.iter_batches(_BATCH, columns=[column]):
                for value in batch.column(0).to_pylist():
                    n_rows += 1
                    yield f"row {n_rows}", {column: value}
                if advance:
                    advance(n_bytes * batch.num_rows // table.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{file} cannot be read as Parquet ({first_line(error)}).") from None


def _seekable(file: Path, unpacked: Any) -> Any:
    """Return what Parquet can jump about in: the file, or what is unpacked of it."""
    if file.suffix.lower() == ".parquet":
        return file
    for chunk in read_chunks(file):
        unpacked.write(chunk)
    unpacked.seek(0)
    return unpacked


def _sketch(schema: Any) -> dict[str, Any]:
    """Return a row in which columns of text hold words and all others a number."""
    import pyarrow as pa

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    return {field.name: "words" if is_text(field.type) else 0 for field in schema}
