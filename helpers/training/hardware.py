"""What a process takes: the device it computes on, and the most memory it has held."""

import contextlib
import platform
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def device_name() -> str:
    """Return the name of the GPU, or 'cpu'."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def reset_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can: on a GPU, and on Linux."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # proc(5): the peak becomes what is resident now


def peak_bytes() -> int:
    """Return the largest memory this process has held since `reset_peak`: on the GPU if there is one, else resident."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
