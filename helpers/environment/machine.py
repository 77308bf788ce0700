"""Read a machine once, into one `Machine`; a group of facts that cannot be read becomes an `Unread` with its cause.

Nothing is changed, and nothing needs root.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.environment.access import Access
from helpers.environment.facts import Machine, Memory, Place, Platform, Python, Storage, Unread, Wsl
from helpers.environment.model_files import read_model_files
from helpers.environment.requirements import read_packages
from helpers.environment.torch_probe import LIMIT_SECONDS
from helpers.paths import runs_folder

_REPORTED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU")
_LINUX_DRIVER_FILES = ("nvidia-driver-*.list", "libnvidia-compute-*.list", "cuda-drivers*.list")
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # PCI vendor ids of display devices
_LIMIT_AFTER_HANG_SECONDS = 20.0
_WSL_LIB = "/usr/lib/wsl/lib"
_LIMITS = (  # files of control groups, version 2 and version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def read_machine(access: Access | None = None, *, quick: bool = False) -> Machine:
    """Read everything; `quick` does not import torch. The cards are read first, because torch uses memory of one."""
    access = access or Access()
    nvml = _read_guarded(access.read_nvml)
    has_hung = nvml and nvml.state == "hung"
    limit = _LIMIT_AFTER_HANG_SECONDS if has_hung else LIMIT_SECONDS  # torch would wait for the same driver
    platform = _read_guarded(lambda: _platform(access))
    return Machine(
        python=_read_guarded(lambda: _python(access)),
        platform=platform,
        packages=_read_guarded(lambda: read_packages(access)),
        torch=_read_guarded(access.read_torch_files if quick else lambda: access.read_torch(timeout_seconds=limit)),
        nvml=nvml,
        memory=_read_guarded(lambda: read_memory(access)),
        storage=_read_guarded(lambda: _storage(access)),
        files=_read_guarded(lambda: read_model_files(access)),
        env={name: access.env[name] for name in _REPORTED_VARIABLES if name in access.env},
        pid=os.getpid(),
        on_battery=bool(_read_guarded(lambda: _on_battery(access))),
        wsl=_read_guarded(lambda: _wsl(access)) if platform and platform.kind == "WSL2" else None,
        quick=quick,
    )


def _read_guarded(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 (whatever an unusual machine does is reported, not raised)
        return Unread(f"{type(error).__name__}: {error}")


def _python(access: Access) -> Python:
    expected = [str(access.project / ".venv")] if (access.project / ".venv").is_dir() else []
    expected += [access.env[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if access.env.get(name)]
    kernel = _kernel(access)
    return Python(
        version=access.python_version,
        bits=access.bits,
        executable=access.executable,
        prefix=access.prefix,
        is_conda=(Path(access.prefix) / "conda-meta").is_dir(),
        expected=tuple(expected),
        kernel=kernel,
        kernel_exists=kernel is None or not Path(kernel).is_absolute() or Path(kernel).exists(),
    )


def _kernel(access: Access) -> str | None:
    """Return the program of the python3 kernel that Jupyter finds first from this environment."""
    for folder in access.kernel_folders():
        spec = folder / "python3" / "kernel.json"
        if spec.is_file():
            try:
                return str(json.loads(spec.read_text(encoding="utf-8"))["argv"][0])
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                return f"described by {spec}, which cannot be read"
    return None


def _platform(access: Access) -> Platform:
    graphics = _graphics(access)
    return Platform(
        kind=platform_kind(access),
        release=access.release,
        architecture=access.architecture,
        container=_container(access),
        nvidia_on_bus="NVIDIA" in graphics,
        other_graphics=tuple(maker for maker in graphics if maker != "NVIDIA"),
        nvcc=access.nvcc(),
    )


def platform_kind(access: Access) -> str:
    """Return 'Linux', 'Windows', 'WSL2', 'WSL1' or 'macOS'."""
    if access.system != "Linux":
        return {"Darwin": "macOS"}.get(access.system, access.system)
    kernel = f"{access.release} {access.text('/proc/version')}".lower()
    if "microsoft" not in kernel:
        return "Linux"
    # a kernel built by the user may not have "wsl2" in its name, but WSL1 has no /dev/dxg
    return "WSL2" if "wsl2" in kernel or access.exists("/dev/dxg") else "WSL1"


def _container(access: Access) -> str:
    for path in ("/.dockerenv", "/run/.containerenv"):
        if access.exists(path):
            return path
    if access.env.get("KUBERNETES_SERVICE_HOST"):
        return "KUBERNETES_SERVICE_HOST"
    return "container=" + access.env["container"] if access.env.get("container") else ""


def _graphics(access: Access) -> list[str]:
    """Return the vendors of the graphics cards; on Linux the PCI bus names them, without any driver."""
    if access.system == "Darwin" and access.architecture == "arm64":
        return ["Apple"]
    vendors = []
    for name in access.names("/sys/bus/pci/devices", "*"):
        folder = f"/sys/bus/pci/devices/{name}"
        vendor = _VENDORS.get(access.text(f"{folder}/vendor").strip())
        if vendor and access.text(f"{folder}/class").startswith("0x03"):  # 0x04 is the card's audio
            vendors.append(vendor)
    return list(dict.fromkeys(vendors))


def _wsl(access: Access) -> Wsl:
    installed = [name for pattern in _LINUX_DRIVER_FILES for name in access.names("/var/lib/dpkg/info", pattern)]
    packages = [name.split(":")[0].removesuffix(".list") for name in installed]
    libraries = ["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib64/libcuda.so.1"]
    return Wsl(
        dxg=access.exists("/dev/dxg"),
        libcuda=access.exists(f"{_WSL_LIB}/libcuda.so.1"),
        nvidia=bool(access.names(_WSL_LIB, "*nvidia*")),
        shadowing=(*packages, *(path for path in libraries if access.exists(path))),
    )


def read_memory(access: Access | None = None) -> Memory:
    """Return main memory; in a container, up to its limit.

    psutil alone is not enough: it ignores a container's limit.
    """
    access = access or Access()
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", access.text("/proc/meminfo"))}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return Memory(*access.memory())
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    for names in _LIMITS:
        limit, used, details = (access.text(f"/sys/fs/cgroup/{name}").strip() for name in names)
        if limit.isdigit() and used.isdigit():  # the file cache counts as used, but is freed when needed
            cache = re.search(r"^(?:total_)?inactive_file (\d+)$", details, re.MULTILINE)
            free = int(limit) - int(used) + (int(cache[1]) if cache else 0)
            return Memory(min(total, int(limit)), min(available, max(0, free)))
    return Memory(total, available)


def _storage(access: Access) -> Storage:
    folders = {"runs": runs_folder(access.env, project=access.project), "cache": access.hub_cache()}
    places = tuple(_place(role, folder, access) for role, folder in folders.items() if folder)
    return Storage(places, str(access.project), access.long_paths())


def _place(role: str, folder: Path, access: Access) -> Place:
    """Inspect the folder, or the nearest parent that exists.

    It is not writable on a missing drive, or if a file has its name.
    """
    # os.path.exists: Path.exists raises if a parent folder cannot be read
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)  # noqa: PTH110
    is_folder = existing is not None and os.path.isdir(existing)  # noqa: PTH112
    free, disk, writable = access.space(existing) if is_folder else (0, "", False)
    return Place(role, str(folder), free, disk, writable)


def _on_battery(access: Access) -> bool | None:
    supplies = [f"/sys/class/power_supply/{name}" for name in access.names("/sys/class/power_supply", "*")]
    batteries = [path for path in supplies if access.text(f"{path}/type").strip() == "Battery"]
    own = [path for path in batteries if access.text(f"{path}/scope").strip() != "Device"]  # not a mouse's battery
    if own:
        return any(access.text(f"{path}/status").strip() == "Discharging" for path in own)
    return access.on_battery() if access.system != "Linux" else None
