"""Checks of the chain from the driver to a matrix product."""

from __future__ import annotations

import re

from helpers.environment import fixes
from helpers.environment.facts import GpuReading, Machine, visible
from helpers.environment.nvml import driver_number
from helpers.environment.rules import NO_GPU, Finding, fail, ok, rule, unknown, warn
from helpers.environment.wheels import (
    BUNDLED_DRIVERS,
    FLOORS,
    container_lacks_card,
    cuda_of_driver,
    expects_gpu,
    is_for_other_vendor,
    release_of,
    too_old_cards,
    windows_driver,
)

_WINDOWS_LIBRARY = re.compile(r"WinError (126|127|1114)|c10\.dll|fbgemm\.dll", re.IGNORECASE)
_LOAD_DRIVER = "sudo modprobe nvidia ; on a laptop whose card is off: sudo prime-select on-demand, and reboot."
_LOADER_PATH = f"export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH ; then {fixes.RESTART_SHELL}."


@rule("A CPU wheel cannot see a GPU; on Windows the usual wheel is a CPU wheel.")
def torch_build(machine: Machine) -> Finding:
    """Fail for a missing or broken torch, or a CPU build on a machine with a card; CPU course mode is a warning."""
    torch = machine.torch
    broken = f"torch cannot be imported: {torch.cause}"
    if torch.state == "absent":
        return fail("torch is not installed", fixes.install_wheel(machine))
    if _WINDOWS_LIBRARY.search(torch.cause):  # they need the libraries of Visual C++
        return fail(broken, f"Install the libraries of Visual C++: {fixes.VISUAL_CPP} ; then {fixes.RESTART}.")
    if torch.state == "broken" or (torch.state == "crashed" and not torch.version):
        return fail(broken, fixes.install_wheel(machine))
    if torch.state == "hung" and not torch.version:
        fix = "Run the doctor again: a cold disk is slow the first time."
        return unknown(f"importing torch gave {torch.cause}", fix)
    if torch.available and not torch.cuda:
        return ok(f"torch {torch.version} sees a card of another maker: not tested")
    if torch.cuda and (expects_gpu(machine) or not machine.platform.other_graphics or container_lacks_card(machine)):
        return ok(f"torch {torch.version} with CUDA {torch.cuda}")
    kind = "a build for another maker's cards" if is_for_other_vendor(torch.version) else "a CPU build"
    if expects_gpu(machine):
        return fail(f"torch {torch.version} is {kind}, but there is an NVIDIA card", fixes.install_wheel(machine))
    kind = f"with CUDA {torch.cuda}, which serves NVIDIA cards only" if torch.cuda else kind
    return warn(f"torch {torch.version}, {kind}: CPU course mode", _advise_without_card(machine))


def _advise_without_card(machine: Machine) -> str:
    """Return what a machine without a usable NVIDIA card can do; owners of other cards are told about theirs."""
    others = machine.platform.other_graphics
    if not others:
        return "Nothing to do without an NVIDIA card."
    return f"The course runs on the CPU here; training on {' or '.join(others)} graphics is not tested."


@rule("The advice differs between Linux, Windows, WSL2 and a container.")
def platform_kind(machine: Machine) -> Finding:
    """Name the platform; warn about WSL1, which cannot use a GPU at all."""
    platform = machine.platform
    reading = f"{platform.kind}, {platform.architecture}"
    if platform.container:
        reading += f", in a container ({platform.container})"
    if platform.kind == "WSL1":
        return warn(f"{reading}: WSL1 cannot reach a GPU", "In PowerShell: wsl --set-version <your distribution> 2")
    if platform.kind == "Windows" and not (machine.storage and machine.storage.long_paths):
        reading += "; leave torch_compile off here (its files need long paths, which are off)"
    return ok(reading)


