"""Which PyTorch wheel fits this driver, and which driver fits a wheel.

The wheel brings its own CUDA runtime, so only two versions must agree: the driver's and the wheel's. A CUDA toolkit,
or its compiler `nvcc`, is for people who compile GPU code: which one is installed makes no difference here.

Minimum drivers: tables 2 and 3 of NVIDIA's CUDA toolkit release notes. Wheels: PyTorch's list of previous versions.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.environment.facts import Machine, Unread
from helpers.environment.machine import read_machine
from helpers.environment.nvml import driver_number
from helpers.environment.requirements import version_number

INDEX = "https://download.pytorch.org/whl"
DRIVERS = "https://www.nvidia.com/drivers"
LAST_CUDA_12 = "2.14.1"  # from 2.15 on there are CUDA 13 wheels only

# CUDA major -> first driver that runs any wheel of it (Linux, Windows)
FLOORS = {11: ((450,), (452, 39)), 12: ((525, 60, 13), (528, 33)), 13: ((580,), (580,))}
# CUDA release -> driver it came with (Linux, Windows); an older one runs it, but cannot compile its PTX code
CAME_WITH = {
    (11, 8): ((520, 61, 5), (520, 6)),
    (12, 1): ((530, 30, 2), (531, 14)),
    (12, 4): ((550, 54, 14), (551, 61)),
    (12, 6): ((560, 28, 3), (560, 76)),
    (12, 8): ((570, 26), (570, 65)),
    (13, 0): ((580, 65, 6), None),
    (13, 2): ((595, 45, 4), None),
}
# compute capabilities
_OLDEST_FOR_13 = (7, 5)  # CUDA 13 wheels have no code for older cards
_OLDEST_FOR_12_ONLY = (10, 0)  # CUDA 12.6 wheels have no code for cards from here on


@dataclass(frozen=True)
class WheelAdvice:
    """Which wheel to install.

    Attributes:
        tag: 'cu126', 'cu130', 'cpu' or '' (macOS).
        pip_args: what follows `pip install`.
        pip: the complete command with pip.
        conda: the complete command for a conda environment.
        reason: why, in one or two sentences.
    """

    tag: str
    pip_args: str
    pip: str
    conda: str
    reason: str


def windows_driver(machine: Machine) -> bool:
    """Say whether the driver has a Windows version number; WSL2 uses the driver of its Windows."""
    return machine.platform.kind in ("Windows", "WSL2")


def cuda_of_driver(machine: Machine) -> int | None:
    """Return the highest CUDA major version that the driver supports, or None if its version is not known."""
    if isinstance(machine.nvml, Unread):
        return None
    if machine.nvml.cuda:  # nvidia-smi does not report it: then the driver's number has to do
        return machine.nvml.cuda // 1000
    number = driver_number(machine.nvml.driver)
    column = int(windows_driver(machine))
    return max((major for major, floors in FLOORS.items() if number >= floors[column]), default=0) if number else None


def wheel_advice(machine: Machine | None = None) -> WheelAdvice:
    """Return the wheel that fits a machine, as commands; None: this machine, read without importing torch.

    Raises:
        UnreadError: what the advice depends on could not be read.
    """
    if machine is None:
        machine = read_machine(quick=True)
    tag, reason = _tag(machine)
    pinned = "" if isinstance(machine.packages, Unread) else machine.packages.pinned.get("torch", "")
    if tag == "cu126" and version_number(pinned) >= (2, 15):
        pinned = LAST_CUDA_12
    wanted = f"torch=={pinned}" if pinned else "torch"
    if tag and pinned:  # without the part after `+` pip is content with an installed wheel of another kind
        wanted += f"+{tag}"
    args = f"{wanted} --index-url {INDEX}/{tag}" if tag else wanted
    pip = f"{python_command(machine)} -m pip install {args}"
    is_conda = not isinstance(machine.python, Unread) and machine.python.is_conda
    if is_conda:
        reason += " In a conda environment it is the same wheel: PyTorch's own conda channel ended with version 2.5."
    if machine.platform.nvcc:
        reason += f" The CUDA toolkit here (nvcc {machine.platform.nvcc}) does not matter: the wheel has its own."
    conda = pip if is_conda else f"conda run -n gpt2-course python -m pip install {args}"
    return WheelAdvice(tag, args, pip, conda, reason)


def python_command(machine: Machine) -> str:
    """Return the command that starts this very Python: `python` alone may start another one."""
    return "python" if isinstance(machine.python, Unread) else typed(machine, machine.python.executable)


def typed(machine: Machine, program: str) -> str:
    """Return a program's path, quoted as this platform's shell needs it."""
    if " " not in program:
        return program
    return f'& "{program}"' if machine.platform.kind == "Windows" else f'"{program}"'


def _tag(machine: Machine) -> tuple[str, str]:
    """Return the wheel's tag and the reason."""
    if machine.platform.kind == "macOS":
        return "", "There is no CUDA on macOS: its usual wheel is the right one."
    if of_another_maker(machine):
        return "", "The installed wheel sees a card without CUDA, one of another maker: keep it."
    if not expects_gpu(machine):
        return "cpu", "No NVIDIA card answers here, so the small CPU wheel is enough."
    gpu, newest = machine.gpu, cuda_of_driver(machine)
    # a card that does not say its capability is taken for the course's own, an RTX 4070 Ti
    capability = gpu.capability if gpu and gpu.capability else (8, 9)
    driver = machine.nvml.driver if not isinstance(machine.nvml, Unread) else ""
    if newest is None:
        return "cu126", "The driver's version could not be read; CUDA 12.6 wheels run on every driver from 525 on."
    if newest < 12:
        return "cpu", (
            f"Driver {driver} is too old for any CUDA wheel of this torch: update it ({DRIVERS}), "
            "then ask again; until then the CPU wheel."
        )
    if newest >= 13 and capability >= _OLDEST_FOR_13:
        return "cu130", f"Driver {driver} runs CUDA 13 wheels, which need driver 580 or newer."
    if newest < 13 and capability >= _OLDEST_FOR_12_ONLY:
        return "cu130", f"This card needs a CUDA 13 wheel: update driver {driver} to 580 or newer first ({DRIVERS})."
    if newest >= 13:
        return "cu126", f"A card of compute capability {capability[0]}.{capability[1]} needs the CUDA 12.6 wheel."
    return "cu126", (
        f"Driver {driver} runs CUDA 12 wheels (525 to 579); CUDA 13 wheels need driver 580. "
        f"torch {LAST_CUDA_12} is the last with a CUDA 12 wheel."
    )


def expects_gpu(machine: Machine) -> bool:
    """Say whether training is meant to use a card here, even if NVML failed before it could report it."""
    if machine.has_gpu:
        return True
    if isinstance(machine.nvml, Unread):
        return machine.platform.nvidia_on_bus
    if not_given(machine):
        return False
    if machine.platform.nvidia_on_bus:
        return True
    # under WSL2 and on Windows the bus cannot be looked at
    if machine.wsl is not None and not isinstance(machine.wsl, Unread) and machine.wsl.nvidia:
        return machine.nvml.state != "ok"
    return machine.nvml.state in ("hung", "crashed", "error", "nonsense") and machine.platform.kind == "Windows"


def of_another_maker(machine: Machine) -> bool:
    """Say whether torch sees a card without CUDA: AMD's wheels answer to the name `torch.cuda` too."""
    return not isinstance(machine.torch, Unread) and bool(machine.torch.available and not machine.torch.cuda)


def not_given(machine: Machine) -> bool:
    """Say whether this container was not given its machine's card: it may be visible, but has no driver."""
    has_no_driver = machine.nvml.state == "absent" or "DriverNotLoaded" in machine.nvml.cause
    return bool(machine.platform.container) and has_no_driver and not machine.has_gpu
