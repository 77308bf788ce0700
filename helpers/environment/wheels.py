"""Which PyTorch wheel fits this driver, and which driver fits a wheel.

The wheel includes its own CUDA runtime, so only two versions must match: the driver's and the wheel's. A CUDA toolkit,
or its compiler `nvcc`, is for people who compile GPU code: which one is installed makes no difference here.

Minimum drivers: tables 2 and 3 of NVIDIA's CUDA toolkit release notes. Wheels: PyTorch's list of previous versions.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from helpers.environment.facts import OLDEST_CAPABILITY, GpuReading, Machine
from helpers.environment.machine import read_machine
from helpers.environment.nvml import driver_number
from helpers.environment.requirements import version_number

INDEX = "https://download.pytorch.org/whl"
DRIVERS = "https://www.nvidia.com/drivers"

# CUDA major version -> first driver that runs its wheels (Linux, Windows)
FLOORS = {11: ((450,), (452, 39)), 12: ((525, 60, 13), (528, 33)), 13: ((580,), (580,))}
# CUDA release -> the driver it came with (Linux, Windows); an older driver runs it, but cannot compile its PTX code
BUNDLED_DRIVERS = {
    (12, 6): ((560, 28, 3), (560, 76)),
    (12, 8): ((570, 26), (570, 65)),
    (13, 0): ((580, 65, 6), None),
    (13, 2): ((595, 45, 4), None),
}
# CUDA 12 wheel -> the last torch that has it; every torch that the course can use has a CUDA 13 wheel
LAST_TORCH = {"cu126": "2.14.1", "cu128": "2.11.0"}
# CUDA release of a wheel -> the lowest and the highest compute capability (major, minor) that it has code for
_CAPABILITIES = {
    (12, 6): ((5, 0), (9, 9)),
    (12, 8): ((7, 5), (12, 9)),  # since torch 2.11, the oldest that the course uses; before, also Volta's 7.0
    (13, 0): ((7, 5), (12, 9)),
    (13, 2): ((7, 5), (12, 9)),
}
# torch -> the Triton that it was built with: wheels for Linux include it, on Windows it is a separate package
_TRITON = {(2, 11): "3.6", (2, 12): "3.7", (2, 13): "3.7", (2, 14): "3.8"}
_BLACKWELL_CAPABILITY = (10, 0)  # the first capability that CUDA 12.6 has no code for
_BLACKWELL_DRIVER = 570  # the first that runs CUDA 12.8
NO_WHEEL = "PyTorch has had no wheel for macOS on x86_64 since version 2.3, and the course needs a newer one."


@dataclass(frozen=True)
class WheelAdvice:
    """Which wheel to install, or which installed one to keep; no commands if there is none (Intel Macs)."""

    tag: str  # such as 'cu126', 'cu128', 'cu130' or 'cpu'; '' if the wheel has none (macOS)
    pip_args: str  # what follows `pip install`
    pip: str  # the complete command
    conda: str  # the same for a conda environment
    reason: str  # in one or two sentences


def windows_driver(machine: Machine) -> bool:
    """Return whether the driver has a Windows version number; WSL2 uses the driver of Windows."""
    return machine.platform.kind in ("Windows", "WSL2")


def cuda_of_driver(machine: Machine) -> int | None:
    """Return the highest CUDA major version that the driver supports, or None if its version is not known."""
    if not machine.nvml:
        return None
    column, number = int(windows_driver(machine)), driver_number(machine.nvml.driver)
    if not machine.nvml.cuda:  # not reported by nvidia-smi: use the driver's number
        supported = (major for major, floors in FLOORS.items() if number >= floors[column])
        return max(supported, default=0) if number else None
    major = machine.nvml.cuda // 1000
    # A container's compatibility library reports its own CUDA, which works only with data-centre cards.
    sees_card = machine.torch and machine.torch.available
    while number and not sees_card and major in FLOORS and number < FLOORS[major][column]:
        major -= 1
    return major


def wheel_advice(machine: Machine | None = None) -> WheelAdvice:
    """Return the wheel that fits a machine (None: this one), as commands; `UnreadError` if a fact cannot be read.

    An installed wheel that works is kept, whatever would be chosen for a new installation.
    """
    if machine is None:
        machine = read_machine(quick=True)
        is_there = machine.torch and machine.torch.state == "quick"
        if is_there and expects_gpu(machine):  # a working torch is kept, and only torch itself knows
            machine = read_machine()
    tag, wanted, reason = _keep_installed(machine) or _choose_wheel(machine)
    if not wanted:
        return WheelAdvice("", "", "", "", reason)
    args = f"{wanted} --index-url {INDEX}/{tag}" if tag else wanted
    pip = f"{python_command(machine)} -m pip install {args}"
    is_conda = machine.python and machine.python.is_conda
    if is_conda:
        reason += " In a conda environment it is the same wheel: PyTorch's own conda channel ended with version 2.5."
    if machine.platform.nvcc:
        reason += f" The CUDA toolkit here (nvcc {machine.platform.nvcc}) does not matter: no wheel uses it."
    conda = pip if is_conda else f"conda run -n gpt2-course python -m pip install {args}"
    return WheelAdvice(tag, args, pip, conda, reason)


def python_command(machine: Machine) -> str:
    """Return the command that starts this Python: plain `python` may start another one."""
    return quote_program(machine, machine.python.executable) if machine.python else "python"


def quote_program(machine: Machine, program: str) -> str:
    """Return a program's path, quoted for this platform's shell."""
    if re.fullmatch(r"[\w.:\\/~-]+", program):
        return program
    if machine.platform.kind != "Windows":
        return shlex.quote(program)
    return "& '" + program.replace("'", "''") + "'"


def _keep_installed(machine: Machine) -> tuple[str, str, str] | None:
    """Return tag, requirement and reason of the installed wheel if it is new enough and works here, else None."""
    torch, packages = machine.torch, machine.packages
    if not torch or torch.state not in ("ok", "quick"):
        return None
    floor = packages.required.get("torch", "0") if packages else "0"
    if version_number(torch.version) < version_number(floor):
        return None
    tag = build_of(torch.version)
    own = f"torch=={torch.version if tag else torch.version.partition('+')[0]}"
    if not torch.cuda and (torch.available or (is_for_other_vendor(torch.version) and not expects_gpu(machine))):
        return tag, own, f"The installed torch {torch.version} is for cards of another maker: keep it."
    works = torch.product == "ok" if torch.available else torch.state == "quick" and _fits(machine)
    if torch.cuda and works:
        return tag, own, f"The installed torch {torch.version} fits this card and its driver: keep it."
    return None


def build_of(version: str) -> str:
    """Return the index tag in a wheel's version; '' for a wheel from PyPI and for one that somebody built.

    >>> build_of("2.13.0+rocm7.1"), build_of("2.13.0"), build_of("2.13.0a0+git1f2e3d")
    ('rocm7.1', '', '')
    """
    build = version.partition("+")[2]
    return build if re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", build) else ""


def is_for_other_vendor(version: str) -> bool:
    """Return whether a wheel is built for AMD's or Intel's cards."""
    return build_of(version).startswith(("rocm", "xpu"))


def _fits(machine: Machine) -> bool:
    """Return whether the installed CUDA wheel is known to fit, by versions and capability: torch was not imported."""
    release, newest = release_of(machine.torch.cuda), cuda_of_driver(machine)
    capability = machine.gpu.capability if machine.gpu else None
    if newest is None or capability is None or release not in _CAPABILITIES:
        return False
    oldest_card, newest_card = _CAPABILITIES[release]
    return release[0] <= newest and oldest_card <= capability <= newest_card


def release_of(cuda: str | None) -> tuple[int, int] | None:
    """Return a CUDA release such as '12.6' as numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", cuda or "")
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _choose_wheel(machine: Machine) -> tuple[str, str, str]:
    """Return tag, requirement and reason of the wheel that a new installation gets."""
    pinned = machine.packages.pinned.get("torch", "") if machine.packages else ""
    if machine.platform.kind == "macOS":
        if machine.platform.architecture == "x86_64":
            return "", "", NO_WHEEL
        usual = f"torch=={pinned}" if pinned else "torch"
        return "", usual, "There is no CUDA on macOS: its usual wheel is the right one."
    tag, reason = _choose_tag(machine)
    return tag, requirement(tag, pinned), reason