@rule("The wheel's CUDA must not be newer than what the driver supports; neither a toolkit nor nvcc is needed.")
def driver_floor(machine: Machine) -> Finding:
    """Compare the wheel's CUDA with the driver's: a newer major version fails, a newer minor one cannot compile PTX."""
    if not expects_gpu(machine) or _uses_other_vendor(machine):
        return NO_GPU
    driver, cuda = machine.nvml.driver, machine.nvml.cuda
    newest = cuda_of_driver(machine)
    if newest is None:
        return unknown(f"the driver's version cannot be read ({machine.nvml.cause or driver or 'no answer'})")
    release = f"{newest}.{cuda % 1000 // 10}" if cuda and cuda // 1000 == newest else newest
    reading = f"driver {driver} supports CUDA {release}"
    if newest < 12:
        return fail(f"{reading}: too old for any wheel of the course", fixes.update_driver(machine))
    wheel = release_of(machine.torch.cuda) if machine.torch else None
    if wheel is None:
        return ok(reading)
    column, needed = windows_driver(machine), machine.torch.cuda
    if wheel[0] > newest:
        floor = ".".join(map(str, FLOORS.get(wheel[0], FLOORS[13])[column]))
        reading = f"{reading}, the wheel is for CUDA {needed} (driver {floor} or newer)"
        return fail(reading, fixes.newer_driver_or_older_wheel(machine))
    bundled, number = BUNDLED_DRIVERS.get(wheel, (None, None))[column], driver_number(driver)
    if bundled and number and number < bundled:
        reading = f"{reading}, older than CUDA {needed} itself: everything runs except PTX code"
        return warn(reading, fixes.update_driver(machine))
    return ok(f"{reading}, the wheel needs CUDA {needed}")


def _uses_other_vendor(machine: Machine) -> bool:
    """Return whether torch trains on a card of another maker; AMD's wheels use the name `torch.cuda` too."""
    return bool(machine.torch and machine.torch.available and not machine.torch.cuda)


@rule("NVML is how programs ask the driver; it is what `nvidia-smi` uses.")
def nvml_alive(machine: Machine) -> Finding:
    """Judge how NVML answered in its child process; under WSL2 its crash says nothing about training."""
    nvml = machine.nvml
    if nvml.state == "ok":
        return _judge_cards(machine)
    if nvml.state == "absent":
        return _judge_missing_driver(machine)
    reading = f"NVML {nvml.state}: {nvml.cause}"
    if "DriverNotLoaded" in nvml.cause or "NoPermission" in nvml.cause:
        return _judge_unloaded_driver(machine, reading)
    if nvml.state == "nonsense":
        return unknown(reading, fixes.reboot(machine))
    if "NotSupported" in nvml.cause:
        return unknown(reading)
    if machine.platform.kind == "WSL2" and "Mismatch" not in nvml.cause:  # NVML often fails where CUDA itself works
        advice = "Training may still work: see cuda_available. If it does not: "
        return unknown(reading, advice + fixes.update_driver(machine))
    return fail(reading, fixes.reboot(machine))


def _judge_cards(machine: Machine) -> Finding:
    """Judge each card that NVML lists: one of four may be broken."""
    driver, cards = machine.nvml.driver, machine.nvml.cards
    broken = [card for card in cards if card.error or not card.total_bytes]
    old = too_old_cards(machine)
    if old:
        return warn(
            f"driver {driver}; {', '.join(map(_describe_card, old))}: PyTorch has no code for a card this old",
            "The course runs on the CPU here; no other driver and no other wheel of the course changes that.",
        )
    if not cards and machine.platform.nvidia_on_bus:
        return fail(
            f"driver {driver} answers and sees no card, but one is on the bus",
            "sudo dmesg | grep -i nvrm says why: this driver does not support the card, another driver (vfio, nouveau) "
            f"holds it, or the card was lost. Most often: {fixes.update_driver(machine)}",
        )
    if not cards:
        return warn(f"driver {driver} answers, but sees no card", _advise_without_card(machine))
    if broken:
        names = ", ".join(f"card {card.index}: {card.error or 'reports no memory'}" for card in broken)
        good = ",".join(card.uuid for card in machine.cards)  # not by number: CUDA counts in another order
        exclude_broken = fixes.set_variables(machine, CUDA_VISIBLE_DEVICES=good)
        return warn(names, f"{exclude_broken} To get the card back: {fixes.reboot(machine)}")
    return ok(f"driver {driver}, {len(cards)} card{'s' * (len(cards) > 1)}")


