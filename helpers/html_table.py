"""A table for a notebook: text on the left, numbers on the right, and all of it escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "") -> str:
    """Return a table as HTML.

    Args:
        head: the columns' names; empty: a table without a head.
        rows: cells; a number is shown with thousands set apart, or four digits; None as nothing; else the text.
        caption: above the table.

    >>> html_table([], [[1234, None]])
    "<table><tbody><tr><td style='text-align:right'>1,234</td><td></td></tr></tbody></table>"
    """
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    head_row = "".join(f"<th {_LEFT}>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{named}{f'<thead><tr>{head_row}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


_LEFT = "style='text-align:left'"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"<td style='text-align:right'>{f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}</td>"
    return f"<td style='text-align:left;white-space:pre-wrap;max-width:48em'>{escape(str(value))}</td>"
