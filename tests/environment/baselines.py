"""Healthy machines, and the parts to build others from."""

from dataclasses import replace
from typing import Any

from helpers.display import GIB
from helpers.environment.facts import (
    GpuReading,
    Machine,
    Memory,
    ModelFiles,
    ModelFolder,
    Nvml,
    Packages,
    Place,
    Platform,
    Python,
    Storage,
    Torch,
    Wsl,
)

GB = 10**9
EVIL = "\x1b]0;owned\x07\x1b[2J\rgood\x9b31m"  # a process name that tries to control the terminal


def on(base: Machine, *, card: Any = None, env: Any = None, **groups: Any) -> Machine:
    """Return a changed machine: a dict changes fields of a group, any other value replaces the group."""
    if card is not None:
        groups["nvml"] = {"cards": (replace(base.nvml.cards[0], **card),)}
    changed = {
        name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
        for name, value in groups.items()
    }
    return replace(base, **changed, env=base.env if env is None else env)


CARD = GpuReading(
    0,
    "NVIDIA GeForce RTX 4070 Ti",
    "GPU-4070aaaa-0000-1111-2222-333333333333",
    total_bytes=12 * GIB - 200_000_000,
    free_bytes=11 * GIB,
    capability=(8, 9),
    cuda_cores=7680,
    max_clock_mhz=2610,
    slowed_by=(),
)
CODES = {  # the architectures in PyTorch's wheels
    "cu126": ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    "cu128": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    "cu130": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    "cu132": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
}
CPU_WHEEL = Torch(
    "ok", version="2.13.0+cpu", available=False, bf16=False, product="ok", product_device="cpu"
)  # a laptop's processor without bf16
NO_TORCH = Torch("absent", "torch is not installed")


def seeing(tag: str = "cu130", **changes: Any) -> Torch:
    """Return a CUDA wheel that sees the card and multiplies on it."""
    fields = Torch(
        "ok",
        version=f"2.13.0+{tag}",
        cuda=f"{tag[2:4]}.{tag[4:]}",
        available=True,
        uuid=CARD.uuid.removeprefix("GPU-"),
        name=CARD.name,
        total_bytes=CARD.total_bytes,
        capability=(8, 9),
        codes=CODES[tag],
        bf16=True,
        product="ok",
        product_device="cuda",
    )
    return replace(fields, **changes)


def blind(tag: str = "cu130", *warnings: str) -> Torch:
    """Return a CUDA wheel that sees no card; it multiplies on the processor."""
    return replace(CPU_WHEEL, version=f"2.13.0+{tag}", cuda=f"{tag[2:4]}.{tag[4:]}", warnings=warnings)


def silent(state: str, cause: str = "", **fields: Any) -> Nvml:
    """Return an NVML that failed before it reached the cards."""
    return Nvml(state, cause, **fields)


def place(role: str, path: str, free_gb: float = 200, disk: str = "1", **more: Any) -> Place:
    return Place(role, path, int(free_gb * GB), disk, **more)


def disk(free_gb: float, machine: Machine) -> Storage:
    """Return a machine's places on one disk with this much free space."""
    places = tuple(replace(each, free_bytes=int(free_gb * GB)) for each in machine.storage.places)
    return replace(machine.storage, places=places)


def packages(installed: "dict[str, str] | None" = None, without: "tuple[str, ...]" = (), **changes: Any) -> Packages:
    """Return the tested packages with other versions installed, or some missing."""
    versions = PACKAGES.installed | (installed or {})
    return replace(PACKAGES, installed={n: v for n, v in versions.items() if n not in without}, **changes)


def ram(available_gib: float) -> Memory:
    return Memory(32 * GIB, int(available_gib * GIB))


def mib(size: int) -> int:
    return size * 1024**2


# ---- five healthy machines

PACKAGES = Packages(
    installed={
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "datasets": "5.2.0",
        "accelerate": "1.15.0",
        "numpy": "2.4.6",
        "ipywidgets": "8.1.9",
        "ipykernel": "7.4.0",
        "nbclient": "0.11.0",
        "papermill": "2.7.0",
        "nvidia-ml-py": "13.615.71",
    },
    required={
        "torch": "2.11",
        "transformers": "5.17",
        "datasets": "4.4",
        "accelerate": "1.10",
        "numpy": "2",
        "ipywidgets": "8.1",
        "ipykernel": "6.29",
    },
    pinned={
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "datasets": "5.2.0",
        "accelerate": "1.15.0",
        "numpy": "2.4.6",
        "ipywidgets": "8.1.9",
        "ipykernel": "7.4.0",
    },
    loaded={},
)
POCKET = ModelFolder("/course/helpers/assets/pocket", (), 4096, 256, 10_600_000)
GPT2_PATH = "/cache/hub/models--openai-community--gpt2/snapshots/607a30d7"
GPT2 = ModelFolder(GPT2_PATH, (), 50257, 1024, 548_000_000)

LINUX = Machine(
    python=Python((3, 12, 7), 64, "/course/.venv/bin/python", "/course/.venv", expected=("/course/.venv",)),
    platform=Platform("Linux", "6.8.0-generic", nvidia_on_bus=True),
    packages=PACKAGES,
    torch=seeing(),
    nvml=Nvml("ok", driver="580.65.06", cuda=13000, cards=(CARD,)),
    env={},
    pid=100,
    memory=ram(24),
    storage=Storage((place("runs", "/course/runs"), place("cache", "/cache")), "/course"),
    files=ModelFiles(POCKET, GPT2),
)
WINDOWS = on(
    LINUX,
    python=Python(
        (3, 12, 7),
        64,
        "C:\\course\\.venv\\Scripts\\python.exe",
        "C:\\course\\.venv",
        expected=("C:\\course\\.venv",),
    ),
    platform=Platform("Windows", "11", "AMD64"),
    nvml={"driver": "581.42"},
    storage=Storage((place("runs", "C:\\course\\runs"), place("cache", "C:\\hf")), "C:\\course", False),
)
WSL2 = on(
    LINUX,
    platform=Platform("WSL2", "6.6.87.2-microsoft-standard-WSL2"),
    nvml={"driver": "581.42"},
    wsl=Wsl(dxg=True, libcuda=True, nvidia=True),
)
LAPTOP = on(
    LINUX,
    platform={"nvidia_on_bus": False},
    torch=CPU_WHEEL,
    nvml=silent("absent", "no nvidia-smi"),
    memory=Memory(16 * GIB, 10 * GIB),
    files=ModelFiles(POCKET, None),
)
CONTAINER = on(
    LINUX,
    platform={"container": "/.dockerenv"},
    python={"prefix": "/usr", "executable": "/usr/bin/python3", "expected": ()},
)
CONDA = on(
    LINUX,
    python={
        "prefix": "/opt/conda/envs/gpt2-course",
        "executable": "/opt/conda/envs/gpt2-course/bin/python",
        "is_conda": True,
        "expected": ("/opt/conda/envs/gpt2-course",),
    },
)
