"""The card: what it is, who holds it, which preset fits it, and how fast it could be at best."""

from dataclasses import dataclass

from helpers.environment.facts import GIB, GpuReading, Holder, Machine

_PRESETS = (("16gb", 15), ("rtx-4070-ti", 11), ("8gb", 7))  # GiB; cards report a little less than their name says
# compute capability -> (CUDA cores, tensor operations a clock, dense bf16/fp16 with float32 sums) of a multiprocessor
_PER_MULTIPROCESSOR = {
    (7, 0): (64, 1024), (7, 5): (64, 512), (8, 0): (64, 2048), (8, 6): (128, 512), (8, 9): (128, 512),
    (9, 0): (128, 4096), (12, 0): (128, 512),
}  # fmt: skip
_OFFICE_CARDS = ("RTX A", "Ada Generation", "A10", "A40", "L4", "T4", "Quadro", "RTX PRO")  # twice a GeForce's


@dataclass(frozen=True)
class Card:
    """A graphics card. Sizes are in bytes, None where the driver does not tell.

    Attributes:
        name: as the driver says it.
        total_bytes: its memory.
        free_bytes: what was free before this program touched it.
        capability: its compute capability, (8, 9) for an RTX 4070 Ti.
        holders: the processes that hold memory of it.
        preset: the preset that fits its memory.
        precision: 'bf16' or 'fp16', what `mixed_precision: auto` takes on it.
        driver: the driver's version.
        peak_tflops: number format -> 10**12 operations a second at best; empty for a card that is not in the table.
    """

    name: str
    total_bytes: "int | None"
    free_bytes: "int | None"
    capability: "tuple[int, int] | None"
    holders: "tuple[Holder, ...]"
    preset: str
    precision: str
    driver: str
    peak_tflops: "dict[str, float]"


def preset_for(total_bytes: int) -> str:
    """Return the preset for a card of so many bytes.

    >>> preset_for(12 * 1024**3 - 200_000_000)
    'rtx-4070-ti'
    """
    return next((preset for preset, gib in _PRESETS if total_bytes >= gib * GIB), "pocket")


def card(machine: "Machine | None" = None) -> "Card | None":
    """Return the card that a training would take, or None without one; torch is not imported in this process."""
    if machine is None:
        from helpers.environment.machine import read_machine

        machine = read_machine(quick=True)
        if not machine.has_gpu and machine.wsl is not None:  # NVML is weak there; torch may know the card
            machine = read_machine()
    gpu = machine.gpu
    if gpu is None:
        return None
    return Card(
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        capability=gpu.capability,
        holders=gpu.holders,
        preset=preset_for(gpu.total_bytes or 0),
        precision="bf16" if gpu.capability is None or gpu.capability >= (8, 0) else "fp16",
        driver=getattr(machine.nvml, "driver", "") if machine.cards else "",
        peak_tflops=peak_tflops(gpu),
    )


def peak_tflops(gpu: GpuReading) -> "dict[str, float]":
    """Return the card's peak by number format: multiprocessors x operations a clock x highest clock.

    Cards made for offices do twice the tensor operations of a GeForce of the same generation.

    >>> gpu = GpuReading(0, "NVIDIA GeForce RTX 4070 Ti", capability=(8, 9), cuda_cores=7680, max_clock_mhz=2610)
    >>> {name: round(value) for name, value in peak_tflops(gpu).items()}
    {'float32': 40, 'bfloat16': 80}
    """
    known = _PER_MULTIPROCESSOR.get(gpu.capability or (0, 0))
    if known is None or not gpu.cuda_cores or not gpu.max_clock_mhz:
        return {}
    cores, tensor = known
    clock = gpu.max_clock_mhz * 1e6
    doubled = 2 if tensor == 512 and any(name in gpu.name for name in _OFFICE_CARDS) else 1
    peaks = {"float32": 2 * gpu.cuda_cores * clock / 1e12}
    half = "bfloat16" if gpu.capability and gpu.capability >= (8, 0) else "float16"
    return peaks | {half: gpu.cuda_cores / cores * tensor * doubled * clock / 1e12}
