"""Tables read row by row: JSON lines, JSON, CSV, TSV and Parquet; and which of their columns holds the text."""

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from helpers.data.sources.compression import read_chunks
from helpers.data.sources.texts import MAX_DOCUMENT_CHARACTERS, check_length, split_lines
from helpers.display import first_line
from helpers.settings import SettingsError

Row = tuple[str, Mapping[str, Any]]  # its place, for error messages, and its values
SAMPLE_ROWS = 1000  # are looked at to find the column of the text
_BATCH = 256  # rows of a Parquet file in memory at once
_NUMBER = re.compile(r"[-+]?\d*[.,]?\d+([eE][-+]?\d+)?")


class Table(NamedTuple):
    """A table: how an error calls it, its columns with whether each holds words, and its rows with some columns."""

    name: str
    columns: Mapping[str, bool]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def find_text_column(columns: Mapping[str, bool], wanted: str, *, name: str) -> str:
    """Return the column that holds the text: the one asked for, one called `text`, or the only one that can.

    Args:
        columns: every column, and whether it holds words.
        wanted: the `text_column` of the settings; empty: find it.
        name: how an error calls the table.

    Raises:
        SettingsError: there is no such column, or there are several candidates; the columns are listed.
    """
    if wanted in columns:
        return wanted
    # A single column is the text even when its first value is missing or a number.
    candidates = [column for column, has_words in columns.items() if has_words or len(columns) == 1]
    if "text" in columns:
        candidates = ["text"]
    if not wanted and len(candidates) == 1:
        return candidates[0]
    missing = f"no column {wanted!r}" if wanted else "no column 'text', and not exactly one column of words"
    raise SettingsError(f"{name} has {missing}: set text_column to one of {list(columns)}.")


def holds_words(value: Any) -> bool:
    """Return whether a value is text and not a number written as text, as every number of a CSV file is."""
    return isinstance(value, str) and not _NUMBER.fullmatch(value)


def text_of(row: Row, column: str, *, name: str) -> str:
    """Return a row's text; empty where the column is missing or null.

    Raises:
        SettingsError: the value is not text, or far too long.
    """
    place, values = row
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SettingsError(
            f"{name}, {place}: column {column!r} holds {json.dumps(value, default=str)[:40]}, not text. "
            "Set text_column to a column of text, or fix the row."
        )
    check_length(len(value), f"{name}, {place} has a text")
    return value


def text_table(kind: str, name: str, chunks: Iterable[str]) -> Table:
    """Open a table that is stored as text; `kind` is its suffix, such as `.csv`."""
    if kind == ".json":
        return peek_columns(name, _json_rows(name, chunks))
    if kind in (".csv", ".tsv"):
        return peek_columns(name, _csv_rows(name, chunks, delimiter="\t" if kind == ".tsv" else None))
    return peek_columns(name, _json_lines(name, chunks))


def peek_columns(name: str, rows: Iterator[Row]) -> Table:
    """Return a table whose columns are those of its first rows: one row may lack a value, or hold a number."""
    sample = list(islice(rows, SAMPLE_ROWS))
    columns: dict[str, bool] = {}
    for _, values in sample:
        for column, value in values.items():
            columns[column] = columns.get(column, False) or holds_words(value)
    return Table(name, columns, lambda _: chain(sample, rows))


def _json_lines(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; empty lines are skipped."""
    for number, line in enumerate(split_lines(chunks, name=name), start=1):
        if line and not line.isspace():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise SettingsError(f"{name}, line {number} is broken JSON ({error.msg}): fix the line.") from None
            yield f"line {number}", _check_object(value, f"{name}, line {number}")


def _check_object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f'{place}: a row must be an object such as {{"text": "..."}}, not {json.dumps(value)[:40]}.'
        )
    return value


def _json_rows(name: str, chunks: Iterable[str]) -> Iterator[Row]:
    """Yield the objects of a JSON file: one list, an object that holds one list, or objects one after the other."""
    for line, value in _json_values(name, chunks):
        values = [value]
        if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
            values = next(iter(value.values()))
        for each in values:
            yield f"line {line}", _check_object(each, f"{name}, line {line}")


def _json_values(name: str, chunks: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield JSON values and the line each begins at, without the list around them and the commas between them.

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
                value, end = decode(buffer, begin)
            except json.JSONDecodeError as error:
                if chunk is None or _is_broken(error, buffer):
                    error_line = line + buffer.count("\n", begin, error.pos)
                    raise SettingsError(
                        f"{name}, line {error_line} is broken JSON ({error.msg}): fix the line."
                    ) from None
                check_length(len(buffer) - begin, f"{name}, line {line} has a value")
                break
            yield line, value
            line, position = line + buffer.count("\n", begin, end), end
        buffer = buffer[position:]


def _is_broken(error: json.JSONDecodeError, buffer: str) -> bool:
    """Return whether an error is inside the buffer, and not at its end where the next chunk may complete the value."""
    # Near the end, the cause may be a word such as `false`, or an escape, that the end of the chunk cut in two.
    return error.pos < len(buffer) - 64 and not error.msg.startswith("Unterminated")


def _csv_rows(name: str, chunks: Iterable[str], *, delimiter: str | None) -> Iterator[Row]:
    """Yield the rows of a table with a header line; without a delimiter it is the header's comma or semicolon."""
    lines = (f"{line}\n" for line in split_lines(chunks, name=name))
    header = next(lines, "")
    # Excel writes semicolons in much of Europe. csv.Sniffer is no help: it raises on a table of one column.
    delimiter = delimiter or (";" if header.count(";") > header.count(",") else ",")
    csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the library's own limit is 131,072 characters
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
        raise SettingsError(f"{name}, line {reader.line_num} is broken ({error}): fix the line.") from None


def parquet_table(file: Path, *, advance: Callable[[int], None] | None = None) -> Table:
    """Open a Parquet file, of which only the columns that are asked for are read.

    Raises:
        SettingsError: it is not a Parquet file.
    """
    with _open_parquet(file) as table:
        columns = {field.name: _is_string(field.type) for field in table.schema_arrow}

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        n_bytes, n_rows = file.stat().st_size, 0
        with _open_parquet(file) as table:
            for batch in table.iter_batches(_BATCH, columns=list(wanted)):
                for values in batch.to_pylist():
                    n_rows += 1
                    yield f"row {n_rows}", values
                if advance:
                    advance(n_bytes * batch.num_rows // table.metadata.num_rows)

    return Table(str(file), columns, rows)


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with tempfile.TemporaryFile() as unpacked:
            # pre_buffer would hold a whole row group in memory, which can be most of the file.
            yield pq.ParquetFile(_seekable(file, unpacked), buffer_size=2**20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{file} cannot be read as Parquet ({first_line(error)}).") from None


def _seekable(file: Path, unpacked: Any) -> Any:
    """Return a file in which Parquet can seek: the file itself, or its decompressed content in `unpacked`."""
    if file.suffix.lower() == ".parquet":
        return file
    for chunk in read_chunks(file):
        unpacked.write(chunk)
    unpacked.seek(0)
    return unpacked


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
