"""Reads a machine once, into one `Machine`; a group of facts that cannot be read becomes an `Unread` with its cause.

Nothing is changed, nothing needs root, and only the standard library is imported.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.environment.facts import Machine, Memory, Place, Platform, Power, Process, Python, Storage, Unread, Wsl
from helpers.environment.model_files import read_model_files
from helpers.environment.requirements import read_packages
from helpers.environment.sources import Sources
from helpers.environment.torch_probe import LIMIT_SECONDS

_WATCHED = ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ASKED_FOR = (*_WATCHED, "NVIDIA_VISIBLE_DEVICES", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU")
_SHADOWS = ("nvidia-driver-*.list", "libnvidia-compute-*.list", "cuda-drivers*.list")
_LIMIT_AFTER_HANG_SECONDS = 20.0
_WSL_LIB = "/usr/lib/wsl/lib"
_LIMITS = (  # of control groups 2 and 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def read_machine(sources: "Sources | None" = None, *, quick: bool = False) -> Machine:
    """Read everything; `quick` leaves torch unimported. The cards are asked before torch takes memory of one."""
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


def _guarded(read: "Callable[[], Any]") -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 (whatever a strange machine does is told, not raised)
        return Unread(f"{type(error).__name__}: {error}")


def _python(sources: Sources) -> Python:
    named = [str(sources.project / ".venv")] if (sources.project / ".venv").is_dir() else []
    named += [sources.env[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if sources.env.get(name)]
    kernel = _kernel(sources)
    return Python(
        version=sources.python_version,
        bits=sources.bits,
        executable=sources.executable,
        prefix=sources.prefix,
        is_conda=(Path(sources.prefix) / "conda-meta").is_dir(),
        expected=tuple(named),
        kernel=kernel,
        kernel_exists=kernel is None or not Path(kernel).is_absolute() or Path(kernel).exists(),
        start_method=sources.start_method(),
    )


def _kernel(sources: Sources) -> "str | None":
    """Return the program of the python3 kernel that Jupyter finds first from this environment."""
    for folder in _jupyter_folders(sources):
        spec = folder / "kernels" / "python3" / "kernel.json"
        if spec.is_file():
            try:
                return str(json.loads(spec.read_text(encoding="utf-8"))["argv"][0])
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                return f"described by {spec}, which cannot be read"
    return None


def _jupyter_folders(sources: Sources) -> "list[Path]":
    env, home = sources.env, sources.home()
    folders = [Path(folder) for folder in env.get("JUPYTER_PATH", "").split(os.pathsep) if folder]
    folders.append(Path(sources.prefix) / "share" / "jupyter")
    if env.get("JUPYTER_DATA_DIR"):
        return [*folders, Path(env["JUPYTER_DATA_DIR"])]
    if sources.system == "Windows":
        return [*folders, *([Path(env["APPDATA"]) / "jupyter"] if env.get("APPDATA") else [])]
    own = "Library/Jupyter" if sources.system == "Darwin" else ".local/share/jupyter"
    if env.get("XDG_DATA_HOME") and sources.system == "Linux":
        return [*folders, Path(env["XDG_DATA_HOME"]) / "jupyter"]
    return [*folders, *([home / own] if home else [])]


def _platform(sources: Sources) -> Platform:
    kind = platform_kind(sources)
    known = re.findall(r'^(?:ID|ID_LIKE)="?([^"\n]*)"?', sources.text("/etc/os-release"), re.MULTILINE)
    return Platform(
        kind=kind,
        release=sources.release,
        architecture=sources.architecture,
        container=_container(sources),
        distribution=" ".join(known),
        nvidia_on_bus=_nvidia_on_bus(sources),
        nvcc=sources.nvcc(),
    )


def platform_kind(sources: "Sources | None" = None) -> str:
    """Return 'Linux', 'Windows', 'WSL2', 'WSL1' or 'macOS'."""
    sources = sources or Sources()
    if sources.system != "Linux":
        return {"Darwin": "macOS"}.get(sources.system, sources.system)
    told = f"{sources.release} {sources.text('/proc/version')}".lower()
    if "microsoft" not in told:
        return "Linux"
    return "WSL2" if "wsl2" in told or sources.exists("/dev/dxg") else "WSL1"


def _container(sources: Sources) -> str:
    for path in ("/.dockerenv", "/run/.containerenv"):
        if sources.exists(path):
            return path
    if sources.env.get("KUBERNETES_SERVICE_HOST"):
        return "KUBERNETES_SERVICE_HOST"
    return "container=" + sources.env["container"] if sources.env.get("container") else ""


def _nvidia_on_bus(sources: Sources) -> bool:
    """Look for a display device of NVIDIA's on the PCI bus: it is there without any driver."""
    for name in sources.names("/sys/bus/pci/devices", "*"):
        folder = f"/sys/bus/pci/devices/{name}"
        is_nvidia = sources.text(f"{folder}/vendor").strip() == "0x10de"
        if is_nvidia and sources.text(f"{folder}/class").startswith("0x03"):
            return True
    return False


