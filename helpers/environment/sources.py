"""Where the facts come from: one value with every door to the machine, so that a test can put another one behind it."""

import contextlib
import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from helpers.environment.child import ROOT
from helpers.environment.facts import Nvml, Torch
from helpers.environment.nvml import read_nvml
from helpers.environment.torch_probe import read_torch, read_torch_files


@dataclass(frozen=True)
class Sources:
    """The doors; the defaults lead to this machine.

    Attributes:
        root: folder that stands for `/` (system files are read below it).
        project: the course's own folder.
        version_of: gives the installed version of a distribution, or None.
        space: gives (free bytes, name of the disk, writable) of an existing folder.
        memory: gives (total, available) bytes where there is no /proc/meminfo.
        battery: tells whether the machine runs on its battery, where /sys does not say.
    """

    system: str = field(default_factory=platform.system)
    release: str = field(default_factory=platform.release)
    architecture: str = field(default_factory=platform.machine)
    python_version: "tuple[int, int, int]" = tuple(sys.version_info[:3])  # type: ignore[assignment]
    bits: int = struct.calcsize("P") * 8
    executable: str = sys.executable
    prefix: str = sys.prefix
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    modules: Mapping[str, Any] = field(default_factory=lambda: sys.modules)
    root: Path = Path("/")
    project: Path = ROOT
    read_nvml: "Callable[[], Nvml]" = read_nvml
    read_torch: "Callable[..., Torch]" = read_torch
    read_torch_files: "Callable[[], Torch]" = read_torch_files
    version_of: "Callable[[str], str | None]" = field(default_factory=lambda: _version_of)
    space: "Callable[[Path], tuple[int, str, bool]]" = field(default_factory=lambda: _space)
    memory: "Callable[[], tuple[int, int]]" = field(default_factory=lambda: _memory)
    battery: "Callable[[], bool | None]" = field(default_factory=lambda: _battery)
    long_paths: "Callable[[], bool | None]" = field(default_factory=lambda: _long_paths)
    nvcc: "Callable[[], str]" = field(default_factory=lambda: _nvcc)
    start_method: "Callable[[], str]" = field(default_factory=lambda: _start_method)
    home_of_user: "Callable[[], Path]" = Path.home

    def text(self, path: str, limit: int = 1_000_000) -> str:
        """Return a system file's text; empty where it is not there or cannot be read."""
        try:
            with (self.root / path.lstrip("/")).open(encoding="utf-8", errors="replace") as file:
                return file.read(limit)
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Tell whether a system file is there."""
        return os.path.lexists(self.root / path.lstrip("/"))

    def names(self, folder: str, pattern: str) -> "list[str]":
        """Return the names in a system folder that match a pattern, sorted."""
        return sorted(path.name for path in (self.root / folder.lstrip("/")).glob(pattern))

    def home(self) -> "Path | None":
        """Return the home folder, or None on a machine that gives this user none."""
        named = self.env.get("USERPROFILE" if self.system == "Windows" else "HOME")
        if named:
            return Path(named)
        with contextlib.suppress(RuntimeError, KeyError):  # a user whom the system does not know
            return self.home_of_user()
        return None

    def temp(self) -> Path:
        """Return the folder for passing files; `tempfile` would write to it to find out."""
        named = [self.env[name] for name in ("TMPDIR", "TEMP", "TMP") if self.env.get(name)]
        return Path(named[0] if named else "/tmp")  # noqa: S108 (looked at, not written to)


def _version_of(name: str) -> "str | None":
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _space(folder: Path) -> "tuple[int, str, bool]":
    return shutil.disk_usage(folder).free, str(folder.stat().st_dev), os.access(folder, os.W_OK)


def _memory() -> "tuple[int, int]":
    try:
        import psutil
    except ImportError:
        return _windows_memory() if sys.platform == "win32" else _posix_memory()
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _posix_memory() -> "tuple[int, int]":
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = "SC_AVPHYS_PAGES"
    return total, page * os.sysconf(free) if free in os.sysconf_names else total


def _windows_memory() -> "tuple[int, int]":
    """Ask Windows itself; the structure is MEMORYSTATUSEX: its own length, the load, then seven sizes."""
    status = (ctypes.c_ulonglong * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = 64
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return status[1], status[2]


def _battery() -> "bool | None":
    try:
        import psutil
    except ImportError:
        return None
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None else not battery.power_plugged


def _long_paths() -> "bool | None":
    try:
        import winreg
    except ImportError:
        return None
    with (
        contextlib.suppress(OSError),
        winreg.OpenKey(  # type: ignore[attr-defined]
            winreg.HKEY_LOCAL_MACHINE,  # type: ignore[attr-defined]
            r"SYSTEM\CurrentControlSet\Control\FileSystem",
        ) as key,
    ):
        return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined]
    return False


def _nvcc() -> str:
    """Return what the CUDA compiler says of itself, or nothing: it is information only."""
    program = shutil.which("nvcc")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.partition("release ")[2].partition(",")[0].strip()[:10] or "unknown"


def _start_method() -> str:
    import multiprocessing

    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
