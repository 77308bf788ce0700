"""Atomic writes of files and folders, HTML pages, JSON, disk space, and temporary environment variables."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.display import Html
from helpers.formats import find_fault
from helpers.paths import ASSETS, LONGEST_WINDOWS_PATH, long_paths
from helpers.schema import SettingsError

# characters of a path below a run's folder: a checkpoint's adapter has 56, measurements (next to the run) up to 90
_LONGEST_PATH_IN_RUN = 90
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees either the old or the complete new content."""
    # Each writer has its own temporary name: two notebooks of a run may write the same file at the same time.
    new = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        _retry(lambda: new.replace(path))
    except BaseException:  # such as a full disk
        new.unlink(missing_ok=True)
        raise


def remove_link(path: Path) -> None:
    """Remove a link before a file is written: a run that somebody else made may link to a private file."""
    if path.is_symlink():
        path.unlink()


def write_html_page(path: Path, *, title: str, body: str) -> None:
    """Write a page that needs no network, atomically; `body` is HTML."""
    write_atomically(path, fill_template("templates/page.html", title=title, body=Html(body)))


def fill_template(name: str, **values: Any) -> str:
    """Render a Jinja template of `assets/`; in an HTML template every value is escaped, except `Html`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(name).render(**values)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees either the old or the complete new content."""
    write_atomically(path, json.dumps(value, indent=2))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        SettingsError: the file is damaged, or holds something else.
    """
    return _parse(_retry(path.read_bytes), path)


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if the file is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, SettingsError):
        return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file, none if it does not exist; errors as in `read_json`."""
    return [_parse(line, path) for line in _retry(path.read_bytes).splitlines()] if path.exists() else []


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
        fault = find_fault(content, path.name)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if fault:
        raise damaged(path, fault)
    return content


def damaged(path: Path, reason: str) -> SettingsError:
    """Return the error about a file of a run whose content cannot be used."""
    return SettingsError(
        f"{path} is damaged ({reason}): correct it, copy it again, or delete it and repeat the step that writes it."
    )


def is_disk_full(error: OSError) -> bool:
    """Return whether a file could not be written because the disk, or the user's quota, is full."""
    return error.errno in _DISK_FULL


def explain_os_error(error: OSError) -> str:
    """Return why a file or folder cannot be used and what to do; '' if the error is not about one."""
    if is_disk_full(error):
        return (
            f"The disk is full ({error}): free some space, or set COURSE_RUNS to a folder on a larger disk. Completed "
            "work is kept; repeat the command to continue."
        )
    if error.filename is None:
        return ""
    path = error.filename2 or error.filename  # where a rename fails, its target: the user named that one
    close = "close the program that has it open, " if os.name == "nt" and isinstance(error, PermissionError) else ""
    return (
        f"{path} cannot be used ({error.strerror}): {close}name another path, or change the permissions of this one. "
        "COURSE_RUNS names the folder of all runs."
    )


def _retry(access: Callable[[], Any]) -> Any:
    """Call `access`, and retry for a second on a `PermissionError`: on Windows another program may use the file."""
    for wait_seconds in (0.05, 0.2, 0.8):
        try:
            return access()
        except PermissionError:
            time.sleep(wait_seconds)
    return access()


def _remove(folder: Path) -> None:
    """Remove a folder with its content, or a link to a folder, whose content stays."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


@contextmanager
def _refused_in_use(what: str) -> Iterator[None]:
    """Turn an error of the block into a sentence: Windows neither moves nor removes a folder with an open file."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{what} ({error}): restart the kernel of each notebook that has it open, and close other programs that "
            "do; then run this again."
        ) from None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it replaces `folder` when the block ends without an error.

    The old content of `folder` is deleted only after that; if it was a link, such as to a larger disk, only the link.
    Leftovers of a killed process are removed first. A second process that wants to write the same folder waits for the
    first.

    Raises:
        SettingsError: on Windows, another program has a file open in `folder` or in the leftovers.
    """
    from filelock import FileLock

    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    with FileLock(folder.with_name(f".{folder.name}.new.lock")):
        if old.exists() and not folder.exists():
            old.rename(folder)  # a process died between the two moves below
        for leftover in filter(os.path.lexists, (new, old)):  # of a process that was killed
            with _refused_in_use(f"{leftover}, which an earlier run left, cannot be removed"):
                _retry(lambda folder=leftover: _remove(folder))
        new.mkdir()
        try:
            yield new
            make_weights_readable(new)
            if folder.exists():
                with _refused_in_use(f"{folder} cannot be replaced, and its old content is still there"):
                    _retry(lambda: folder.rename(old))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _retry(lambda: new.rename(folder))
        with suppress(OSError):
            if os.path.lexists(old):
                _remove(old)


def make_weights_readable(folder: Path) -> None:
    """Give weights the permissions of other new files: safetensors lets nobody but their owner read them."""
    for file in folder.glob("*.safetensors"):
        with suppress(OSError):  # some file systems, such as exFAT, have no permissions
            file.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def folder_removed_on_error(folder: Path) -> Iterator[None]:
    """Create a folder for the block; if the block raises and left only lock files in a new folder, remove it again."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new and folder.exists() and all(path.suffix == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_long_paths(folder: Path) -> None:
    """Raise `SettingsError` if a run's files would exceed Windows' path limit; do nothing on other systems."""
    longest = len(str(folder)) + _LONGEST_PATH_IN_RUN
    if longest > LONGEST_WINDOWS_PATH and long_paths() is False:
        raise SettingsError(
            f"The folder {folder} is too deep: its files would have paths of {longest} characters, and Windows allows "
            f"{LONGEST_WINDOWS_PATH}. Set COURSE_RUNS to a folder such as C:\\runs, or enable long paths."
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on a folder's disk; the folder need not exist yet. Raise `OSError` if there is no disk."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:  # on Windows it names no folder
        error.filename = str(existing)
        raise


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during a block, for this process and those it starts; restore them afterwards."""
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
