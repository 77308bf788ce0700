"""Make a failure really happen, safely: in a child process that may run out of memory or die."""

import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class ChildResult:
    """How a child process ended: its return code and all it printed."""

    returncode: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line printed; of a traceback, the error."""
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""


def run_in_child(
    source: str, *, setup: str = "", extra_bytes: int | None = None, timeout_seconds: float = 120
) -> ChildResult:
    """Run Python source in a child process, with torch imported, under a cap on its memory.

    Args:
        source: Python code; `torch` and `helpers` are at hand.
        setup: Python code that runs before the cap is set.
        extra_bytes: address space the child may take beyond what it has then. No cap where the system has none to
            set (Windows).
        timeout_seconds: after this the child is ended.

    Raises:
        subprocess.TimeoutExpired: the child took too long.
    """
    lines = ["import torch", "torch.set_num_threads(1)", setup]
    if extra_bytes is not None and sys.platform != "win32":
        lines += [
            "import psutil, resource",
            f"cap = psutil.Process().memory_info().vms + {extra_bytes}",
            "resource.setrlimit(resource.RLIMIT_AS, (cap, cap))",
        ]
    command = [sys.executable, "-c", "\n".join([*lines, source])]
    child = subprocess.run(  # noqa: S603 (the caller's own code, run on purpose)
        command, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    return ChildResult(child.returncode, child.stdout + child.stderr)
