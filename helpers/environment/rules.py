"""What a check is: a rule that judges a `Machine` and returns a finding; a rule that raises counts as 'unknown'."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from helpers.environment.facts import Machine, UnreadError

STATUSES = ("fail", "unknown", "warn", "ok")  # worst first


class Finding(NamedTuple):
    """The result of a rule; `fix` is empty if there is nothing to do."""

    status: str
    reading: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """One row of the diagnosis: `status` is 'ok', 'warn', 'fail' or 'unknown'; `fix` says what to do or run."""

    id: str
    status: str
    reading: str
    why: str
    fix: str = ""


@dataclass(frozen=True)
class Rule:
    """A check that has not been applied to a machine yet."""

    id: str
    why: str
    judge: Callable[[Machine], Finding]

    def __call__(self, machine: Machine) -> Check:
        """Judge a machine; never raises."""
        try:
            finding = self.judge(machine)
        except UnreadError as error:
            finding = unknown(f"could not be read ({error})")
        except Exception as error:  # noqa: BLE001 (one broken check must not hide the others)
            finding = unknown(f"the check itself broke ({type(error).__name__}: {error})")
        return Check(self.id, finding.status, finding.reading, self.why, finding.fix)


def rule(why: str) -> Callable[[Callable[[Machine], Finding]], Rule]:
    """Turn a function into a rule of the same name; `why` says in one sentence why it matters."""
    return lambda judge: Rule(judge.__name__, why, judge)


# ok: nothing to do. warn: training works, but there is something to know or to fix. fail: training does not work, or
# cannot use the card.
ok, warn, fail, unknown = (partial(Finding, status) for status in ("ok", "warn", "fail", "unknown"))

NO_GPU = ok("no NVIDIA GPU: nothing to check")
