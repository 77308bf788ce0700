"""Predict a study's trials, hours and disk space before it starts, and refuse what does not fit."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.data import refuse_missing
from helpers.display import GIB, PlainTextMixin, duration_range, size_text
from helpers.files import free_bytes
from helpers.settings import PATH_SETTINGS, SettingsError, describe_without_effect
from helpers.studies.study import Study, trial_name
from helpers.training.devices import GraphicsCard, this_processor
from helpers.training.plan import RunPlan, plan_run, planned_shape
from helpers.training.run_files import checkpoint_bytes, disk_bytes, model_bytes
from helpers.training.shape import UnknownShapeError

_MIN_BYTES = 2**28  # disk for a trial whose model's shape is unknown: at least its notebooks
_CONTEXT_BYTES = GIB // 2  # a CUDA context per worker after the first; `plan_run` includes the first one's
_MAX_REFUSALS = 5  # points to name one by one


@dataclass(frozen=True)
class StudyPlan(PlainTextMixin):
    """A predicted study."""

    study: Study
    card: GraphicsCard | None  # planned for; None on a machine without one
    workers: int  # number of trials to run at the same time
    n_left: int  # number of trials that are not settled yet
    is_started: bool  # whether trials were run before
    plans: tuple[RunPlan, ...]  # for a grid's points or a search's corners; empty if the shape is unknown
    free_bytes: int  # on the disk that will hold the study

    @property
    def hours(self) -> tuple[float, float] | None:
        """Shortest and longest time of all remaining trials, one after the other; None if unknown."""
        times = [plan.seconds for plan in self.plans]
        if not times or not all(times):
            return None
        shortest, longest = (sum(ends) / len(times) * self.n_left / 3600 for ends in zip(*times, strict=True))
        return shortest, longest

    @property
    def disk_bytes(self) -> int:
        """Disk space that the remaining trials keep, plus what the largest ones need while each worker runs one."""
        if not self.plans or not self.n_left:
            return 0
        kept = max(kept_bytes(self.study, plan) for plan in self.plans)
        return self.n_left * kept + min(self.workers, self.n_left) * (self.next_bytes - kept)

    @property
    def next_bytes(self) -> int:
        """The most disk space that the next trial can need while it runs."""
        return max((plan.disk_bytes for plan in self.plans), default=_MIN_BYTES)

    def memory_bytes(self, workers: int) -> int:
        """Return the peak memory on the card with this many workers at the same time."""
        peaks = sorted((plan.memory.total_bytes for plan in self.plans), reverse=True)
        # a grid has each point once; a search may choose the largest one for every worker
        largest = peaks[:workers] if self.study.is_grid else peaks[:1] * workers
        return sum(largest) + _CONTEXT_BYTES * max(0, len(largest) - 1)

    @property
    def max_workers(self) -> int:
        """How many of the workers fit in the card's memory; all of them if there is no card."""
        if self.card is None:
            return self.workers
        fit = (self.memory_bytes(n) <= self.card.usable_bytes for n in range(1, self.workers + 1))
        return sum(itertools.takewhile(bool, fit))

    @property
    def too_large(self) -> list[RunPlan]:
        """The plans that do not fit into the card's memory."""
        return [plan for plan in self.plans if self.card is not None and not plan.fits]

    @property
    def refusals(self) -> list[str]:
        """Why the study cannot start, one sentence each; empty if it can, or if nothing is left to do."""
        if not self.n_left:
            return []
        reasons = [f"{self._point(plan)} {plan.verdict}." for plan in self.too_large[:_MAX_REFUSALS]]
        if len(self.too_large) > _MAX_REFUSALS:
            reasons.append(f"{len(self.too_large) - _MAX_REFUSALS} more points do not fit either.")
        if not self.too_large and self.max_workers < self.workers:
            reasons.append(
                f"{self.workers} workers hold {size_text(self.memory_bytes(self.workers))} together, and one "
                f"{self.card.name} has {size_text(self.card.usable_bytes)} usable: --workers {self.max_workers} fits."
            )
        # a study that was started continues as long as its next trial fits
        if self.next_bytes <= self.free_bytes < self.disk_bytes and not self.is_started:
            reasons.append(
                f"The trials will write {size_text(self.disk_bytes)} and the disk of {self.study.folder} has "
                f"{size_text(self.free_bytes)} left: set keep_checkpoints: false, lower save_total_limit or "
                "budgets.trials, or set COURSE_RUNS to a folder on a larger disk."
            )
        return reasons + disk_shortages(self.study, self.next_bytes)

    def _point(self, plan: RunPlan) -> str:
        varied = ", ".join(
            f"{name} {getattr(plan.settings, name)}" for name in self.study.vary if hasattr(plan.settings, name)
        )
        return f"{plan.settings.run} ({varied})" if varied else plan.settings.run

    def __str__(self) -> str:
        """Return a description of what the study will do, for a terminal."""
        total = len(self.study.points)
        settled = f", {total - self.n_left} of them settled already" if self.n_left < total else ""
        kind = "the points of a grid" if self.study.is_grid else "chosen by Optuna's TPE"
        rows = {
            "study": f"{self.study.study} in {self.study.folder}",
            "trials": f"{total}, {kind}{settled}",
            "each runs": f"{', '.join(self.study.notebooks) or 'only the training'}, from preset {self.study.preset}",
            "varies": "; ".join(f"{name}: {_variation(variation)}" for name, variation in self.study.vary.items()),
            "optimises": self.study.optimise + (", pruned by the median rule" if self.study.prune else ""),
            "time": self._time(),
            "disk": self._disk(),
            "no effect": next(filter(None, (describe_without_effect(plan.settings) for plan in self.plans)), ""),
            "storage": "a server" if self.study.storage else "a journal in the study's folder",
        }
        return "\n".join(f"{name:<10} {value}" for name, value in rows.items() if value)

    def _time(self) -> str:
        limit = f"; none starts after {self.study.budgets.hours:g} h" if self.study.budgets.hours else ""
        if not self.plans:
            return f"not predicted: the model's shape is not known before its download{limit}"
        plan = self.plans[0]
        device = plan.card.name if self.card is None else f"one {self.card.name}"
        if self.hours is None:
            return f"not predicted: the peak of {device} is not known{limit}"
        time = duration_range(*(3600 * hours for hours in self.hours))
        return f"{time}, predicted for {device}, one trial after the other, training only ({plan.seconds_are}){limit}"

    def _disk(self) -> str:
        budget = f", budget {self.study.budgets.disk_gib:g} GiB" if self.study.budgets.disk_gib else ""
        predicted = f"{size_text(self.disk_bytes)} predicted" if self.plans else "not predicted"
        pause = "; the study pauses when it is full" if self.is_started and self.disk_bytes > self.free_bytes else ""
        return f"{predicted}, {size_text(self.free_bytes)} free{budget}{pause}"


