"""The cards and their driver, asked of NVML in a child process with a time limit.

`probe` and what it calls run in the child. NVML is asked through nvidia-ml-py; where that is not installed,
`nvidia-smi` is asked the same. `read_nvml` turns the answer into facts and lets nothing through that cannot be.
"""

import contextlib
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.environment.child import Answer, ask
from helpers.environment.facts import GpuReading, Holder, Nvml

LIMIT_SECONDS = 10.0
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"
_MIB = 1024**2
_SLOWED_BY = {  # bits of NVML's clock event reasons that cost speed
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature",
    0x40: "its temperature (hardware)",
    0x80: "the power supply",
}
_SMI_FIELDS = "index,uuid,name,driver_version,memory.total,memory.free,compute_cap"


def read_nvml(timeout_seconds: float = LIMIT_SECONDS) -> Nvml:
    """Ask NVML in a child process; never raises for what the driver does."""
    return facts_from(ask("helpers.environment.nvml:probe", timeout_seconds=timeout_seconds))


def facts_from(answer: Answer) -> Nvml:
    """Turn a child's answer into facts."""
    told = answer.value
    cards = tuple(_card(card) for card in _list(told.get("cards")) if isinstance(card, Mapping))
    driver, cuda = told.get("driver"), told.get("cuda")
    known = {
        "driver": driver[:40] if isinstance(driver, str) else "",
        "cuda": cuda if isinstance(cuda, int) and 5000 <= cuda < 100_000 else None,
        "cards": cards,
    }
    if answer.state != "ok":
        return Nvml(answer.state, answer.cause, **known)
    if told.get("absent"):
        return Nvml("absent", str(told["absent"]))
    if told.get("error"):
        return Nvml("error", f"{told['error']}: {told.get('message', '')}", **known)
    if not driver_number(known["driver"]) or (cards and not any(card.total_bytes for card in cards if not card.error)):
        state = "error" if cards and all(card.error for card in cards) else "nonsense"
        return Nvml(state, cards[0].error if state == "error" else f"driver {driver!r}", **known)
    return Nvml("ok", "", **known)


def driver_number(driver: str) -> "tuple[int, ...]":
    """Return a driver's version as numbers, or an empty tuple for one that cannot be a version.

    >>> driver_number("580.65.06"), driver_number("r999-preview"), driver_number("banana")
    ((580, 65, 6), (999,), ())
    """
    found = re.match(r"[rR]?(\d{3,4}(?:\.\d+)*)", driver)
    numbers = tuple(int(part) for part in found[1].split(".")) if found else ()
    return numbers if numbers and 100 <= numbers[0] < 3000 else ()


def _list(value: Any) -> "list[Any]":
    return value if isinstance(value, list) else []


def _number(value: Any, low: float, high: float) -> Any:
    """Return a number within its bounds, else None; NVML under WSL2 has told of cards with 17 TB in use."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and low <= value <= high else None  # a NaN is within no bounds


def _card(told: "Mapping[str, Any]") -> GpuReading:
    total = _number(told.get("total"), 256 * _MIB, 2**43)
    capability = told.get("capability")
    is_pair = (
        isinstance(capability, list) and len(capability) == 2 and all(_number(n, 0, 99) is not None for n in capability)
    )
    reasons = _number(told.get("reasons"), 0, 2**16)
    return GpuReading(
        index=_number(told.get("index"), 0, 1000) or 0,
        name=str(told.get("name") or ""),
        uuid=str(told.get("uuid") or ""),
        total_bytes=total,
        free_bytes=_number(told.get("free"), 0, total or 0),
        capability=(capability[0], capability[1]) if is_pair else None,
        cuda_cores=_number(told.get("cuda_cores"), 1, 1_000_000),
        max_clock_mhz=_number(told.get("max_clock_mhz"), 100, 20_000),
        utilisation_percent=_number(told.get("utilisation"), 0, 100),
        power_watts=_number(told.get("power"), 0, 5000),
        power_limit_watts=_number(told.get("power_limit"), 1, 5000),
        temperature_celsius=_number(told.get("temperature"), -20, 150),
        slowed_by=None if reasons is None else tuple(text for bit, text in _SLOWED_BY.items() if reasons & bit),
        holders=tuple(_holder(holder) for holder in _list(told.get("holders")) if isinstance(holder, Mapping)),
        error=str(told.get("error") or ""),
    )


def _holder(told: "Mapping[str, Any]") -> Holder:
    used = _number(told.get("used"), 0, 2**43)
    return Holder(_number(told.get("pid"), 0, 2**32) or 0, str(told.get("name") or "?"), used)


# What follows runs in the child.


def probe(tell: "Callable[..., None]") -> None:
    """Tell the driver, each card, and last the processes: those are what has crashed under WSL2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old distribution `pynvml` warns of itself
            import pynvml
    except Exception:  # noqa: BLE001 (a broken one is as good as none)
        _probe_smi(tell)
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        name = type(error).__name__
        tell(**({"absent": "no NVML library"} if "LibraryNotFound" in name else {"error": name, "message": str(error)}))
        return
    tell(driver=_text(_try(pynvml.nvmlSystemGetDriverVersion)))
    tell(cuda=_try(pynvml.nvmlSystemGetCudaDriverVersion_v2))
    cards = [_ask_card(pynvml, index) for index in range(_number(_try(pynvml.nvmlDeviceGetCount), 0, 64) or 0)]
    tell(cards=cards)
    for card in cards:
        if "error" not in card:
            card["holders"] = _try(_ask_holders, pynvml, card["index"])
            tell(cards=cards)


