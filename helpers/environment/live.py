"""The live monitor, in place of a second terminal with `nvidia-smi`: memory, load, power, heat, and who holds memory.

`sample` reads once, `History` keeps the last readings as plain rows, `Monitor` shows them. On a machine without a card
it is the computer's own memory and load. A reading is made in a child process, so it can neither hang nor crash the
kernel, and it takes no memory of the card.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from helpers.environment.facts import GIB, Holder
from helpers.environment.machine import read_memory
from helpers.environment.nvml import read_nvml

_LIMIT_SECONDS = 5.0
_BARS = "▁▂▃▄▅▆▇█"
_QUANTITIES = (  # attribute, title, unit, highest value (None: the largest seen)
    ("memory_gib", "memory", "GiB", "memory_total_gib"),
    ("utilisation_percent", "load", "%", 100),
    ("power_watts", "power", "W", "power_limit_watts"),
    ("temperature_celsius", "temperature", "°C", 100),
)


@dataclass(frozen=True)
class Sample:
    """One reading; None is what is not told. `utilisation_percent` of a CPU is the share of it that is busy."""

    seconds: float  # since the monitor began
    device: str  # 'gpu' or 'cpu'
    name: str
    memory_gib: "float | None"
    memory_total_gib: float
    utilisation_percent: "float | None" = None
    power_watts: "float | None" = None
    power_limit_watts: "float | None" = None
    temperature_celsius: "float | None" = None
    holders: "tuple[Holder, ...]" = ()

    def row(self) -> "dict[str, float | None]":
        """Return the numbers, to plot or to keep in a table."""
        names = ("seconds", "memory_gib", "utilisation_percent", "power_watts", "temperature_celsius")
        return {name: getattr(self, name) for name in names}


def sample(*, seconds: float = 0.0, use_gpu: bool = True) -> Sample:
    """Read the largest card now, or the computer itself where no card answers.

    Args:
        seconds: what the sample shall say of its time.
        use_gpu: False to leave NVML alone, as where it has answered nothing before.
    """
    nvml = read_nvml(_LIMIT_SECONDS) if use_gpu else None
    if nvml is None or not nvml.usable:
        return _computer(seconds)
    card = max(nvml.usable, key=lambda card: card.total_bytes or 0)
    total = card.total_bytes or 0
    return Sample(
        seconds,
        "gpu",
        card.name,
        None if card.free_bytes is None else (total - card.free_bytes) / GIB,
        total / GIB,
        card.utilisation_percent,
        card.power_watts,
        card.power_limit_watts,
        card.temperature_celsius,
        card.holders,
    )


def _computer(seconds: float) -> Sample:
    memory = read_memory()
    used, total = (memory.total_bytes - memory.available_bytes) / GIB, memory.total_bytes / GIB
    return Sample(seconds, "cpu", f"CPU, {os.cpu_count() or 1} threads", used, total, _load_percent())


def _load_percent() -> "float | None":
    try:
        import psutil

        return float(psutil.cpu_percent(interval=0.1))
    except ImportError:
        with contextlib.suppress(OSError, AttributeError):  # Windows has no load average
            return min(100.0, 100 * os.getloadavg()[0] / (os.cpu_count() or 1))
    return None


@dataclass
class History:
    """The last samples, oldest first."""

    length: int = 60
    samples: "deque[Sample]" = field(init=False)

    def __post_init__(self) -> None:
        self.samples = deque(maxlen=self.length)

    def rows(self) -> "list[dict[str, float | None]]":
        """Return a row a sample, as `Sample.row` makes it: `seconds`, `memory_gib`, `utilisation_percent` and more."""
        return [each.row() for each in self.samples]

    def values(self, name: str) -> "list[float]":
        """Return one quantity of all samples that tell it."""
        return [value for value in (getattr(each, name) for each in self.samples) if value is not None]


def sparkline(values: "list[float]", highest: float) -> str:
    """Return a line of small bars.

    >>> sparkline([0, 5, 10], 10)
    '▁▅█'
    """
    top = len(_BARS) - 1
    return "".join(_BARS[max(0, min(top, round(top * value / highest) if highest else 0))] for value in values)


def _highest(name: "str | int | None", last: Sample, values: "list[float]") -> float:
    bound = getattr(last, name) if isinstance(name, str) else name
    return float(bound or max(values, default=1) or 1)


def text(history: History, *, width: int = 30) -> str:
    """Return the last sample and the history for a terminal."""
    last = history.samples[-1]
    lines = [_printable(last.name)]
    for name, title, unit, bound in _QUANTITIES:
        values = history.values(name)
        if values:
            highest = _highest(bound, last, values)
            shown = (
                f"{values[-1]:.1f} of {highest:.1f} {unit}" if isinstance(bound, str) else f"{values[-1]:.0f} {unit}"
            )
            lines.append(f"  {title:12}{shown:20}{sparkline(values[-width:], highest)}")
    for holder in last.holders:
        size = "" if holder.used_bytes is None else f"{holder.used_bytes / GIB:.1f} GiB"
        lines.append(f"  process {holder.pid:<10}{size:10}{_printable(holder.name)}")
    return "\n".join(lines)


def _printable(name: str) -> str:
    """Take out what a terminal would obey: a process may have any name."""
    return "".join(char for char in name if char.isprintable())


def svg(history: History) -> str:
    """Return the history as a picture that takes the page's own colours, and the processes as a list; all escaped."""
    last = history.samples[-1]
    panels = []
    for name, title, unit, bound in _QUANTITIES:
        points = [(each.seconds, getattr(each, name)) for each in history.samples if getattr(each, name) is not None]
        if points:
            highest = _highest(bound, last, [value for _, value in points])
            panels.append(_panel(points, f"{title}, {unit}", highest))
    holders = "".join(f"<li>{escape(_holder_text(holder))}</li>" for holder in last.holders)
    return (
        f"<div style='color:inherit'><b>{escape(last.name)}</b><br>{''.join(panels)}"
        + (f"<ul>{holders}</ul>" if holders else "")
        + "</div>"
    )


