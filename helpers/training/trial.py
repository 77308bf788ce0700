"""Stops a trial that falls behind: a Trainer callback that reports each validation loss to the study it belongs to.

A sweep's worker names the trial in the environment of the kernels that it starts; without that name there is no
callback. Losses are compared where as much of the text was read, so trials of other batch sizes stay comparable.
"""

import json
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from helpers.settings import SettingsError

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.storages import BaseStorage
    from transformers import TrainerCallback

HEARTBEAT_SECONDS, GRACE_SECONDS = 15, 60  # between a database's signs of life, and until their lack is a death
JOURNAL = "study.log"
PLACE = "COURSE_TRIAL"  # the environment variable with a trial's place in its study's storage


class TrialPrunedError(RuntimeError):
    """A trial of a study that was stopped because its validation loss fell behind the median of the others."""


def reporting(run: str) -> "TrainerCallback | None":
    """Return the callback for the trial that this process works for; None where `run` is no such trial.

    Its training raises `TrialPrunedError` once the study's pruner says so.
    """
    place = json.loads(os.environ.get(PLACE) or "{}")
    if place.get("run") != run:
        return None
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trial = trial_at(place) if state.is_world_process_zero else None

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            if self.trial is None or state.global_step >= state.max_steps:
                return
            share = round(1000 * state.epoch)  # thousandths of the text read
            self.trial.report(metrics["eval_loss"], share)
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned", state.global_step)
                raise TrialPrunedError(
                    f"The validation loss {metrics['eval_loss']:.3f} at step {state.global_step} is worse than the "
                    "median of the study's other trials at this point: the trial is stopped, as `prune` asks."
                )

    return Reporting()


def trial_at(place: dict[str, Any]) -> "Trial":
    """Return the running trial at a place, to report to and to ask whether it is to be pruned."""
    import optuna

    storage = open_storage(place["address"], Path(place["folder"]))
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name=place["study"], storage=storage, pruner=pruner(True), sampler=sampler)
    return optuna.Trial(study, place["trial_id"])


def open_storage(address: str, folder: Path) -> "BaseStorage":
    """Return the database at an address, or the journal in a study's folder.

    Raises:
        SettingsError: the database does not answer, or its driver is not installed.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not address:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(
            folder / f"{JOURNAL}.lock"
        )  # of the operating system: it ends with its process, however it ends
        _mend(folder / JOURNAL, lock)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock_obj=lock))
    try:
        return _database(address)
    except Exception as error:  # noqa: BLE001 - each driver has errors of its own
        cause = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
        raise SettingsError(
            f"The study's storage {_without_password(address)} does not answer: {cause}. Start the server, mend the "
            "address (for PostgreSQL install '.[postgres]'), or leave `storage` out for a journal in the folder."
        ) from None


def _database(address: str) -> "BaseStorage":
    """Connect to a database; two commands that make Optuna's tables at once stumble over each other, and try again."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    options = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": GRACE_SECONDS}
    for last in (False, False, False, True):
        try:
            with warnings.catch_warnings(action="ignore"):  # heartbeats are called experimental
                return RDBStorage(address, engine_kwargs={"pool_pre_ping": True}, **options)
        except (IntegrityError, ProgrammingError):
            if last:
                raise
        time.sleep(1)
    raise AssertionError


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme


def _mend(journal: Path, lock: FileLock) -> None:
    """Take away a last line that a full disk or a power cut has cut short: Optuna reads whole lines only."""
    if not journal.exists():
        return
    with lock, journal.open("rb+") as file:
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)


def pruner(prune: bool) -> Any:
    """Return Optuna's median rule, which waits for four finished trials, or none."""
    from optuna.pruners import MedianPruner, NopPruner

    return MedianPruner(n_startup_trials=4, n_min_trials=3) if prune else NopPruner()
