"""Where things are: the course's own folders and command, the folder of all runs, and paths that a user types.

Standard library only: the doctor uses this before anything is installed.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
NOTEBOOKS = ROOT / "notebooks"
ASSETS = ROOT / "helpers" / "assets"
POCKET = ASSETS / "pocket"
# What a person can type, because printed commands are copied: a bare Debian has no `python`, Windows has no `python3`,
# and conda on Windows has no `py`.
_PYTHON = "python3" if sys.platform != "win32" else "python" if "CONDA_PREFIX" in os.environ else "py"
COMMAND = f"{_PYTHON} -m helpers"

LONGEST_WINDOWS_PATH = 259  # characters, unless long paths are enabled
_SHIPPED = ("fables", "python-reference", "pocket")  # reserved: a file with such a name is not found
_WINDOWS_PATH = re.compile(r"([A-Za-z]):[\\/](.*)")


def runs_folder(env: Mapping[str, str] = os.environ, *, project: Path = ROOT) -> Path:
    """Return the folder of all runs: `COURSE_RUNS` if it is set, else `runs` next to the notebooks.

    A package installed from a wheel has no notebooks next to it: then `runs` is in the current folder.
    """
    parent = project if (project / NOTEBOOKS.name).is_dir() else Path()
    # `set` of cmd and the file of `docker --env-file` keep quotation marks
    runs = _to_native(env.get("COURSE_RUNS", "").strip('" ')) or parent / "runs"
    return Path(os.path.abspath(runs))  # noqa: PTH100 - Path.absolute leaves C:runs as it is before Python 3.12


def _to_native(path: str) -> str:
    """Expand `~`, which a container's options leave as it is; outside Windows map C:/x to /mnt/c/x, as in WSL."""
    path = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises for a name such as ~draft
    if os.name != "nt" and (drive := _WINDOWS_PATH.fullmatch(path)):
        return f"/mnt/{drive[1].lower()}/{drive[2]}".replace("\\", "/")
    return path


def long_paths() -> bool | None:
    """Return whether Windows allows paths longer than `LONGEST_WINDOWS_PATH`; None on other systems."""
    try:
        import winreg
    except ImportError:
        return None
    folder = r"SYSTEM\CurrentControlSet\Control\FileSystem"
    with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, folder) as key:  # type: ignore[attr-defined]
        return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined]
    return False


def find_path(name: str, *, folder: Path | None = None) -> Path | None:
    """Return the absolute path of an existing file or folder; None if there is none of that name.

    A relative path starts from `folder`, by default the current one; see `paths_of`.
    """
    return next((path for path in paths_of(name, folder=folder) if os.path.lexists(path)), None)


def paths_of(name: str, *, folder: Path | None = None) -> list[Path]:
    """Return the absolute paths that a name can mean, in search order.

    `~` is the home folder, and in WSL a path with a Windows drive letter is searched where the drive is mounted. A
    notebook that runs in the `notebooks` folder also finds files next to that folder.
    """
    path = _to_native(name)
    start = folder or Path.cwd()
    folders = [start, *([start.parent] if start == NOTEBOOKS else [])]
    paths = (Path(os.path.abspath(each / path)) for each in folders)  # noqa: PTH100 - resolve() would follow links
    return list(dict.fromkeys(paths))  # an absolute path appears once


def similar_paths(name: str, known: Iterable[str] = ()) -> list[str]:
    """Return suggestions for a path that does not exist: neighbours of its first missing part, and known names."""
    path = Path(name)
    missing = next((part for part in (*reversed(path.parents), path) if find_path(str(part)) is None), None)
    if missing is None:
        return []
    names = known = set(known) if missing == path else set()
    with contextlib.suppress(OSError):  # a folder without read permission
        for folder in filter(Path.is_dir, paths_of(str(missing.parent))):
            names = names | {entry.name for entry in folder.iterdir()}
    rest = path.relative_to(missing)
    matches = difflib.get_close_matches(missing.name, names)
    paths = {each: each if each in known else (missing.with_name(each) / rest).as_posix() for each in matches}
    return [text for each, text in paths.items() if each in known or find_path(text) is not None]


def stored_path(name: str, *, folder: Path | None = None) -> str:
    """Return the absolute path that `find_path` gives, so that it means the same from any folder; else the name."""
    path = None if name in ("", *_SHIPPED) else find_path(name, folder=folder)
    return name if path is None else str(path)


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden: by a leading dot or, on Windows, by an attribute.

    Windows refuses to list some hidden folders, such as `My Music` in `Documents`, a link to another folder.
    """
    attributes = getattr(path.lstat(), "st_file_attributes", 0)
    return path.name.startswith(".") or bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN)


def is_same_place(before: str, now: str) -> bool:
    """Return whether two paths or names can mean the same; old runs stored a path as it was typed.

    >>> is_same_place("models/mine", "/data/models/mine"), is_same_place("models/mine", "/data/mine")
    (True, False)
    """
    end = Path(*Path(now).parts[-len(Path(before).parts) :])
    return before == now or (Path(now).is_absolute() and Path(before) == end)  # as paths: Windows ignores case
