"""One trial: its notebooks run as those of a run of its own, with a log, a record, and its errors judged.

While the notebooks run, COURSE_RUNS points to the study's folder: so a trial is a run like any other, named by its
number.
"""

import json
import logging
import math
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.course import CourseError, find_notebook, run_course
from helpers.files import write_atomically
from helpers.settings import SettingsError, read_preset
from helpers.studies.comparison import read_run
from helpers.studies.queue import choose, place_of
from helpers.studies.study import Study, trial_name
from helpers.training.trial import PLACE
from helpers.troubleshooting import explain

if TYPE_CHECKING:
    from optuna import Trial

_FULL_DISK = ("No space left on device", "[Errno 28]", "The disk of ")  # the system's words, and our own
_MOST_BROKEN_OFF = 100  # more than kills and power cuts come to; a trial that ends its worker is there in hours
_log = logging.getLogger(__name__)


class StudyPausedError(RuntimeError):
    """No further trial can be begun now; the message says why, and what to do."""


class TrialFailedError(RuntimeError):
    """A trial whose notebooks did not run to their end; the study goes on."""


def run_trial(study: Study, trial: "Trial") -> float:
    """Run the notebooks of a taken trial and return its figure; trial.log and trial.json tell how it went.

    Raises:
        TrialFailedError: a notebook failed, or left no figure; Optuna's record holds the error too.
        optuna.TrialPruned: the trial fell behind.
        StudyPausedError: the disk is full; the trial is not settled.
    """
    import optuna

    folder = study.folder / trial_name(trial.user_attrs["point"])
    record: dict[str, Any] = {"point": trial.user_attrs["point"], "optimise": study.optimise, "state": "not finished"}
    record["parameters"] = {**study.settings, **choose(study, trial)}
    with _logged(folder / "trial.log"):
        write_atomically(folder / "trial.json", json.dumps(record, indent=2))
        try:
            _stop_when_broken_off_too_often(trial, folder)
            figure = _run_notebooks(study, trial, folder, record["parameters"])
            record["state"] = "done"
        except optuna.TrialPruned:
            record["state"] = "pruned"
            raise
        except TrialFailedError as error:
            record |= {"state": "failed", "error": str(error)}
            trial.set_user_attr("error", str(error))
            raise
        finally:
            _log.info("%s: %s", folder.name, record["state"])
            write_atomically(folder / "trial.json", json.dumps(record, indent=2))
    if not study.keep_checkpoints:
        for run in (folder, *study.folder.glob(f"{folder.name}-*")):  # and the experiments of its notebooks
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return figure


def _stop_when_broken_off_too_often(trial: "Trial", folder: Path) -> None:
    times = trial.user_attrs.get("broken_off", 0)
    if times >= _MOST_BROKEN_OFF:
        raise TrialFailedError(
            f"Its worker was stopped or died {times} times amid this trial: read {folder / 'trial.log'} and the "
            f"{folder.parent / 'worker-*.log'}. `sweep --retry-failed` tries again."
        )


def _run_notebooks(study: Study, trial: "Trial", folder: Path, parameters: dict[str, Any]) -> float:
    """Run a trial's notebooks as those of a run in the study's folder; return the figure they left."""
    run = folder.name
    _log.info("%s begins: %s", run, parameters)
    environment = {"COURSE_RUNS": str(study.folder), PLACE: place_of(study, trial) if study.prune else ""}
    try:
        with _environment(environment):
            notebooks = [find_notebook(name) for name in study.notebooks]
            run_course(notebooks, run=run, parameters=parameters, defaults=read_preset(study.preset))
        figure = getattr(read_run(folder), study.optimise)
    except Exception as error:  # noqa: BLE001 - whatever a trial ends with, the others go on
        _log.error("%s", "".join(traceback.format_exception(error)))
        raise _judged(trial, error) from None
    if figure is None or not math.isfinite(figure):
        raise TrialFailedError(
            f"The notebooks ran, and left no {study.optimise} that is a number in {run}: either its training diverged "
            "(a lower learning_rate helps), or the notebook that makes the figure is not in `notebooks`."
        )
    return figure


def _judged(trial: "Trial", error: Exception) -> Exception:
    """Return what an error of a trial's notebooks comes to: pruned, paused or failed."""
    import optuna

    told = trial.study.get_trials(deepcopy=False)[trial.number].user_attrs
    if "pruned" in told:
        return optuna.TrialPruned(f"pruned at step {told['pruned']}")
    explanation = explain(str(error))
    _log.error("%s", explanation)
    if any(sign in str(error) for sign in _FULL_DISK):
        return StudyPausedError(
            f"The study is paused: the disk is full ({error}) The trial goes on from its last checkpoint when there is "
            "room and the same command is given again."
        )
    known = isinstance(error, (CourseError, SettingsError))
    said = str(error) if known else f"{type(error).__name__}: {error}"
    return TrialFailedError(f"{said} ({explanation.verdict})" if explanation.causes else said)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which the kernels inherit, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what this worker and papermill log into a file of the trial; a resumed trial's goes on in the same."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = (_log, logging.getLogger("papermill"))
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
