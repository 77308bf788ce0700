"""The graphics cards and their driver, read through NVML in a child process with a time limit.

The child queries NVML through nvidia-ml-py, or runs `nvidia-smi` if that package is not installed. `read_nvml` turns
the answer into facts and drops implausible values.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from helpers.display import MIB
from helpers.environment.child import Answer, ask
from helpers.environment.facts import GpuReading, Holder, Nvml

LIMIT_SECONDS = 10.0
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"
_SLOWED_BY = {  # bits of NVML's clock event reasons that cost speed
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature",
    0x40: "its temperature (hardware)",
    0x80: "the power supply",
}
_PLAUSIBLE = {  # NVML under WSL2 has reported cards with 17 TB in use
    "cuda_cores": (1, 1_000_000),
    "max_clock_mhz": (100, 20_000),
    "utilisation_percent": (0, 100),
    "power_watts": (0, 5000),
    "power_limit_watts": (1, 5000),
    "temperature_celsius": (-20, 150),
}
_MAX_BYTES = 2**43
_SMI_FIELDS = "index,uuid,name,driver_version,memory.total,memory.free,compute_cap"


def read_nvml(timeout_seconds: float = LIMIT_SECONDS) -> Nvml:
    """Query NVML in a child process; never raises, whatever the driver does."""
    return facts_from(ask("from helpers.environment.nvml import probe; probe(report)", timeout_seconds=timeout_seconds))


def facts_from(answer: Answer) -> Nvml:
    """Turn a child's answer into facts."""
    value = answer.value
    cards = tuple(map(_card, value.get("cards") or ()))
    driver = str(value.get("driver") or "")[:40]
    known = {"driver": driver, "cuda": _number(value.get("cuda"), 5000, 100_000), "cards": cards}
    if answer.state != "ok":
        return Nvml(answer.state, answer.cause, **known)
    if value.get("absent"):
        return Nvml("absent", str(value["absent"]))
    if value.get("error"):
        return Nvml("error", f"{value['error']}: {value.get('message', '')}", **known)
    if cards and all(card.error for card in cards):
        return Nvml("error", cards[0].error, **known)
    if not driver_number(driver) or (cards and not any(card.total_bytes for card in cards if not card.error)):
        return Nvml("nonsense", f"driver {driver!r}", **known)
    return Nvml("ok", "", **known)


def driver_number(driver: str) -> tuple[int, ...]:
    """Return a driver's version as numbers, or an empty tuple if the text cannot be one.

    >>> driver_number("580.65.06"), driver_number("r999-preview"), driver_number("banana")
    ((580, 65, 6), (999,), ())
    """
    match = re.match(r"[rR]?(\d{3,4}(?:\.\d+)*)", driver)
    numbers = tuple(int(part) for part in match[1].split(".")) if match else ()
    return numbers if numbers and 100 <= numbers[0] < 3000 else ()


def _number(value: Any, low: float, high: float) -> Any:
    """Return a number if it is within the bounds, else None; NaN never is."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and low <= value <= high else None


def _card(card: Mapping[str, Any]) -> GpuReading:
    # less than 256 MiB or more than 8 TiB is implausible
    total = _number(card.get("total_bytes"), 256 * MIB, _MAX_BYTES)
    capability = [_number(part, 0, 99) for part in card.get("capability") or ()]
    reasons = _number(card.get("reasons"), 0, 2**16)
    holders = (
        Holder(holder["pid"], holder["name"] or "?", _number(holder["used_bytes"], 0, _MAX_BYTES))
        for holder in card.get("holders") or ()
    )
    return GpuReading(
        index=card["index"],
        name=card.get("name") or "",
        uuid=card.get("uuid") or "",
        total_bytes=total,
        free_bytes=_number(card.get("free_bytes"), 0, total or 0),
        capability=(capability[0], capability[1]) if len(capability) == 2 and None not in capability else None,
        slowed_by=None if reasons is None else tuple(text for bit, text in _SLOWED_BY.items() if reasons & bit),
        holders=tuple(holders),
        error=card.get("error", ""),
        **{name: _number(card.get(name), *bounds) for name, bounds in _PLAUSIBLE.items()},
    )


# Everything below runs in the child.


def probe(report: Callable[..., None]) -> None:
    """Report the driver, then the cards, then the processes, because listing processes has crashed under WSL2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old distribution `pynvml` warns about itself
            import pynvml
    except Exception:  # noqa: BLE001 (a broken installation is treated as none)
        _probe_smi(report)
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        name = type(error).__name__
        report(
            **({"absent": "no NVML library"} if "LibraryNotFound" in name else {"error": name, "message": str(error)})
        )
        return
    report(driver=_text(_try(pynvml.nvmlSystemGetDriverVersion)))
    report(cuda=_try(pynvml.nvmlSystemGetCudaDriverVersion_v2))
    cards = [_query_card(pynvml, index) for index in range(_number(_try(pynvml.nvmlDeviceGetCount), 0, 64) or 0)]
    report(cards=cards)
    for card in cards:
        if "error" not in card:
            card["holders"] = _try(_query_holders, pynvml, card["index"])
            report(cards=cards)


