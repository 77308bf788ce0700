"""A training as one trial of a study: open the study's storage, and stop a trial that falls behind the others.

A study's worker names the trial in an environment variable of the notebook kernels that it starts. A training in such
a kernel reports each validation loss to the study, which says whether to prune it.
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
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from transformers import TrainerCallback

PLACE = "COURSE_TRIAL"  # the environment variable that says, as JSON, where in which storage the trial is
JOURNAL = "study.log"  # the file with the trials, in a study's folder
HEARTBEAT_SECONDS, GRACE_SECONDS = 15, 60  # how often a trial reports to a database, and when a silent one is dead
_DATABASE_ATTEMPTS = 4


class TrialPrunedError(RuntimeError):
    """A trial of a study that was stopped because its validation loss fell behind the median of the others."""


def pruning_callback(run: str) -> "TrainerCallback | None":
    """Return the callback that reports a run to its study; None where this process does not work for a trial of it.

    The training raises `TrialPrunedError` once the study's pruner says so. Losses are compared where the same share of
    the text was read, so trials with different batch sizes stay comparable.
    """
    place = json.loads(os.environ.get(PLACE) or "{}")
    if place.get("run") != run:
        return None
    from transformers import TrainerCallback

    class Pruning(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trial = trial_at(place) if state.is_world_process_zero else None

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            if self.trial is None or state.global_step >= state.max_steps:
                return
            thousandths_read = round(1000 * state.epoch)  # Optuna's steps are integers
            self.trial.report(metrics["eval_loss"], thousandths_read)
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned", state.global_step)
                raise TrialPrunedError(
                    f"The validation loss {metrics['eval_loss']:.3f} at step {state.global_step} is worse than the "
                    "median of the study's other trials at this point: the trial is stopped, as `prune` asks."
                )

    return Pruning()


def trial_at(place: dict[str, Any]) -> "Trial":
    """Return the running trial at a place, to report losses to and to ask whether it is pruned."""
    import optuna

    storage = open_storage(place["address"], Path(place["folder"]))
    sampler = optuna.samplers.RandomSampler()  # never asked: the trial's values are chosen already
    study = optuna.load_study(study_name=place["study"], storage=storage, pruner=pruner(True), sampler=sampler)
    return optuna.Trial(study, place["trial_id"])


def pruner(prune: bool) -> "BasePruner":
    """Return Optuna's median rule, which waits for four finished trials, or a pruner that never prunes."""
    from optuna.pruners import MedianPruner, NopPruner

    return MedianPruner(n_startup_trials=4, n_min_trials=3) if prune else NopPruner()


def open_storage(address: str, folder: Path) -> "BaseStorage":
    """Return the database at an address, or the journal in a study's folder where the address is empty.

    Raises:
        SettingsError: the database does not answer, or its driver is not installed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not address:
        return _journal(folder)
    try:
        return _database(address)
    except Exception as error:  # noqa: BLE001 - each driver has errors of its own
        cause = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
        raise SettingsError(
            f"The study's storage {_without_password(address)} does not answer: {cause}. Start the server, fix the "
            "address (for PostgreSQL install '.[postgres]'), or leave `storage` out for a journal in the folder."
        ) from None


def _journal(folder: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    # A lock of the operating system ends with its process, however that ends; Optuna's own is a file that stays.
    lock = FileLock(folder / f"{JOURNAL}.lock")

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with lock:  # the same process may take it again
                _remove_incomplete_line(folder / JOURNAL)
                super().append_logs(logs)

    return JournalStorage(Journal(str(folder / JOURNAL), lock_obj=lock))


def _remove_incomplete_line(journal: Path) -> None:
    """Remove a last line that a full disk or a power cut has cut short: Optuna would write its next line behind it."""
    with journal.open("rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _database(address: str) -> "BaseStorage":
    """Connect to a database; try again where another process makes Optuna's tables at the same moment."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    options = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": GRACE_SECONDS}
    for attempt in range(1, _DATABASE_ATTEMPTS + 1):
        try:
            with warnings.catch_warnings(action="ignore"):  # heartbeats are called experimental
                return RDBStorage(address, engine_kwargs={"pool_pre_ping": True}, **options)
        except (IntegrityError, ProgrammingError):
            if attempt == _DATABASE_ATTEMPTS:
                raise
        time.sleep(1)
    raise AssertionError


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme
