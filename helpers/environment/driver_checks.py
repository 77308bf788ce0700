"""Checks of the chain from the driver to a matrix product: 5 and 7 to 13."""

import re

from helpers.environment import fixes
from helpers.environment.facts import Machine, Torch, Unread, visible
from helpers.environment.nvml import driver_number
from helpers.environment.rules import NO_GPU, Finding, fail, ok, rule, unknown, warn
from helpers.environment.wheels import (
    CAME_WITH,
    FLOORS,
    cuda_of_driver,
    expects_gpu,
    not_given,
    of_another_maker,
    windows_driver,
)

_WINDOWS_LIBRARY = re.compile(r"WinError (126|127|1114)|c10\.dll|fbgemm\.dll", re.IGNORECASE)
_SLEPT = "unknown error"
_LOADER_PATH = f"export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH ; then {fixes.RESTART}."


def has_torch(torch: Torch) -> bool:
    """Tell whether torch's build is known."""
    return torch.state not in ("absent", "broken") and bool(torch.version)


@rule("A CPU wheel cannot see a GPU; on Windows the usual wheel is a CPU wheel.")
def torch_build(machine: Machine) -> Finding:
    """Fail for a missing or broken torch, and for a CPU build beside a card; without a card it is CPU course mode."""
    torch = machine.torch
    if torch.state == "absent":
        return fail("torch is not installed", fixes.install_wheel(machine))
    if _WINDOWS_LIBRARY.search(torch.cause):
        link = "https://aka.ms/vs/17/release/vc_redist.x64.exe"
        return fail(
            f"torch cannot be imported: {torch.cause}", f"Install {link} (Visual C++ libraries), then {fixes.RESTART}."
        )
    if torch.state == "broken" or (torch.state == "crashed" and not torch.version):
        return fail(f"torch cannot be imported: {torch.cause}", fixes.install_wheel(machine))
    if torch.state == "hung" and not torch.version:
        return unknown(
            f"importing torch gave {torch.cause}", "Run the doctor again: a cold disk is slow the first time."
        )
    if torch.cuda:
        return ok(f"torch {torch.version} with CUDA {torch.cuda}")
    if of_another_maker(machine):
        return ok(f"torch {torch.version} sees a card without CUDA: not tested")
    if expects_gpu(machine):
        return fail(f"torch {torch.version} is a CPU build, and there is a card", fixes.install_wheel(machine))
    return warn(f"torch {torch.version}, a CPU build: CPU course mode", "Nothing to do without an NVIDIA card.")


@rule("The wheel's CUDA must not be newer than what the driver speaks; no toolkit and no nvcc is needed.")
def driver_floor(machine: Machine) -> Finding:
    """Hold the driver against the wheel: a newer major fails, a newer minor cannot compile PTX."""
    if not expects_gpu(machine) or of_another_maker(machine):
        return NO_GPU
    driver, speaks = machine.nvml.driver, cuda_of_driver(machine)
    if speaks is None:
        return unknown(f"the driver's version cannot be read ({machine.nvml.cause or driver or 'no answer'})")
    shown = f"driver {driver}" + (f" speaks CUDA {speaks}" if not machine.nvml.cuda else _spoken(machine.nvml.cuda))
    if speaks < 12:
        return fail(f"{shown}: too old for any wheel of the course", fixes.update_driver(machine))
    wheel = _wheel_cuda(machine)
    if wheel is None:
        return ok(shown)
    if wheel[0] > speaks:
        return fail(
            f"{shown}, the wheel is for CUDA {machine.torch.cuda} (driver {_floor(machine, wheel[0])} or newer)",
            fixes.newer_driver_or_older_wheel(machine),
        )
    came_with = _came_with(machine, wheel)
    number = driver_number(driver)
    if came_with and number and number < came_with:
        return warn(
            f"{shown}, older than CUDA {machine.torch.cuda} itself: all runs but PTX code", fixes.update_driver(machine)
        )
    return ok(f"{shown}, the wheel needs CUDA {machine.torch.cuda}")


def _spoken(cuda: int) -> str:
    return f" speaks CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def _wheel_cuda(machine: Machine) -> "tuple[int, ...] | None":
    cuda = None if isinstance(machine.torch, Unread) else machine.torch.cuda
    numbers = re.match(r"(\d+)\.(\d+)", cuda or "")
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _floor(machine: Machine, major: int) -> str:
    floor = FLOORS.get(major, ((580,), (580,)))[windows_driver(machine)]
    return ".".join(map(str, floor))


def _came_with(machine: Machine, wheel: "tuple[int, ...]") -> "tuple[int, ...] | None":
    return (CAME_WITH.get((wheel[0], wheel[1])) or (None, None))[windows_driver(machine)]


