"""One trial: run its notebooks like those of a run, with a log and a record; sort errors into pruned, paused or failed.

While the notebooks run, COURSE_RUNS points to the study's folder, so a trial is a run like any other, named by its
number.
"""

import logging
import math
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.course import CourseError, find_notebook, run_course
from helpers.files import environment_variables, remove_link, write_json
from helpers.settings import SettingsError, read_preset
from helpers.studies.compared_run import read_run
from helpers.studies.queue import place_of, suggest_values
from helpers.studies.study import Study, trial_name
from helpers.training.pruning import PLACE
from helpers.troubleshooting import explain

if TYPE_CHECKING:
    from optuna import Trial

# the messages of the operating systems, and our own
_FULL_DISK = ("No space left on device", "[Errno 28]", "[WinError 112]", "(os error 112)", "The disk of ")
_log = logging.getLogger(__name__)


class StudyPausedError(RuntimeError):
    """No further trial can start now; the message says why, and what to do."""


class TrialFailedError(RuntimeError):
    """A trial's notebooks failed or left no metric; the study continues."""


def run_trial(study: Study, trial: "Trial") -> float:
    """Run the notebooks of a taken trial and return its metric; trial.log and trial.json record the outcome.

    Raises:
        TrialFailedError: a notebook failed, or left no metric; Optuna also records the error.
        optuna.TrialPruned: the trial was worse than the others.
        StudyPausedError: the disk is full; the trial is not settled.
    """
    import optuna

    folder = study.folder / trial_name(trial.user_attrs["point"])
    record: dict[str, Any] = {"point": trial.user_attrs["point"], "optimise": study.optimise, "state": "not finished"}
    record["parameters"] = {**study.settings, **suggest_values(study, trial)}
    with _log_to(folder / "trial.log"):
        # before running, so that the table shows the values of an interrupted trial
        write_json(folder / "trial.json", record)
        try:
            metric = _run_notebooks(study, trial, folder, record["parameters"])
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
            write_json(folder / "trial.json", record)
    if not study.keep_checkpoints:
        for run in (folder, *study.folder.glob(f"{folder.name}-*")):  # includes its notebooks' experiments
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return metric


def _run_notebooks(study: Study, trial: "Trial", folder: Path, parameters: dict[str, Any]) -> float:
    """Run a trial's notebooks as a run in the study's folder, and return the metric that they measured."""
    run = folder.name
    _log.info("%s begins: %s", run, parameters)
    # without a place, training reports to no study and is not pruned
    environment = {"COURSE_RUNS": str(study.folder), PLACE: place_of(study, trial) if study.prune else ""}
    try:
        with environment_variables(environment):  # inherited by the notebooks' kernels
            if notebooks := [find_notebook(name) for name in study.notebooks]:
                run_course(notebooks, run=run, parameters=parameters, defaults=read_preset(study.preset))
            else:  # in this process: a kernel per trial would import everything again
                from helpers.training import fine_tune  # loads transformers' Trainer

                fine_tune(study.training_settings(parameters).model_copy(update={"run": run}))
        metric = getattr(read_run(folder), study.optimise)
    except Exception as error:  # noqa: BLE001 - whatever ends a trial, the others continue
        _log.error("%s", "".join(traceback.format_exception(error)))
        outcome = _outcome(trial, error)
        is_trained = (folder / "training.json").exists()
        metric = getattr(read_run(folder), study.optimise) if is_trained else None
        if metric is None or not isinstance(outcome, TrialFailedError):
            raise outcome from None
        # the metric is from the complete training; the later failure says nothing about the settings
        _log.warning("%s was measured before the failure, and counts: %s", study.optimise, metric)
    if metric is None or not math.isfinite(metric):
        raise TrialFailedError(
            f"The notebooks ran but left no finite {study.optimise} in {run}: either training diverged "
            "(a lower learning_rate helps), or the notebook that measures it is not in `notebooks`."
        )
    return metric


def _outcome(trial: "Trial", error: Exception) -> Exception:
    """Turn an error of a trial's notebooks into an exception for pruned, paused or failed."""
    import optuna

    attributes = trial.study.get_trials(deepcopy=False)[trial.number].user_attrs  # as left by the kernel's process
    if "pruned" in attributes:
        return optuna.TrialPruned(f"pruned at step {attributes['pruned']}")
    explanation = explain(str(error))
    _log.error("%s", explanation)
    if any(words in str(error) for words in _FULL_DISK):
        return StudyPausedError(
            f"The study is paused: the disk is full ({error}) Free some space and give the same command again: the "
            "trial continues from its last checkpoint."
        )
    is_sentence = isinstance(error, (CourseError, SettingsError))
    message = str(error) if is_sentence else f"{type(error).__name__}: {error}"
    return TrialFailedError(f"{message} ({explanation.verdict})" if explanation.causes else message)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log messages of this worker and papermill to a trial's file; a resumed trial appends to it."""
    remove_link(path)
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
