"""Fixtures for the doctor's tests: a machine made of files, and libraries that misbehave in child processes."""

import textwrap
from pathlib import Path

import pytest

from helpers.display import GIB
from helpers.environment.facts import Nvml, Torch
from helpers.environment.sources import Sources


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Return a function that puts a module of that name and source before all others in every child process."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def write(name, source):
        path = folder / f"{name}.py" if "/" not in name else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_sources(tmp_path):
    """Return a function that makes the sources of a plain Linux machine without a GPU; files are below its root."""

    def make(files=None, **changes):
        root = tmp_path / "root"
        for name, content in (files or {}).items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        for folder in (root, tmp_path / "me", tmp_path / "project"):
            folder.mkdir(exist_ok=True)
        plain = {
            "system": "Linux",
            "release": "6.8.0-40-generic",
            "architecture": "x86_64",
            "python_version": (3, 12, 4),
            "bits": 64,
            "executable": str(tmp_path / "venv/bin/python"),
            "prefix": str(tmp_path / "venv"),
            "env": {"HOME": str(tmp_path / "me")},
            "modules": {},
            "root": root,
            "project": tmp_path / "project",
            "read_nvml": lambda: Nvml("absent", "no NVML library"),
            "read_torch": lambda **_: Torch("ok", version="2.13.0+cpu", available=False, product="ok"),
            "read_torch_files": lambda: Torch("quick", version="2.13.0+cpu"),
            "version_of": lambda name: None,
            "space": lambda folder: (100 * GIB, "disk", True),
            "memory": lambda: (16 * GIB, 12 * GIB),
            "on_battery": lambda: None,
            "long_paths": lambda: None,
            "nvcc": lambda: "",
            "start_method": lambda: "fork",
            "kernel_folders": lambda: [],
            "home_of_user": lambda: Path("/nowhere"),
        }
        return Sources(**{**plain, **changes})

    return make