def _holder_text(holder: Holder) -> str:
    size = "size not told" if holder.used_bytes is None else f"{holder.used_bytes / GIB:.1f} GiB"
    return f"process {holder.pid}, {holder.name}: {size}"


def _panel(points: "list[tuple[float, float]]", title: str, highest: float) -> str:
    """Draw one quantity over time, 0 at the bottom and `highest` at the top of the frame."""
    start, end = points[0][0], points[-1][0]
    span = (end - start) or 1
    line = " ".join(f"{34 + 180 * (x - start) / span:.1f},{72 - 50 * min(1, y / highest):.1f}" for x, y in points)
    label = f"{title}: {points[-1][1]:.1f} of {highest:.0f}"
    return (
        f"<svg width='230' height='92' role='img' aria-label='{escape(label)}' fill='currentColor' font-size='10'>"
        f"<text x='34' y='12'>{escape(label)}</text>"
        f"<text x='30' y='26' text-anchor='end'>{highest:.0f}</text><text x='30' y='74' text-anchor='end'>0</text>"
        "<rect x='34' y='22' width='180' height='50' fill='none' stroke='currentColor' stroke-opacity='0.4'/>"
        f"<polyline points='{line}' fill='none' stroke='#0072b2' stroke-width='2'/>"
        f"<circle cx='{line.rsplit(' ', 1)[-1].split(',')[0]}' cy='{line.rsplit(',', 1)[-1]}' r='2.5' fill='#0072b2'/>"
        f"<text x='214' y='86' text-anchor='end'>last {end - start:.0f} seconds</text></svg>"
    )


class Monitor:
    """Shows the history and goes on reading until `stop()`; without a front end it is one still picture.

    Attributes:
        history: what was read, as rows: `monitor.history.rows()`.
    """

    def __init__(self, read: "Callable[..., Sample]", *, interval_seconds: float, length: int) -> None:
        self.history = History(length)
        self._read, self._interval = read, interval_seconds
        self._began, self._use_gpu = time.monotonic(), True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._widget: Any = None
        self.update()

    def update(self) -> Sample:
        """Read once more and return the sample."""
        found = self._read(seconds=time.monotonic() - self._began, use_gpu=self._use_gpu)
        self._use_gpu = found.device == "gpu"  # a card that did not answer is not waited for again
        self.history.samples.append(found)
        return found

    def start(self, seconds: "float | None" = None) -> None:
        """Go on reading in the background, for so many seconds or until `stop()`; started twice it still reads once."""
        import ipywidgets

        self.stop()
        self._stop.clear()
        self._widget = ipywidgets.HTML(svg(self.history))
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="monitor", daemon=True)
        self._thread.start()

    def _run(self, seconds: "float | None") -> None:
        ends = None if seconds is None else time.monotonic() + seconds
        while not self._stop.wait(self._interval) and (ends is None or time.monotonic() < ends):
            self.update()
            self._widget.value = svg(self.history)

    def stop(self) -> None:
        """Stop reading; the picture stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LIMIT_SECONDS + self._interval)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        still = {"text/html": svg(self.history), "text/plain": text(self.history)}
        if self._widget is None:
            return still
        bundle = self._widget._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**still, **data, "text/plain": still["text/plain"]}, metadata

    def __str__(self) -> str:
        """Return the last sample and the history for a terminal."""
        return text(self.history)


def monitor(
    *,
    seconds: "float | None" = None,
    interval_seconds: float = 1.0,
    length: int = 60,
    live: "bool | None" = None,
) -> Monitor:
    """Return a monitor for a notebook's last line; it moves while other cells run.

    Args:
        seconds: stop after so long; None: go on until `stop()` or the kernel's end.
        interval_seconds: between two readings.
        length: how many readings are kept.
        live: None to find out; False for one still picture, as under papermill and nbmake, where nobody looks on.
    """
    if not interval_seconds > 0 or length < 1:
        raise ValueError(
            f"interval_seconds = {interval_seconds} and length = {length} are not allowed: above 0, and at least 1."
        )
    shown = Monitor(sample, interval_seconds=interval_seconds, length=length)
    if has_front_end() if live is None else live:
        shown.start(seconds)
    return shown


def has_front_end() -> bool:
    """Tell whether a person can look on: a front end allows input, the runners of notebooks do not."""
    try:
        import ipywidgets  # noqa: F401 (asked whether it is there)
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
