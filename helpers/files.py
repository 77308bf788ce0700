"""Atomic writes of files and folders, pages, JSON, room for them, and environment variables for a block."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.display import Html
from helpers.paths import ASSETS, LONGEST_WINDOWS_PATH, long_paths
from helpers.schema import SettingsError

# characters below a run's folder: a checkpoint's adapter has 56; measurements, in a folder beside it, up to 90
_LONGEST_IN_RUN = 90
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees either the old content or all of the new one."""
    # A name of its own for each writer: two notebooks of one run may write the same file at the same time.
    new = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        _retry(lambda: new.replace(path))
    except BaseException:  # such as a full disk
        new.unlink(missing_ok=True)
        raise


def write_html_page(path: Path, *, title: str, body: str) -> None:
    """Write a page that needs no network, atomically; `body` is HTML."""
    write_atomically(path, fill_template("templates/page.html", title=title, body=Html(body)))


def fill_template(name: str, **values: Any) -> str:
    """Return a Jinja template of `assets/` filled in; in one that is HTML every value is escaped, except `Html`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(name).render(**values)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees either the old content or all of the new one."""
    write_atomically(path, json.dumps(value, indent=2))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        SettingsError: the file is damaged, or holds something else.
    """
    return _parse(_retry(path.read_bytes), path)


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where the file is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, SettingsError):
        return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file, none where it does not exist; errors as in `read_json`."""
    return [_parse(line, path) for line in _retry(path.read_bytes).splitlines()] if path.exists() else []


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content, reason = json.loads(text), "it holds no object"
    except ValueError as error:
        content, reason = None, str(error)
    if not isinstance(content, dict):
        raise SettingsError(
            f"{path} is damaged ({reason}): correct it, copy it again, or delete it and run again what makes it."
        )
    return content


def is_disk_full(error: OSError) -> bool:
    """Return whether a file could not be written because its disk, or the user's share of it, is full."""
    return error.errno in _DISK_FULL


def explain_os_error(error: OSError) -> str:
    """Return in one sentence why a file or folder cannot be used; empty for an error that is of neither."""
    if is_disk_full(error):
        return (
            f"The disk is full ({error}): free some space, or set COURSE_RUNS to a folder on a larger disk. What was "
            "done is kept, and the same command continues."
        )
    if error.filename is None:
        return ""
    path = error.filename2 or error.filename  # of a file that cannot take another one's place, the one that was named
    close = "close the program that has it open, " if os.name == "nt" and isinstance(error, PermissionError) else ""
    return (
        f"{path} cannot be used ({error.strerror}): {close}name another path, or change the permissions of this one. "
        "COURSE_RUNS names the folder of all runs."
    )


def _retry(access: Callable[[], Any]) -> Any:
    """Read, move or remove a file or folder; on Windows wait a moment for whoever holds it open or replaces it."""
    for wait_seconds in (0.05, 0.2, 0.8):
        try:
            return access()
        except PermissionError:
            time.sleep(wait_seconds)
    return access()


def _remove_left(folder: Path) -> None:
    """Remove what a process left behind that was killed, or that could not remove it on Windows."""
    try:
        if folder.exists():
            _retry(lambda: shutil.rmtree(folder))
    except OSError as error:
        raise SettingsError(
            f"{folder}, which an earlier run left, cannot be removed ({error}): close the programs that have it open, "
            "or delete it yourself; then run this again."
        ) from None


def _set_aside(folder: Path, old: Path) -> None:
    try:
        _retry(lambda: folder.rename(old))
    except PermissionError as error:
        raise SettingsError(
            f"{folder} cannot be replaced ({error}): its old content is still there. Restart the kernel of "
            "each notebook that has it open, and close other programs that do; then run this again."
        ) from None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which replaces `folder` when the block ends without an error.

    The old content of `folder` is deleted only after that. What a killed process left behind is cleaned up first. A
    second process that wants to write the same folder waits for the first.

    Raises:
        SettingsError: another program holds a file of `folder` open, or of what was left of it, on Windows.
    """
    from filelock import FileLock

    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    with FileLock(folder.with_name(f".{folder.name}.new.lock")):
        if old.exists() and not folder.exists():
            old.rename(folder)  # a process died between the two moves below
        for left in (new, old):
            _remove_left(left)
        new.mkdir()
        try:
            yield new
            share_weights(new)
            if folder.exists():
                _set_aside(folder, old)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _retry(lambda: new.rename(folder))
        shutil.rmtree(old, ignore_errors=True)


def share_weights(folder: Path) -> None:
    """Give weights the permissions of other new files: safetensors lets nobody but their owner read them."""
    for file in folder.glob("*.safetensors"):
        file.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def folder_unless_refused(folder: Path) -> Iterator[None]:
    """Make a folder for the block; remove it again where the block raises and only lock files are in it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new and folder.exists() and all(path.suffix == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_deep(folder: Path) -> None:
    """Raise `SettingsError` where Windows could not write all files of a run into a folder; elsewhere do nothing."""
    longest = len(str(folder)) + _LONGEST_IN_RUN
    if longest > LONGEST_WINDOWS_PATH and long_paths() is False:
        raise SettingsError(
            f"The folder {folder} is too deep: its files would have paths of {longest} characters, and Windows allows "
            f"{LONGEST_WINDOWS_PATH}. Let COURSE_RUNS name a folder such as C:\\runs, or switch long paths on."
        )


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds a folder, which need not exist yet; `OSError` without a disk."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:  # of Windows it names no folder
        error.filename = str(existing)
        raise


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