def _judge_missing_driver(machine: Machine) -> Finding:
    if machine.has_gpu and machine.torch.cuda:
        command = "docker run -e NVIDIA_DRIVER_CAPABILITIES=compute,utility --gpus all ..."
        fix = command if machine.platform.container else f"{fixes.python_command(machine)} -m pip install nvidia-ml-py"
        return warn("torch sees a card, but without NVML its memory and what uses it are not known", fix)
    if machine.wsl and expects_gpu(machine):
        return unknown("Windows offers a card, but NVML is not found", _LOADER_PATH)
    if not machine.platform.nvidia_on_bus:
        return ok("no NVIDIA driver and no NVIDIA card: CPU course mode")
    if container_lacks_card(machine):
        return warn("there is an NVIDIA card, but this container has no access to it", fixes.GIVE_CARD)
    return fail("an NVIDIA card without a driver", fixes.update_driver(machine))


def _describe_card(card: GpuReading) -> str:
    return f"{card.name} ({card.capability[0]}.{card.capability[1]})"


def _judge_unloaded_driver(machine: Machine, reading: str) -> Finding:
    if "NoPermission" in machine.nvml.cause:
        return fail(reading, "Let this user read /dev/nvidia*: sudo usermod -aG video $USER ; then log in again.")
    if container_lacks_card(machine):
        return warn(reading, fixes.GIVE_CARD)
    on_linux = machine.platform.kind == "Linux"
    if on_linux and not machine.platform.nvidia_on_bus:
        return warn(f"{reading}; and there is no NVIDIA card", _advise_without_card(machine))
    advice = f"{_LOAD_DRIVER} If neither helps: " if on_linux else ""
    return fail(reading, advice + fixes.update_driver(machine))


@rule("What torch sees is what training gets: the guide's `torch.cuda.is_available()`.")
def cuda_available(machine: Machine) -> Finding:
    """Check that torch sees the card; if card, driver and wheel are there and it does not, look for the reason."""
    torch = machine.torch
    if not expects_gpu(machine):
        return NO_GPU
    if torch.state in ("absent", "broken") or not torch.version or (torch.cuda is None and not torch.available):
        return unknown("unknown until torch_build is fixed")
    if torch.state == "quick":
        return ok("not asked: a quick look does not import torch")
    if torch.available is None:
        return fail(f"torch.cuda.is_available() gave {torch.cause}", fixes.reboot(machine))
    if torch.available:
        warned = f" (warned: {torch.warnings[0]})" if torch.warnings else ""
        return ok(f"torch sees {torch.name or 'a card'}{warned}")
    return _judge_unseen_card(machine)


def _judge_unseen_card(machine: Machine) -> Finding:
    message = " ".join(machine.torch.warnings)
    reading = "torch sees no card" + (f": {message[:160]}" if message else "")
    wheel, newest = release_of(machine.torch.cuda), cuda_of_driver(machine)
    if _hides_all(machine):
        return fail(f"{reading}; CUDA_VISIBLE_DEVICES hides it", fixes.unset(machine, "CUDA_VISIBLE_DEVICES"))
    if "too old" in message or (wheel and newest is not None and wheel[0] > newest):
        return fail(reading, fixes.newer_driver_or_older_wheel(machine))
    if wsl_libcuda.judge(machine).status == "fail":
        return fail(f"{reading}; see wsl_libcuda", wsl_libcuda.judge(machine).fix)
    if machine.wsl and machine.nvml.state == "absent":
        return fail(f"{reading}; the loader does not find the driver's library", _LOADER_PATH)
    if "forward compatibility" in message:  # error 804: a compatibility library, but no data-centre card
        return fail(reading, fixes.update_driver(machine) if machine.platform.container else fixes.reboot(machine))
    if "unknown error" in message:
        return fail(f"{reading} (as after the computer slept)", fixes.reload_uvm(machine))
    return fail(reading, f"{fixes.RESTART_FIRST}; if that does not help: {fixes.reboot(machine)}")


