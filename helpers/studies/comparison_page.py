"""A comparison of runs as text for a terminal, as a table for a notebook, and as one page with its pictures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.display import html_table
from helpers.evaluation.bootstrap import CONFIDENCE
from helpers.files import write_atomically

if TYPE_CHECKING:
    from helpers.studies.comparison import ComparedRun, RunTable

_UNKNOWN = "-"
_INTERVAL = f"{CONFIDENCE:.0%} interval"
_FIGURES = ("perplexity", _INTERVAL, "bits per byte", _INTERVAL, "validation loss")
_HEADS = (*_FIGURES, "time", "peak memory", "tokens")
_LONGEST = 24  # signs of a setting's value
_STYLE = (
    ":root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; "
    "margin: 2rem auto; padding: 0 1rem } table { border-collapse: collapse } td, th { padding: .2rem .7rem } "
    "img { max-width: 100%; background: white }"
)


def _cells(table: "RunTable", run: "ComparedRun", place: int) -> list[str]:
    """Return a run's cells as text, in the order of `_head`."""
    return [
        str(place) if run.ranked(table.by) is not None else _UNKNOWN,
        run.name,
        *(_cut(run.settings[name]) if name in run.settings else _UNKNOWN for name in table.differing),
        _number(run.perplexity, ".2f"),
        _interval(run.perplexity_interval, ".2f"),
        _number(run.bits_per_byte, ".4f"),
        _interval(run.bits_per_byte_interval, ".4f"),
        _number(run.eval_loss, ".4f"),
        _UNKNOWN if run.seconds is None else _time(run.seconds),
        _UNKNOWN if run.peak_bytes is None else f"{run.peak_bytes / 2**20:,.0f} MiB",
        _number(run.tokens, ","),
        run.state,
    ]


def _head(table: "RunTable") -> list[str]:
    return ["", "run", *table.differing, *_HEADS, "state"]


def _cut(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else "…" + text[1 - _LONGEST :]  # of a path the end tells more


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else f"{value:{form}}"


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return _UNKNOWN if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _time(seconds: float) -> str:
    """Return a measured time.

    >>> _time(75.4), _time(8000)
    ('75 s', '2 h 13 min')
    """
    if seconds < 600:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _title(table: "RunTable", number: int) -> str:
    """Return what a group is: by which figure it is sorted, and on which text it was measured."""
    part = "validation" if table.by == "eval_loss" else "test"
    text = table.groups[number][0].text(table.by)[:12]
    measured = f"{part} text {text}" if text else f"no {part} text"
    return f"By {table.by.replace('_', ' ')}, best first ({measured})"


def verdict(table: "RunTable") -> list[str]:
    """Return a sentence for each text: which run is best on it."""
    sentences = []
    for run in table.best:
        settings = ", ".join(f"{name} {_cut(run.settings[name])}" for name in table.differing if name in run.settings)
        figure = f"{table.by.replace('_', ' ')} {getattr(run, table.by):.4g}"
        sentences.append(f"Best: {run.name}, {figure}{' with ' if settings else ''}{settings}.")
    return sentences


def text(table: "RunTable") -> str:
    """Return the tables, what must be known to read them, and the best, for a terminal."""
    parts = []
    for number, group in enumerate(table.groups):
        rows = [_head(table), *(_cells(table, run, place) for place, run in enumerate(group, start=1))]
        parts.append("\n".join([_title(table, number), *_aligned(_without_empty_columns(rows))]))
    return "\n\n".join([*parts, "\n".join([*table.notes, *verdict(table)])]).rstrip()


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """Leave out what no run of the group has."""
    kept = [i for i in range(len(rows[0])) if i < 2 or any(row[i] != _UNKNOWN for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(compared: "RunTable") -> str:
    """Return the tables and the sentences as HTML; all text is escaped."""
    parts = []
    for number, group in enumerate(compared.groups):
        rows = [_head(compared), *(_cells(compared, run, place) for place, run in enumerate(group, start=1))]
        head, *body = _without_empty_columns(rows)
        parts.append(html_table(head, body, caption=_title(compared, number)))
    sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in [*compared.notes, *verdict(compared)])
    return "".join(parts) + sentences


def write_page(compared: "RunTable", path: Path) -> None:
    """Write the table and the pictures as one page that needs no network; whole or not at all."""
    from helpers.studies.comparison_plots import plot_all

    title = "Runs compared"
    pictures = "".join(f"<p><img alt='{html.escape(alt)}' src='{_embedded(ax)}'></p>" for alt, ax in plot_all(compared))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{table(compared)}{pictures}</html>"
    )
    write_atomically(path, page)


def _embedded(ax: Any) -> str:
    import matplotlib.pyplot as plt

    image = io.BytesIO()
    ax.figure.savefig(image, format="png", dpi=110)
    plt.close(ax.figure)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
