"""Formatting: sizes, durations, "did you mean", tables, status marks and the palette.

Only the standard library is imported: the doctor uses this before anything is installed.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from html import escape, unescape
from pathlib import PureWindowsPath
from typing import Any

GIB, MIB = 2**30, 2**20
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")  # escape sequences of terminals
_MAX_QUOTED = 300  # characters of a value that a message quotes
QUIET_SECONDS = 10  # before a progress bar appears
_LONGEST_LINE = 120  # characters of a row in a text table, without its last column

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, and a grey.
BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#777777", "#D55E00"

# status -> mark, background, text colour; some are darker than the palette, so that white text is readable on them
STATUS_MARKS = {
    "ok": ("✓", BLUE, "#ffffff"),
    "warn": ("!", ORANGE, "#000000"),
    "fail": ("✗", "#b34700", "#ffffff"),
    "unknown": ("?", "#595959", "#ffffff"),
    "absent": ("\u2013", GREY, "#ffffff"),
}


_LONGEST_IN_SECONDS = 600  # runs of the pocket model take minutes, and differ by seconds


def size_text(n_bytes: float) -> str:
    """Return a number of bytes in GiB or MiB.

    >>> size_text(3 * GIB), size_text(20 * MIB)
    ('3.0 GiB', '20 MiB')
    """
    return f"{n_bytes / GIB:.1f} GiB" if abs(n_bytes) >= GIB else f"{n_bytes / MIB:,.0f} MiB"


def duration_text(seconds: float) -> str:
    """Return a duration as text, with less precision the longer it is.

    >>> duration_text(0.784), duration_text(8), duration_text(130), duration_text(4000)
    ('0.78 s', '8 s', '130 s', '1 h 07 min')
    """
    if 0.1 <= seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < _LONGEST_IN_SECONDS:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def duration_range(shortest: float, longest: float) -> str:
    """Return a range of durations, both in the same unit.

    >>> duration_range(8, 33), duration_range(323, 840), duration_range(700, 4000)
    ('8 s to 33 s', '5 min to 14 min', '12 min to 1 h 07 min')
    """
    low = f"{shortest / 60:.0f} min" if shortest < _LONGEST_IN_SECONDS <= longest else duration_text(shortest)
    return f"{low} to {duration_text(longest)}"


def predicted_and_measured(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, predicted, measured) rows of time and memory from a run's `training.json`; '' if not known.

    Predicted is the time of the steps. A run also sets up the libraries, validates, and writes samples and checkpoints.
    """
    predicted = facts.get("predicted") or {}
    seconds, peak = predicted.get("seconds"), predicted.get("peak_bytes")
    time = duration_range(*seconds) if seconds else ""
    steps_seconds = facts.get("steps", 0) * facts.get("step_seconds", 0.0)
    return [
        ("time of the steps", time, duration_text(steps_seconds) if steps_seconds else ""),
        ("time of the run", "", duration_text(facts["seconds"])),
        ("peak memory", size_text(peak) if peak else "", size_text(facts["peak_bytes"])),
    ]