def _hides_all(machine: Machine) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every card, judged by its value alone if NVML read no cards."""
    value = machine.env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return False
    if machine.cards:
        return not visible(machine.cards, machine.env)
    return not re.match(r"\s*(\d|GPU-|MIG-)", value)


@rule("CUDA_VISIBLE_DEVICES decides which cards a program may see; it is read once, at the first use of CUDA.")
def visible_devices(machine: Machine) -> Finding:
    """Fail if the variable hides every card; warn if it hides some by mistake."""
    value = machine.env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return ok("CUDA_VISIBLE_DEVICES is not set: all cards are seen")
    reading = f"CUDA_VISIBLE_DEVICES={value!r}"
    if not expects_gpu(machine):
        return ok(f"{reading}, but there is no card to hide")
    seen, requested = visible(machine.cards, machine.env), [part for part in value.split(",") if part.strip()]
    fix = fixes.unset(machine, "CUDA_VISIBLE_DEVICES")
    if value.startswith("MIG-"):  # NVML lists whole cards, not their MIG parts
        return ok(f"{reading}: a part of a card")
    if _hides_all(machine):
        return fail(f"{reading} hides every card", fix)
    if machine.cards and len(seen) < len(requested):
        return warn(f"{reading}: CUDA uses only the first {len(seen)} of these {len(requested)}", fix)
    return ok(reading)


@rule("Under WSL2 the driver belongs on Windows; a Linux driver in the distribution hides it.")
def wsl_libcuda(machine: Machine) -> Finding:
    """Under WSL2, look for the driver's library, the device, and a Linux driver that shadows them."""
    wsl = machine.wsl
    if wsl is None:
        return ok("not WSL2: nothing to check")
    if machine.platform.container:
        return ok("in a container: NVIDIA's container toolkit mounts the driver's library")
    if wsl.shadowing:
        return fail(f"a Linux driver in the distribution: {', '.join(wsl.shadowing)}", fixes.PURGE_LINUX_DRIVER)
    if wsl.libcuda and wsl.dxg:
        return ok("/usr/lib/wsl/lib/libcuda.so.1 and /dev/dxg are there")
    missing = "/dev/dxg" if wsl.libcuda else "/usr/lib/wsl/lib/libcuda.so.1"
    if wsl.nvidia or machine.has_gpu or wsl.libcuda:
        return fail(f"{missing} is missing", fixes.update_driver(machine))
    return ok("Windows offers no NVIDIA card: CPU course mode")


@rule("A wheel contains code for some generations of cards; sm_86 code runs on 8.9, so sm_89 is not needed.")
def arch_covered(machine: Machine) -> Finding:
    """Compare the card with the wheel's code: it needs the same major and no higher minor, or PTX that is not newer."""
    if not machine.has_gpu or _uses_other_vendor(machine):
        return NO_GPU
    gpu, codes = machine.gpu, machine.torch.codes
    if not gpu or not gpu.capability or not codes:
        return ok("not asked") if machine.quick else unknown("the card's capability or the wheel's code is not known")
    reading = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}, the wheel has {' '.join(codes)}"
    if not _has_code(codes, gpu):
        return fail(reading, fixes.install_wheel(machine))
    seen = machine.visible_cards  # the Trainer spreads a batch over all of them
    covered = [card for card in seen if not card.capability or _has_code(codes, card)]
    if len(covered) < len(seen):
        names = ", ".join(_describe_card(card) for card in seen if card not in covered)
        use_covered = fixes.set_variables(machine, CUDA_VISIBLE_DEVICES=",".join(card.uuid for card in covered))
        return warn(f"the wheel has no code for {names}, which training would use too", use_covered)
    return ok(reading)


def _has_code(codes: tuple[str, ...], card: GpuReading) -> bool:
    return any(_covers(code, card.capability) for code in codes)


def _covers(code: str, capability: tuple[int, int]) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if not match:
        return False
    major, minor = int(match[2]), int(match[3])
    if match[4]:  # sm_90a runs only on exactly 9.0
        return (major, minor) == capability
    return (major == capability[0] and minor <= capability[1]) if match[1] == "sm" else (major, minor) <= capability


@rule("A small matrix product with the right result is better proof than any version number.")
def smoke_matmul(machine: Machine) -> Finding:
    """Judge the product that torch computed in its child process, on the card or else on the CPU."""
    torch = machine.torch
    if torch.state == "quick":
        return ok("not asked: a quick look does not import torch")
    if not torch.product:
        if torch.state in ("crashed", "hung") and torch.available:
            return fail(f"the product gave {torch.cause}", f"{fixes.RESTART_FIRST}; then see driver_floor.")
        return unknown("unknown until torch itself answers")
    reading = f"256 x 256, float32 and bf16 on {torch.product_device}: {torch.product}"
    if torch.product == "ok":
        return ok(reading)
    return fail(reading, f"{fixes.RESTART_FIRST}; if that does not help: {fixes.install_wheel(machine)}")
