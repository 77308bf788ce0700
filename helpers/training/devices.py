"""The device to train on or to plan for, as a card; and the name and memory use of this machine's device.

The table of published cards is in `helpers.environment.card`.
"""

import contextlib
import functools
import platform
import re
import timeit
from pathlib import Path
from typing import Any

from helpers.display import did_you_mean
from helpers.environment.card import CARDS, GraphicsCard, published_peaks, read_card, same_card
from helpers.environment.machine import read_memory
from helpers.environment.torch_probe import has_bf16
from helpers.settings import SettingsError

DEFAULT_CARD = "RTX 4070 Ti"
PROCESSOR = "processor"  # in place of a card: plan for the processor of this machine
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_MATRIX_SIZE = 768  # width of the square matrices to multiply: enough for a processor's full speed


def find_card(name: str) -> GraphicsCard:
    """Return a card from the table by its name, as people or the driver write it; 'processor' is this machine's.

    Raises:
        SettingsError: there is no such card; the message suggests the nearest ones.

    >>> find_card("NVIDIA GeForce RTX 4070 Ti").half_tflops
    80.2
    """
    if name == PROCESSOR:
        return this_processor()
    for card in CARDS:
        if same_card(card.name, name):
            return card
    names = [*(card.name for card in CARDS), PROCESSOR]
    raise SettingsError(f"There is no card {name!r} in the table{did_you_mean(name, names)}")


def card_of_this_machine() -> GraphicsCard | None:
    """Return the card that training would use here, read from the driver; None without an NVIDIA card."""
    card = read_card()
    return card if card is not None and card.total_bytes else None


def this_device() -> GraphicsCard:
    """Return the card that trains here, or this machine's processor."""
    import torch

    if not torch.cuda.is_available():
        return this_processor()
    if (card := card_of_this_machine()) is not None:
        return card
    gpu = torch.cuda.get_device_properties(0)  # not from NVIDIA, or it shares the main memory
    return GraphicsCard(gpu.name, gpu.total_memory, *published_peaks(gpu.name), has_bf16=has_bf16())


@functools.cache
def this_processor() -> GraphicsCard:
    """Return this machine's processor as if it were a card, with its memory and its measured speed."""
    import torch

    # Without bf16 instructions a product of halves takes seconds, and nobody trains that way.
    is_bf16 = has_bf16(on_processor=True)
    half = _product_tflops(torch.bfloat16) if is_bf16 else 0.0
    float32, total_bytes = _product_tflops(torch.float32), read_memory().total_bytes
    return GraphicsCard("this processor", total_bytes, half, float32, has_bf16=is_bf16, is_processor=True)


def _product_tflops(dtype: Any) -> float:
    """Return the TFLOP/s of a matrix product: the fastest of five, because the first ones are warm-up."""
    import torch

    matrix = torch.ones(_MATRIX_SIZE, _MATRIX_SIZE, dtype=dtype)
    fastest = min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=5))
    return 2 * _MATRIX_SIZE**3 / fastest / 1e12


def device_name() -> str:
    """Return the name of the GPU, or 'cpu'."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def reset_peak() -> None:
    """Make `peak_bytes` count from now on, where that is possible: on a GPU, and on Linux."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): resets the peak to the current resident size


def held_bytes(n_weights: int) -> int:
    """Return the memory this process holds now, as in `peak_bytes`, not counting a model in main memory."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return max(0, psutil.Process().memory_info().rss - 4 * n_weights)


def peak_bytes() -> int:
    """Return this process's peak memory since `reset_peak`: GPU memory if there is a GPU, else resident memory."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows, which has no `resource` module
        return info.peak_wset
    status = _STATUS.read_text(encoding="utf-8", errors="replace") if _STATUS.exists() else ""
    if match := re.search(r"VmHWM:\s+(\d+) kB", status):  # getrusage starts with the parent's peak
        return int(match[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage returns bytes on macOS and KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
