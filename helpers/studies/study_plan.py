"""What a study will do, before it does it: its trials, their hours and disk as planned, and those that do not fit."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.settings import SettingsError
from helpers.studies.study import Study, trial_name
from helpers.training.cards import GIB, GraphicsCard
from helpers.training.memory import parameters, read_shape
from helpers.training.plan import MemoryPlan, plan_run, this_processor

LEAST_BYTES = 2**28  # of disk for a trial of a model whose shape is not known: its notebooks at least
_CONTEXT_BYTES = GIB // 2  # of a CUDA context, for each worker after the first, whose own the planner counts


@dataclass(frozen=True)
class Forecast:
    """A study, predicted.

    Attributes:
        study: what was planned.
        card: what memory and time were planned for; None where this machine has no card.
        workers: trials that are at work at a time.
        n_left: trials that are not settled yet.
        is_started: whether trials were run before.
        plans: of each point of a grid, or of the corners of a search; empty where the model's shape is not known here.
        free_bytes: of the disk that will hold the study.
        used_bytes: what the study's folder holds already.
    """

    study: Study
    card: GraphicsCard | None
    workers: int
    n_left: int
    is_started: bool
    plans: tuple[MemoryPlan, ...]
    free_bytes: int
    used_bytes: int

    @property
    def hours(self) -> tuple[float, float] | None:
        """Shortest and longest time of all that is left, one trial after the other; None where it is not known."""
        times = [(plan.epoch_seconds, plan.settings.num_train_epochs) for plan in self.plans]
        if not times or not all(seconds for seconds, _ in times):
            return None
        shortest, longest = (
            sum(seconds[end] * epochs for seconds, epochs in times) / len(times) * self.n_left / 3600 for end in (0, 1)
        )
        return shortest, longest

    @property
    def disk_bytes(self) -> int:
        """What the trials that are left will write, and the largest ones while each worker is at one."""
        if not self.plans or not self.n_left:
            return 0
        kept = max(kept_bytes(self.study, plan) for plan in self.plans)
        return self.n_left * kept + min(self.workers, self.n_left) * (self.next_bytes - kept)

    @property
    def next_bytes(self) -> int:
        """What the next trial takes while it works, at most."""
        return max((plan.disk_bytes for plan in self.plans), default=LEAST_BYTES)

    def memory_bytes(self, workers: int) -> int:
        """Return the most that the trials of so many workers hold of the card's memory together."""
        peaks = sorted((plan.memory.total_bytes for plan in self.plans), reverse=True)
        largest = peaks[:workers] if self.study.is_grid else peaks[:1] * workers
        return sum(largest) + _CONTEXT_BYTES * max(0, len(largest) - 1)

    @property
    def most_workers(self) -> int:
        """How many of the workers the card's memory holds; all of them where there is none."""
        if self.card is None:
            return self.workers
        fit = (self.memory_bytes(n) <= self.card.usable_bytes for n in range(1, self.workers + 1))
        return sum(itertools.takewhile(bool, fit))

    @property
    def too_large(self) -> list[MemoryPlan]:
        """The plans that the card's memory does not hold."""
        return [plan for plan in self.plans if self.card is not None and not plan.fits]

    @property
    def refusals(self) -> list[str]:
        """Why the study cannot begin, one sentence each; empty when it can, or has nothing left to do."""
        if not self.n_left:
            return []
        found = [f"{self._point(plan)} {plan.verdict}." for plan in self.too_large[:5]]
        if len(self.too_large) > 5:
            found.append(f"{len(self.too_large) - 5} more points do not fit either.")
        if not self.too_large and self.most_workers < self.workers:
            found.append(
                f"{self.workers} workers hold {_gib(self.memory_bytes(self.workers))} together, and of one "
                f"{self.card.name} {_gib(self.card.usable_bytes)} can be used: --workers {self.most_workers} fits."
            )
        return found + self._disk_refusals()

    def _disk_refusals(self) -> list[str]:
        """Return why there is no room; a study that was started goes on as long as its next trial fits."""
        found, one = [], _gib(self.next_bytes)
        has = f"the disk of {self.study.folder} has {_gib(self.free_bytes)} left"
        if self.next_bytes > self.free_bytes:
            found.append(f"The next trial takes {one} and {has}: free some, or let COURSE_RUNS point to a larger disk.")
        elif self.disk_bytes > self.free_bytes and not self.is_started:
            found.append(
                f"The trials will write {_gib(self.disk_bytes)} and {has}: set keep_checkpoints: false, lower "
                "save_total_limit or budgets.trials, or let COURSE_RUNS point to a larger disk."
            )
        budget = self.study.budgets.disk_gib
        if budget and self.plans and self.used_bytes + self.next_bytes > budget * GIB:
            found.append(
                f"Not one more trial of {one} goes into budgets.disk_gib = {budget:g}: the study's folder holds "
                f"{_gib(self.used_bytes)}. Raise the budget or set keep_checkpoints: false."
            )
        return found

    def _point(self, plan: MemoryPlan) -> str:
        varied = ", ".join(
            f"{name} {getattr(plan.settings, name)}" for name in self.study.vary if hasattr(plan.settings, name)
        )
        return f"{plan.settings.run} ({varied})" if varied else plan.settings.run

    def rows(self) -> list[tuple[str, str]]:
        """Return what is shown before the study starts: name, value."""
        total = len(self.study.points)
        done = f", {total - self.n_left} of them settled already" if self.n_left < total else ""
        kind = "the points of a grid" if self.study.is_grid else "chosen by Optuna's TPE"
        return [
            ("study", f"{self.study.study} in {self.study.folder}"),
            ("trials", f"{total}, {kind}{done}"),
            ("each runs", f"{', '.join(self.study.notebooks)} from preset {self.study.preset}"),
            ("varies", "; ".join(f"{name}: {_over(over)}" for name, over in self.study.vary.items())),
            ("optimises", self.study.optimise + (", pruned by the median rule" if self.study.prune else "")),
            ("hours", self._hours()),
            ("disk", self._disk()),
            ("storage", "a server" if self.study.storage else "a journal in the study's folder"),
        ]

    def _hours(self) -> str:
        limit = f"; none is begun after {self.study.budgets.hours:g} h" if self.study.budgets.hours else ""
        if not self.plans:
            return f"not predicted: the model's shape is not known before its download{limit}"
        device = self.plans[0].card.name if self.card is None else f"one {self.card.name}"
        if self.hours is None:
            return f"not predicted: the peak of {device} is not known{limit}"
        shortest, longest = self.hours
        return (
            f"{shortest:.2g} to {longest:.2g}, predicted for {device}, one trial after the other, training alone{limit}"
        )

    def _disk(self) -> str:
        budget = f", budget {self.study.budgets.disk_gib:g} GiB" if self.study.budgets.disk_gib else ""
        predicted = f"{_gib(self.disk_bytes)} predicted" if self.plans else "not predicted"
        pause = "; the study pauses when it is full" if self.is_started and self.disk_bytes > self.free_bytes else ""
        return f"{predicted}, {_gib(self.free_bytes)} free{budget}{pause}"

    def __str__(self) -> str:
        """Return what the study will do, for a terminal."""
        return "\n".join(f"{name:<10} {value}" for name, value in self.rows())


