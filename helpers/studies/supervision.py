"""Start and restart the workers of one command; show the study's progress, live or line by line."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, get_args

import psutil

from helpers.display import duration_text, printable
from helpers.studies.queue import State, state_of, trials_of
from helpers.studies.study import Study, trial_name
from helpers.studies.worker import PAUSED

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial
    from rich.console import RenderableType

_MAX_RESTARTS = 3  # of dead workers, between one settled trial and the next
_MAX_FAILED = 5  # failed trials on the screen
_ALWAYS_SHOWN = ("done", "running")
_REFRESH_SECONDS = 0.5


class Progress:
    """The state of a study at the time of reading: the newest trial of each point."""

    def __init__(self, study: Study, optuna_study: "OptunaStudy") -> None:
        self.study = study
        self.trials = trials_of(study, optuna_study)

    def of_state(self, state: State) -> "list[FrozenTrial]":
        """Return the trials in a state; interrupted ones are waiting."""
        return [trial for trial in self.trials if state_of(trial) == state]

    @property
    def n_left(self) -> int:
        """Number of trials that are not settled: waiting or running."""
        return len(self.of_state("waiting")) + len(self.of_state("running"))

    def n_left_of(self, n_points: int, *, with_failed: bool) -> int:
        """Return how many of the first `n_points` points still have to run, queued or not."""
        settled = {"done", "pruned"} | (set() if with_failed else {"failed"})
        return n_points - sum(
            state_of(trial) in settled and trial.user_attrs["point"] < n_points for trial in self.trials
        )

    @property
    def counts(self) -> str:
        """The number of trials in each state, in words."""
        counts = {state: len(self.of_state(state)) for state in get_args(State)}
        shown = [f"{n} {state}" for state, n in counts.items() if n or state in _ALWAYS_SHOWN]
        return f"{', '.join(shown)} of {len(self.trials)}"

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the last trial ends, from the mean of the finished ones; None before the first."""
        done = [trial.duration.total_seconds() for trial in self.of_state("done")]
        return mean(done) * self.n_left / max(1, len(self.of_state("running"))) if done else None

    @property
    def headline(self) -> str:
        """The progress in one line."""
        if not self.n_left:
            left = "none"
        elif self.seconds_left is None:
            left = "known after the first trial"
        else:
            left = f"about {duration_text(self.seconds_left)}"
        return f"{self.counts}; time left: {left}"

    @property
    def best(self) -> "FrozenTrial | None":
        """The finished trial with the smallest metric; None before the first."""
        return min(self.of_state("done"), key=lambda trial: trial.value, default=None)


def describe(trial: "FrozenTrial", study: Study) -> str:
    """Describe a trial in one line: its name, varied settings, and metric or error."""
    name = trial_name(trial.user_attrs["point"])
    params = {key: f"{value:g}" if isinstance(value, float) else value for key, value in trial.params.items()}
    values = printable(", ".join(f"{key} {value}" for key, value in params.items()))
    if state_of(trial) == "done":
        return f"{name}: {study.optimise} {trial.value:.4f} ({values})"
    outcome = printable(trial.user_attrs.get("error", state_of(trial)))
    return f"{name}: {outcome} ({values})" if values else f"{name}: {outcome}"


def draw(progress: Progress) -> "RenderableType":
    """Return the live screen: trials done, running and failed, the best so far, and the time left."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    study, n_trials = progress.study, len(progress.trials)
    lines: list[Any] = [
        Text(f"study {study.study}", style="bold"),
        ProgressBar(total=max(1, n_trials), completed=n_trials - progress.n_left, width=60),
        Text(progress.headline),
    ]
    if progress.best is not None:
        lines.append(Text(f"best so far  {describe(progress.best, study)}", style="green"))
    lines += [Text(describe(trial, study)) for trial in progress.of_state("running")]
    lines += [Text(describe(trial, study), style="red") for trial in progress.of_state("failed")[-_MAX_FAILED:]]
    lines.append(Text(f"logs: {study.folder / '<trial>' / 'trial.log'}", style="dim"))
    return Group(*lines)


class EndedTrials:
    """Writes a line for each trial that ended since the last call: the progress display without a terminal."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write
        self._shown: set[int] | None = None

    def __call__(self, progress: Progress) -> None:
        """Write a line for each newly ended trial."""
        ended = {trial.number: trial for trial in progress.trials if state_of(trial) not in ("waiting", "running")}
        if self._shown is None:  # first call: these ended before this command
            self._shown = set(ended)
        for number in sorted(set(ended) - self._shown):
            self._write(f"{describe(ended[number], progress.study)}; {progress.headline}")
        self._shown |= set(ended)


def supervise(
    study: Study, file: Path, optuna_study: "OptunaStudy", *, workers: int, show: Callable[[Progress], None]
) -> list[str]:
    """Run workers until the study is settled or cannot continue; return the reasons if not, one sentence each.

    A worker that dies is restarted, up to three times until the next trial is settled. When this process ends, its
    workers end too, even if it is killed.
    """
    deadline = time.time() + 3600 * study.budgets.hours if study.budgets.hours else float("inf")
    environment = _environment(workers)
    team = [_start(study, file, number, deadline, environment) for number in range(workers)]
    reasons: list[str] = []
    started, restarts, left = workers, 0, len(study.points)
    try:
        while team:
            progress = Progress(study, optuna_study)
            show(progress)
            if progress.n_left < left:  # a trial was settled, so later deaths have another cause
                restarts, left = 0, progress.n_left
            time.sleep(_REFRESH_SECONDS)
            for worker in [one for one in team if one.poll() is not None]:
                team.remove(worker)
                if worker.returncode == PAUSED:
                    reasons.append(worker.stdout.read().strip())
                elif worker.returncode and restarts < _MAX_RESTARTS:
                    restarts += 1
                    team.append(_start(study, file, started, deadline, environment))
                    started += 1
                elif worker.returncode:
                    reasons.append(
                        f"Workers keep ending with code {worker.returncode}: read "
                        f"{study.folder / 'worker-*.log'}. Finished trials are kept, and the same command continues."
                    )
                _close(worker)
    finally:
        for worker in team:
            _close(worker)  # closes its input, which ends the worker
            worker.wait()
    show(Progress(study, optuna_study))
    return list(dict.fromkeys(reasons))


def _environment(workers: int) -> dict[str, str]:
    """Return the workers' environment, which divides the cores: otherwise each worker would compute on all of them."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // workers)), **os.environ}


def _start(study: Study, file: Path, number: int, deadline: float, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "helpers.studies.worker", str(file), str(deadline)]
    with (study.folder / f"worker-{os.getpid()}-{number}.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - runs this same Python
            command,
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, see `_end_with_parent`
            stdout=subprocess.PIPE,  # one sentence: why it paused
            stderr=log,
            encoding="utf-8",
            env=environment,
            # Ctrl-C in the terminal reaches only this process, which then ends its workers; the second is for Windows
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def _close(worker: subprocess.Popen) -> None:
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
