"""Query torch in a child process: a broken torch can hang or crash, and a CUDA context takes GPU memory.

`probe` runs in the child. `read_torch` turns its answer into facts; `read_torch_files` looks without importing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.environment.child import Answer, ask
from helpers.environment.facts import Torch

LIMIT_SECONDS = 90.0  # importing torch from a cold disk takes most of a minute


def read_torch(timeout_seconds: float = LIMIT_SECONDS) -> Torch:
    """Import and test torch in a child process; never raises, whatever torch does."""
    answer = ask("from helpers.environment.torch_probe import probe; probe(report)", timeout_seconds=timeout_seconds)
    return facts_from(answer)


def facts_from(answer: Answer) -> Torch:
    """Turn a child's answer into facts."""
    if answer.value.get("absent"):
        return Torch("absent", "torch is not installed")
    if answer.value.get("broken"):
        return Torch("broken", str(answer.value["broken"]))
    names = {field.name for field in fields(Torch)}
    known = {name: value for name, value in answer.value.items() if name in names and value is not None}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}  # JSON has no tuples
    return Torch("broken" if answer.state == "nonsense" else answer.state, answer.cause, **known)


def read_torch_files() -> Torch:
    """Read torch's version and CUDA from its files, without importing it."""
    try:
        spec = find_spec("torch")
    except ValueError as error:  # a loaded module of that name has no spec
        return Torch("broken", str(error))
    if spec is None or not spec.origin:
        return Torch("absent", "torch is not installed")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError as error:
        return Torch("broken", f"{type(error).__name__}: {error}")
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=\n]*= '([^']+)'", text, re.MULTILINE)
    return Torch("quick", version=version[1] if version else "", cuda=cuda[1] if cuda else None)


# Everything below runs in the child.


def probe(report: Callable[..., None]) -> None:
    """Report torch's build, whether it sees a card, and the result of a small matrix product, each once it is known."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 (whatever a broken build raises is the finding)
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        report(**({"absent": True} if is_absent else {"broken": f"{type(error).__name__}: {error}"}))
        return
    if not hasattr(torch, "version"):  # an empty folder named torch can be imported too
        report(broken=f"what is imported as torch is not torch ({getattr(torch, '__file__', None) or torch.__path__})")
        return
    report(version=str(torch.__version__), cuda=torch.version.cuda)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    messages = [str(warning.message) for warning in caught]
    report(available=available, warnings=messages)
    if available:
        _report_card(torch, report, messages)
    else:
        report(bf16=has_bf16())
    device = "cuda" if available else "cpu"
    try:
        product = _product(torch, device)
    except Exception as error:  # noqa: BLE001
        product = f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")
    report(product=product, product_device=device)


def _report_card(torch: Any, report: Callable[..., None], messages: list[str]) -> None:
    try:
        card = torch.cuda.get_device_properties(0)
        capability = (card.major, card.minor)
        report(name=card.name, total_bytes=card.total_memory, uuid=str(getattr(card, "uuid", "")))
        report(capability=capability, codes=torch.cuda.get_arch_list(), bf16=capability >= (8, 0))
    except Exception as error:  # noqa: BLE001
        report(warnings=[*messages, f"{type(error).__name__}: {error}"])


def has_bf16(*, on_processor: bool = False) -> bool:
    """Return whether the card, or else the CPU, multiplies bf16 in hardware: capability 8.0, AVX-512 BF16 or AMX."""
    import torch

    if torch.cuda.is_available() and not on_processor:
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _product(torch: Any, device: str) -> str:
    """Multiply two (256, 256) matrices in float32 and bf16 on the device, and compare with float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = a @ b
    for dtype, tolerance in ((torch.float32, 0.05), (torch.bfloat16, 0.6)):  # TF32 and bf16: 11 and 8 significant bits
        product = (a.to(device, dtype) @ b.to(device, dtype)).to("cpu", torch.float64)
        error = (product - exact).abs().max().item()
        if not error < tolerance:  # catches NaN too
            return f"{dtype} is off by {error:.3g}"
    return "ok"
