"""Starts the workers of one command and tells how the study stands while they work."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import psutil

from helpers.studies.queue import State, state_of, this_worker, trials_of
from helpers.studies.study import Study, trial_name
from helpers.studies.worker import PAUSED

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

_MOST_RESTARTS = 3  # of workers that die, from one settled trial to the next
_ALWAYS_TOLD = ("done", "running")
_REFRESH_SECONDS = 0.5


@dataclass(frozen=True)
class Standing:
    """How a study stands: the newest trial of each point, and how long the rest may take."""

    study: Study
    trials: "tuple[FrozenTrial, ...]"
    seconds_left: float | None

    def count(self, state: State) -> int:
        """Return how many trials are in a state; those that were broken off wait."""
        return sum(state_of(trial) == state for trial in self.trials)

    @property
    def n_left(self) -> int:
        """Trials that are not settled: waiting or at work."""
        return self.count("waiting") + self.count("running")

    def n_left_of(self, n_points: int, *, with_failed: bool) -> int:
        """Return how many of so many points are to be run, those included that are not queued yet."""
        settled = {"done", "pruned"} | (set() if with_failed else {"failed"})
        return n_points - sum(
            state_of(trial) in settled and trial.user_attrs["point"] < n_points for trial in self.trials
        )

    @property
    def counts(self) -> str:
        """How many trials are in each state, in words."""
        counts = [f"{n} {state}" for state in get_args(State) if (n := self.count(state)) or state in _ALWAYS_TOLD]
        return f"{', '.join(counts)} of {len(self.trials)}"

    @property
    def best(self) -> "FrozenTrial | None":
        """The finished trial with the smallest figure; None before the first."""
        done = [trial for trial in self.trials if state_of(trial) == "done"]
        return min(done, key=lambda trial: trial.value, default=None)

    @property
    def elsewhere(self) -> "list[FrozenTrial]":
        """The finished trials whose folders lie on other machines."""
        here, folder = this_worker(self.study), self.study.folder
        done = [trial for trial in self.trials if state_of(trial) == "done" and trial.user_attrs.get("worker") != here]
        return [trial for trial in done if not _is_done(folder / trial_name(trial.user_attrs["point"]))]


def _is_done(folder: Path) -> bool:
    """Tell whether a trial's folder holds a finished one, as of a machine that shares its disk."""
    try:
        return json.loads((folder / "trial.json").read_text(encoding="utf-8"))["state"] == "done"
    except (OSError, ValueError, KeyError):
        return False


def standing(study: Study, opened: "OptunaStudy") -> Standing:
    """Return how a study stands now."""
    trials = tuple(trials_of(study, opened))
    return Standing(study, trials, _seconds_left(trials))


def _seconds_left(trials: "tuple[FrozenTrial, ...]") -> float | None:
    """Estimate the time until the last trial ends, from those that are done and the workers there are."""
    done = [trial.duration.total_seconds() for trial in trials if state_of(trial) == "done"]
    if not done:
        return None
    each = sum(done) / len(done)
    running = [trial for trial in trials if state_of(trial) == "running"]
    now = datetime.now()  # Optuna's times have no zone
    begun = sum(max(0.0, each - (now - trial.datetime_start).total_seconds()) for trial in running)
    waiting = sum(state_of(trial) == "waiting" for trial in trials)
    return (each * waiting + begun) / max(1, len(running))


def describe(trial: "FrozenTrial", study: Study) -> str:
    """Return a trial in one line: its name, what varies, its figure or its error."""
    name = trial_name(trial.user_attrs["point"])
    shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in trial.params.items()}
    values = ", ".join(f"{key} {value}" for key, value in shown.items())
    if state_of(trial) == "done":
        return f"{name}: {study.optimise} {trial.value:.4f} ({values})"
    told = trial.user_attrs.get("error", state_of(trial))
    return f"{name}: {told} ({values})" if values else f"{name}: {told}"


def supervise(
    study: Study, file: Path, opened: "OptunaStudy", *, workers: int, show: Callable[[Standing], None]
) -> list[str]:
    """Run workers until the study is settled or cannot go on; return why it could not, one sentence each.

    A worker that dies is started again, a few times as long as no trial is settled meanwhile. When this process ends,
    however it ends, its workers end too.
    """
    ends = time.time() + 3600 * study.budgets.hours if study.budgets.hours else float("inf")
    environment = _environment(workers)
    team = [_start(study, file, number, ends, environment) for number in range(workers)]
    reasons: list[str] = []
    started, restarts, left = workers, 0, len(study.points)
    try:
        while team:
            now = standing(study, opened)
            show(now)
            if now.n_left < left:  # a trial has settled: deaths that come now are others
                restarts, left = 0, now.n_left
            time.sleep(_REFRESH_SECONDS)
            for worker in [one for one in team if one.poll() is not None]:
                team.remove(worker)
                if worker.returncode == PAUSED:
                    reasons.append(worker.stdout.read().strip())
                elif worker.returncode and restarts < _MOST_RESTARTS:
                    restarts += 1
                    team.append(_start(study, file, started, ends, environment))
                    started += 1
                elif worker.returncode:
                    reasons.append(_death(study, worker.returncode))
                _close(worker)
    finally:
        for worker in team:
            _close(worker)  # its input ends, and with it the worker
            worker.wait()
    show(standing(study, opened))
    return list(dict.fromkeys(reasons))


def _environment(workers: int) -> dict[str, str]:
    """Return the environment of each worker: the cores are shared out, else each would compute on all of them."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // workers)), **os.environ}


def _start(study: Study, file: Path, number: int, ends: float, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "helpers.studies.worker", str(file), str(ends)]
    with (study.folder / f"worker-{os.getpid()}-{number}.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - this very Python
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _close(worker: subprocess.Popen) -> None:
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _death(study: Study, code: int) -> str:
    return (
        f"A worker ended with code {code} again and again: read {study.folder / 'worker-*.log'}. "
        "What was done is kept, and the same command goes on."
    )
