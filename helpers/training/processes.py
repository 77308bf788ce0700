"""The processes that train one run together.

`accelerate launch` and torchrun start the processes; environment variables tell each its rank and their number.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

LOCK = ".train.lock"  # in a run's folder; held by the process that trains it
_locked_folders: set[Path] = set()  # folders whose lock this process holds
TRAINING = threading.Lock()  # one training at a time per process: a second one would share its random state


def n_processes() -> int:
    """Return how many processes train this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this is the process that prints and writes for all of them."""
    return os.environ.get("RANK", "0") == "0"


def process_group() -> "PartialState":
    """Return accelerate's connection to the other processes, creating it if there is none."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def broadcast_from_first(answer: bool) -> bool:
    """Return the first process's answer in every process, so that all of them take the same branch."""
    answers = [answer]
    if n_processes() > 1:
        from accelerate.utils import broadcast_object_list

        process_group()
        broadcast_object_list(answers)
    return answers[0]


def leave_process_group() -> None:
    """Disconnect from the other processes: a process that is still connected may abort when another one ends."""
    if n_processes() > 1:
        process_group().destroy_process_group()


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Allow one training at a time in a run's folder; the processes of one run share the first process's lock."""
    from filelock import FileLock, Timeout

    if not is_first_process():
        yield
        return
    lock = FileLock(folder / LOCK)  # the operating system releases it when a process is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder, advice = "Another process", ""
        if folder in _locked_folders:  # while this cell waits, the kernel does not react to buttons
            holder, advice = "This kernel", " To stop the training, interrupt the kernel and press Stop in the panel."
        warnings.warn(f"{holder} is working on run {folder.name!r}: waiting until it ends.{advice}", stacklevel=4)
        lock.acquire()
    _locked_folders.add(folder)
    try:
        yield
    finally:
        _locked_folders.discard(folder)
        lock.release()


def is_in_training(folder: Path) -> bool:
    """Return whether this process or another is training in a run's folder, that is, holds its lock."""
    from filelock import FileLock, Timeout

    path = folder / LOCK
    try:
        with FileLock(path).acquire(timeout=0) if path.exists() else contextlib.nullcontext():
            return False
    except Timeout:
        return True


@contextlib.contextmanager
def one_training_at_a_time() -> Iterator[None]:
    """Wait until no other thread of this process (such as a panel's) is training; keep others waiting meanwhile."""
    if not TRAINING.acquire(blocking=False):
        warnings.warn("Another run is being trained in this kernel: waiting until it ends.", stacklevel=4)
        TRAINING.acquire()
    try:
        yield
    finally:
        TRAINING.release()
