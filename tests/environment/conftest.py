"""Fixtures for the doctor's tests: a machine made of files, and libraries that misbehave in child processes."""

import shutil
import textwrap
from pathlib import Path

import pytest

from helpers.display import GIB
from helpers.environment.access import Access
from helpers.environment.diagnosis import diagnosis_of
from helpers.environment.facts import GpuReading, Holder, Nvml, Torch
from helpers.environment.machine import read_machine
from helpers.paths import POCKET
from tests.environment.baselines import EVIL


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Return a function that writes a module which every child process imports before any other of its name."""
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
def make_access(tmp_path):
    """Return a function that simulates access to a Linux machine without a GPU, with files below a root."""

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
            "kernel_folders": lambda: [],
            "home_of_user": lambda: Path("/nowhere"),
        }
        return Access(**{**plain, **changes})

    return make


@pytest.fixture
def diagnoses(make_access, tmp_path):
    """Return diagnoses of a plain machine, of two with a card and of one that is not ready."""
    pocket = tmp_path / "project" / "helpers" / "assets" / "pocket"
    shutil.copytree(POCKET, pocket)  # a copy: Windows lets only some users create links
    (tmp_path / "project" / "pyproject.toml").write_text('dependencies = [\n    "click>=8.1",\n]\n')
    holders = (Holder(17, EVIL, 9 * GIB), Holder(18, "<script>", None))
    gpu = GpuReading(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-0", 12 * GIB, GIB, (8, 9), 7680, 2610, holders=holders)
    nvml = Nvml("ok", driver="580.65.06", cuda=13000, cards=(gpu,))
    torch = Torch("ok", version="2.13.0+cu130", cuda="13.0", available=True, codes=("sm_86",), product="ok")
    access = {
        "plain": make_access(version_of={"click": "8.2"}.get),
        "card": make_access(read_nvml=lambda: nvml, read_torch=lambda **_: torch),
        "strange card": make_access(
            read_nvml=lambda: Nvml("ok", driver="580.1", cards=(GpuReading(0, total_bytes=8 * GIB),))
        ),
        "broken": make_access(read_torch=lambda **_: Torch("broken", "OSError: c10.dll"), python_version=(3, 10, 1)),
    }
    return {name: diagnosis_of(read_machine(each)) for name, each in access.items()}
