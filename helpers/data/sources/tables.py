"""Read tables row by row, and find the column that holds the text."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from helpers.data.sources.documents import check_length
from helpers.data.sources.own_split import part_of
from helpers.data.sources.rows import Row, check_names, is_message
from helpers.display import first_line
from helpers.settings import SettingsError

SAMPLE_ROWS, _SAMPLE_CHARACTERS = 1000, 2**22  # examined to find the text column
_BATCH = 32  # rows of a Parquet file in memory at once: each may be a book
_NUMBER = re.compile(r"[-+]?\d*[.,]?\d+([eE][-+]?\d+)?")
_PART_COLUMNS = ("split", "set", "subset", "partition")
_MUCH_LONGER = 4  # a column this many times as long as all others together is the text


class Table(NamedTuple):
    """A table: its name in errors, its columns with their kinds, and a function that reads rows with some columns.

    A column's kind is 'words', 'messages' (of a conversation), 'nested' (other lists and objects) or 'other'.
    """

    name: str
    columns: Mapping[str, str]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    sample: Sequence[Row] = ()  # the first rows, of a table that can be read only once


def find_text_column(table: Table, wanted: str) -> str:
    """Return the column that holds the text: the requested one, one called `text`, or the only candidate.

    Among several columns of words, one whose texts are much longer than all others is the text. `wanted` is the
    setting `text_column`.

    Raises:
        SettingsError: there is no such column, or several candidates; the message lists the columns.
    """
    columns = table.columns
    if not columns:
        raise SettingsError(f"{table.name} holds no row: delete it, or name another source.")
    if wanted and wanted in columns:
        return wanted
    # A single column is the text even when its first value is missing or a number.
    candidates = [column for column, kind in columns.items() if kind == "words" or len(columns) == 1]
    if "text" in columns:
        candidates = ["text"]
    if not wanted and len(candidates) > 1:
        lengths = _mean_lengths(table, candidates)
        longest = max(candidates, key=lengths.__getitem__)
        if lengths[longest] >= _MUCH_LONGER * (sum(lengths.values()) - lengths[longest]):
            candidates = [longest]
    nested = [column for column, kind in columns.items() if kind == "nested"]
    if not wanted and len(candidates) == 1 and (not nested or candidates == ["text"]):
        return candidates[0]
    missing = f"no column {wanted!r}" if wanted else "no column 'text', and not exactly one column of words"
    inside = f" Lists and objects, as in {nested}, are not read: convert them to text." if nested else ""
    pair = " To learn answers to questions, name two columns prompt and completion." if len(candidates) > 1 else ""
    raise SettingsError(f"{table.name} has {missing}: set text_column to one of {list(columns)[:20]}.{pair}{inside}")


def rows_of_one_part(table: Table, columns: Sequence[str]) -> Iterator[Row]:
    """Yield a table's rows with the given columns.

    Raises:
        SettingsError: a column such as `split` marks some rows for training and others for a test, which must not be
            trained on.
    """
    part_columns = [name for name in table.columns if name.lower() in _PART_COLUMNS]
    found: dict[str, dict[str, str]] = {column: {} for column in part_columns}  # part -> the value that names it
    for place, values in table.rows([*columns, *part_columns]):
        for column, names in found.items():
            value = str(values.get(column))
            if part := part_of(value):
                names.setdefault(part, value)
            if len(names) > 1:
                raise SettingsError(
                    f"{table.name}, {place}: column {column!r} divides the rows into parts, {[*names.values()]}. Write "
                    "each part to its own file, such as train.csv and test.csv, and set source to their folder, "
                    "or delete the column to use all rows."
                )
        yield place, values


def _mean_lengths(table: Table, columns: Sequence[str]) -> dict[str, float]:
    """Return the mean text length of each column, in characters."""
    lengths: dict[str, list[int]] = {column: [] for column in columns}
    for _, values in table.sample or islice(table.rows(columns), SAMPLE_ROWS):
        for column in columns:
            if isinstance(value := values.get(column), str) and value:
                lengths[column].append(len(value))
    return {column: sum(each) / max(1, len(each)) for column, each in lengths.items()}


def text_of(row: Row, column: str, *, name: str) -> str:
    """Return a row's text; empty if the column is missing or null.

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


def peek_columns(name: str, rows: Iterator[Row]) -> Table:
    """Return a table with the columns of its first rows: a single row may lack a value or hold a number."""
    sample, n_characters = [], 0
    for row in islice(rows, SAMPLE_ROWS):
        sample.append(row)
        n_characters += sum(len(value) for value in row[1].values() if isinstance(value, str))
        if n_characters > _SAMPLE_CHARACTERS:
            break
    columns: dict[str, str] = {}
    for _, values in sample:
        for column, value in values.items():
            if columns.get(column, "other") == "other":
                columns[column] = _kind_of_value(value)
    return Table(name, columns, lambda _: chain(sample, rows), sample)


def _kind_of_value(value: Any) -> str:
    if isinstance(value, (list, dict)) and value:  # an empty one does not show what it would hold
        return "messages" if isinstance(value, list) and is_message(value[0]) else "nested"
    # CSV reads numbers as text too
    return "words" if isinstance(value, str) and not _NUMBER.fullmatch(value) else "other"


def kind_of_type(kind: Any) -> str:
    """Return the kind of a column, as in `Table`, from its Arrow type."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = kind.value_type
        names = [item.field(index).name for index in range(item.num_fields)] if pa.types.is_struct(item) else []
        return "messages" if is_message(dict.fromkeys(names)) else "nested"
    if pa.types.is_nested(kind):
        return "nested"
    is_words = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "words" if is_words else "other"


def parquet_table(file: Path) -> Table:
    """Open a Parquet file as a table that reads only the requested columns.

    Raises:
        SettingsError: it is not a Parquet file.
    """
    with _open_parquet(file) as table:
        check_names(table.schema_arrow.names, str(file))
        columns = {field.name: kind_of_type(field.type) for field in table.schema_arrow}

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        with _open_parquet(file) as table:
            batches = table.iter_batches(_BATCH, columns=list(wanted))
            for number, values in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1):
                yield f"row {number}", values

    return Table(str(file), columns, rows)


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # pre_buffer would hold a whole row group in memory, which can be most of the file.
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{file} cannot be read as Parquet ({first_line(error)}).") from None
