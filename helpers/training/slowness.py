"""Notice that a training has become slow without an error, and say once why and what to do."""

import logging
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from helpers.environment import Machine, read_machine
from helpers.environment.fixes import relieve_card
from helpers.environment.wheels import windows_driver
from helpers.training.callbacks import StepTimer
from helpers.training.run_files import HistoryFile

_RECENT = 5  # steps that are judged
_LEAST, _MOST = 20, 1000  # steps before them that say what is usual; a median of all would take longer in each row
_SLOW = 1.5  # times as long as usual
_NEARLY_FULL = 0.97  # share of a card's memory; Windows moves what exceeds it into main memory, ten times slower
_MOST_LOOKS = 5  # at a machine, each of which may take a second


def slow_reason(seconds: Sequence[float], machine: Machine) -> str | None:
    """Return why the latest steps are slow, with the fix; None where they are not, or nobody knows."""
    times = slowdown(seconds)
    if times <= _SLOW:
        return None
    slow = f"Steps take {times:.1f} times as long as before"
    gpu, spills = machine.gpu, machine.platform and windows_driver(machine)  # elsewhere a full card is no sign
    if gpu and gpu.total_bytes and gpu.free_bytes is not None and spills and times >= 3:
        used = 1 - gpu.free_bytes / gpu.total_bytes
        if used >= _NEARLY_FULL:
            return (
                f"{slow} and {100 * used:.0f}% of the card's memory are in use: Windows then moves what does not fit "
                "into main memory. Lower per_device_train_batch_size and raise gradient_accumulation_steps by the same "
                "factor, or set CUDA - Sysmem Fallback Policy to Prefer No Sysmem Fallback in the NVIDIA Control Panel."
            )
    if gpu and gpu.slowed_by:
        return f"{slow} and the card is slowed by {', '.join(gpu.slowed_by)}. {relieve_card(gpu.slowed_by)}"
    if machine.power and machine.power.on_battery:
        return f"{slow} and this machine runs on its battery, which slows it down: plug in the power supply."
    return None


def slowdown(seconds: Sequence[float]) -> float:
    """Return how many times as long the latest steps take as those before them, by medians; 1.0 where these are few."""
    before = seconds[-_MOST - _RECENT : -_RECENT]
    return median(seconds[-_RECENT:]) / median(before) if len(before) >= _LEAST else 1.0


class SlownessWatch(StepTimer):
    """Write one row with a `warning` into the history, and a line into the log, when steps become slow.

    The machine is looked at only when they are: asking the driver takes up to a second.
    """

    def __init__(self, folder: Any, read: Callable[[], Machine] = lambda: read_machine(quick=True)) -> None:
        super().__init__()
        self.folder, self.read, self.looks = folder, read, _MOST_LOOKS

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look for a reason if the latest steps were slow, and say it."""
        if not (state.is_world_process_zero and self.looks and slowdown(self.seconds) > _SLOW):
            return
        self.looks -= 1
        if reason := slow_reason(self.seconds, self.read()):
            self.looks = 0
            logging.getLogger(__name__).warning(reason)
            state.log_history.append({"step": state.global_step, "warning": reason})
            HistoryFile(self.folder).write(state.log_history)