def requirement(tag: str, pinned: str) -> str:
    """Return the requirement for pip: the pinned torch, or the last one that has such a wheel.

    >>> requirement("cu126", "2.15.0")
    'torch==2.14.1+cu126'
    """
    last = LAST_TORCH.get(tag)
    if last and version_number(pinned) > version_number(last):
        pinned = last
    # without the part after `+`, pip would accept an installed wheel of another kind
    return f"torch=={pinned}+{tag}" if pinned else "torch"


def triton_for_windows(torch: str) -> str:
    """Return the requirement for pip on Windows: the Triton for an installed torch; '' if none is known to fit.

    >>> triton_for_windows("2.13.0+cu126"), triton_for_windows("2.13.0+cpu")
    ('triton-windows==3.7.*', '')
    """
    triton = _TRITON.get(version_number(torch)[:2]) if build_of(torch).startswith("cu") else None
    return f"triton-windows=={triton}.*" if triton else ""


def _choose_tag(machine: Machine) -> tuple[str, str]:
    """Return the wheel's tag and the reason."""
    if not expects_gpu(machine):
        return "cpu", "No NVIDIA card that PyTorch can use was found, so the small CPU wheel is enough."
    gpu, newest = machine.gpu, cuda_of_driver(machine)
    # assume the capability of the course's own card, an RTX 4070 Ti, if it is not reported
    capability = gpu.capability if gpu and gpu.capability else (8, 9)
    driver = machine.nvml.driver if machine.nvml else ""
    if newest is None:
        return "cu126", "The driver's version could not be read; CUDA 12.6 wheels run on every driver from 525 on."
    if newest < 12:
        return "cpu", (
            f"Driver {driver} is too old for any CUDA wheel of this torch: update it ({DRIVERS}), "
            "then ask again; until then use the CPU wheel."
        )
    last = f"torch {LAST_TORCH['cu126']} is the last with a CUDA 12.6 wheel."
    if newest >= 13 and capability >= _CAPABILITIES[13, 0][0]:
        return "cu130", f"Driver {driver} runs CUDA 13 wheels, which need driver 580 or newer."
    if newest >= 13:
        card = f"A card of compute capability {capability[0]}.{capability[1]}"
        return "cu126", f"{card} needs the CUDA 12.6 wheel. {last}"
    if capability < _BLACKWELL_CAPABILITY:
        return "cu126", f"Driver {driver} runs CUDA 12 wheels (525 to 579); CUDA 13 wheels need driver 580. {last}"
    if driver_number(driver) >= (_BLACKWELL_DRIVER,):
        return "cu128", (
            f"Driver {driver} runs CUDA 12 wheels, and torch {LAST_TORCH['cu128']} is the last of them with code for "
            "this card; with driver 580 or newer the CUDA 13 wheels run too."
        )
    return "cu130", f"This card needs a CUDA 13 wheel: update driver {driver} to 580 or newer first ({DRIVERS})."


def expects_gpu(machine: Machine) -> bool:
    """Return whether training is meant to use a card here, even if NVML failed before it could report one."""
    if machine.has_gpu:
        return True
    if not machine.nvml:
        return machine.platform.nvidia_on_bus
    if container_lacks_card(machine) or too_old_cards(machine):
        return False
    if machine.platform.nvidia_on_bus:
        return True
    # under WSL2 and on Windows the bus cannot be read
    if machine.wsl and machine.wsl.nvidia:
        return machine.nvml.state != "ok"
    return machine.nvml.state in ("hung", "crashed", "error", "nonsense") and machine.platform.kind == "Windows"


def too_old_cards(machine: Machine) -> list[GpuReading]:
    """Return the cards that are too old for every wheel of the course, if there is no other card."""
    cards = machine.nvml.cards if machine.nvml and not machine.cards else ()
    return [card for card in cards if card.capability and card.capability < OLDEST_CAPABILITY]


def container_lacks_card(machine: Machine) -> bool:
    """Return whether this container has no access to its machine's card, which may be visible without a driver."""
    has_no_driver = machine.nvml.state == "absent" or "DriverNotLoaded" in machine.nvml.cause
    return bool(machine.platform.container) and has_no_driver and not machine.has_gpu
