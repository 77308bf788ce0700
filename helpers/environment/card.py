"""What a graphics card is: its memory, speed and preset; a table of published cards, and this machine's card."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.display import GIB
from helpers.environment.facts import GpuReading, Machine
from helpers.environment.machine import read_machine

_DRIVER_BYTES = GIB  # a CUDA context takes 0.3 to 0.6 GiB, a desktop some of the rest
_PRESETS = (("16gb", 15), ("rtx-4070-ti", 11), ("8gb", 7))  # GiB; cards report a little less than their name says
# compute capability -> CUDA cores per multiprocessor, and its dense bf16/fp16 tensor operations per clock, accumulated
# in float32
_PER_MULTIPROCESSOR = {
    (7, 0): (64, 1024), (7, 5): (64, 512), (8, 0): (64, 2048), (8, 6): (128, 512), (8, 9): (128, 512),
    (9, 0): (128, 4096), (12, 0): (128, 512),
}  # fmt: skip
# Workstation and server cards have twice the tensor throughput of a GeForce of the same generation.
_WORKSTATION_CARDS = ("RTX A", "Ada Generation", "A10", "A40", "L4", "T4", "Quadro", "RTX PRO")


class GraphicsCard(NamedTuple):
    """A graphics card, published or installed; peaks are dense, in 10**12 operations per second, 0 if not known."""

    name: str  # as published, or as the driver reports it
    total_bytes: int | None  # None if the driver does not report it
    half_tflops: float  # in bf16 or fp16, accumulated in float32
    float32_tflops: float
    has_bf16: bool = True  # in hardware
    driver: str = ""  # its version
    is_processor: bool = False  # not a card but a CPU, with the machine's main memory

    @property
    def usable_bytes(self) -> int:
        """The memory left for training: all but 1 GiB for the driver, its context and a desktop, or for the system."""
        return max(0, (self.total_bytes or 0) - _DRIVER_BYTES)

    @property
    def preset(self) -> str:
        """The preset that fits the card's memory."""
        return preset_for(self.total_bytes or 0)

    @property
    def peak_tflops(self) -> dict[str, float]:
        """The known peaks: number format -> 10**12 operations per second."""
        half = "bfloat16" if self.has_bf16 else "float16"
        peaks = {"float32": self.float32_tflops, half: self.half_tflops}
        return {name: peak for name, peak in peaks.items() if peak}

    def precision(self, mixed_precision: str = "auto") -> str:
        """Return what `mixed_precision` means on this card: 'bf16', 'fp16' or 'no'."""
        best = "bf16" if self.has_bf16 else "no" if self.is_processor else "fp16"
        return best if mixed_precision == "auto" else mixed_precision

    def tflops(self, precision: str) -> float:
        """Return the peak for a precision; a card without bf16 emulates it, no faster than float32."""
        is_half = precision == "fp16" or (precision == "bf16" and self.has_bf16)
        return self.half_tflops if is_half else self.float32_tflops


def _geforce(name: str, gib: int, cuda_cores: int, boost_mhz: int) -> GraphicsCard:
    """Return a GeForce RTX 30, 40 or 50: bf16 and fp16, accumulated in float32, are twice as fast as float32."""
    float32_tflops = 2 * cuda_cores * boost_mhz / 1e6
    return GraphicsCard(name, gib * GIB, round(2 * float32_tflops, 1), round(float32_tflops, 1))


