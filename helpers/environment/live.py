"""The live monitor, instead of a second terminal with `nvidia-smi`: memory, load, power, temperature, processes.

`sample` reads once, `Monitor` keeps the last samples and shows them. Without a card it shows the computer's
memory and load. Cards are read in a child process, so that a reading can neither hang nor crash the kernel.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

from helpers.display import GIB, allows_input, notebook_kernel, printable, size_text
from helpers.environment.facts import GpuReading, in_cuda_order, visible
from helpers.environment.machine import read_memory
from helpers.environment.nvml import read_nvml

_LIMIT_SECONDS = 5.0
_BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """One reading of the card, or of the computer itself; None means not known."""

    seconds: float  # counted from the monitor's start
    device: str  # 'gpu' or 'cpu'
    reading: GpuReading  # of a computer only its name, memory and load

    def row(self) -> dict[str, float | None]:
        """Return the numbers, to plot or to keep in a table."""
        total, free = self.reading.total_bytes, self.reading.free_bytes
        return {
            "seconds": self.seconds,
            "memory_gib": None if total is None or free is None else (total - free) / GIB,
            "utilisation_percent": self.reading.utilisation_percent,
            "power_watts": self.reading.power_watts,
            "temperature_celsius": self.reading.temperature_celsius,
        }


def sample(*, seconds: float = 0.0, use_gpu: bool = True) -> Sample:
    """Read the card that training would use, or the computer itself if no card answers; `seconds` is the sample's time.

    `use_gpu=False` skips the cards, as after a reading that got no answer.
    """
    cards = read_nvml(_LIMIT_SECONDS).usable if use_gpu else ()
    if cards:
        return Sample(seconds, "gpu", (visible(cards, os.environ) or in_cuda_order(cards, os.environ))[0])
    import psutil

    memory, n_threads = read_memory(), os.cpu_count() or 1
    name = f"CPU, {n_threads} thread{'s' * (n_threads != 1)}"
    load = psutil.cpu_percent(interval=0.1)  # without an interval the first result is always 0
    computer = GpuReading(0, name, "", memory.total_bytes, memory.available_bytes, utilisation_percent=load)
    return Sample(seconds, "cpu", computer)


def sparkline(values: list[float], highest: float) -> str:
    """Return a line of small bars.

    >>> sparkline([0, 5, 10], 10)
    '▁▅█'
    """
    top = len(_BARS) - 1
    return "".join(_BARS[max(0, min(top, round(top * value / highest)))] for value in values)


class Monitor:
    """Keeps the last samples and shows them; after `start()` it keeps reading until `stop()`."""

    def __init__(self, read: Callable[..., Sample], *, interval_seconds: float, length: int) -> None:
        self.samples: deque[Sample] = deque(maxlen=length)  # oldest first
        self._read, self._interval = read, interval_seconds
        self._began, self._use_gpu = time.monotonic(), True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._widget: Any = None
        self.update()

    def update(self) -> Sample:
        """Read once more and return the sample."""
        new = self._read(seconds=time.monotonic() - self._began, use_gpu=self._use_gpu)
        self._use_gpu = new.device == "gpu"  # a card that does not answer would cost the time limit each time
        self.samples.append(new)
        return new

    def rows(self) -> list[dict[str, float | None]]:
        """Return one row per sample: `seconds`, `memory_gib`, `utilisation_percent` and more; see `Sample.row`."""
        return [each.row() for each in list(self.samples)]  # a copy: the thread keeps appending

    def text(self, *, width: int = 60) -> str:
        """Return the last sample and those before it as lines of text, with at most `width` bars per line."""
        last, rows = self.samples[-1].reading, self.rows()
        lines = [printable(last.name)]
        for name, title, unit, limit in (
            ("memory_gib", "memory", "GiB", (last.total_bytes or 0) / GIB),
            ("utilisation_percent", "load", "%", 100),
            ("power_watts", "power", "W", last.power_limit_watts),
            ("temperature_celsius", "temperature", "°C", 100),
        ):
            values = [row[name] for row in rows if row[name] is not None]
            if values:
                highest = limit or max(values) or 1
                has_decimals = unit in ("GiB", "W")
                number = f"{values[-1]:.1f} of {highest:.1f} {unit}" if has_decimals else f"{values[-1]:.0f} {unit}"
                lines.append(f"  {title:12}{number:20}{sparkline(values[-width:], highest)}")
        for holder in last.holders:
            size = "" if holder.used_bytes is None else size_text(holder.used_bytes)
            lines.append(f"  process {holder.pid:<10}{size:10}{printable(holder.name)}")
        return "\n".join(lines)

    def _page(self) -> str:
        return f"<pre style='font-family:var(--jp-code-font-family,monospace)'>{escape(self.text())}</pre>"

    def start(self, seconds: float = math.inf) -> None:
        """Keep reading in the background until `stop()`, or for some seconds; a second start replaces the first."""
        import ipywidgets

        self.stop()
        self._stop.clear()
        self._widget = ipywidgets.HTML(self._page())
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="monitor", daemon=True)
        self._thread.start()

    def _run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self._stop.wait(self._interval) and time.monotonic() < ends:
            self.update()
            self._widget.value = self._page()

    def stop(self) -> None:
        """Stop reading; the last reading stays on the page."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LIMIT_SECONDS + self._interval)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        still = {"text/html": self._page(), "text/plain": self.text()}
        if self._widget is None:
            return still
        bundle = self._widget._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**still, **data, "text/plain": still["text/plain"]}, metadata

    __str__ = text


_running: list[Monitor] = []  # the last one that `monitor` started


def monitor(*, seconds: float = math.inf, interval_seconds: float = 1.0) -> Monitor:
    """Return a monitor for the last line of a cell; if a person can watch, it updates while other cells run.

    It stops after `seconds`, at `stop()`, or when another replaces it. An interval of 0 or less is a `ValueError`.
    """
    if not interval_seconds > 0:
        raise ValueError(f"interval_seconds = {interval_seconds} is not allowed: it must be above 0.")
    watch = Monitor(sample, interval_seconds=interval_seconds, length=60)
    if allows_input(notebook_kernel()):  # not under papermill and nbmake
        while _running:  # its cell runs again
            _running.pop().stop()
        _running.append(watch)
        watch.start(seconds)
    return watch
