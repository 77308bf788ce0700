"""Notice that training has become slow without an error, and report once why and what to do."""

import logging
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from helpers.environment import Machine, read_machine
from helpers.environment.fixes import RELIEVE_CARD
from helpers.environment.wheels import windows_driver
from helpers.training.callbacks import StepTimer

_RECENT = 5  # number of steps to judge
_MIN_STEPS, _MAX_STEPS = 20, 1000  # earlier steps that define what is normal; the limit keeps the median cheap
_SLOW = 1.5  # times as long as normal
_NEARLY_FULL = 0.97  # share of a card's memory; Windows moves what exceeds it into main memory, ten times slower
_MAX_CHECKS = 5  # at the machine; each may take a second


def slow_reason(seconds: Sequence[float], machine: Machine) -> str | None:
    """Return why the latest steps are slow, with the fix; None if they are not slow or the reason is unknown."""
    factor = slowdown(seconds)
    if factor <= _SLOW:
        return None
    text = f"Steps take {factor:.1f} times as long as before"
    gpu, can_spill = machine.gpu, machine.platform and windows_driver(machine)  # elsewhere a full card means nothing
    if gpu and gpu.total_bytes and gpu.free_bytes is not None and can_spill and factor >= 3:
        used = 1 - gpu.free_bytes / gpu.total_bytes
        if used >= _NEARLY_FULL:
            return (
                f"{text} and {100 * used:.0f}% of the card's memory are in use: Windows then moves what does not fit "
                "into main memory. Lower per_device_train_batch_size and raise gradient_accumulation_steps by the same "
                "factor, or set CUDA - Sysmem Fallback Policy to Prefer No Sysmem Fallback in the NVIDIA Control Panel."
            )
    if gpu and gpu.slowed_by:
        return f"{text} and the card is slowed by {', '.join(gpu.slowed_by)}. {RELIEVE_CARD}"
    if machine.on_battery:
        return f"{text} and this machine runs on its battery, which slows it down: plug in the power supply."
    return None


def slowdown(seconds: Sequence[float]) -> float:
    """Return the median time of the latest steps relative to those before; 1.0 if there are too few of these."""
    before = seconds[-_MAX_STEPS - _RECENT : -_RECENT]
    return median(seconds[-_RECENT:]) / median(before) if len(before) >= _MIN_STEPS else 1.0


class SlownessWatch(StepTimer):
    """When steps become slow, add one row with a `warning` to the history and a line to the log.

    The machine is examined only then: asking the driver takes up to a second.
    """

    def __init__(self, read: Callable[[], Machine] = lambda: read_machine(quick=True)) -> None:
        super().__init__()
        self.read, self.checks_left = read, _MAX_CHECKS

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """If the latest steps were slow, find the reason and report it."""
        if not (state.is_world_process_zero and self.checks_left and slowdown(self.seconds) > _SLOW):
            return
        self.checks_left -= 1
        if reason := slow_reason(self.seconds, self.read()):
            self.checks_left = 0
            logging.getLogger(__name__).warning(reason)
            state.log_history.append({"step": state.global_step, "warning": reason})
