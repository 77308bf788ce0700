"""Notice that a training has become slow without an error, and say once why and what to do."""

import logging
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from helpers.environment import Machine, read_machine
from helpers.training.callbacks import StepTimer
from helpers.training.run_files import write_history

_RECENT, _LEAST = 5, 20  # steps that are judged, and steps before them that say what is usual
_NEARLY_FULL = 0.97  # share of a card's memory; Windows moves what exceeds it into main memory, ten times slower
_MOST_LOOKS = 5  # at a machine, each of which may take a second


def slow_reason(seconds: Sequence[float], machine: Machine) -> str | None:
    """Return in one sentence why the latest steps are slow, with the fix; None where they are not, or nobody knows."""
    if not is_slow(seconds):
        return None
    times = median(seconds[-_RECENT:]) / median(seconds[:-_RECENT])
    slow = f"Steps take {times:.1f} times as long as before"
    gpu = machine.gpu
    if gpu and gpu.total_bytes and gpu.free_bytes is not None and times >= 3:
        used = 1 - gpu.free_bytes / gpu.total_bytes
        if used >= _NEARLY_FULL:
            return (
                f"{slow} and {100 * used:.0f} % of the card's memory are in use: Windows then moves what does not fit "
                "into main memory. Lower per_device_train_batch_size and raise gradient_accumulation_steps as much, or "
                "set CUDA - Sysmem Fallback Policy to Prefer No Sysmem Fallback in the NVIDIA Control Panel."
            )
    if gpu and gpu.slowed_by:
        return (
            f"{slow} and the card is slowed by {', '.join(gpu.slowed_by)}: give it air, clean its fans, and raise its "
            "power limit or the laptop's performance mode."
        )
    if machine.power.on_battery:
        return f"{slow} and this machine runs on its battery, which slows it down: plug in the power supply."
    return None


def is_slow(seconds: Sequence[float]) -> bool:
    """Tell whether the latest steps take half as long again as the earlier ones, by the medians of both."""
    return len(seconds) >= _LEAST + _RECENT and median(seconds[-_RECENT:]) > 1.5 * median(seconds[:-_RECENT])


class SlownessWatch(StepTimer):
    """Write one row with a `warning` into the history, and a line into the log, when steps become slow.

    The machine is looked at only when they are: asking the driver takes up to a second.
    """

    def __init__(self, folder: Any, read: Callable[[], Machine] = lambda: read_machine(quick=True)) -> None:
        super().__init__()
        self.folder, self.read, self.looks = folder, read, _MOST_LOOKS

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look for a reason if the latest steps were slow, and say it."""
        if not (state.is_world_process_zero and self.looks and is_slow(self.seconds)):
            return
        self.looks -= 1
        if reason := slow_reason(self.seconds, self.read()):
            self.looks = 0
            logging.getLogger(__name__).warning(reason)
            state.log_history.append({"step": state.global_step, "warning": reason})
            write_history(self.folder, state.log_history)