def _try(function: Callable[..., Any], *values: Any) -> Any:
    """Return what NVML answers, or None if it raises."""
    with contextlib.suppress(Exception):
        return function(*values)
    return None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _query_card(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:  # noqa: BLE001 (whatever one card raises, the others are still queried)
        return {"index": index, "error": f"{type(error).__name__}: {error}"}
    return {
        "index": index,
        "name": _text(_try(nvml.nvmlDeviceGetName, handle)),
        "uuid": _text(_try(nvml.nvmlDeviceGetUUID, handle)),
        "total_bytes": memory.total,
        "free_bytes": memory.free,
        "capability": _try(lambda: list(nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "cuda_cores": _try(lambda: nvml.nvmlDeviceGetNumGpuCores(handle)),
        "max_clock_mhz": _try(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "utilisation_percent": _try(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "power_watts": _try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "power_limit_watts": _try(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "temperature_celsius": _try(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "reasons": _try(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    }


def _query_holders(nvml: Any, index: int) -> list[dict[str, Any]]:
    """Return the processes that compute or draw; one that does both appears once."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    holders: dict[int, dict[str, Any]] = {}
    for function in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _try(function, handle) or []:
            name = _text(_try(nvml.nvmlSystemGetProcessName, process.pid))
            used = process.usedGpuMemory or holders.get(process.pid, {}).get("used_bytes")
            holders[process.pid] = {"pid": process.pid, "name": name, "used_bytes": used}
    return list(holders.values())


def _probe_smi(report: Callable[..., None]) -> None:
    """Report what `nvidia-smi` knows: it comes with every driver, while nvidia-ml-py has to be installed."""
    program = shutil.which("nvidia-smi") or shutil.which(WSL_SMI)
    if program is None:
        report(absent="no nvidia-smi")
        return
    try:
        done = _query_smi(program, _SMI_FIELDS)
        if "not a valid field" in done.stdout + done.stderr:  # drivers before 510 lack the last field
            done = _query_smi(program, _SMI_FIELDS.rpartition(",")[0])
    except OSError as error:
        report(absent=f"nvidia-smi cannot be run ({error})")
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) >= _SMI_FIELDS.count(",") and row[0].isdigit()]
    if done.returncode != 0 and not rows:
        message = (done.stdout + done.stderr).strip()
        cause = "LibRmVersionMismatch" if "version mismatch" in message else "DriverNotLoaded"
        report(error=f"NVMLError_{cause}", message=message[:200])
        return
    report(driver=rows[0][3] if rows else "", cards=[_smi_card(row) for row in rows])


def _query_smi(program: str, fields: str) -> subprocess.CompletedProcess[str]:
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603


def _smi_card(row: list[str]) -> dict[str, Any]:
    index, uuid, name, _, total, free, *capability = row
    if not total.isdigit():
        return {"index": int(index), "name": name, "error": f"NotSupported: nvidia-smi says {total!r}"}
    return {
        "index": int(index),
        "uuid": uuid,
        "name": name,
        "total_bytes": int(total) * MIB,
        "free_bytes": int(free) * MIB if free.isdigit() else None,
        "capability": [int(part) for part in "".join(capability).split(".") if part.isdigit()],
    }
