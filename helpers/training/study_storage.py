"""Where Optuna keeps the trials of a study: a journal in the study's folder, or a database."""

import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from helpers.settings import SettingsError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "study.log"  # the file with the trials, in a study's folder
HEARTBEAT_SECONDS, GRACE_SECONDS = 15, 60  # how often a trial reports to a database, and when a silent one is dead
_DATABASE_ATTEMPTS = 4


def open_storage(address: str, folder: Path) -> "BaseStorage":
    """Return the database at an address, or the journal in the study's folder if the address is empty.

    Raises:
        SettingsError: the database does not answer, or its driver is not installed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not address:
        return _journal(folder)
    try:
        return _database(address)
    except Exception as error:  # noqa: BLE001 - each driver has its own errors
        cause = " ".join(_redact(str(error.__cause__ or error), address).split())[:300].rstrip(".")
        raise SettingsError(
            f"The study's storage {_redact_address(address)} does not answer: {cause}. Start the server, fix the "
            'address (for PostgreSQL install ".[postgres]"), or leave `storage` out for a journal in the folder.'
        ) from None


def _journal(folder: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / JOURNAL).is_symlink():  # a study that somebody else made may link to a private file
        raise SettingsError(
            f"{folder / JOURNAL} is a link to another file, which the study would change: replace it by a copy, or "
            "delete it to start afresh."
        )
    # An operating system's lock ends with its process, however that ends; Optuna's own lock is a file that stays.
    lock = FileLock(folder / f"{JOURNAL}.lock")

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with lock:  # reentrant in the same process
                _remove_incomplete_line(folder / JOURNAL)
                super().append_logs(logs)

    return JournalStorage(Journal(str(folder / JOURNAL), lock_obj=lock))


def _remove_incomplete_line(journal: Path) -> None:
    """Remove a last line truncated by a full disk or a power cut: Optuna would append its next line to it."""
    with journal.open("rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _database(address: str) -> "BaseStorage":
    """Connect to a database; retry if another process is creating Optuna's tables at the same moment."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    options = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": GRACE_SECONDS}
    for attempt in range(1, _DATABASE_ATTEMPTS + 1):
        try:
            with warnings.catch_warnings(action="ignore"):  # heartbeats warn that they are experimental
                return RDBStorage(address, engine_kwargs={"pool_pre_ping": True}, **options)
        except (IntegrityError, ProgrammingError):
            if attempt == _DATABASE_ATTEMPTS:
                raise
        time.sleep(1)
    raise AssertionError


def _redact_address(address: str) -> str:
    """Return an address without user, password and options (some drivers accept a password there)."""
    scheme, separator, rest = address.partition("://")
    # without the separator it is unclear where the password ends
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if separator else "(an address without ://)"


def _redact(message: str, address: str) -> str:
    """Return a driver's message with any parts of the user name and password removed."""
    for part in re.split("[:@]", address.partition("://")[2].rpartition("@")[0]):
        message = message.replace(part, "…") if len(part) > 1 else message
    return message