def _try(function: "Callable[..., Any]", *values: Any) -> Any:
    """Return what NVML answers, or None where it does not."""
    with contextlib.suppress(Exception):
        return function(*values)
    return None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _ask_card(nvml: Any, index: int) -> "dict[str, Any]":
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:  # noqa: BLE001 (whatever one card raises, the others are asked)
        return {"index": index, "error": f"{type(error).__name__}: {error}"}
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = reasons or getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None)
    return {
        "index": index,
        "name": _text(_try(nvml.nvmlDeviceGetName, handle)),
        "uuid": _text(_try(nvml.nvmlDeviceGetUUID, handle)),
        "total": memory.total,
        "free": memory.free,
        "capability": _try(lambda: list(nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "cuda_cores": _try(lambda: nvml.nvmlDeviceGetNumGpuCores(handle)),
        "max_clock_mhz": _try(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "utilisation": _try(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "power": _try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "power_limit": _try(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "temperature": _try(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "reasons": _try(reasons, handle) if reasons else None,
    }


def _ask_holders(nvml: Any, index: int) -> "list[dict[str, Any]]":
    """Return the processes that compute or draw; one that does both is named once."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    found: dict[int, dict[str, Any]] = {}
    for function in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _try(function, handle) or []:
            name = _text(_try(nvml.nvmlSystemGetProcessName, process.pid)) or _name_of(process.pid)
            used = process.usedGpuMemory or found.get(process.pid, {}).get("used")
            found[process.pid] = {"pid": process.pid, "name": name, "used": used}
    return list(found.values())


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _probe_smi(tell: "Callable[..., None]") -> None:
    """Tell what `nvidia-smi` knows: it comes with every driver, nvidia-ml-py does not."""
    program = shutil.which("nvidia-smi") or shutil.which(WSL_SMI)
    if program is None:
        tell(absent="no nvidia-smi")
        return
    asked = [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
    except OSError as error:
        tell(absent=f"nvidia-smi cannot be run ({error})")
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == len(_SMI_FIELDS.split(",")) and row[0].isdigit()]
    if done.returncode != 0 and not rows:
        said = (done.stdout + done.stderr).strip()
        mismatch = "version mismatch" in said
        tell(error="NVMLError_LibRmVersionMismatch" if mismatch else "NVMLError_DriverNotLoaded", message=said[:200])
        return
    tell(driver=rows[0][3] if rows else "", cards=[_smi_card(row) for row in rows])


def _smi_card(row: "list[str]") -> "dict[str, Any]":
    index, uuid, name, _, total, free, capability = row
    if not total.isdigit():
        return {"index": int(index), "name": name, "error": f"nvidia-smi says {total!r}"}
    pair = [int(part) for part in capability.split(".") if part.isdigit()]
    sizes = {"total": int(total) * _MIB, "free": int(free) * _MIB if free.isdigit() else None}
    return {"index": int(index), "uuid": uuid, "name": name, "capability": pair or None, **sizes}
