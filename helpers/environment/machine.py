"""Reads a machine once, into one `Machine`; a group of facts that cannot be read becomes an `Unread` with its cause.

Nothing is changed and nothing needs root.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.environment.facts import Machine, Memory, Place, Platform, Power, Process, Python, Storage, Unread, Wsl
from helpers.environment.model_files import read_model_files
from helpers.environment.requirements import read_packages
from helpers.environment.sources import Sources
from helpers.environment.torch_probe import LIMIT_SECONDS
from helpers.paths import runs_folder

_WATCHED = ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ASKED_FOR = (*_WATCHED, "CUDA_DEVICE_ORDER", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU")
_SHADOWS = ("nvidia-driver-*.list", "libnvidia-compute-*.list", "cuda-drivers*.list")
_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # of display devices on the PCI bus
_LIMIT_AFTER_HANG_SECONDS = 20.0
_WSL_LIB = "/usr/lib/wsl/lib"
_LIMITS = (  # of control groups 2 and 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def read_machine(sources: Sources | None = None, *, quick: bool = False) -> Machine:
    """Read everything; `quick` does not import torch. The cards are read first: torch takes memory of one."""
    sources = sources or Sources()
    nvml = _guarded(sources.read_nvml)
    hung = not isinstance(nvml, Unread) and nvml.state == "hung"
    limit = _LIMIT_AFTER_HANG_SECONDS if hung else LIMIT_SECONDS  # torch would wait for the same driver
    platform = _guarded(lambda: _platform(sources))
    is_wsl = not isinstance(platform, Unread) and platform.kind == "WSL2"
    return Machine(
        python=_guarded(lambda: _python(sources)),
        platform=platform,
        packages=_guarded(lambda: read_packages(sources)),
        torch=_guarded(sources.read_torch_files if quick else lambda: sources.read_torch(timeout_seconds=limit)),
        nvml=nvml,
        process=_guarded(lambda: _process(sources)),
        memory=_guarded(lambda: read_memory(sources)),
        storage=_guarded(lambda: _storage(sources)),
        files=_guarded(lambda: read_model_files(sources)),
        power=_guarded(lambda: _power(sources)),
        wsl=_guarded(lambda: _wsl(sources)) if is_wsl else None,
        quick=quick,
    )


def _guarded(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 (whatever a strange machine does is reported, not raised)
        return Unread(f"{type(error).__name__}: {error}")


def _python(sources: Sources) -> Python:
    expected = [str(sources.project / ".venv")] if (sources.project / ".venv").is_dir() else []
    expected += [sources.env[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if sources.env.get(name)]
    kernel = _kernel(sources)
    return Python(
        version=sources.python_version,
        bits=sources.bits,
        executable=sources.executable,
        prefix=sources.prefix,
        is_conda=(Path(sources.prefix) / "conda-meta").is_dir(),
        expected=tuple(expected),
        kernel=kernel,
        kernel_exists=kernel is None or not Path(kernel).is_absolute() or Path(kernel).exists(),
        start_method=sources.start_method(),
    )


def _kernel(sources: Sources) -> str | None:
    """Return the program of the python3 kernel that Jupyter finds first from this environment."""
    for folder in sources.kernel_folders():
        spec = folder / "python3" / "kernel.json"
        if spec.is_file():
            try:
                return str(json.loads(spec.read_text(encoding="utf-8"))["argv"][0])
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                return f"described by {spec}, which cannot be read"
    return None


def _platform(sources: Sources) -> Platform:
    graphics = _graphics(sources)
    names = re.findall(r'^(?:ID|ID_LIKE)="?([^"\n]*)"?', sources.text("/etc/os-release"), re.MULTILINE)
    return Platform(
        kind=platform_kind(sources),
        release=sources.release,
        architecture=sources.architecture,
        container=_container(sources),
        distribution=" ".join(names),
        nvidia_on_bus="NVIDIA" in graphics,
        other_graphics=tuple(maker for maker in graphics if maker != "NVIDIA"),
        card_switched_off=sources.text("/etc/prime-discrete").strip() == "off",
        nvcc=sources.nvcc(),
    )


def platform_kind(sources: Sources | None = None) -> str:
    """Return 'Linux', 'Windows', 'WSL2', 'WSL1' or 'macOS'."""
    sources = sources or Sources()
    if sources.system != "Linux":
        return {"Darwin": "macOS"}.get(sources.system, sources.system)
    kernel = f"{sources.release} {sources.text('/proc/version')}".lower()
    if "microsoft" not in kernel:
        return "Linux"
    # a kernel built by the user may not have "wsl2" in its name, but WSL1 has no /dev/dxg
    return "WSL2" if "wsl2" in kernel or sources.exists("/dev/dxg") else "WSL1"


def _container(sources: Sources) -> str:
    for path in ("/.dockerenv", "/run/.containerenv"):
        if sources.exists(path):
            return path
    if sources.env.get("KUBERNETES_SERVICE_HOST"):
        return "KUBERNETES_SERVICE_HOST"
    return "container=" + sources.env["container"] if sources.env.get("container") else ""


def _graphics(sources: Sources) -> list[str]:
    """Return the makers of the graphics here; on Linux the PCI bus tells, without any driver."""
    if sources.system == "Darwin" and sources.architecture == "arm64":
        return ["Apple"]
    makers = []
    for name in sources.names("/sys/bus/pci/devices", "*"):
        folder = f"/sys/bus/pci/devices/{name}"
        maker = _MAKERS.get(sources.text(f"{folder}/vendor").strip())
        if maker and sources.text(f"{folder}/class").startswith("0x03"):  # 0x04 is the card's audio
            makers.append(maker)
    return list(dict.fromkeys(makers))


def _wsl(sources: Sources) -> Wsl:
    installed = [name for pattern in _SHADOWS for name in sources.names("/var/lib/dpkg/info", pattern)]
    packages = [name.split(":")[0].removesuffix(".list") for name in installed]
    libraries = ["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib64/libcuda.so.1"]
    return Wsl(
        dxg=sources.exists("/dev/dxg"),
        libcuda=sources.exists(f"{_WSL_LIB}/libcuda.so.1"),
        nvidia=bool(sources.names(_WSL_LIB, "*nvidia*")),
        shadowing=(*packages, *(path for path in libraries if sources.exists(path))),
    )


def _process(sources: Sources) -> Process:
    # /proc/self/environ keeps what the process started with; os.environ does not
    started_with = dict(entry.split("=", 1) for entry in sources.text("/proc/self/environ").split("\0") if "=" in entry)
    changed = [name for name in _WATCHED if started_with and started_with.get(name) != sources.env.get(name)]
    cuda = getattr(sources.modules.get("torch"), "cuda", None)  # a half imported torch has none
    return Process(
        env={name: sources.env[name] for name in _ASKED_FOR if name in sources.env},
        changed=frozenset(changed),
        cuda_in_use=bool(cuda is not None and cuda.is_initialized()),
        pid=os.getpid(),
        accelerate=_accelerate(sources),
    )


def _accelerate(sources: Sources) -> dict[str, str]:
    """Return the plain values of accelerate's own configuration file, which people write once and forget.

    Not through accelerate itself: that imports torch.
    """
    home = sources.hugging_face_home()
    path = home / "accelerate" / "default_config.yaml" if home else None
    if path is None or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if re.match(r"\w+:", line))
    return {"path": str(path)} | {name: value.strip().strip("'\"").lower() for name, value in pairs}


def read_memory(sources: Sources | None = None) -> Memory:
    """Return main memory; in a container, what its own limit leaves.

    psutil alone does not do: it does not know the limit of a container.
    """
    sources = sources or Sources()
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", sources.text("/proc/meminfo"))}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return Memory(*sources.memory())
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    for names in _LIMITS:
        limit, used, details = (sources.text(f"/sys/fs/cgroup/{name}").strip() for name in names)
        if limit.isdigit() and used.isdigit():  # the cache of files is counted as used, but makes room when needed
            cache = re.search(r"^(?:total_)?inactive_file (\d+)$", details, re.MULTILINE)
            left = int(limit) - int(used) + (int(cache[1]) if cache else 0)
            return Memory(min(total, int(limit)), min(available, max(0, left)))
    return Memory(total, available)


def _storage(sources: Sources) -> Storage:
    folders = {
        "runs": runs_folder(sources.env, project=sources.project),
        "cache": sources.hugging_face_home(),
        "temp": sources.temp(),
    }
    places = tuple(_place(role, folder, sources) for role, folder in folders.items() if folder)
    return Storage(places, str(sources.project), sources.long_paths(), sources.home() is not None)


def _place(role: str, folder: Path, sources: Sources) -> Place:
    """Look at the folder, or at the nearest one above it that exists; on a missing drive nothing can be written."""
    # os.path.exists: Path.exists raises where a folder above may not be read
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)  # noqa: PTH110
    free, disk, writable = (0, "", False) if existing is None else sources.space(existing)
    return Place(role, str(folder), free, disk, writable)


def _power(sources: Sources) -> Power:
    supplies = [f"/sys/class/power_supply/{name}" for name in sources.names("/sys/class/power_supply", "*")]
    batteries = [path for path in supplies if sources.text(f"{path}/type").strip() == "Battery"]
    own = [path for path in batteries if sources.text(f"{path}/scope").strip() != "Device"]  # not a mouse's battery
    if own:
        return Power(any(sources.text(f"{path}/status").strip() == "Discharging" for path in own))
    return Power(sources.on_battery() if sources.system != "Linux" else None)
