"""Atomic writes of files and folders, free disk space, and environment variables for a block."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.settings import SettingsError


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees either the old content or all of the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    _retry(lambda: new.replace(path))


def _retry(move: Callable[[], object]) -> None:
    """Move a file or folder; on Windows wait a moment for a virus scanner or a reader that holds it open."""
    for wait_seconds in (0.05, 0.2, 0.8):
        try:
            move()
            return
        except PermissionError:
            time.sleep(wait_seconds)
    move()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which replaces `folder` when the block ends without an error.

    The old content of `folder` is deleted only after that. What a killed process left behind is cleaned up first.

    Raises:
        SettingsError: another program holds a file of `folder` open, on Windows.
    """
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a process died between the two moves below
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            _retry(lambda: folder.rename(old))
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, PermissionError) and folder.exists():
            raise SettingsError(
                f"{folder} cannot be replaced ({error}): its old content is still there. Close the notebooks and "
                "programs that have it open, then run this again."
            ) from None
        raise
    _retry(lambda: new.rename(folder))
    shutil.rmtree(old, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block, for this process and the ones it starts; restore them after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