def forecast(study: Study, card: GraphicsCard | None, *, workers: int = 1, n_left: int | None = None) -> Forecast:
    """Plan a study for a card.

    Args:
        study: what it asks for.
        card: this machine's, or one that was named; None: there is none, memory is not predicted and time is this
            processor's.
        workers: trials that are at work at a time.
        n_left: trials that are not settled yet, of a study that was started; None: it was not.

    Raises:
        SettingsError: a point that no training can have, such as a block longer than the model's positions.
    """
    plans = []
    for number, point in enumerate(study.corners):
        if not _is_known(study.training_settings(point).model_name_or_path):
            plans = []
            break
        run = trial_name(number) if study.is_grid else "A trial"
        settings = study.training_settings(point).model_copy(update={"run": run})
        try:
            plans.append(plan_run(settings, card=card or this_processor()))
        except SettingsError as error:
            raise SettingsError(f"{run} of study {study.study!r} cannot be: {error}") from None
    room = free_bytes(study.folder), folder_bytes(study.folder)
    left = len(study.points) if n_left is None else n_left
    return Forecast(study, card, min(workers, max(1, left)), left, n_left is not None, tuple(plans), *room)


def _is_known(model_name_or_path: str) -> bool:
    """Tell whether a model can be planned; one of the Hub that is none of the known ones cannot before its download."""
    if Path(model_name_or_path).exists() or "/" not in model_name_or_path:
        return True  # or its error is worth telling now
    try:
        read_shape(model_name_or_path)
    except SettingsError:
        return False
    return True


def kept_bytes(study: Study, plan: MemoryPlan) -> int:
    """Return what a finished trial leaves on the disk: its model, and its checkpoints where they are kept."""
    model = 4 * parameters(plan.shape)
    return model + plan.settings.save_total_limit * 3 * model if study.keep_checkpoints else model


def free_bytes(folder: Path) -> int:
    """Return the room left on the disk that holds a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def folder_bytes(folder: Path) -> int:
    """Return what the files of a folder take; those that vanish meanwhile take nothing."""
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _over(over: Any) -> str:
    return ", ".join(map(str, over)) if isinstance(over, list) else f"{over.low:g} to {over.high:g} ({over.scale})"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