def plan_study(study: Study, card: GraphicsCard | None, *, workers: int = 1, n_left: int | None = None) -> StudyPlan:
    """Predict a study's hours, memory and disk on a card.

    Args:
        study: the study to plan.
        card: this machine's or a named one; None or a processor: memory is not checked, and time is predicted for
            this machine's processor.
        workers: number of trials that run at the same time.
        n_left: number of unsettled trials of a study that was started; None if it was not.

    Raises:
        SettingsError: a text or model is missing, or a point cannot be trained, for example because a block is longer
            than the model's positions.
    """
    card = None if card and card.is_processor else card
    plans = []
    left = len(study.points) if n_left is None else n_left
    for inputs in _inputs(study) if left else []:
        refuse_missing(inputs)
    for number, point in enumerate(study.corners):
        run = trial_name(number) if study.is_grid else "A trial"
        settings = study.training_settings(point).model_copy(update={"run": run})
        try:
            plans.append(plan_run(settings, card=card or this_processor()))
        except UnknownShapeError:
            plans = []
            break
        except SettingsError as error:
            raise SettingsError(f"{run} of study {study.study!r} cannot run: {error}") from None
    return StudyPlan(
        study, card, min(workers, max(1, left)), left, n_left is not None, tuple(plans), free_bytes(study.folder)
    )


def _inputs(study: Study) -> list[dict[str, Any]]:
    """Return the texts and models of all points, without repeated combinations."""
    shared = {name: study.settings[name] for name in PATH_SETTINGS if name in study.settings}
    inputs = [shared | study.training_settings(point).model_dump(include=set(PATH_SETTINGS)) for point in study.corners]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(paths.items()) for paths in inputs)]


def trial_bytes(study: Study) -> int:
    """Return the most disk space that a trial can need while it runs."""
    try:
        trials = map(study.training_settings, study.corners)
        return max(disk_bytes(planned_shape(settings), settings) for settings in trials)
    except SettingsError:
        return _MIN_BYTES


def disk_shortages(study: Study, needed_bytes: int) -> list[str]:
    """Return why `needed_bytes` do not fit on the disk or in the study's disk budget, one sentence each."""
    folder, budget = study.folder, study.budgets.disk_gib * GIB
    free, reasons = free_bytes(folder), []
    if needed_bytes > free:
        reasons.append(
            f"The next trial takes {size_text(needed_bytes)} and the disk of {folder} has {size_text(free)} left: "
            "free some space, or set COURSE_RUNS to a folder on a larger disk."
        )
    if budget and (used := folder_bytes(folder)) + needed_bytes > budget:
        reasons.append(
            f"The next trial of {size_text(needed_bytes)} does not fit into budgets.disk_gib = "
            f"{study.budgets.disk_gib:g}: the study's folder holds {size_text(used)}. Raise the budget, set "
            "keep_checkpoints: false, or delete checkpoints of finished trials."
        )
    return reasons


def kept_bytes(study: Study, plan: RunPlan) -> int:
    """Return the bytes that a finished trial leaves on disk: its model, and its checkpoints if they are kept."""
    run = plan.shape, plan.settings
    return plan.disk_bytes - checkpoint_bytes(*run) if study.keep_checkpoints else model_bytes(*run)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; other workers may delete some meanwhile."""
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _variation(spec: Any) -> str:
    return ", ".join(map(str, spec)) if isinstance(spec, list) else f"{spec.low:g} to {spec.high:g} ({spec.scale})"
