"""What this machine is, what stands in the way of training, and the command that mends it.

The doctor reads facts once (`machine`, `nvml`, `torch_probe`), lets 25 rules judge them (`checks`), and tells what they
come to (`report`). Until a check needs more, only the standard library is imported, so that a bare or an old Python
runs it too: `python3 -m helpers.environment`. Nothing on the machine is changed.
"""

from helpers.environment.card import Card, card, preset_for
from helpers.environment.facts import GIB, Machine
from helpers.environment.live import Sample, monitor, sample
from helpers.environment.machine import platform_kind, read_machine
from helpers.environment.report import Diagnosis, diagnosis_of
from helpers.environment.rules import Check
from helpers.environment.wheels import WheelAdvice, wheel_advice

__all__ = [
    "GIB",
    "Card",
    "Check",
    "Diagnosis",
    "Machine",
    "Sample",
    "WheelAdvice",
    "card",
    "diagnose",
    "monitor",
    "platform_kind",
    "preset_for",
    "sample",
    "wheel_advice",
]


def diagnose(*, quick: bool = False) -> Diagnosis:
    """Make all 25 checks; never raises for what it finds, and changes nothing.

    Args:
        quick: leave torch alone: a second instead of a few, and three checks then say "not asked".
    """
    return diagnosis_of(read_machine(quick=quick))
