"""A study in Optuna's storage: create or join it, queue each point once, and queue interrupted trials again.

Every point of a study is a waiting trial in Optuna's queue, which hands each to one worker atomically. A grid's points
are queued with their values; a search's without, and the sampler chooses them when a worker takes the trial. (Optuna's
GridSampler documents that several workers may get the same point.) The number of a point names the trial's folder. An
interrupted trial is queued again with a new Optuna number but the same point, so its run resumes from its checkpoint.

The user attributes of a trial must keep their names, because old studies have them too: `point`; `worker`, who took
it; `error`, why it failed; `pruned`, at which step; `retry`, set if it follows a failed one; `superfluous`, set if it
is to be ignored.
"""

import json
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from helpers.settings import SettingsError, known_settings
from helpers.studies.study import Range, Study, trial_name
from helpers.training.pruning import pruner
from helpers.training.study_storage import JOURNAL, open_storage

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

State = Literal["done", "running", "waiting", "pruned", "failed"]
_STATES: dict[str, State] = {
    "COMPLETE": "done", "RUNNING": "running", "WAITING": "waiting", "PRUNED": "pruned", "FAIL": "failed",
}  # fmt: skip


def open_study(study: Study) -> "OptunaStudy":
    """Create or join the study, and queue the points that are not queued yet.

    Raises:
        SettingsError: the study was started with other settings, or a run has its name.
    """
    import optuna

    _refuse_run_folder(study)
    optuna_study = optuna.create_study(
        study_name=study.study,
        storage=open_storage(study.storage, study.folder),
        pruner=pruner(study.prune),
        sampler=optuna.samplers.RandomSampler(),  # never used: see `suggest_values`
        load_if_exists=True,
    )
    if not _is_started(study, optuna_study):
        optuna_study.set_user_attr("essence", study.essence)
    study.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(study.folder / ".queue.lock"):  # two commands that start together would both queue all points
        queued = {trial.user_attrs["point"] for trial in _valid_trials(optuna_study)}
        for number, point in enumerate(study.points):
            if number not in queued:
                optuna_study.enqueue_trial(point, user_attrs={"point": number})
    return optuna_study


def started_study(study: Study) -> "OptunaStudy | None":
    """Return the study if it was started before, else None; writes nothing.

    Raises:
        SettingsError: it was started with other settings, its storage does not answer, or a run has its name.
    """
    import optuna

    _refuse_run_folder(study)
    if not study.storage and not (study.folder / JOURNAL).exists():
        return None
    try:
        optuna_study = optuna.load_study(
            study_name=study.study,
            storage=open_storage(study.storage, study.folder),
            sampler=optuna.samplers.RandomSampler(),  # never used: see `suggest_values`
        )
    except KeyError:  # the storage holds only other studies, e.g. in a copied folder
        return None
    _is_started(study, optuna_study)
    return optuna_study


def _refuse_run_folder(study: Study) -> None:
    if (study.folder / "settings.json").exists():
        raise SettingsError(f"{study.folder} is the folder of a run: give the study another name.")


def _is_started(study: Study, optuna_study: "OptunaStudy") -> bool:
    """Return whether a study was started before; raise `SettingsError` if it had other settings."""
    before, now = optuna_study.user_attrs.get("essence"), study.essence
    if before is not None and before != now:
        changed = [f"{name} = {before.get(name)}, not {now[name]}" for name in now if before.get(name) != now[name]]
        raise SettingsError(
            f"Study {study.study!r} was started with {'; '.join(changed)}: choose another `study` name to keep both. "
            "Only budgets, storage, prune and keep_checkpoints may change."
        )
    return before is not None


def suggest_values(study: Study, trial: "Trial") -> dict[str, Any]:
    """Return the values of a taken trial: those it was queued with, or new ones that TPE derives from other trials."""
    trial.study.sampler = _sampler(study, trial.user_attrs["point"])
    point = {}
    for name, variation in study.vary.items():
        if not isinstance(variation, Range):
            point[name] = trial.suggest_categorical(name, variation)
        elif known_settings()[name].annotation is int:
            point[name] = trial.suggest_int(name, int(variation.low), int(variation.high), log=variation.scale == "log")
        else:
            point[name] = trial.suggest_float(name, variation.low, variation.high, log=variation.scale == "log")
    return point


def _sampler(study: Study, point: int) -> "BaseSampler":
    """Return TPE seeded by the point, so that two workers choose differently and a study can be repeated."""
    import optuna

    # constant_liar counts running trials as bad ones, so that workers do not all search near the same point
    with warnings.catch_warnings(action="ignore"):  # marked experimental
        return optuna.samplers.TPESampler(
            seed=study.training_settings({}).seed + point, constant_liar=True, n_startup_trials=5
        )