@rule("NVML is how programs ask the driver; it is what `nvidia-smi` uses.")
def nvml_alive(machine: Machine) -> Finding:
    """Tell how NVML answered in its child process; under WSL2 a crash of it says nothing about training."""
    nvml = machine.nvml
    if nvml.state == "ok":
        return _cards(machine)
    if nvml.state == "absent":
        return _no_driver(machine)
    on_wsl = machine.platform.kind == "WSL2"
    reading = f"NVML {nvml.state}: {nvml.cause}"
    if nvml.state == "nonsense":
        return unknown(reading, fixes.reboot(machine))
    if nvml.state in ("hung", "crashed"):
        return (
            unknown(reading, "Training may still work: see cuda_available.")
            if on_wsl
            else fail(reading, fixes.reboot(machine))
        )
    if "NotSupported" in nvml.cause:
        return unknown(reading)
    if "DriverNotLoaded" in nvml.cause or "NoPermission" in nvml.cause:
        return _not_loaded(machine, reading)
    return (
        unknown(reading, fixes.reboot(machine))
        if on_wsl and "Mismatch" not in nvml.cause
        else fail(reading, fixes.reboot(machine))
    )


def _cards(machine: Machine) -> Finding:
    """Judge cards that answered, one by one: of four, one may be broken."""
    broken = [card for card in machine.nvml.cards if card.error or not card.total_bytes]
    if not machine.nvml.cards:
        return warn(f"driver {machine.nvml.driver} answers, but sees no card", "Nothing to do without an NVIDIA card.")
    if broken:
        names = ", ".join(f"card {card.index}: {card.error or 'tells no memory'}" for card in broken)
        good = ",".join(str(card.index) for card in machine.cards)
        on_windows = machine.platform.kind == "Windows"
        setting = f"$env:CUDA_VISIBLE_DEVICES = '{good}'" if on_windows else f"export CUDA_VISIBLE_DEVICES={good}"
        return warn(names, f"{setting} ; goes on without it until: {fixes.reboot(machine)}")
    shown = f"driver {machine.nvml.driver}, {len(machine.nvml.cards)} card" + "s" * (len(machine.nvml.cards) > 1)
    return ok(shown)


def _no_driver(machine: Machine) -> Finding:
    if machine.has_gpu and machine.torch.cuda:
        more = "docker run -e NVIDIA_DRIVER_CAPABILITIES=compute,utility --gpus all ..."
        fix = more if machine.platform.container else f"{fixes.python_command(machine)} -m pip install nvidia-ml-py"
        return warn("torch sees a card, but there is no NVML to tell its memory and who holds it", fix)
    if machine.wsl and expects_gpu(machine):
        return unknown("Windows offers a card, but NVML is not found", _LOADER_PATH)
    if not machine.platform.nvidia_on_bus:
        return ok("no NVIDIA driver and no NVIDIA card: CPU course mode")
    if not_given(machine):
        return warn("an NVIDIA card that this container was not given", fixes.give_card(machine))
    return fail("an NVIDIA card without a driver", fixes.update_driver(machine))


def _not_loaded(machine: Machine, reading: str) -> Finding:
    if "NoPermission" in machine.nvml.cause:
        return fail(reading, "Let this user read /dev/nvidia*: sudo usermod -aG video $USER ; then log in again.")
    if not_given(machine):
        return warn(reading, fixes.give_card(machine))
    if machine.platform.kind == "Linux" and not machine.platform.nvidia_on_bus:
        return warn(f"{reading}; and there is no NVIDIA card", "Nothing to do without an NVIDIA card.")
    line = (
        "sudo modprobe nvidia ; if that fails (a new kernel, Secure Boot): " if machine.platform.kind == "Linux" else ""
    )
    return fail(reading, line + fixes.update_driver(machine))


@rule("What torch says is what training gets: the guide's `torch.cuda.is_available()`.")
def cuda_available(machine: Machine) -> Finding:
    """Where a card, a driver and a wheel are there and torch sees none of it, find out why."""
    torch = machine.torch
    if not expects_gpu(machine):
        return NO_GPU
    if not has_torch(torch) or (torch.cuda is None and not torch.available):
        return unknown("cannot be told before torch_build is mended")
    if torch.state == "quick":
        return ok("not asked: a quick look does not import torch")
    if torch.available is None:
        return fail(f"torch.cuda.is_available() gave {torch.cause}", fixes.reboot(machine))
    if torch.available:
        return ok(
            f"torch sees {torch.name or 'a card'}" + (f" (warned: {torch.warnings[0]})" if torch.warnings else "")
        )
    return _why_unseen(machine)


def _why_unseen(machine: Machine) -> Finding:
    said = " ".join(machine.torch.warnings)
    reading = "torch sees no card" + (f": {said[:160]}" if said else "")
    wheel, speaks = _wheel_cuda(machine), cuda_of_driver(machine)
    if _hides_all(machine):
        return fail(f"{reading}; CUDA_VISIBLE_DEVICES hides it", fixes.unset(machine, "CUDA_VISIBLE_DEVICES"))
    if "too old" in said or (wheel and speaks is not None and wheel[0] > speaks):
        return fail(reading, fixes.newer_driver_or_older_wheel(machine))
    if wsl_libcuda.judge(machine).status == "fail":
        return fail(f"{reading}; see wsl_libcuda", wsl_libcuda.judge(machine).fix)
    if machine.wsl and machine.nvml.state == "absent":
        return fail(f"{reading}; the loader does not find the driver's library", _LOADER_PATH)
    if _SLEPT in said:
        return fail(f"{reading} (as after the computer slept)", fixes.reload_uvm(machine))
    return fail(reading, f"{fixes.RESTART_FIRST}; if that does not help: {fixes.reboot(machine)}")


