"""torch, asked in a child process: a broken one can hang or crash, and a CUDA context would keep memory of the card.

`probe` runs in the child. `read_torch` turns its answer into facts, `read_torch_files` looks without importing.
"""

import re
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.environment.child import Answer, ask
from helpers.environment.facts import Torch

LIMIT_SECONDS = 90.0  # a cold disk takes most of a minute to import torch


def read_torch(timeout_seconds: float = LIMIT_SECONDS) -> Torch:
    """Import torch in a child process and let it prove itself; never raises for what torch does."""
    return facts_from(ask("helpers.environment.torch_probe:probe", timeout_seconds=timeout_seconds))


def facts_from(answer: Answer) -> Torch:
    """Turn a child's answer into facts."""
    told: Mapping[str, Any] = answer.value
    if told.get("absent"):
        return Torch("absent", "torch is not installed")
    if told.get("broken"):
        return Torch("broken", str(told["broken"]))
    state, cause = (answer.state, answer.cause) if answer.state != "ok" else ("ok", "")
    if answer.state == "nonsense":
        state = "broken"
    capability = told.get("capability")
    return Torch(
        state,
        cause,
        version=str(told.get("version") or ""),
        cuda=told.get("cuda"),
        available=told.get("available"),
        warnings=tuple(told.get("warnings") or ()),
        uuid=str(told.get("uuid") or ""),
        name=str(told.get("name") or ""),
        total_bytes=told.get("total"),
        capability=tuple(capability) if capability else None,
        codes=tuple(told.get("codes") or ()),
        bf16=told.get("bf16"),
        product=str(told.get("product") or ""),
        product_device=str(told.get("product_device") or ""),
    )


def read_torch_files() -> Torch:
    """Tell torch's version and CUDA from its files, without importing it."""
    try:
        spec = find_spec("torch")
    except ValueError as error:  # something else stands under its name
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


# What follows runs in the child.


def probe(tell: "Callable[..., None]") -> None:
    """Tell of torch step by step: its build, whether it sees a card, and a small matrix product."""
    start = time.perf_counter()
    try:
        import torch
    except ModuleNotFoundError as error:
        tell(**({"absent": True} if error.name == "torch" else {"broken": f"ModuleNotFoundError: {error}"}))
        return
    except Exception as error:  # noqa: BLE001 (whatever a broken build raises is the finding)
        tell(broken=f"{type(error).__name__}: {error}")
        return
    if not hasattr(torch, "version"):  # an empty folder of its name can be imported too
        tell(broken=f"what is imported as torch is not torch ({getattr(torch, '__file__', None) or torch.__path__})")
        return
    tell(version=str(torch.__version__), cuda=torch.version.cuda, seconds=time.perf_counter() - start)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    said = [str(warning.message) for warning in caught]
    tell(available=available, warnings=said)
    if available:
        _tell_card(torch, tell, said)
    else:
        tell(bf16=_cpu_has_bf16())
    device = "cuda" if available else "cpu"
    try:
        tell(product=_product(torch, device), product_device=device)
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")
        tell(product=said, product_device=device)


def _tell_card(torch: Any, tell: "Callable[..., None]", said: "list[str]") -> None:
    try:
        card = torch.cuda.get_device_properties(0)
        tell(name=card.name, total=card.total_memory, uuid=str(getattr(card, "uuid", "")))
        tell(
            capability=[card.major, card.minor],
            codes=torch.cuda.get_arch_list(),
            bf16=(card.major, card.minor) >= (8, 0),
        )
    except Exception as error:  # noqa: BLE001
        tell(warnings=[*said, f"{type(error).__name__}: {error}"])


def _cpu_has_bf16() -> "bool | None":
    try:
        from helpers.environment.precision import has_bf16
    except ImportError:
        return None
    return has_bf16()


def _product(torch: Any, device: str) -> str:
    """Multiply two (256, 256) matrices in float32 and bf16 on the device; compare with float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = a @ b
    for dtype, tolerance in ((torch.float32, 0.05), (torch.bfloat16, 0.6)):  # TF32 and bf16 keep 10 and 8 bits
        found = (a.to(device, dtype) @ b.to(device, dtype)).to("cpu", torch.float64)
        off = (found - exact).abs().max().item()
        if not off < tolerance:
            return f"{dtype} is off by {off:.3g}"
    return "ok"