def _valid_trials(optuna_study: "OptunaStudy") -> "list[FrozenTrial]":
    trials = optuna_study.get_trials(deepcopy=False)
    return [trial for trial in trials if "point" in trial.user_attrs and "superfluous" not in trial.user_attrs]


def trials_of(study: Study, optuna_study: "OptunaStudy") -> "list[FrozenTrial]":
    """Return the newest trial of each point, in the order of the points.

    If the budget of trials was lowered, waiting trials beyond it are left out.
    """
    # trials are numbered as they are queued, so a later one of the same point replaces an earlier one
    newest = {trial.user_attrs["point"]: trial for trial in _valid_trials(optuna_study)}
    n_points = len(study.points)
    return [newest[point] for point in sorted(newest) if point < n_points or state_of(newest[point]) != "waiting"]


def state_of(trial: "FrozenTrial") -> State:
    """Return the state of a trial; an interrupted one counts as waiting, because it will be queued again."""
    return "waiting" if was_interrupted(trial) else _STATES[trial.state.name]


def is_superfluous(optuna_study: "OptunaStudy", trial: "Trial") -> bool:
    """Return whether an earlier trial runs or has settled the point, e.g. after two machines queued it at once."""
    point, is_retry = trial.user_attrs.get("point"), "retry" in trial.user_attrs
    return point is None or any(
        other.user_attrs["point"] == point
        and other.number < trial.number
        and not was_interrupted(other)
        and not (is_retry and state_of(other) == "failed")
        for other in _valid_trials(optuna_study)
    )


def was_interrupted(trial: "FrozenTrial") -> bool:
    """Return whether a trial ended with neither result nor error: its worker died or was stopped."""
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs


def _queue_again(optuna_study: "OptunaStudy", trial: "FrozenTrial", *, is_retry: bool) -> None:
    """Queue a trial's point again, with its values and the losses reported so far."""
    import optuna

    retry = optuna.create_trial(
        state=optuna.trial.TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={"point": trial.user_attrs["point"]} | ({"retry": True} if is_retry else {}),
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
    optuna_study.add_trial(retry)  # not enqueue_trial, which would fix the values but lose the reported losses


def retry_failed(study: Study, optuna_study: "OptunaStudy") -> None:
    """Queue the failed trials again."""
    with FileLock(study.folder / ".queue.lock"):  # otherwise a second command would queue them again
        for trial in trials_of(study, optuna_study):
            if state_of(trial) == "failed":
                _queue_again(optuna_study, trial, is_retry=True)


def this_worker(study: Study) -> str:
    """Return the machine and folder of this process: it can trust file locks only there."""
    return f"{socket.gethostname()}:{study.folder}"


def trial_lock(folder: Path, point: int) -> FileLock:
    """Return the lock that a worker holds while it runs a point; the system releases it if the worker dies."""
    run = folder / trial_name(point)
    run.mkdir(parents=True, exist_ok=True)
    return FileLock(run / ".worker.lock")


def requeue_interrupted(study: Study, optuna_study: "OptunaStudy") -> None:
    """Queue again the trials whose worker died; call it while holding the lock for taking trials.

    A worker on this machine is dead if the lock of its trial is free; one on another machine if its heartbeats in the
    database have stopped. (Optuna's RetryHeartbeatStaleTrialCallback needs heartbeats, which a journal does not have.)
    """
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    with warnings.catch_warnings(action="ignore"):  # marked experimental
        fail_stale_trials(optuna_study)
    for trial in trials_of(study, optuna_study):
        if trial.state == TrialState.RUNNING and _is_dead(study, trial):
            optuna_study.tell(trial.number, state=TrialState.FAIL)
    for trial in trials_of(study, optuna_study):
        if was_interrupted(trial):
            _queue_again(optuna_study, trial, is_retry="retry" in trial.user_attrs)


def _is_dead(study: Study, trial: "FrozenTrial") -> bool:
    if study.storage and trial.user_attrs.get("worker") != this_worker(study):
        return False  # it is on another machine, whose locks are not visible here
    try:
        with trial_lock(study.folder, trial.user_attrs["point"]).acquire(timeout=0):
            return True
    except Timeout:
        return False


def place_of(study: Study, trial: "Trial") -> str:
    """Return a trial's place in the storage as JSON text, with which `trial_at` opens it in another process."""
    run = trial_name(trial.user_attrs["point"])
    place = {"address": study.storage, "folder": str(study.folder), "study": study.study, "run": run}
    return json.dumps(place | {"trial_id": trial._trial_id})  # private, but Optuna's Trial(study, id) needs it
