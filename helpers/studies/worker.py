"""A worker: takes trials one by one from the study's queue and runs them, until nothing is left.

The command `sweep` starts `python -m helpers.studies.worker FILE ENDS` once per worker.
"""

import logging
import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from helpers.files import explain_os_error, is_disk_full
from helpers.studies.queue import (
    is_superfluous,
    open_study,
    requeue_interrupted,
    state_of,
    this_worker,
    trial_lock,
    trials_of,
)
from helpers.studies.study import Study
from helpers.studies.study_file import read_study
from helpers.studies.study_plan import disk_shortages, trial_bytes
from helpers.studies.trial import StudyPausedError, TrialFailedError, run_trial

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial

PAUSED = 3  # exit code
_POLL_SECONDS = 0.5  # while other workers run all remaining trials


class _SuperfluousError(RuntimeError):
    """Another trial runs or has settled this trial's point, or it is beyond the budget of trials."""


def work(study: Study, optuna_study: "OptunaStudy", *, deadline: float = float("inf")) -> None:
    """Run trials until the study is settled; wait for other workers' trials, in case those workers die.

    `optuna_study` is the study in Optuna's storage; no trial starts after `deadline`, a `time.time()`.

    Raises:
        StudyPausedError: the time or the disk space is used up.
    """
    take_lock = FileLock(study.folder / ".take.lock")
    while True:
        # `take_lock` is held from the look at the queue until the taken trial's own lock is held, and that lock until
        # Optuna has recorded the end: so a running trial whose lock is free no longer has a worker
        with ExitStack() as locks, take_lock:
            requeue_interrupted(study, optuna_study)
            states = {state_of(trial) for trial in trials_of(study, optuna_study)}
            if "waiting" in states:
                _stop_for_budgets(study, deadline)
                # optimize, not ask and tell: it records errors and pruning, and starts a database's heartbeat
                optuna_study.optimize(
                    lambda trial: _claim_and_run(study, trial, take_lock, locks),
                    n_trials=1,
                    catch=(TrialFailedError, _SuperfluousError),
                )
        if not {"waiting", "running"} & states:
            return
        if "waiting" not in states:
            time.sleep(_POLL_SECONDS)


def _stop_for_budgets(study: Study, deadline: float) -> None:
    """Raise `StudyPausedError` if the hours are used up or the next trial would not fit on the disk."""
    if time.time() > deadline:
        raise StudyPausedError(
            f"budgets.hours = {study.budgets.hours:g} is used up: no further trial starts. The same command continues."
        )
    if shortages := disk_shortages(study, trial_bytes(study)):
        raise StudyPausedError(f"The study is paused. {shortages[0]} The same command continues the study.")


def _claim_and_run(study: Study, trial: "Trial", take_lock: FileLock, locks: ExitStack) -> float:
    """Lock a taken trial for as long as `locks` is open, let other workers take trials, and run it."""
    try:
        # `open_study` queues a point beyond a lowered budget again when the budget is raised
        if is_superfluous(trial.study, trial) or trial.user_attrs["point"] >= len(study.points):
            raise _SuperfluousError
        locks.enter_context(trial_lock(study.folder, trial.user_attrs["point"]).acquire(timeout=0))
    except (Timeout, _SuperfluousError):  # Timeout: a worker presumed dead by the database is still alive
        trial.set_user_attr("superfluous", True)
        raise _SuperfluousError from None
    trial.set_user_attr("worker", this_worker(study))
    take_lock.release()
    return run_trial(study, trial)


def _end_with_parent() -> None:
    """End this process when the command that started it is gone, which closes the other end of the pipe."""
    # On Windows, any query about a pipe waits until a pending read of it ends. NumPy's libraries query the standard
    # input when they are loaded, and so would hang forever: https://github.com/numpy/numpy/issues/24290
    pipe, devnull = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)

    def wait() -> None:
        while os.read(pipe, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(file: str, deadline: str) -> int:
    """Run trials of the study in a file; if it cannot continue now, print one sentence and return `PAUSED`."""
    _end_with_parent()
    sys.stdout.reconfigure(encoding="utf-8")  # as the parent reads it; a Windows code page may lack characters
    logging.raiseExceptions = False  # a full disk must not end the worker through a log message
    study = read_study(Path(file))
    try:
        work(study, open_study(study), deadline=float(deadline))
    except StudyPausedError as pause:
        print(pause, flush=True)
        return PAUSED
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"The study is paused. {explain_os_error(error)}", flush=True)
        return PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