# From NVIDIA's data sheets.
CARDS = (
    _geforce("RTX 3060 12 GB", 12, 3584, 1777),
    _geforce("RTX 3060 Ti", 8, 4864, 1665),
    _geforce("RTX 3070", 8, 5888, 1725),
    _geforce("RTX 3080", 10, 8704, 1710),
    _geforce("RTX 3080 12 GB", 12, 8960, 1710),
    _geforce("RTX 3080 Ti", 12, 10240, 1665),
    _geforce("RTX 3090", 24, 10496, 1695),
    _geforce("RTX 4060", 8, 3072, 2460),
    _geforce("RTX 4060 Ti", 8, 4352, 2535),
    _geforce("RTX 4060 Ti 16 GB", 16, 4352, 2535),
    _geforce("RTX 4070", 12, 5888, 2475),
    _geforce("RTX 4070 Laptop", 8, 4608, 2175),
    _geforce("RTX 4070 SUPER", 12, 7168, 2475),
    _geforce("RTX 4070 Ti", 12, 7680, 2610),
    _geforce("RTX 4070 Ti SUPER", 16, 8448, 2610),
    _geforce("RTX 4080", 16, 9728, 2505),
    _geforce("RTX 4080 SUPER", 16, 10240, 2550),
    _geforce("RTX 4090", 24, 16384, 2520),
    _geforce("RTX 5060", 8, 3840, 2497),
    _geforce("RTX 5060 Ti 16 GB", 16, 4608, 2572),
    _geforce("RTX 5070", 12, 6144, 2512),
    _geforce("RTX 5070 Ti", 16, 8960, 2452),
    _geforce("RTX 5080", 16, 10752, 2617),
    _geforce("RTX 5090", 32, 21760, 2407),
    GraphicsCard("T4", 15 * GIB, 65.1, 8.1, has_bf16=False),  # sold as 16 GB; error correction takes one
    GraphicsCard("L4", 22 * GIB, 121.0, 30.3),  # sold as 24 GB, for the same reason
    GraphicsCard("A100", 40 * GIB, 312.0, 19.5),
)


def same_card(one: str, other: str) -> bool:
    """Return whether two names mean the same card: the driver's name differs from the retail name.

    >>> same_card("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti")
    True
    """
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|rtx|tesla|gpu|gb|[^a-z0-9]", "", name.lower())


def published_peaks(name: str) -> tuple[float, float]:
    """Return a card's peaks in half precision and float32 from the table; zeros if it is not listed."""
    published = (card for card in CARDS if same_card(card.name, name))
    return next(((card.half_tflops, card.float32_tflops) for card in published), (0.0, 0.0))


def preset_for(total_bytes: int) -> str:
    """Return the preset that fits a card with this much memory.

    >>> preset_for(12 * 1024**3 - 200_000_000)
    'rtx-4070-ti'
    """
    return next((preset for preset, gib in _PRESETS if total_bytes >= gib * GIB), "pocket")


def read_card(machine: Machine | None = None) -> GraphicsCard | None:
    """Return the card that training on a machine (None: this one) would use; this process does not import torch."""
    if machine is None:
        machine = read_machine(quick=True)
        if not machine.has_gpu and machine.wsl is not None:  # NVML often fails under WSL2 where torch sees the card
            machine = read_machine()
    gpu = machine.gpu
    if gpu is None:
        return None
    has_bf16 = gpu.capability is None or gpu.capability >= (8, 0)
    driver = machine.nvml.driver if machine.cards else ""
    return GraphicsCard(gpu.name, gpu.total_bytes, *_peaks(gpu), has_bf16=has_bf16, driver=driver)


def _peaks(gpu: GpuReading) -> tuple[float, float]:
    """Return the peaks in half precision and float32: multiprocessors x operations per clock x highest clock.

    If the readings come from `nvidia-smi` or torch, which do not report the clock, use the data sheet's peaks.

    >>> gpu = GpuReading(0, "NVIDIA GeForce RTX 4070 Ti", capability=(8, 9), cuda_cores=7680, max_clock_mhz=2610)
    >>> [round(peak) for peak in _peaks(gpu)]
    [80, 40]
    """
    known = _PER_MULTIPROCESSOR.get(gpu.capability or (0, 0))
    if known is None or not gpu.cuda_cores or not gpu.max_clock_mhz:
        return published_peaks(gpu.name)
    cores, operations = known
    if operations == 512 and any(name in gpu.name for name in _WORKSTATION_CARDS):
        operations *= 2
    cores_tflops = gpu.cuda_cores * gpu.max_clock_mhz / 1e6
    return cores_tflops / cores * operations, 2 * cores_tflops
