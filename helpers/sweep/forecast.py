"""What a study will do, before it does it: its trials, their hours and disk as planned, and those that do not fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.cards import DEFAULT_CARD, GIB, GraphicsCard, find_card
from helpers.memory import parameters, read_shape
from helpers.plan import MemoryPlan, plan_run
from helpers.settings import SettingsError
from helpers.sweep.study import Study, trial_name


@dataclass(frozen=True)
class Forecast:
    """A study, predicted.

    Attributes:
        study: what was planned.
        card: what memory and time were planned for; None where this machine has no card.
        n_left: trials that are not settled yet.
        plans: of each point of a grid, or of the corners of a search; empty where the model's shape is not known here.
        free_bytes: of the disk that will hold the study.
        used_bytes: what the study's folder holds already.
    """

    study: Study
    card: GraphicsCard | None
    n_left: int
    plans: tuple[MemoryPlan, ...]
    free_bytes: int
    used_bytes: int

    @property
    def hours(self) -> tuple[float, float] | None:
        """Shortest and longest time of all that is left, one trial after the other; None where it is not known."""
        times = [(plan.epoch_seconds, plan.settings.num_train_epochs) for plan in self.plans]
        if self.card is None or not times or not all(seconds for seconds, _ in times):
            return None
        shortest, longest = (
            sum(seconds[end] * epochs for seconds, epochs in times) / len(times) * self.n_left / 3600 for end in (0, 1)
        )
        return shortest, longest

    @property
    def disk_bytes(self) -> int:
        """What the trials that are left will write, and the largest one while it works."""
        if not self.plans or not self.n_left:
            return 0
        kept = max(kept_bytes(self.study, plan) for plan in self.plans)
        return self.n_left * kept + max(plan.disk_bytes for plan in self.plans) - kept

    @property
    def too_large(self) -> list[MemoryPlan]:
        """The plans that the card's memory does not hold."""
        return [plan for plan in self.plans if self.card is not None and not plan.fits]

    @property
    def refusals(self) -> list[str]:
        """Why the study cannot begin, one sentence each; empty when it can."""
        found = [f"{self._point(plan)} {plan.verdict}." for plan in self.too_large[:5]]
        if len(self.too_large) > 5:
            found.append(f"{len(self.too_large) - 5} more points do not fit either.")
        if self.disk_bytes > self.free_bytes:
            found.append(
                f"The trials will write {_gib(self.disk_bytes)} and the disk of {self.study.folder} has "
                f"{_gib(self.free_bytes)} left: set keep_checkpoints: false, lower save_total_limit or budgets.trials, "
                "or let COURSE_RUNS point to a larger disk."
            )
        one = max((plan.disk_bytes for plan in self.plans), default=0)
        budget = self.study.budgets.disk_gib * GIB
        if budget and self.n_left and self.used_bytes + one > budget:
            found.append(
                f"Not one more trial of {_gib(one)} goes into budgets.disk_gib = {self.study.budgets.disk_gib:g}: the "
                f"study's folder holds {_gib(self.used_bytes)}. Raise the budget or set keep_checkpoints: false."
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
        if self.hours is None:
            return f"not predicted on a CPU: told once a trial is done{limit}"
        shortest, longest = self.hours
        return f"{shortest:.2g} to {longest:.2g}, predicted for one {self.card.name}, training alone{limit}"

    def _disk(self) -> str:
        budget = f", budget {self.study.budgets.disk_gib:g} GiB" if self.study.budgets.disk_gib else ""
        predicted = f"{_gib(self.disk_bytes)} predicted" if self.plans else "not predicted"
        return f"{predicted}, {_gib(self.free_bytes)} free{budget}"

    def __str__(self) -> str:
        """Return what the study will do, for a terminal."""
        return "\n".join(f"{name:<10} {value}" for name, value in self.rows())


def forecast(study: Study, card: GraphicsCard | None, *, n_left: int | None = None) -> Forecast:
    """Plan a study for a card.

    Args:
        study: what it asks for.
        card: this machine's, or one that was named; None: there is none, and neither memory nor time is predicted.
        n_left: trials that are not settled yet; all of them when left out.

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
            plans.append(plan_run(settings, card=card or find_card(DEFAULT_CARD)))
        except SettingsError as error:
            raise SettingsError(f"{run} of study {study.study!r} cannot be: {error}") from None
    left = len(study.points) if n_left is None else n_left
    return Forecast(study, card, left, tuple(plans), free_bytes(study.folder), folder_bytes(study.folder))


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