def _hides_all(machine: Machine) -> bool:
    """Tell whether CUDA_VISIBLE_DEVICES hides every card; where none could be asked, by what it says alone."""
    value = machine.process.env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return False
    if machine.cards:
        return not visible(machine.cards, machine.process.env)
    return not re.match(r"\s*(\d|GPU-|MIG-)", value)


@rule("CUDA_VISIBLE_DEVICES decides which cards a program may see; it is read once, at the first use of CUDA.")
def visible_devices(machine: Machine) -> Finding:
    """Fail where the variable hides every card; warn where it hides some by mistake, or was set too late."""
    value = machine.process.env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return ok("CUDA_VISIBLE_DEVICES is not set: all cards are seen")
    if not expects_gpu(machine):
        return ok(f"CUDA_VISIBLE_DEVICES={value!r}, and no card that it could hide")
    seen, asked = visible(machine.cards, machine.process.env), [part for part in value.split(",") if part.strip()]
    fix = fixes.unset(machine, "CUDA_VISIBLE_DEVICES")
    if value.startswith("MIG-"):
        return ok(f"CUDA_VISIBLE_DEVICES={value!r}: a part of a card")
    if _hides_all(machine):
        return fail(f"CUDA_VISIBLE_DEVICES={value!r} hides every card", fix)
    if machine.cards and len(seen) < len(asked):
        return warn(f"CUDA_VISIBLE_DEVICES={value!r}: only the first {len(seen)} of it is read", fix)
    if "CUDA_VISIBLE_DEVICES" in machine.process.changed and machine.process.cuda_in_use:
        return warn(
            f"CUDA_VISIBLE_DEVICES={value!r} was set inside this Python, perhaps too late",
            f"{fixes.RESTART_FIRST}.",
        )
    return ok(f"CUDA_VISIBLE_DEVICES={value!r}")


@rule("Under WSL2 the driver belongs on Windows; a Linux driver in the distribution stands in its way.")
def wsl_libcuda(machine: Machine) -> Finding:
    """Under WSL2 look for the driver's library, the device, and a Linux driver that shadows them."""
    wsl = machine.wsl
    if wsl is None:
        return ok("not WSL2: nothing to check")
    if machine.platform.container:
        return ok("in a container: the toolkit brings the driver's library to a place of its own")
    if wsl.shadowing:
        return fail(
            f"a Linux driver in the distribution: {', '.join(wsl.shadowing)}", fixes.purge_linux_driver(machine)
        )
    if wsl.libcuda and wsl.dxg:
        return ok("/usr/lib/wsl/lib/libcuda.so.1 and /dev/dxg are there")
    missing = "/dev/dxg" if wsl.libcuda else "/usr/lib/wsl/lib/libcuda.so.1"
    if wsl.nvidia or machine.has_gpu or wsl.libcuda:
        return fail(f"{missing} is missing", fixes.update_driver(machine))
    return ok("Windows offers no NVIDIA card: CPU course mode")


@rule("A wheel holds code for some generations of cards; sm_86 code runs on 8.9, so sm_89 is not needed.")
def arch_covered(machine: Machine) -> Finding:
    """Hold the card against the wheel's code: the same major and no higher minor, or PTX that is not newer."""
    if not machine.has_gpu or of_another_maker(machine):
        return NO_GPU
    gpu, codes = machine.gpu, machine.torch.codes
    if not gpu or not gpu.capability or not codes:
        return ok("not asked") if machine.quick else unknown("the card's capability or the wheel's code is not known")
    shown = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}, the wheel has {' '.join(codes)}"
    if any(_covers(code, gpu.capability) for code in codes):
        return ok(shown)
    return fail(shown, fixes.install_wheel(machine))


def _covers(code: str, capability: "tuple[int, int]") -> bool:
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if not found:
        return False
    major, minor = int(found[2]), int(found[3])
    if found[4]:  # written for this very chip
        return (major, minor) == capability
    return (major == capability[0] and minor <= capability[1]) if found[1] == "sm" else (major, minor) <= capability


@rule("A small matrix product that comes out right is better proof than any version number.")
def smoke_matmul(machine: Machine) -> Finding:
    """Judge the product that torch's child process made, on the card or else on the CPU."""
    torch = machine.torch
    if torch.state == "quick":
        return ok("not asked: a quick look does not import torch")
    if not torch.product:
        if torch.state in ("crashed", "hung") and torch.available:
            return fail(f"the product gave {torch.cause}", f"{fixes.RESTART_FIRST}; then see driver_floor.")
        return unknown("cannot be told before torch itself answers")
    shown = f"256 x 256, float32 and bf16 on {torch.product_device}: {torch.product}"
    if torch.product == "ok":
        return ok(shown)
    fix = f"{fixes.RESTART_FIRST}; if it stays: {fixes.install_wheel(machine)}"
    return fail(shown, fix)