def _wsl(sources: Sources) -> Wsl:
    installed = [name for pattern in _SHADOWS for name in sources.names("/var/lib/dpkg/info", pattern)]
    packages = [name.split(":")[0].removesuffix(".list") for name in installed]
    libraries = ["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib64/libcuda.so.1"]
    shadows = packages + [path for path in libraries if sources.exists(path)]
    return Wsl(
        dxg=sources.exists("/dev/dxg"),
        libcuda=sources.exists(f"{_WSL_LIB}/libcuda.so.1"),
        nvidia=bool(sources.names(_WSL_LIB, "*nvidia*")),
        shadowing=tuple(shadows),
    )


def _process(sources: Sources) -> Process:
    torch = sources.modules.get("torch")
    started_with = dict(entry.split("=", 1) for entry in sources.text("/proc/self/environ").split("\0") if "=" in entry)
    changed = [name for name in _WATCHED if started_with and started_with.get(name) != sources.env.get(name)]
    cuda = getattr(torch, "cuda", None)
    return Process(
        env={name: sources.env[name] for name in _ASKED_FOR if name in sources.env},
        changed=frozenset(changed),
        cuda_in_use=bool(cuda is not None and cuda.is_initialized()),
        pid=os.getpid(),
        accelerate=_accelerate(sources),
    )


def _accelerate(sources: Sources) -> "dict[str, str]":
    """Return the plain values of accelerate's own configuration, which outlives the wish it was written for."""
    cache = _hf_home(sources)
    path = cache / "accelerate" / "default_config.yaml" if cache else None
    if path is None or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if re.match(r"\w+:", line))
    return {"path": str(path)} | {name: value.strip().strip("'\"").lower() for name, value in pairs}


def read_memory(sources: "Sources | None" = None) -> Memory:
    """Return main memory; in a container what its own limit leaves."""
    sources = sources or Sources()
    told = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", sources.text("/proc/meminfo"))}
    if "MemTotal" not in told or "MemAvailable" not in told:
        return Memory(*sources.memory())
    total, available = told["MemTotal"], told["MemAvailable"]
    for names in _LIMITS:
        limit, used, details = (sources.text(f"/sys/fs/cgroup/{name}").strip() for name in names)
        if limit.isdigit() and used.isdigit():  # a container's own limit; the cache of read files makes room when asked
            cache = re.search(r"^(?:total_)?inactive_file (\d+)$", details, re.MULTILINE)
            left = int(limit) - int(used) + (int(cache[1]) if cache else 0)
            return Memory(min(total, int(limit)), min(available, max(0, left)))
    return Memory(total, available)


def _hf_home(sources: Sources) -> "Path | None":
    if sources.env.get("HF_HOME"):
        return Path(os.path.expanduser(sources.env["HF_HOME"]))  # noqa: PTH111 (without a home it stays as it is)
    home = sources.home()
    cache = sources.env.get("XDG_CACHE_HOME") or (home / ".cache" if home else None)
    return Path(cache) / "huggingface" if cache else None


def runs_folder(env: "Mapping[str, str]", project: Path) -> Path:
    """Return the folder of all runs as `helpers.settings` names it, which cannot be imported before pydantic is."""
    return Path(env.get("COURSE_RUNS") or project / "runs").absolute()


def _storage(sources: Sources) -> Storage:
    folders = {
        "runs": runs_folder(sources.env, sources.project),
        "cache": _hf_home(sources),
        "temp": sources.temp(),
    }
    places = tuple(_place(role, folder, sources) for role, folder in folders.items() if folder)
    return Storage(places, str(sources.project), sources.long_paths(), sources.home() is not None)


def _place(role: str, folder: Path, sources: Sources) -> Place:
    """Look at the folder, or at what will hold it; one on a drive that is not there cannot be written."""
    there = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)  # noqa: PTH110 (no error)
    free, disk, writable = (0, "", False) if there is None else sources.space(there)
    return Place(role, str(folder), free, disk, writable)


def _power(sources: Sources) -> Power:
    supplies = [f"/sys/class/power_supply/{name}" for name in sources.names("/sys/class/power_supply", "*")]
    batteries = [path for path in supplies if sources.text(f"{path}/type").strip() == "Battery"]
    own = [path for path in batteries if sources.text(f"{path}/scope").strip() != "Device"]  # not a mouse's
    if own:
        return Power(any(sources.text(f"{path}/status").strip() == "Discharging" for path in own))
    return Power(sources.battery() if sources.system != "Linux" else None)
