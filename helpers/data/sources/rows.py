"""What a row of any table is: its place and its values; and the checks that all kinds of tables share."""

from collections.abc import Mapping, Sequence
from typing import Any

from helpers.settings import SettingsError

Row = tuple[str, Mapping[str, Any]]  # its place, for error messages, and its values


def check_names(columns: Sequence[str], name: str) -> None:
    """Raise `SettingsError` when two columns have one name, or none has any: nobody can say which is the text."""
    for column in columns:
        if column and columns.count(column) > 1:
            raise SettingsError(f"{name} has {columns.count(column)} columns called {column!r}: rename all but one.")
    if columns and not any(columns):
        raise SettingsError(f"{name} has no names of columns in its first line: write them there, such as 'text'.")
