"""The processes that train one run together, as `accelerate launch` and torchrun start them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def n_processes() -> int:
    """Return how many processes train this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this process is the one that speaks and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def together() -> "PartialState":
    """Return how the processes reach one another."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def agreed(answer: bool) -> bool:
    """Return the first process's answer, so that all go on alike."""
    answers = [answer]
    if n_processes() > 1:
        from accelerate.utils import broadcast_object_list

        together()
        broadcast_object_list(answers)
    return answers[0]


def part() -> None:
    """Let go of the other processes: what still listens to them may abort a process that just ends."""
    if n_processes() > 1:
        together().destroy_process_group()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second training out of a run's folder; the processes of one training share the first one's lock."""
    from filelock import FileLock, Timeout

    if not is_first():
        yield
        return
    lock = FileLock(folder / ".train.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn(f"Another process works at run {folder.name!r}: waiting until it ends.", stacklevel=4)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
