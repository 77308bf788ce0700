"""Compute a loss and its gradient from logits in one kernel; PyTorch's operations read and write them several times.

It needs Triton, which comes with PyTorch's CUDA wheels for Linux; for Windows, `install` adds it. Without Triton,
PyTorch's operations compute the same values.
"""

import functools
import platform
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_BLOCK, _WARPS = 4096, 8  # columns at a time; on an H100, blocks of 2,048 to 16,384 differ by 6%


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def works_on(device: "torch.device") -> bool:
    """Return whether the kernel runs on a device; warn if Triton is installed but fails, e.g. without a C compiler."""
    return device.type == "cuda" and _works_on_a_card()


@functools.cache  # not per device: `cuda` and `cuda:0` are the same card and would warn twice
def _works_on_a_card() -> bool:
    import torch

    if not has_triton() or not torch.cuda.is_available():
        return False
    try:
        nats_and_gradients(torch.zeros(1, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda"), 2)
    except Exception as error:  # noqa: BLE001  # Triton's, its C compiler's or the driver's
        missing = "gcc is missing: install it"
        if platform.system() == "Windows":  # where Triton includes a compiler
            missing = "Python's headers are missing: install Python from python.org, not from the Store"
        warnings.warn(
            f"Triton is installed but cannot compile here ({type(error).__name__}: {error}): training works without "
            f"it, but takes more time and memory. Most often {missing}.",
            stacklevel=3,
        )
        return False
    return True


def nats_and_gradients(
    logits: "torch.Tensor", targets: "torch.Tensor", vocab_size: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the sum of nats, and softmax minus one-hot, (C, V and padding), which overwrites `logits`.

    Args:
        logits: (C, V and padding), contiguous, in any float format; the kernel computes in float32.
        targets: (C,), where -100 is ignored; the gradient of an ignored row is its softmax.
        vocab_size: V; the padding columns after it get a gradient of 0.
    """
    import torch

    nats = torch.empty(len(logits), device=logits.device)  # (C,)
    _kernel()[(len(logits),)](logits, targets, nats, logits.shape[1], vocab_size, BLOCK=_BLOCK, num_warps=_WARPS)
    return nats.sum(), logits


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def softmax_minus_one_hot(logits, targets, nats, n_columns, vocab_size, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        logits += row * n_columns
        target = tl.load(targets + row)
        columns = tl.arange(0, BLOCK)
        highest = -float("inf")
        total = 0.0
        for start in range(0, vocab_size, BLOCK):  # the sum of exponentials, relative to the highest logit so far
            offsets = start + columns
            x = tl.load(logits + offsets, mask=offsets < vocab_size, other=-float("inf")).to(tl.float32)
            new_highest = tl.maximum(highest, tl.max(x))
            total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(x - new_highest))
            highest = new_highest
        is_target = target >= 0
        at_target = tl.load(logits + tl.where(is_target, target, 0)).to(tl.float32)
        tl.store(nats + row, tl.where(is_target, highest + tl.log(total) - at_target, 0.0))
        for start in range(0, n_columns, BLOCK):
            offsets = start + columns
            x = tl.load(logits + offsets, mask=offsets < vocab_size, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - highest) / total - tl.where(offsets == target, 1.0, 0.0)
            tl.store(logits + offsets, gradient.to(logits.dtype.element_ty), mask=offsets < n_columns)

    return softmax_minus_one_hot
