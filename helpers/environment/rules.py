"""What a check is: a rule that looks at a `Machine` and finds something. A rule that breaks finds 'unknown'."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from helpers.environment.facts import Machine, UnreadError

STATUSES = ("fail", "unknown", "warn", "ok")  # worst first


class Finding(NamedTuple):
    """What a rule found; `fix` is empty where nothing is to be done."""

    status: str
    reading: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """One reading: `status` is 'ok', 'warn', 'fail' or 'unknown'; `fix` is the exact line that mends it."""

    id: str
    status: str
    reading: str
    why: str
    fix: str = ""


@dataclass(frozen=True)
class Rule:
    """A check before it has seen a machine."""

    id: str
    why: str
    judge: "Callable[[Machine], Finding]"

    def __call__(self, machine: Machine) -> Check:
        """Judge a machine; never raises."""
        try:
            found = self.judge(machine)
        except UnreadError as error:
            found = unknown(f"could not be read ({error})")
        except Exception as error:  # noqa: BLE001 (a doctor must not die of what it examines)
            found = unknown(f"the check itself broke ({type(error).__name__}: {error})")
        return Check(self.id, found.status, found.reading, self.why, found.fix)


def rule(why: str) -> "Callable[[Callable[[Machine], Finding]], Rule]":
    """Make a function a rule of its own name; `why` says in one sentence why it matters."""
    return lambda judge: Rule(judge.__name__, why, judge)


def ok(reading: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", reading)


def warn(reading: str, fix: str = "") -> Finding:
    """Training goes on, but something should be known or mended."""
    return Finding("warn", reading, fix)


def fail(reading: str, fix: str) -> Finding:
    """Training cannot go on, or cannot use the card that is there."""
    return Finding("fail", reading, fix)


def unknown(reading: str, fix: str = "") -> Finding:
    """It could not be told."""
    return Finding("unknown", reading, fix)


NO_GPU = ok("no NVIDIA GPU: nothing to check")
