"""All access to the machine in one object, so that a test can simulate another machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import struct
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from helpers.environment.nvml import read_nvml
from helpers.environment.torch_probe import read_torch, read_torch_files
from helpers.paths import ROOT, long_paths


class Access:
    """Access to this machine; a test passes `changes`, attributes that are replaced.

    System files are read below `root`, by default `/`; `project` is the course's own folder.
    """

    read_nvml = staticmethod(read_nvml)
    read_torch = staticmethod(read_torch)
    read_torch_files = staticmethod(read_torch_files)
    home_of_user = staticmethod(Path.home)
    long_paths = staticmethod(long_paths)

    def __init__(self, **changes: Any) -> None:
        self.system, self.release, self.architecture = platform.system(), platform.release(), platform.machine()
        self.python_version, self.bits = sys.version_info[:3], struct.calcsize("P") * 8
        self.executable, self.prefix = sys.executable, sys.prefix
        self.env, self.modules = dict(os.environ), sys.modules
        self.root, self.project = Path("/"), ROOT
        vars(self).update(changes)

    def text(self, path: str) -> str:
        """Return a system file's text; empty if it does not exist or cannot be read."""
        try:
            with (self.root / path.lstrip("/")).open(encoding="utf-8", errors="replace") as file:
                return file.read(1_000_000)
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Return whether a system file exists; a dangling link counts."""
        return os.path.lexists(self.root / path.lstrip("/"))

    def names(self, folder: str, pattern: str) -> list[str]:
        """Return the names in a system folder that match a pattern, sorted."""
        return sorted(path.name for path in (self.root / folder.lstrip("/")).glob(pattern))

    def home(self) -> Path | None:
        """Return the home folder, or None if this user has none."""
        named = self.env.get("USERPROFILE" if self.system == "Windows" else "HOME")
        if named:
            return Path(named)
        with contextlib.suppress(RuntimeError, KeyError):  # a user the system does not know
            return self.home_of_user()
        return None

    def hub_cache(self) -> Path | None:
        """Return the folder for downloads from the Hub, or None if there is no home folder for it.

        `huggingface_hub.constants` cannot be used: it reads this process's variables, only once, and is not available
        before the installation.
        """
        home = self.home()
        cache = self.env.get("XDG_CACHE_HOME") or (home / ".cache" if home else None)
        hugging_face = self.env.get("HF_HOME") or (Path(cache, "huggingface") if cache else None)
        hub = self.env.get("HF_HUB_CACHE") or (Path(hugging_face, "hub") if hugging_face else None)
        return Path(os.path.expanduser(hub)) if hub else None  # noqa: PTH111 (never raises, unlike Path.expanduser)

    def version_of(self, name: str) -> str | None:
        """Return the installed version of a distribution, or None."""
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    def space(self, folder: Path) -> tuple[int, str, bool]:
        """Return (free bytes, name of the disk, writable) of an existing folder."""
        return shutil.disk_usage(folder).free, str(folder.stat().st_dev), os.access(folder, os.W_OK)

    def memory(self) -> tuple[int, int]:
        """Return (total, available) bytes of main memory, for systems without /proc/meminfo."""
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available

    def on_battery(self) -> bool | None:
        """Return whether the machine runs on battery, for systems without /sys; None if it has no battery."""
        import psutil

        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return None if battery is None else not battery.power_plugged

    def nvcc(self) -> str:
        """Return the release of the CUDA compiler: '' if there is none, 'unknown' if it cannot be read."""
        program = shutil.which("nvcc")
        if program is None:
            return ""
        try:
            done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        return done.stdout.partition("release ")[2].partition(",")[0].strip()[:10] or "unknown"

    def kernel_folders(self) -> list[Path]:
        """Return the folders in which Jupyter looks for kernels; the first match is used."""
        try:
            from jupyter_core.paths import jupyter_path
        except ImportError:  # no Jupyter, no kernels
            return []
        return [Path(folder) for folder in jupyter_path("kernels")]
