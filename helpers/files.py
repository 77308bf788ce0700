"""Files and folders that are there whole or not at all, whatever ends the process that writes them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.settings import SettingsError


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, beside its place and move it there."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it takes the place of `folder` when nothing went wrong.

    What `folder` held before is gone only after that. What a killed process left behind is put right first.

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
            folder.rename(old)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, PermissionError) and folder.exists():
            raise SettingsError(
                f"{folder} cannot be replaced ({error}): what it held is still there. Close the notebooks and programs "
                "that have it open, then run this again."
            ) from None
        raise
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
