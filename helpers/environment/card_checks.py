"""Checks of the graphics card: memory, other processes, throttling, precision."""

from helpers.display import GIB, last_part, size_text
from helpers.environment import fixes
from helpers.environment.card import preset_for
from helpers.environment.facts import GpuReading, Holder, Machine
from helpers.environment.nvml import driver_number
from helpers.environment.rules import NO_GPU, Finding, fail, ok, rule, unknown, warn

_SPILLS_SINCE, _SWITCH_SINCE = (536, 40), (546, 1)  # Windows drivers that spill memory; that can switch it off
_MAX_DESKTOP_BYTES = 2 * GIB  # memory that may be in use without a compute program


@rule("Memory, not the name, decides what a card can train: two cards called 4070 may have 8 or 12 GB.")
def gpu_identity(machine: Machine) -> Finding:
    """Name the card and the preset that fits its memory; warn if GPT-2 does not fit."""
    gpu = machine.gpu
    if gpu is None:
        return NO_GPU
    if gpu.total_bytes is None:
        return unknown(f"{gpu.name}: its memory cannot be read")
    preset = preset_for(gpu.total_bytes)
    reading = f"{gpu.name}, {size_text(gpu.total_bytes)}"
    if preset == "pocket":
        return warn(f"{reading}: too small for GPT-2", "Use the default preset: --preset pocket (the tiny model).")
    return ok(f"{reading}: preset {preset}")


@rule("Free memory counts, not the total: a browser or a second monitor takes part of it.")
def vram_free(machine: Machine) -> Finding:
    """Judge the memory that was free before the doctor itself used the card; a small card needs less."""
    gpu = machine.gpu
    if gpu is None:
        return NO_GPU
    if gpu.free_bytes is None or gpu.total_bytes is None:
        return unknown("the free memory cannot be read")
    is_small = preset_for(gpu.total_bytes) == "pocket"
    low, lowest = (2 * GIB, GIB) if is_small else (6 * GIB, 3 * GIB)
    reading = f"{gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB free"
    fix = _advise_closing(machine, gpu)
    if gpu.free_bytes < lowest:
        return fail(reading, fix)
    return warn(reading, fix) if gpu.free_bytes < low else ok(reading)


def _advise_closing(machine: Machine, gpu: GpuReading) -> str:
    names = ", ".join(map(_describe_holder, _other_holders(machine, gpu)))
    if names:
        return f"Close {names}."
    return (
        "Close browsers and games, shut down other notebooks' kernels, or put the monitor on the other graphics port."
    )


def _other_holders(machine: Machine, gpu: GpuReading) -> list[Holder]:
    return [holder for holder in gpu.holders if holder.pid != machine.pid]


def _describe_holder(holder: Holder) -> str:
    size = "" if holder.used_bytes is None else f", {size_text(holder.used_bytes)}"
    return f"{last_part(holder.name)} (process {holder.pid}{size})"


@rule("A forgotten kernel keeps its memory until it is shut down.")
def other_processes(machine: Machine) -> Finding:
    """Warn about other Python processes that use the card's memory; Windows does not report how much."""
    gpu = machine.gpu
    if gpu is None:
        return NO_GPU
    others = _other_holders(machine, gpu)  # without this process itself
    pythons = [holder for holder in others if "python" in holder.name.lower() or "jupyter" in holder.name.lower()]
    if pythons:
        advice = "Shut that kernel down in JupyterLab's Running tab, or: "
        pids = [str(holder.pid) for holder in pythons]
        stop = f"Stop-Process -Id {','.join(pids)}" if machine.platform.kind == "Windows" else f"kill {' '.join(pids)}"
        return warn(", ".join(map(_describe_holder, pythons)), advice + stop)
    # processes are queried last, so a child that hung or crashed may have reported cards without them
    if not machine.cards or machine.nvml.state in ("hung", "crashed"):
        return unknown("NVML does not say which processes use its memory")
    used_bytes = (gpu.total_bytes or 0) - (gpu.free_bytes or 0)
    if not gpu.holders and gpu.free_bytes is not None and used_bytes > _MAX_DESKTOP_BYTES:
        reading = f"{size_text(used_bytes)} are in use, and the driver does not say by which processes"
        return unknown(reading, _advise_closing(machine, gpu))
    return ok(", ".join(map(_describe_holder, others)) or "no other process uses its memory")


@rule("When the card is full, newer Windows drivers move data to main memory: no error, but every step crawls.")
def sysmem_fallback(machine: Machine) -> Finding:
    """On Windows with driver 536.40 or newer, always warn: no program can read the switch."""
    if machine.platform.kind != "Windows" or not machine.has_gpu:
        return ok("only on Windows with an NVIDIA card: nothing to check")
    number = driver_number(machine.nvml.driver)
    if number and number < _SPILLS_SINCE:
        return ok(f"driver {machine.nvml.driver} does not do it")
    steps = (
        "NVIDIA Control Panel, Manage 3D settings, Program Settings, add "
        f"{machine.python.executable}, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback; then {fixes.RESTART}."
    )
    if not number:
        return unknown("the driver's version cannot be read; from 536.40 on memory may spill", steps)
    if number < _SWITCH_SINCE:
        steps = f"{fixes.update_driver(machine)} Then: {steps}"
    return warn("memory may spill; whether it is switched off cannot be read", steps)


@rule("A card or processor that saves power, or is too hot, is slower than its data sheet says.")
def throttle_power(machine: Machine) -> Finding:
    """Warn about a battery in use, heat and power limits."""
    gpu = machine.gpu
    if machine.on_battery:
        return warn("runs on battery", "Plug in the power supply, and choose the performance mode.")
    if gpu is None:
        return ok("no battery in use")
    if gpu.slowed_by is None:
        return unknown("the driver does not say what slows the card")
    if gpu.slowed_by:
        return warn(f"slowed by {', '.join(gpu.slowed_by)}", fixes.RELIEVE_CARD)
    return ok("nothing slows the card")


@rule("bf16 has the range of float32 in half the bytes; fp16 can overflow, and needs loss scaling.")
def precision_choice(machine: Machine) -> Finding:
    """Report what `mixed_precision: auto` means here; warn if accelerate's variables override it for the worse."""
    torch, gpu = machine.torch, machine.gpu
    # compute capability 8.0 (Ampere) is the first with bf16; without a card, use what torch reports for the CPU
    bf16 = gpu.capability >= (8, 0) if gpu and gpu.capability else torch.bf16
    best = "bf16" if bf16 else "fp16" if gpu else "float32"
    if gpu and machine.env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return warn(
            "accelerate is set to use the CPU, although there is a card", fixes.unset(machine, "ACCELERATE_USE_CPU")
        )
    if bf16 is None and not gpu:
        return ok("mixed_precision: auto")
    name = "ACCELERATE_MIXED_PRECISION"
    if (chosen := machine.env.get(name, "").lower()) in ("bf16", "fp16") and chosen != best:
        return warn(f"accelerate is set to use {chosen}, but {best} is better here", fixes.unset(machine, name))
    return ok(f"mixed_precision: auto takes {best}")
