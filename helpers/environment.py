"""What this machine is, what stands in the way of training, and the command that mends it.

torch is imported only where a check needs it, so that a missing or broken torch is a finding and
not an exception. Nothing on the machine is changed.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from helpers.settings import runs_folder

CUDA_WHEELS = "https://download.pytorch.org/whl/cu126"
_NEEDED = ("torch", "transformers", "datasets", "accelerate", "papermill", "ipywidgets")
_GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """One reading: `status` is 'ok', 'warn', 'fail' or 'unknown'; `fix` is empty where nothing is to be done."""

    id: str
    status: str
    reading: str
    why: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks, worst first, and what they come to."""

    checks: list[Check]

    @property
    def exit_code(self) -> int:
        """0 where training can go on, else 1."""
        return int(any(check.status == "fail" for check in self.checks))

    @property
    def verdict(self) -> str:
        """One sentence."""
        failed = [check.id for check in self.checks if check.status == "fail"]
        if failed:
            return f"Not ready: mend {', '.join(failed)} first."
        gpu = next(check for check in self.checks if check.id == "gpu")
        return "Ready to train on the GPU." if gpu.status == "ok" else "CPU course mode: everything runs, on the CPU."

    def to_dict(self) -> dict[str, Any]:
        """Return `verdict`, `exit_code` and `checks` (id, status, reading, why, fix), ready for JSON."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "checks": [asdict(check) for check in self.checks],
        }

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(value)}</td>" for value in asdict(check).values())
            for check in self.checks
        )
        head = "".join(
            f"<th style='text-align:left'>{name}</th>" for name in ("check", "status", "reading", "why", "fix")
        )
        return f"<p><b>{escape(self.verdict)}</b></p><table><tr>{head}</tr>{rows}</table>"


def diagnose() -> Diagnosis:
    """Make every check; one that breaks is itself 'unknown' with its cause."""
    order = ("fail", "unknown", "warn", "ok")
    checks = [_guarded(check) for check in (_python, _packages, _driver, _torch_build, _gpu, _precision, _disk)]
    return Diagnosis(sorted(checks, key=lambda check: order.index(check.status)))


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (a doctor must not die of what it examines)
        name = check.__name__.strip("_")
        return Check(name, "unknown", f"{type(error).__name__}: {error}", "The check itself broke.")


def platform_kind() -> str:
    """Return 'Windows', 'macOS', 'WSL2' or 'Linux'."""
    if platform.system() == "Darwin":
        return "macOS"
    return "WSL2" if "microsoft" in platform.release().lower() else platform.system()


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform_kind()}"
    why = "The libraries are tested with Python 3.11 to 3.13."
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", found, why)
    return Check("python", "fail", found, why, "Install Python 3.12 and make the environment again.")


def _packages() -> Check:
    found, missing = [], []
    for name in _NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    why = "Each is called by the course."
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}", why, "pip install -e . -c constraints.txt")
    return Check("packages", "ok", ", ".join(found), why)


def driver_version() -> str | None:
    """Return the NVIDIA driver's version as nvidia-smi tells it, or None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    return answer.stdout.splitlines()[0].strip()


def _driver() -> Check:
    found = driver_version()
    why = "A CUDA 12.6 wheel needs driver 525 or newer, a CUDA 13 wheel 580; no toolkit and no nvcc is needed."
    if found is None:
        return Check("driver", "warn", "no NVIDIA driver", why, "Nothing to do without an NVIDIA card.")
    if int(found.split(".")[0]) < 525:
        return Check("driver", "fail", found, why, "Install a driver of at least version 525 and reboot.")
    return Check("driver", "ok", found, why)


def _torch_build() -> Check:
    import torch

    found = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    why = "A CPU wheel does not see a GPU; on Windows the plain wheel is a CPU wheel."
    if torch.version.cuda is None and driver_version() is not None:
        return Check(
            "torch_build", "fail", found, why, f"pip install --force-reinstall torch --index-url {CUDA_WHEELS}"
        )
    return Check("torch_build", "ok", found, why)


def _gpu() -> Check:
    import torch

    why = "Training GPT-2 itself takes minutes on a GPU and hours on a CPU; the pocket model is quick on both."
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        reading = f"{torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        return Check("gpu", "ok", f"{reading}, preset {preset_for(total)}", why)
    if "CUDA_VISIBLE_DEVICES" in os.environ and driver_version() is not None:
        reading = f"hidden by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
        return Check("gpu", "fail", reading, why, "Unset CUDA_VISIBLE_DEVICES and start Python again.")
    return Check("gpu", "warn", "none", why, "Nothing to do without an NVIDIA card.")


def preset_for(total_bytes: int) -> str:
    """Return the preset for a card of so many bytes; cards report a little less than their name says.

    >>> preset_for(12 * 1024**3 - 200_000_000)
    'rtx-4070-ti'
    """
    for preset, gib in (("16gb", 15), ("rtx-4070-ti", 11), ("8gb", 7)):
        if total_bytes >= gib * _GIB:
            return preset
    return "pocket"


def _precision() -> Check:
    from helpers.model import has_bf16

    why = "bf16 halves the time of matrix products and needs no loss scaling."
    return Check("precision", "ok", "bf16 in hardware" if has_bf16() else "no bf16 in hardware", why)


def _disk() -> Check:
    folder = runs_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    why = "A checkpoint of GPT-2 takes 1.5 GB, three times the model; two are kept."
    if free < 5 * _GIB:
        return Check("disk", "warn", f"{free / _GIB:.1f} GiB free", why, f"Free some space below {existing}.")
    return Check("disk", "ok", f"{free / _GIB:.0f} GiB free", why)
