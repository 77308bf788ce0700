"""A worker: takes one trial after the other from the study's queue and runs it, until nothing is left.

`python -m helpers.studies.worker FILE ENDS` is what the command `sweep` starts, once for each worker.
"""

import errno
import logging
import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from helpers.settings import SettingsError
from helpers.studies.queue import (
    is_superfluous,
    open_study,
    put_back,
    requeue_broken_off,
    state_of,
    this_worker,
    trial_lock,
    trials_of,
)
from helpers.studies.study import Study
from helpers.studies.study_file import read_study
from helpers.studies.study_plan import LEAST_BYTES, folder_bytes, free_bytes
from helpers.studies.trial import StudyPausedError, TrialFailedError, run_trial
from helpers.training.plan import plan_run

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial

PAUSED = 3  # exit code
_POLL_SECONDS = 0.5  # while others work at all that is left


class _SuperfluousError(RuntimeError):
    """A trial whose point another trial has settled or works at, or that is beyond the budget of trials."""


def work(study: Study, opened: "OptunaStudy", *, ends: float = float("inf")) -> None:
    """Run trials until the study is settled; wait for those that others run, in case they die.

    Args:
        study: what to run.
        opened: the same study in Optuna's storage.
        ends: the `time.time()` after which no trial is begun.

    Raises:
        StudyPausedError: the time or the disk's room is used up.
    """
    taking = FileLock(study.folder / ".take.lock")
    while True:
        # `taking` is held from the look at the queue until the taken trial's own lock is held, and that one until
        # Optuna has recorded the end: so a running trial whose lock is free has no worker any more
        with ExitStack() as held, taking:
            requeue_broken_off(study, opened)
            states = {state_of(trial) for trial in trials_of(study, opened)}
            if "waiting" in states:
                _stop_for_budgets(study, ends)
                opened.optimize(
                    lambda trial: _own_and_run(study, trial, taking, held),
                    n_trials=1,
                    catch=(TrialFailedError, _SuperfluousError),
                )
        if not {"waiting", "running"} & states:
            return
        if "waiting" not in states:
            time.sleep(_POLL_SECONDS)


def _stop_for_budgets(study: Study, ends: float) -> None:
    """Raise `StudyPausedError` when the hours are over or the next trial would not fit onto the disk."""
    if time.time() > ends:
        raise StudyPausedError(
            f"budgets.hours = {study.budgets.hours:g} are over: no further trial is begun. The same command goes on."
        )
    folder, needed = study.folder, _needed_bytes(study)
    free, used = free_bytes(folder), folder_bytes(folder) if study.budgets.disk_gib else 0
    if free < needed:
        raise StudyPausedError(
            f"The study is paused: the disk of {folder} has {free / 1e9:.2f} GB left and the next trial takes "
            f"{needed / 1e9:.2f} GB. Free some space; the same command goes on."
        )
    if study.budgets.disk_gib and used + needed > study.budgets.disk_gib * 2**30:
        raise StudyPausedError(
            f"The study is paused: its folder holds {used / 2**30:.2f} GiB, the next trial takes "
            f"{needed / 2**30:.2f} GiB, and budgets.disk_gib is {study.budgets.disk_gib:g}. Raise the budget "
            "or delete checkpoints of finished trials; the same command goes on."
        )


def _needed_bytes(study: Study) -> int:
    """Return the most that any of the points takes while it works."""
    try:
        return max(plan_run(study.training_settings(point)).disk_bytes for point in study.corners[:16])
    except SettingsError:
        return LEAST_BYTES


def _own_and_run(study: Study, trial: "Trial", taking: FileLock, held: ExitStack) -> float:
    """Lock a taken trial for as long as `held` is, let others take theirs, and run it."""
    try:
        if is_superfluous(trial.study, trial):
            raise _SuperfluousError
        if trial.user_attrs["point"] >= len(study.points):
            put_back(trial.study, trial)
            raise _SuperfluousError
        held.enter_context(trial_lock(study.folder, trial.user_attrs["point"]).acquire(timeout=0))
    except (Timeout, _SuperfluousError):  # or a worker that the database took for dead lives here after all
        trial.set_user_attr("superfluous", True)
        raise _SuperfluousError from None
    trial.set_user_attr("worker", this_worker(study))
    taking.release()
    return run_trial(study, trial)


def told_full_disk(error: OSError) -> str:
    """Return what is said when the disk is full; any other error is raised again."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return f"The study is paused: {error}. Free some space; the same command goes on."


def _end_with_parent() -> None:
    """End this process when the command that started it is gone: its end of the pipe then closes."""

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock Python wants at its end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(file: str, ends: str) -> int:
    """Work at the study of a file; print one sentence and return `PAUSED` where it cannot go on now."""
    _end_with_parent()
    logging.raiseExceptions = False  # a full disk must not end the worker through its log
    study = read_study(Path(file))
    try:
        work(study, open_study(study), ends=float(ends))
    except StudyPausedError as pause:
        print(pause, flush=True)
        return PAUSED
    except OSError as error:
        print(told_full_disk(error), flush=True)
        return PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