def did_you_mean(name: str, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return the end of a sentence about an unknown name: the known names that it abbreviates, the nearest, or all.

    >>> did_you_mean("learning_rte", ["learning_rate", "seed"]), did_you_mean("xyz", ["b", "a"])
    ("; did you mean 'learning_rate'?", '; there are a, b.')
    >>> did_you_mean("batch_size", ["block_size", "train_batch_size"]), did_you_mean("lr", ["lora_r", "learning_rate"])
    ("; did you mean 'train_batch_size'?", "; did you mean 'lora_r' or 'learning_rate'?")
    """
    names = list(names)
    initials = {each: "".join(word[:1] for word in each.split("_")) for each in names}
    longer = [each for each in names if len(name) > 1 and (name in each or name == initials[each])]
    nearest = longer[:3] or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if nearest:
        return f"; did you mean {' or '.join(map(repr, nearest))}?"
    return f"; there are {', '.join(sorted(names))}." if names else "."


def cut(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters; an ellipsis marks the cut.

    >>> cut("a long story", 7)
    'a long…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def quoted(value: Any) -> str:
    """Return a value as a message quotes it, shortened if it is long."""
    return cut(repr(value), _MAX_QUOTED)


def perplexity_text(loss: float) -> str:
    """Return the perplexity of a mean loss in nats per token.

    >>> perplexity_text(3.26), perplexity_text(20.0), perplexity_text(800.0)
    ('26.05', '4.9e+08', 'too large')
    """
    if loss > 700:  # a run that diverged: its exponential would overflow a float
        return "too large"
    return f"{math.exp(loss):,.2f}" if loss < 14 else f"{math.exp(loss):.1e}"


def metric_text(value: float | None, form: str, interval: list[float] | None = None) -> str:
    """Return a metric with its interval as text; None stands for a value that overflowed, as in evaluation.json.

    >>> metric_text(3.14159, ".2f", [3.1, 3.2]), metric_text(None, ".2f")
    ('3.14 [3.10 to 3.20]', 'too large')
    """
    if value is None:
        return "too large"
    return f"{value:{form}}" + (f" [{interval[0]:{form}} to {interval[1]:{form}}]" if interval else "")


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message (the second too after a colon), or its type; no full stop.

    >>> first_line(ValueError("Too short.\nTry another.")), first_line(ValueError("n:\n  not 6")), first_line(OSError())
    ('Too short', 'n: not 6', 'OSError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".")


def fenced(text: str) -> str:
    """Return text as a Markdown code block whose fence the text itself cannot close."""
    fence = backticks_around(text, least=3)
    return f"{fence}text\n{text}\n{fence}"


def backticks_around(text: str, *, least: int = 1) -> str:
    """Return a run of at least `least` backticks, longer than any in a text.

    >>> backticks_around("plain"), backticks_around("a `word`")
    ('`', '``')
    """
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def last_part(path: str) -> str:
    r"""Return the last part of a path, whichever system wrote it.

    >>> last_part("/data/letters/mine.txt"), last_part(r"C:\letters\mine.txt"), last_part("C:/letters/mine.txt")
    ('mine.txt', 'mine.txt', 'mine.txt')
    """
    return PureWindowsPath(path).name  # Windows accepts both slashes


def printable(text: str, *, keep: str = "") -> str:
    r"""Remove terminal escapes and replace control characters by spaces: a file or process name can contain anything.

    >>> printable("a\x07\x1b[31mb\nc", keep="\n")
    'a b\nc'
    """
    text = _ESCAPES.sub("", text)
    if text.translate(dict.fromkeys(map(ord, keep), " ")).isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def print_any_character() -> None:
    """Make the standard output print "?" for a character that its encoding lacks, instead of raising."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def announce(sentence: str) -> None:
    """Print on a terminal what a command is about to do; a script or a log file needs no such line."""
    if sys.stderr.isatty():
        print(printable(sentence), file=sys.stderr, flush=True)


class Html(str):
    """Text that is already HTML: neither `html_table` nor a template escapes it."""

    def __html__(self) -> str:
        """Return itself, as Jinja asks for it."""
        return self


class PlainTextMixin:
    """Mixin for results: without HTML, as in a terminal or a log, IPython shows `str` and not every field.

    The text is `printable`: a result may quote a file's name, or the settings of a run that somebody else sent.
    """

    def __str__(self) -> str:
        """Return the text of the HTML; a class may override this."""
        return html_text(self._repr_html_())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if text := vars(cls).get("__str__"):
            cls.__str__ = wraps(text)(lambda self: printable(text(self), keep="\n\t"))
        # set on each class: IPython prefers a dataclass's own `__repr__` to an inherited `_repr_pretty_`
        cls._repr_pretty_ = lambda self, printer, cycle: printer.text(str(self))


@contextmanager
def progress_bar(total: int | None, *, unit: str, leave: bool = False, **how: Any) -> Iterator[Any]:
    """Show a `tqdm` bar after ten seconds, but not in a notebook that a runner executes, where it would stay."""
    from tqdm.auto import tqdm

    is_hidden = (kernel := notebook_kernel()) is not None and not allows_input(kernel)
    with tqdm(total=total, unit=unit, delay=QUIET_SECONDS, leave=leave, disable=is_hidden, **how) as bar:
        yield bar
        bar.total = bar.n  # a notebook's bar that ends below its total turns red and stays, as after an error
        if (widget := getattr(bar, "container", None)) and not leave:
            # tqdm would close the widget, and a reloaded page would not find what the cell's output refers to
            widget.layout.display, bar.leave = "none", True


def notebook_kernel() -> Any:
    """Return the kernel that runs this code, or None outside of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return getattr(get_ipython(), "kernel", None)


def allows_input(kernel: Any) -> bool:
    """Return whether a person can watch: a front end allows input, notebook runners do not."""
    # ipykernel stores `allow_stdin` of the latest execute request here; nbclient, used by both runners, sends False
    return bool(getattr(kernel, "_allow_stdin", False))


def status_badge(status: str) -> Html:
    """Return a status with its mark, in its colours; `status` is a key of `STATUS_MARKS`."""
    mark, background, text = STATUS_MARKS[status]
    style = f"background:{background};color:{text};padding:1px 7px;border-radius:4px;white-space:nowrap"
    return Html(f"<b style='{style}'>{mark} {status}</b>")


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "") -> str:
    """Return an HTML table; `head` (may be empty) names the columns, and everything except `Html` is escaped.

    Numbers are right-aligned, with thousands separators or four significant digits; None becomes an empty cell.

    >>> html_table([], [[1234, None]])
    "<table><tbody><tr><td style='text-align:right;vertical-align:top'>1,234</td><td></td></tr></tbody></table>"
    """
    named = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    head_row = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{named}{f'<thead><tr>{head_row}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f"<td style='text-align:right;vertical-align:top'>{text}</td>"
    style = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;max-width:48em"
    if isinstance(value, Html):
        return f"<td style='{style}'>{value}</td>"
    # without a minimum width, a narrow page would break it between any two letters
    return f"<td style='{style};min-width:{min(len(str(value)), 16)}ch'>{escape(str(value))}</td>"


def html_text(page: str) -> str:
    """Convert HTML made by the course to text, with aligned tables and without drawings and folded details.

    >>> print(html_text("<p>Two <b>runs</b>:</p>" + html_table(["run", "loss"], [["pocket", 3.5], ["a", None]])))
    Two runs:
    run     loss
    pocket  3.5
    a
    """
    page = re.sub(r"<(details|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    parts = re.split(r"(<table.*?</table>)", page, flags=re.DOTALL)
    texts = (_table_text(part) if part.startswith("<table") else _plain_text(part) for part in parts)
    text = "\n".join(text.rstrip() for text in texts if text.strip())
    return printable(re.sub(r"\n{3,}", "\n\n", text), keep="\n")


def _plain_text(part: str) -> str:
    part = re.sub(r"<br>|(?:</(?:p|li|ol|ul|div|h4|caption)>)+", "\n", part)
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"<mark[^>]*>", "[", part).replace("</mark>", "]")))


def _table_text(table: str) -> str:
    caption = "".join(re.findall(r"<caption.*?</caption>", table, re.DOTALL))
    rows = [
        [" ".join(_plain_text(cell).split()) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[ >].*?</tr>", table, re.DOTALL)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(widths[:-1]) > _LONGEST_LINE and "<thead>" in table:  # one line per cell, an empty line between rows
        head, *rows = rows
        records = ("\n".join(f"{name}: {cell}" for name, cell in zip(head, row, strict=True)) for row in rows)
        return _plain_text(caption) + "\n\n".join(records)
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return _plain_text(caption) + "\n".join(lines)
