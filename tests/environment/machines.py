"""Simulated machines, each with the diagnosis that a support engineer would give.

A row reads as a ticket: what the machine is, how it differs from a healthy one, and then the answer: exit code, mode,
every check that is not 'ok', the wheel, the preset, and the fix of the worst check (a pattern for the whole line).
The answers were worked out from the reference of failures, not taken from the doctor.
"""

from dataclasses import dataclass, replace

from helpers.display import GIB
from helpers.environment.facts import Holder, Machine, ModelFiles, Platform, Torch, Unread, Wsl
from tests.environment.baselines import (
    CARD,
    CODES,
    CONDA,
    CONTAINER,
    CPU_WHEEL,
    GPT2,
    LAPTOP,
    LINUX,
    NO_TORCH,
    PACKAGES,
    POCKET,
    WINDOWS,
    WSL2,
    blind,
    disk,
    mib,
    on,
    packages,
    place,
    ram,
    seeing,
    silent,
)

FAIL, WARN, UNKNOWN = "fail", "warn", "unknown"


@dataclass(frozen=True)
class Row:
    """A machine and the diagnosis expected of the doctor; `fix` and `also` are patterns of complete lines."""

    name: str
    machine: Machine
    exit_code: int
    mode: str
    wheel: str
    bad: "dict[str, str]"
    fix: str
    also: "dict[str, str]"
    preset: "str | None"
    precision: "str | None"


TABLE: list[Row] = []


def ticket(
    name: str,
    machine: Machine,
    exit_code: int,
    mode: str,
    wheel: str,
    bad: "dict[str, str]",
    fix: str = "",
    *,
    also: "dict[str, str] | None" = None,
    preset: "str | None" = "rtx-4070-ti",
    precision: "str | None" = "bf16",
) -> None:
    """Add a row; a machine in mode 'cpu' has no card to name."""
    if mode == "cpu":
        preset = precision = None
    TABLE.append(Row(name, machine, exit_code, mode, wheel, bad, fix, also or {}, preset, precision))


# fmt: off

# ---- the text of fixes, as patterns

RESTART = r"then restart the kernel \(or Python\)\."
RESTART_SHELL = r"then start JupyterLab \(or Python\) again from the same shell\."
PIP = r"/course/\.venv/bin/python -m pip install"
WINDOWS_PIP = r"C:\\course\\\.venv\\Scripts\\python\.exe -m pip install"

PROJECT = rf"/course/\.venv/bin/python -m helpers install --here ; {RESTART}"
WINDOWS_PROJECT = rf"C:\\course\\\.venv\\Scripts\\python\.exe -m helpers install --here ; {RESTART}"


def wheel_line(tag: str, pip: str = PIP, *, new: bool = False, version: str = r"2\.13\.0") -> str:
    """Return the pattern of a wheel's line; an installed torch is removed first, or pip would keep it."""
    remove = "" if new else pip.removesuffix(" install") + r" uninstall -y torch torchvision torchaudio ; "
    return remove + pip + rf" torch=={version}\+{tag} --index-url https://download\.pytorch\.org/whl/{tag} ; {RESTART}"


ON_LINUX = (
    r"Install the newest driver for this card that your distribution offers "
    r"\(on Ubuntu: sudo ubuntu-drivers install\), or the one from https://www\.nvidia\.com/drivers, and reboot\."
)
ON_WINDOWS = r"Install the newest driver for this card from https://www\.nvidia\.com/drivers and restart Windows\."
FROM_WSL = r"On Windows install the newest driver for this card .*, then `wsl --update` and `wsl --shutdown`\."
STILL_WORKS = r"Training may still work: see cuda_available\. If it does not: " + FROM_WSL
WSL_SHUTDOWN = r"In PowerShell: wsl --shutdown ; then open WSL again\."
ASK_AGAIN = r" Then ask for the wheel: /course/\.venv/bin/python -m helpers\.environment --wheel"
CONTROL_PANEL = r"NVIDIA Control Panel, .*python\.exe, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback; .*"
NOTHING = r"Nothing to do without an NVIDIA card\."
UNSEEN = {"cuda_available": FAIL, "arch_covered": UNKNOWN}  # torch does not list its code for a card it does not see
NO_NVML = {  # NVML failed, and torch works
    "driver_floor": UNKNOWN,
    "nvml_alive": UNKNOWN,
    "vram_free": UNKNOWN,
    "other_processes": UNKNOWN,
    "throttle_power": UNKNOWN,
}
SPILLS = {"sysmem_fallback": WARN}  # on Windows the switch can never be read

# ---- healthy, and the platforms

ticket("a healthy 4070 Ti on Linux", LINUX, 0, "gpu", "cu130", {})
ticket("a healthy 4070 Ti on Windows: the spill into main memory always gets a warning", WINDOWS,
       0, "gpu", "cu130", SPILLS, CONTROL_PANEL)
ticket("a healthy 4070 Ti under WSL2", WSL2, 0, "gpu", "cu130", {})
ticket("a healthy 4070 Ti in a conda environment", CONDA, 0, "gpu", "cu130", {})
ticket("a docker container that was given the card", CONTAINER, 0, "gpu", "cu130", {})
ticket("a Linux laptop without a card", LAPTOP, 0, "cpu", "cpu", {"torch_build": WARN}, NOTHING)
ticket("a Windows laptop without a card", on(WINDOWS, torch=CPU_WHEEL, nvml=silent("absent", "no nvidia-smi")),
       0, "cpu", "cpu", {"torch_build": WARN}, NOTHING)
ticket("a Mac", on(LAPTOP, platform=Platform("macOS", "25", "arm64"), torch=replace(CPU_WHEEL, version="2.13.0")),
       0, "cpu", "", {"torch_build": WARN}, NOTHING)
ticket("WSL1 cannot reach any card", on(LAPTOP, platform={"kind": "WSL1"}),
       0, "cpu", "cpu", {"torch_build": WARN, "platform_kind": WARN}, NOTHING,
       also={"platform_kind": r"In PowerShell: wsl --set-version <your distribution> 2"})
ticket("WSL2 on a Windows without an NVIDIA card",
       on(LAPTOP, platform={"kind": "WSL2"}, wsl=Wsl(dxg=True, libcuda=False, nvidia=False)),
       0, "cpu", "cpu", {"torch_build": WARN}, NOTHING)
NOT_GIVEN = on(CONTAINER, torch=blind(), nvml=silent("absent", "no NVML library"))
ticket("docker run without --gpus", NOT_GIVEN, 0, "cpu", "cpu", {"nvml_alive": WARN}, r"docker run --gpus all .*")
ticket("a container with the driver's library baked in, and no card",
       on(NOT_GIVEN, nvml=silent("error", "NVMLError_DriverNotLoaded: Driver Not Loaded")),
       0, "cpu", "cpu", {"nvml_alive": WARN}, r"docker run --gpus all .*")
ticket("a container with CUDA but without NVML", on(CONTAINER, nvml=silent("absent", "no NVML library")),
       0, "gpu", "cu130", NO_NVML | {"nvml_alive": WARN},
       also={"nvml_alive": r"docker run -e NVIDIA_DRIVER_CAPABILITIES=compute,utility --gpus all \.\.\."})
ticket("Docker Desktop: the library is elsewhere than in the WSL2 distribution",
       on(WSL2, platform={"container": "/.dockerenv"},
          wsl=Wsl(True, False, False, ("/usr/lib/x86_64-linux-gnu/libcuda.so.1",))),
       0, "gpu", "cu130", {})
ticket("an AMD card with its own wheel",
       on(LAPTOP, torch=seeing(version="2.13.0+rocm7.1", cuda=None, codes=("gfx1100",), capability=(11, 0),
                                name="RX 7900 XTX")),
       0, "gpu", "rocm7.1", {"vram_free": UNKNOWN, "other_processes": UNKNOWN, "throttle_power": UNKNOWN})
ticket("a quick check of a healthy 4070 Ti",
       on(LINUX, torch=Torch("quick", version="2.13.0+cu130", cuda="13.0"), quick=True), 0, "gpu", "cu130", {})

# ---- drivers


def with_driver(base: Machine, number: str, cuda: "int | None", torch: Torch) -> Machine:
    return on(base, nvml={"driver": number, "cuda": cuda}, torch=torch)


def too_old(cuda: int) -> str:
    return f"CUDA initialization: The NVIDIA driver on your system is too old (found version {cuda})."


TOO_OLD = {"driver_floor": FAIL} | UNSEEN
ticket("driver 450", with_driver(LINUX, "450.80.02", 11000, blind("cu126", too_old(11000))),
       1, "gpu", "cpu", TOO_OLD, ON_LINUX)
ticket("driver 470 and a CPU wheel: first the driver, then a wheel",
       with_driver(LINUX, "470.256.02", 11040, CPU_WHEEL),
       1, "gpu", "cpu", {"torch_build": FAIL, "driver_floor": FAIL, "cuda_available": UNKNOWN, "arch_covered": UNKNOWN},
       ON_LINUX + ASK_AGAIN)
ticket("driver 524, read by nvidia-smi alone", with_driver(LINUX, "524.00", None, blind("cu126", too_old(11080))),
       1, "gpu", "cpu", TOO_OLD, ON_LINUX)
ticket("driver 525.60.13 is the first for CUDA 12", with_driver(LINUX, "525.60.13", None, seeing("cu126")),
       0, "gpu", "cu126", {"driver_floor": WARN}, ON_LINUX)
ticket("driver 528.33 is the first for CUDA 12 on Windows, and does not spill yet",
       with_driver(WINDOWS, "528.33", None, seeing("cu126")), 0, "gpu", "cu126", {"driver_floor": WARN}, ON_WINDOWS)
ticket("driver 528.32 is one too old on Windows", with_driver(WINDOWS, "528.32", None, blind("cu126")),
       1, "gpu", "cpu", TOO_OLD, ON_WINDOWS)
ticket("driver 528.32 is one too old under WSL2 too", with_driver(WSL2, "528.32", None, blind("cu126")),
       1, "gpu", "cpu", TOO_OLD, FROM_WSL)
ticket("driver 528.32 is new enough on Linux", with_driver(LINUX, "528.32", None, seeing("cu126")),
       0, "gpu", "cu126", {"driver_floor": WARN}, ON_LINUX)
ticket("driver 535 and a CUDA 13 wheel (E2)", with_driver(LINUX, "535.183.01", 12020, blind("cu130", too_old(12020))),
       1, "gpu", "cu126", TOO_OLD, rf"{ON_LINUX} Or keep the driver: {wheel_line('cu126')}")
ticket("driver 535 and a CUDA 13 wheel under WSL2", with_driver(WSL2, "537.13", 12020, blind("cu130", too_old(12020))),
       1, "gpu", "cu126", TOO_OLD, rf"{FROM_WSL} Or keep the driver: {wheel_line('cu126')}")
ticket("driver 535 and a CUDA 13 wheel on Windows: it spills, and there is no switch",
       with_driver(WINDOWS, "537.13", 12020, blind("cu130", too_old(12020))),
       1, "gpu", "cu126", TOO_OLD | SPILLS, rf"{ON_WINDOWS} Or keep the driver: {wheel_line('cu126', WINDOWS_PIP)}",
       also={"sysmem_fallback": rf"{ON_WINDOWS} Then: {CONTROL_PANEL}"})
ticket("driver 535 and a CUDA 13 wheel in a container", with_driver(CONTAINER, "535.183.01", 12020, blind("cu130")),
       1, "gpu", "cu126", TOO_OLD,
       r"Update the driver of the machine that runs this container .* Or keep the driver: /usr/bin/python3 .*/cu126 .*")
ticket("driver 536.39 on Windows is the last that does not spill",
       with_driver(WINDOWS, "536.39", 12020, seeing("cu126")), 0, "gpu", "cu126", {"driver_floor": WARN}, ON_WINDOWS)
ticket("driver 536.40 on Windows is the first that spills", with_driver(WINDOWS, "536.40", 12020, seeing("cu126")),
       0, "gpu", "cu126", {"driver_floor": WARN} | SPILLS, ON_WINDOWS,
       also={"sysmem_fallback": rf"{ON_WINDOWS} Then: {CONTROL_PANEL}"})
ticket("driver 546.00 on Windows spills, and has no switch yet", with_driver(WINDOWS, "546.00", 12030, seeing("cu126")),
       0, "gpu", "cu126", {"driver_floor": WARN} | SPILLS, ON_WINDOWS,
       also={"sysmem_fallback": rf"{ON_WINDOWS} Then: {CONTROL_PANEL}"})
ticket("driver 546.01 on Windows is the first with a switch", with_driver(WINDOWS, "546.01", 12030, seeing("cu126")),
       0, "gpu", "cu126", {"driver_floor": WARN} | SPILLS, ON_WINDOWS, also={"sysmem_fallback": CONTROL_PANEL})
ticket("driver 550 runs CUDA 12.8 except PTX", with_driver(LINUX, "550.127.05", 12040, seeing("cu128")),
       0, "gpu", "cu128", {"driver_floor": WARN}, ON_LINUX)
ticket("driver 560 and CUDA 12.6, with an nvcc 11.5 that does not matter (E3)",
       on(with_driver(LINUX, "560.35.03", 12060, seeing("cu126")), platform={"nvcc": "11.5"}), 0, "gpu", "cu126", {})
ticket("driver 570 and CUDA 12.8", with_driver(LINUX, "570.124.06", 12080, seeing("cu128")), 0, "gpu", "cu128", {})
ticket("driver 579 is one too old for CUDA 13", with_driver(LINUX, "579.99", None, blind("cu130")),
       1, "gpu", "cu126", TOO_OLD, rf"{ON_LINUX} Or keep the driver: {wheel_line('cu126')}")
ticket("driver 580.40 is older than CUDA 13.0 itself", with_driver(LINUX, "580.40", 13000, seeing()),
       0, "gpu", "cu130", {"driver_floor": WARN}, ON_LINUX)
ticket("driver 580 and CUDA 13.2", with_driver(LINUX, "580.65.06", 13000, seeing("cu132")),
       0, "gpu", "cu132", {"driver_floor": WARN}, ON_LINUX)
ticket("driver 580.88 on Windows and CUDA 13.2: no minimum within 13 is known",
       with_driver(WINDOWS, "580.88", 13000, seeing("cu132")), 0, "gpu", "cu132", SPILLS, CONTROL_PANEL)
ticket("driver 595 and CUDA 13.2", with_driver(LINUX, "595.45.04", 13020, seeing("cu132")), 0, "gpu", "cu132", {})
ticket("driver 999.1, from the future", with_driver(LINUX, "999.1", 20000, seeing()), 0, "gpu", "cu130", {})
BANANA = silent("nonsense", "driver 'banana'", driver="banana", cards=(CARD,))
ticket("driver 'banana': training works, so nothing fails", on(LINUX, nvml=BANANA),
       0, "gpu", "cu130", {"driver_floor": UNKNOWN, "nvml_alive": UNKNOWN}, also={"nvml_alive": r"sudo reboot"})
ticket("driver 'banana' on Windows: whether it spills is not known", on(WINDOWS, nvml=BANANA),
       0, "gpu", "cu130", {"driver_floor": UNKNOWN, "nvml_alive": UNKNOWN, "sysmem_fallback": UNKNOWN},
       also={"nvml_alive": r"Restart Windows\.", "sysmem_fallback": CONTROL_PANEL})

# ---- NVML

NO_DRIVER = {"driver_floor": UNKNOWN, "nvml_alive": FAIL, "cuda_available": FAIL}
DRIVERLESS = on(LINUX, torch=blind(), nvml=silent("absent", "no NVML library"))
ticket("a card without a driver", DRIVERLESS, 1, "cpu", "cu126", NO_DRIVER, ON_LINUX)
LOAD_DRIVER = r"sudo modprobe nvidia ; .*: sudo prime-select on-demand, and reboot\. If neither helps: " + ON_LINUX
MISMATCH = silent("error", "NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch.")
ticket("the driver was updated under a running system (E4)", on(LINUX, torch=blind(), nvml=MISMATCH),
       1, "cpu", "cu126", NO_DRIVER, r"sudo reboot")
ticket("the same under WSL2", on(WSL2, torch=blind(), nvml=MISMATCH), 1, "cpu", "cu126", NO_DRIVER, WSL_SHUTDOWN)
ticket("the same in a container", on(CONTAINER, torch=blind(), nvml=MISMATCH),
       1, "cpu", "cu126", NO_DRIVER, r"Reboot the machine that runs this container\.")
NOT_LOADED = silent("error", "NVMLError_DriverNotLoaded: Driver Not Loaded")
ticket("the driver is installed but not loaded", on(LINUX, torch=blind(), nvml=NOT_LOADED),
       1, "cpu", "cu126", NO_DRIVER, LOAD_DRIVER)
ticket("a driver left over on a laptop without a card", on(LAPTOP, nvml=NOT_LOADED),
       0, "cpu", "cpu", {"torch_build": WARN, "nvml_alive": WARN}, NOTHING)
ticket("a user without permission to use the driver",
       on(LINUX, torch=blind(), nvml=silent("error", "NVMLError_NoPermission: Insufficient Permissions")),
       1, "cpu", "cu126", NO_DRIVER, r"Let this user read /dev/nvidia\*: sudo usermod -aG video \$USER ; .*")
NOT_SUPPORTED = silent("error", "NVMLError_NotSupported: Not Supported")
ticket("NVML reports nothing under WSL2, and training works (E8)", on(WSL2, nvml=NOT_SUPPORTED),
       0, "gpu", "cu130", NO_NVML)
ticket("NVML reports nothing on Linux either", on(LINUX, nvml=NOT_SUPPORTED), 0, "gpu", "cu130", NO_NVML)
STRANGE = silent("error", "NVMLError_Unknown: Unknown Error")
ticket("an unknown error of NVML on Linux", on(LINUX, nvml=STRANGE),
       1, "gpu", "cu130", NO_NVML | {"nvml_alive": FAIL}, r"sudo reboot")
ticket("an unknown error of NVML under WSL2", on(WSL2, nvml=STRANGE),
       0, "gpu", "cu130", NO_NVML, also={"nvml_alive": STILL_WORKS})
HUNG = silent("hung", "no answer within 10 s")
ticket("NVML hangs under WSL2, and training works", on(WSL2, nvml=HUNG),
       0, "gpu", "cu130", NO_NVML, also={"nvml_alive": STILL_WORKS})
ticket("NVML hangs on Linux, and so does torch",
       on(LINUX, nvml=HUNG, torch=Torch("hung", "no answer within 20 s", version="2.13.0+cu130", cuda="13.0")),
       1, "cpu", "cu126", NO_DRIVER | {"smoke_matmul": UNKNOWN}, r"sudo reboot")
CRASHED = silent("crashed", "ended by SIGSEGV")
ticket("NVML crashes under WSL2, and training works (E8)", on(WSL2, nvml=CRASHED), 0, "gpu", "cu130", NO_NVML)
ticket("NVML crashes under WSL2 after it reported the card",
       on(WSL2, nvml={"state": "crashed", "cause": "ended by SIGSEGV"}),
       0, "gpu", "cu130", {"nvml_alive": UNKNOWN, "other_processes": UNKNOWN},
       STILL_WORKS)
ticket("NVML crashes on Linux", on(LINUX, nvml=CRASHED),
       1, "gpu", "cu130", NO_NVML | {"nvml_alive": FAIL}, r"sudo reboot")
ticket("NVML crashes on Windows", on(WINDOWS, nvml=silent("crashed", "exit code 0xc0000005")),
       1, "gpu", "cu130", NO_NVML | {"nvml_alive": FAIL, "sysmem_fallback": UNKNOWN}, r"Restart Windows\.")
ticket("NVML crashes and torch sees nothing: WSL2's files still show a card", on(WSL2, torch=blind(), nvml=CRASHED),
       1, "cpu", "cu126", NO_DRIVER | {"nvml_alive": UNKNOWN},
       rf"Restart the kernel \(or Python\); if that does not help: {WSL_SHUTDOWN}")
ticket("NVML reports a card with 17 TB",
       on(WSL2, nvml=silent("nonsense", "driver '581.42'", driver="581.42", cuda=13000,
                            cards=(replace(CARD, total_bytes=None, free_bytes=None),))),
       0, "gpu", "cu130",
       {"nvml_alive": UNKNOWN, "vram_free": UNKNOWN, "other_processes": UNKNOWN, "throttle_power": UNKNOWN},
       WSL_SHUTDOWN)
ticket("a driver that sees no card", on(LAPTOP, torch=blind(), nvml=silent("ok", driver="580.65.06", cuda=13000)),
       0, "cpu", "cpu", {"nvml_alive": WARN}, NOTHING)
ticket("no NVML, and torch does not know the card's size",
       on(WSL2, nvml=CRASHED, torch=seeing(total_bytes=None, capability=None, codes=())),
       0, "gpu", "cu130", NO_NVML | {"gpu_identity": UNKNOWN, "arch_covered": UNKNOWN}, preset="pocket")

# ---- torch

ticket("a CPU wheel beside the card (E1)", on(LINUX, torch=CPU_WHEEL),
       1, "gpu", "cu130", {"torch_build": FAIL, "cuda_available": UNKNOWN, "arch_covered": UNKNOWN},
       wheel_line("cu130"))
ticket("Windows' usual wheel is a CPU wheel (E1), driver 572", with_driver(WINDOWS, "572.61", 12080, CPU_WHEEL),
       1, "gpu", "cu126", {"torch_build": FAIL, "cuda_available": UNKNOWN, "arch_covered": UNKNOWN} | SPILLS,
       wheel_line("cu126", WINDOWS_PIP))
MISSING = {"torch_build": FAIL, "smoke_matmul": UNKNOWN}
TORCHLESS = MISSING | {"cuda_available": UNKNOWN, "arch_covered": UNKNOWN}
ticket("no torch yet", on(LINUX, torch=NO_TORCH), 1, "gpu", "cu130", TORCHLESS, wheel_line("cu130", new=True))
ticket("no torch yet, a card with shared memory that reports no size",
       on(LINUX, torch=NO_TORCH, nvml=silent("error", "NotSupported: nvidia-smi says '[N/A]'", driver="580.95.05")),
       1, "cpu", "cu130", MISSING | {"nvml_alive": UNKNOWN, "cuda_available": UNKNOWN},
       wheel_line("cu130", new=True))
ticket("no torch yet, no card", on(LAPTOP, torch=NO_TORCH), 1, "cpu", "cpu", MISSING, wheel_line("cpu", new=True))
ticket("no torch yet, conda: the same wheel with its own pip", on(CONDA, torch=NO_TORCH),
       1, "gpu", "cu130", TORCHLESS,
       wheel_line("cu130", r"/opt/conda/envs/gpt2-course/bin/python -m pip install", new=True))
ticket("no torch yet, Windows, a folder with a space",
       on(WINDOWS, torch=NO_TORCH,
          python={"executable": "C:\\my course\\.venv\\Scripts\\python.exe", "prefix": "C:\\my course\\.venv",
                  "expected": ("c:/my course/.venv/",)}),
       1, "gpu", "cu130", TORCHLESS | SPILLS,
       wheel_line("cu130", r"& 'C:\\my course\\\.venv\\Scripts\\python\.exe' -m pip install", new=True))
ticket("no torch yet, Linux, a folder with a space",
       on(LINUX, torch=NO_TORCH, python={"executable": "/my course/.venv/bin/python"}),
       1, "gpu", "cu130", TORCHLESS, wheel_line("cu130", r"'/my course/\.venv/bin/python' -m pip install", new=True))
ticket("torch cannot be imported: a library is missing",
       on(LINUX, torch=Torch("broken", "ImportError: libcudnn.so.9: cannot open shared object file")),
       1, "gpu", "cu130", TORCHLESS, wheel_line("cu130"))
ticket("torch cannot be imported: Windows' own libraries are old (E18)",
       on(WINDOWS, torch=Torch("broken", 'OSError: [WinError 126] Error loading "C:\\torch\\lib\\c10.dll"')),
       1, "gpu", "cu130", TORCHLESS | SPILLS,
       rf"Install the libraries of Visual C\+\+: winget install Microsoft\.VCRedist\.2015\+\.x64 ; {RESTART}")
ticket("importing torch crashes: an old processor", on(LAPTOP, torch=Torch("crashed", "ended by SIGILL")),
       1, "cpu", "cpu", MISSING, wheel_line("cpu"))
ticket("importing torch takes too long", on(LAPTOP, torch=Torch("hung", "no answer within 90 s")),
       0, "cpu", "cpu", MISSING | {"torch_build": UNKNOWN},
       r"Run the doctor again: a cold disk is slow the first time\.")
ticket("importing torch takes too long beside a card", on(LINUX, torch=Torch("hung", "no answer within 90 s")),
       0, "gpu", "cu130", TORCHLESS | {"torch_build": UNKNOWN},
       r"Run the doctor again: a cold disk is slow the first time\.")
ticket("is_available() never returns",
       on(LINUX, torch=Torch("hung", "no answer within 90 s", version="2.13.0+cu130", cuda="13.0")),
       1, "gpu", "cu130", UNSEEN | {"smoke_matmul": UNKNOWN}, r"sudo reboot")
ticket("the product crashes torch", on(LINUX, torch=seeing(state="crashed", cause="ended by SIGSEGV", product="")),
       1, "gpu", "cu130", {"smoke_matmul": FAIL}, r"Restart the kernel \(or Python\); then see driver_floor\.")
ticket("the product is wrong", on(LINUX, torch=seeing(product="torch.float32 is off by 3.2")),
       1, "gpu", "cu130", {"smoke_matmul": FAIL},
       rf"Restart the kernel \(or Python\); if that does not help: {wheel_line('cu130')}")
ticket("the product is wrong on a processor",
       on(LAPTOP, torch=replace(CPU_WHEEL, product="torch.bfloat16 is off by 9")),
       1, "cpu", "cpu", {"torch_build": WARN, "smoke_matmul": FAIL},
       rf"Restart the kernel \(or Python\); if that does not help: {wheel_line('cpu')}")
ticket("torch 2.1 and numpy 2 (E19)",
       on(with_driver(LINUX, "535.183.01", 12020, seeing(version="2.1.2+cu118", cuda="11.8", codes=CODES["cu126"])),
          packages=packages({"torch": "2.1.2"})),
       1, "gpu", "cu126", {"package_floor": FAIL},
       PROJECT)
ticket("no sm_89 in the wheel: sm_86 runs on it (E14)", on(LINUX, torch=seeing(codes=("sm_80", "sm_86"))),
       0, "gpu", "cu130", {})
ticket("only PTX for 8.0: the driver compiles it", on(LINUX, torch=seeing(codes=("compute_80",))),
       0, "gpu", "cu130", {})
NO_KERNEL = "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
ticket("PTX for 8.9 itself", on(LINUX, torch=seeing(codes=("compute_89",))), 0, "gpu", "cu130", {})
ticket("a wheel with code for other generations only",
       on(LINUX, torch=seeing(codes=("sm_75", "sm_90a", "compute_90"), product=NO_KERNEL)),
       1, "gpu", "cu130", {"arch_covered": FAIL, "smoke_matmul": FAIL}, wheel_line("cu130"))
ASLEEP = "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment."
ticket("after the computer was asleep (E5)", on(LINUX, torch=blind("cu130", ASLEEP)),
       1, "gpu", "cu130", UNSEEN, r"sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm ; if that fails: sudo reboot")
ticket("after Windows was asleep", on(WINDOWS, torch=blind("cu130", ASLEEP)),
       1, "gpu", "cu130", UNSEEN | SPILLS, r"Restart Windows\.")
ticket("after Windows was asleep, under WSL2", on(WSL2, torch=blind("cu130", ASLEEP)),
       1, "gpu", "cu130", UNSEEN, WSL_SHUTDOWN)
ticket("torch sees nothing, for an unknown reason", on(LINUX, torch=blind()),
       1, "gpu", "cu130", UNSEEN, r"Restart the kernel \(or Python\); if that does not help: sudo reboot")

# ---- cards


def with_card(
    base: Machine, name: str, gib: float, capability: "tuple[int, int]", *, free_gib: float, torch: Torch
) -> Machine:
    size = int(gib * GIB)
    fields = {"name": name, "total_bytes": size, "free_bytes": int(free_gib * GIB), "capability": capability}
    seen = replace(torch, name=name, total_bytes=size, capability=capability, bf16=capability >= (8, 0))
    return on(on(base, card=fields), torch=seen)


SMALL = r"Use the default preset: --preset pocket \(the tiny model\)\."
UNNAMED = {"other_processes": UNKNOWN}  # much memory is taken, and the driver does not say by which processes
ticket("a 3050 with 4 GB: the pocket model", with_card(LINUX, "RTX 3050", 3.8, (8, 6), free_gib=3.4, torch=seeing()),
       0, "gpu", "cu130", {"gpu_identity": WARN}, SMALL, preset="pocket")
ticket("a 3050 with 4 GB, 2 GiB of it free", with_card(LINUX, "RTX 3050", 3.8, (8, 6), free_gib=2, torch=seeing()),
       0, "gpu", "cu130", {"gpu_identity": WARN}, SMALL, preset="pocket")
ticket("a 3050 with 4 GB, half of it in use", with_card(LINUX, "RTX 3050", 3.8, (8, 6), free_gib=1.9, torch=seeing()),
       0, "gpu", "cu130", {"gpu_identity": WARN, "vram_free": WARN}, SMALL, preset="pocket")
ticket("a 3050 with 4 GB, all of it in use", with_card(LINUX, "RTX 3050", 3.8, (8, 6), free_gib=0.4, torch=seeing()),
       1, "gpu", "cu130", UNNAMED | {"gpu_identity": WARN, "vram_free": FAIL}, r"Close browsers and games, .*",
       preset="pocket")
ticket("a 4070 Laptop has 8 GB (E15)",
       with_card(LINUX, "RTX 4070 Laptop GPU", 7.99, (8, 9), free_gib=7.4, torch=seeing()),
       0, "gpu", "cu130", {}, preset="8gb")
ticket("a 4070 Ti SUPER has 16 GB (E15)",
       with_card(LINUX, "RTX 4070 Ti SUPER", 15.99, (8, 9), free_gib=15, torch=seeing()),
       0, "gpu", "cu130", {}, preset="16gb")
ticket("a 4090 has 24 GB", with_card(LINUX, "RTX 4090", 23.99, (8, 9), free_gib=23, torch=seeing()),
       0, "gpu", "cu130", {}, preset="16gb")
ticket("an A100 (8.0) is the first with bf16", with_card(LINUX, "A100", 80, (8, 0), free_gib=79, torch=seeing()),
       0, "gpu", "cu130", {}, preset="16gb")
ticket("a GTX 1060 (6.1) and a CUDA 13 wheel: it holds no code for it",
       with_card(LINUX, "GTX 1060", 6, (6, 1), free_gib=5.5, torch=seeing(product=NO_KERNEL)),
       1, "gpu", "cu126", {"arch_covered": FAIL, "smoke_matmul": FAIL, "gpu_identity": WARN}, wheel_line("cu126"),
       preset="pocket", precision="fp16")
ticket("a GTX 1080 Ti (6.1) and the CUDA 12.6 wheel: fp16",
       with_card(LINUX, "GTX 1080 Ti", 11, (6, 1), free_gib=10, torch=seeing("cu126")),
       0, "gpu", "cu126", {}, precision="fp16")
TURING = with_card(LINUX, "RTX 2080 Ti", 11, (7, 5), free_gib=10, torch=seeing())
ticket("an RTX 2080 Ti (7.5): CUDA 13, and fp16 is the right choice",
       on(TURING, env={"ACCELERATE_MIXED_PRECISION": "fp16"}),
       0, "gpu", "cu130", {}, precision="fp16")
ticket("an RTX 2080 Ti (7.5): bf16 is only emulated",
       on(TURING, env={"ACCELERATE_MIXED_PRECISION": "bf16"}),
       0, "gpu", "cu130", {"precision_choice": WARN}, rf"unset ACCELERATE_MIXED_PRECISION; {RESTART_SHELL}",
       precision="fp16")
BLACKWELL = with_card(LINUX, "RTX 5070 Ti", 15.9, (12, 0), free_gib=15, torch=seeing())
CU128 = wheel_line("cu128", version=r"2\.11\.0")
ticket("a 5070 Ti (12.0), driver 570 and the CUDA 12.6 wheel: the last one with CUDA 12.8 serves both",
       with_driver(BLACKWELL, "570.124.06", 12080, seeing("cu126", capability=(12, 0), product=NO_KERNEL)),
       1, "gpu", "cu128", {"arch_covered": FAIL, "smoke_matmul": FAIL}, CU128, preset="16gb")
ticket("a 5070 Ti (12.0), driver 570 and the CUDA 13 wheel",
       with_driver(BLACKWELL, "570.124.06", 12080, blind("cu130", too_old(12080))),
       1, "gpu", "cu128", TOO_OLD, rf"{ON_LINUX} Or keep the driver: {CU128}", preset="16gb")
LAST_OF_12 = seeing("cu128", version="2.11.0+cu128", capability=(12, 0))
WORKING_5060 = on(with_driver(BLACKWELL, "570.124.06", 12080, LAST_OF_12),
                  packages=packages({"torch": "2.11.0"}, without=("datasets",)))
ticket("a 5060 Ti (12.0), driver 570, torch 2.11 that works, and datasets missing: torch is kept", WORKING_5060,
       1, "gpu", "cu128", {"package_floor": FAIL}, PROJECT, preset="16gb")
ticket("the same in a quick check, which does not run torch",
       on(WORKING_5060, torch=Torch("quick", version="2.11.0+cu128", cuda="12.8"), quick=True),
       1, "gpu", "cu128", {"package_floor": FAIL}, PROJECT, preset="16gb")
ticket("a 5070 Ti (12.0) and an impossible driver 560: the driver first",
       with_driver(BLACKWELL, "560.35.03", 12060, seeing("cu126", capability=(12, 0), product=NO_KERNEL)),
       1, "gpu", "cu130", {"arch_covered": FAIL, "smoke_matmul": FAIL}, rf"{ON_LINUX} Then: {wheel_line('cu130')}",
       preset="16gb")
ticket("a 5070 Ti (12.0) and driver 580", BLACKWELL,
       0, "gpu", "cu130", {}, preset="16gb")

BROWSER, KERNEL = Holder(4711, "C:\\Program Files\\chrome.exe"), Holder(4242, "python.exe")
ticket("Windows shows who holds memory, but not how much (E13)",
       on(WINDOWS, card={"free_bytes": 5 * GIB, "holders": (BROWSER, KERNEL, Holder(4343, "pythonw.exe"))}),
       0, "gpu", "cu130", SPILLS | {"vram_free": WARN, "other_processes": WARN},
       r"Close chrome\.exe \(process 4711\), python\.exe \(process 4242\), pythonw\.exe \(process 4343\)\.",
       also={"other_processes": r"Shut that kernel down in JupyterLab's Running tab, or: Stop-Process -Id 4242,4343"})
ticket("a forgotten kernel on Linux holds most of the card",
       on(LINUX, card={"free_bytes": 2 * GIB, "holders": (Holder(4242, "/usr/bin/python3.12", 9 * GIB),)}),
       1, "gpu", "cu130", {"vram_free": FAIL, "other_processes": WARN},
       r"Close python3\.12 \(process 4242, 9\.0 GiB\)\.",
       also={"other_processes": r"Shut that kernel down in JupyterLab's Running tab, or: kill 4242"})
ticket("this very kernel, and the desktop, hold a little",
       on(LINUX, card={"holders": (Holder(100, "python", GIB), Holder(7, "Xorg", mib(300)))}), 0, "gpu", "cu130", {})
ticket("6 GiB free is enough", on(LINUX, card={"free_bytes": 6 * GIB}), 0, "gpu", "cu130", UNNAMED,
       r"Close browsers and games, .*")
ticket("3 GiB free is just enough", on(LINUX, card={"free_bytes": 3 * GIB}),
       0, "gpu", "cu130", UNNAMED | {"vram_free": WARN}, r"Close browsers and games, .*")

FOUR = tuple(replace(CARD, index=index, uuid=f"GPU-{index}000") for index in range(4))
LOST = replace(FOUR[2], total_bytes=None, free_bytes=None, error="NVMLError_GpuIsLost: GPU is lost")
FOUR_CARDS = on(LINUX, nvml={"cards": FOUR}, torch=seeing(uuid="0000"))
ticket("four cards", FOUR_CARDS, 0, "gpu", "cu130", {})
LEFT_OUT = rf"{RESTART_SHELL} To get the card back:"
ticket("four cards, one of them lost", on(FOUR_CARDS, nvml={"cards": (*FOUR[:2], LOST, FOUR[3])}),
       0, "gpu", "cu130", {"nvml_alive": WARN},
       rf"export CUDA_VISIBLE_DEVICES=GPU-0000,GPU-1000,GPU-3000 ; {LEFT_OUT} sudo reboot")
ticket("four cards on Windows, one of them lost", on(WINDOWS, nvml={"cards": (*FOUR[:2], LOST, FOUR[3])}),
       0, "gpu", "cu130", SPILLS | {"nvml_alive": WARN},
       rf"\$env:CUDA_VISIBLE_DEVICES = 'GPU-0000,GPU-1000,GPU-3000' ; {LEFT_OUT} Restart Windows\.")
MUTE = replace(FOUR[1], total_bytes=None, free_bytes=None)
ticket("two cards, one of them reports no memory", on(FOUR_CARDS, nvml={"cards": (FOUR[0], MUTE)}),
       0, "gpu", "cu130", {"nvml_alive": WARN},
       rf"export CUDA_VISIBLE_DEVICES=GPU-0000 ; {LEFT_OUT} sudo reboot")
ticket("the only card is lost",
       on(LINUX, torch=blind(), nvml={"state": "error", "cause": LOST.error, "cards": (LOST,)}),
       1, "cpu", "cu130", {"nvml_alive": FAIL, "cuda_available": FAIL}, r"sudo reboot")
ticket("the card is too hot", on(LINUX, card={"slowed_by": ("its temperature",)}),
       0, "gpu", "cu130", {"throttle_power": WARN}, r"If it is hot, .*")
ticket("the card is at its power limit", on(LINUX, card={"slowed_by": ("its power limit",)}),
       0, "gpu", "cu130", {"throttle_power": WARN}, r"If it is hot, .*")
ticket("the power supply slows the card", on(LINUX, card={"slowed_by": ("the power supply",)}),
       0, "gpu", "cu130", {"throttle_power": WARN}, r"If it is hot, .* check the power supply and its cables\.")
ticket("the driver does not report what slows the card", on(WSL2, card={"slowed_by": None}),
       0, "gpu", "cu130", {"throttle_power": UNKNOWN})
ticket("a laptop with a card, on battery", on(WINDOWS, on_battery=True),
       0, "gpu", "cu130", SPILLS | {"throttle_power": WARN}, CONTROL_PANEL,
       also={"throttle_power": r"Plug in the power supply, .*"})
ticket("a laptop with a card, plugged in", on(LINUX, on_battery=False), 0, "gpu", "cu130", {})

# ---- cards that are too old, switched off, of two kinds, or of another vendor

PASCAL = with_card(LINUX, "GTX 1080 Ti", 11, (6, 1), free_gib=10, torch=blind("cu126", too_old(11040)))
ticket("a GTX 1080 Ti (6.1) whose driver is too old: 580 is the last for it",
       on(PASCAL, nvml={"driver": "470.256.02", "cuda": 11040}),
       1, "gpu", "cpu", TOO_OLD, ON_LINUX, precision="fp16")
K80 = with_card(on(LINUX, nvml={"driver": "470.256.02", "cuda": 11040}), "Tesla K80", 11, (3, 7), free_gib=11,
                torch=CPU_WHEEL)
OLD_CARD = r"The course runs on the CPU here; no other driver and no other wheel of the course changes that\."
ticket("a Tesla K80 (3.7): 470 is its last driver, and no wheel has code for it",
       on(K80, torch=CPU_WHEEL), 0, "cpu", "cpu", {"torch_build": WARN, "nvml_alive": WARN}, NOTHING,
       also={"nvml_alive": OLD_CARD})
ticket("a Tesla K80 beside a 4070 Ti does not count",
       on(LINUX, nvml={"cards": (replace(K80.nvml.cards[0], index=0, uuid="GPU-80"), replace(CARD, index=1))}),
       0, "gpu", "cu130", {})
ON_BUS = r"sudo dmesg \| grep -i nvrm says why: .* Most often: " + ON_LINUX
ticket("a driver that sees no card, though one is on the bus",
       on(LINUX, torch=blind(), nvml=silent("ok", driver="580.65.06", cuda=13000)),
       1, "cpu", "cu130", {"nvml_alive": FAIL, "cuda_available": FAIL}, ON_BUS)
ticket("Windows does not let WSL2 use NVML",
       on(WSL2, nvml=silent("error", "NVMLError_OperatingSystem: GPU access blocked by the operating system")),
       0, "gpu", "cu130", NO_NVML, also={"nvml_alive": STILL_WORKS})
COMPAT = "CUDA initialization: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was " \
         "attempted on non supported HW"
HOST = r"Update the driver of the machine that runs this container \(\S+\), and reboot it\."
ticket("a container's compatibility library on a GeForce: error 804",
       with_driver(CONTAINER, "535.183.01", 13000, blind("cu130", COMPAT)), 1, "gpu", "cu126", TOO_OLD,
       HOST + r" Or keep the driver: /usr/bin/python3 .*/cu126 .*")
ticket("a compatibility library for a driver that is new enough: error 804",
       with_driver(CONTAINER, "580.65.06", 13020, blind("cu130", COMPAT)), 1, "gpu", "cu130", UNSEEN, HOST)
ticket("error 804 after an update, without a container", with_driver(LINUX, "580.65.06", 13000, blind("cu130", COMPAT)),
       1, "gpu", "cu130", UNSEEN, r"sudo reboot")
ticket("driver 470 does not run CUDA 12, whatever a compatibility library says",
       with_driver(CONTAINER, "470.57.02", 12020, blind("cu126", COMPAT)), 1, "gpu", "cpu", TOO_OLD, HOST)
ticket("a compatibility library on a data centre card works",
       with_driver(with_card(CONTAINER, "A100", 80, (8, 0), free_gib=79, torch=seeing()), "535.183.01", 13000,
                   seeing(name="A100", capability=(8, 0))), 0, "gpu", "cu130", {"driver_floor": WARN}, HOST,
       preset="16gb")

SLOW = replace(CARD, index=0, name="GT 1030", uuid="GPU-1030", total_bytes=2 * GIB, free_bytes=2 * GIB,
               capability=(6, 1), cuda_cores=384, max_clock_mhz=1468)
FAST = replace(CARD, index=1, name="RTX 3090", uuid="GPU-3090", total_bytes=24 * GIB, free_bytes=23 * GIB,
               capability=(8, 6), cuda_cores=10496, max_clock_mhz=1695)
UNASKED = Torch("quick", version="2.13.0+cu130", cuda="13.0")
SLOW_FIRST = on(LINUX, nvml={"cards": (SLOW, FAST)}, torch=UNASKED, quick=True)
ticket("CUDA counts from the fastest card, NVML by slots: 0 is the 3090",
       on(SLOW_FIRST, env={"CUDA_VISIBLE_DEVICES": "0"}), 0, "gpu", "cu130", {}, preset="16gb")
ticket("in slot order, 0 is the GT 1030",
       on(SLOW_FIRST, env={"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
       0, "gpu", "cu126", {"gpu_identity": WARN}, SMALL, preset="pocket", precision="fp16")
SECOND = replace(CARD, index=1, name="GTX 1080 Ti", uuid="GPU-1080", capability=(6, 1), cuda_cores=3584)
TWO_KINDS = on(BLACKWELL, nvml={"cards": (*BLACKWELL.nvml.cards, SECOND)})
ticket("a 5070 Ti, and a second card that the wheel has no code for", TWO_KINDS,
       0, "gpu", "cu130", {"arch_covered": WARN}, rf"export CUDA_VISIBLE_DEVICES={CARD.uuid} ; {RESTART_SHELL}",
       preset="16gb")
ticket("the same, and the second card is hidden", on(TWO_KINDS, env={"CUDA_VISIBLE_DEVICES": "0"}),
       0, "gpu", "cu130", {}, preset="16gb")

UNTESTED = r"The course runs on the CPU here; training on {} graphics is not tested\."
AMD = on(LAPTOP, platform={"other_graphics": ("AMD",)})
ticket("an AMD card and the CPU wheel", AMD, 0, "cpu", "cpu", {"torch_build": WARN}, UNTESTED.format("AMD"))
ticket("AMD and Intel graphics beside a wheel for NVIDIA's cards",
       on(AMD, platform={"other_graphics": ("AMD", "Intel")}, torch=blind()),
       0, "cpu", "cpu", {"torch_build": WARN}, UNTESTED.format("AMD or Intel"))
ROCM = replace(CPU_WHEEL, version="2.13.0+rocm7.1")
ticket("an AMD card that its wheel does not see", on(AMD, torch=ROCM),
       0, "cpu", "rocm7.1", {"torch_build": WARN}, UNTESTED.format("AMD"))
ticket("an AMD card, its own wheel, and datasets missing: the wheel is kept",
       on(AMD, torch=seeing(version="2.13.0+rocm7.1", cuda=None), packages=packages(without=("datasets",))),
       1, "gpu", "rocm7.1",
       {"package_floor": FAIL, "vram_free": UNKNOWN, "other_processes": UNKNOWN, "throttle_power": UNKNOWN}, PROJECT)
ticket("an Intel card with its own wheel",
       on(LAPTOP, platform={"other_graphics": ("Intel",)}, torch=replace(CPU_WHEEL, version="2.13.0+xpu")),
       0, "cpu", "xpu", {"torch_build": WARN}, UNTESTED.format("Intel"))
ticket("a 4070 Ti beside a wheel for AMD's cards", on(LINUX, torch=ROCM),
       1, "gpu", "cu130", {"torch_build": FAIL, "cuda_available": UNKNOWN, "arch_covered": UNKNOWN},
       wheel_line("cu130"))
MAC = on(LAPTOP, platform=Platform("macOS", "25", "arm64", other_graphics=("Apple",)),
         torch=replace(CPU_WHEEL, version="2.13.0"))
ticket("a Mac with an Apple chip", MAC, 0, "cpu", "", {"torch_build": WARN}, UNTESTED.format("Apple"))
ticket("a Mac with an Intel chip: there is no wheel",
       on(MAC, platform=Platform("macOS", "25", "x86_64"), torch=NO_TORCH), 1, "cpu", "", MISSING,
       r"PyTorch has had no wheel for macOS on x86_64 .* Apple chip use a Python for arm64.* docker build .*")

# ---- CUDA_VISIBLE_DEVICES

HIDDEN = UNSEEN | {"visible_devices": FAIL}
UNSET = rf"unset CUDA_VISIBLE_DEVICES; {RESTART_SHELL}"
for _value in ("", "-1", "99", "0,0", "GPU-9999", "none"):
    ticket(f"CUDA_VISIBLE_DEVICES={_value!r} hides the card (E6)",
           on(LINUX, env={"CUDA_VISIBLE_DEVICES": _value}, torch=blind()),
           1, "gpu", "cu130", HIDDEN, UNSET, also={"visible_devices": UNSET})
for _value in ("0", CARD.uuid, "GPU-4070", "MIG-4070aaaa"):
    ticket(f"CUDA_VISIBLE_DEVICES={_value!r} is right", on(LINUX, env={"CUDA_VISIBLE_DEVICES": _value}),
           0, "gpu", "cu130", {})
ticket("CUDA_VISIBLE_DEVICES='0,99' is read up to the first unknown card",
       on(LINUX, env={"CUDA_VISIBLE_DEVICES": "0,99"}), 0, "gpu", "cu130", {"visible_devices": WARN}, UNSET)
ticket("CUDA_VISIBLE_DEVICES='3,1' of four cards", on(FOUR_CARDS, env={"CUDA_VISIBLE_DEVICES": "3,1"}),
       0, "gpu", "cu130", {})
ticket("CUDA_VISIBLE_DEVICES='-1' on Windows", on(WINDOWS, env={"CUDA_VISIBLE_DEVICES": "-1"}, torch=blind()),
       1, "gpu", "cu130", HIDDEN | SPILLS, rf"Remove-Item Env:CUDA_VISIBLE_DEVICES; {RESTART_SHELL}")
ticket("CUDA_VISIBLE_DEVICES='-1' in a container", on(CONTAINER, env={"CUDA_VISIBLE_DEVICES": "-1"}, torch=blind()),
       1, "gpu", "cu130", HIDDEN,
       rf"unset CUDA_VISIBLE_DEVICES, and drop it from the container's -e options; {RESTART_SHELL}")
ticket("CUDA_VISIBLE_DEVICES='-1' under a WSL2 whose NVML crashed",
       on(WSL2, env={"CUDA_VISIBLE_DEVICES": "-1"}, torch=blind(), nvml=CRASHED),
       1, "cpu", "cu126",
       {"driver_floor": UNKNOWN, "nvml_alive": UNKNOWN, "cuda_available": FAIL, "visible_devices": FAIL}, UNSET)
ticket("CUDA_VISIBLE_DEVICES='-1' and no card to hide", on(LAPTOP, env={"CUDA_VISIBLE_DEVICES": "-1"}),
       0, "cpu", "cpu", {"torch_build": WARN}, NOTHING)
# ---- WSL2's own files

PURGE = r"sudo apt-get purge 'nvidia-driver-\*' .* ; then update the driver on Windows .*wsl --update ; wsl --shutdown"
ticket("a Linux driver in the distribution (E7)", on(WSL2, torch=blind(), wsl={"shadowing": ("nvidia-driver-570",)}),
       1, "gpu", "cu130", UNSEEN | {"wsl_libcuda": FAIL}, PURGE, also={"wsl_libcuda": PURGE})
ticket("a Linux driver in the distribution, not yet in the way",
       on(WSL2, wsl={"shadowing": ("libnvidia-compute-570",)}), 1, "gpu", "cu130", {"wsl_libcuda": FAIL}, PURGE)
ticket("WSL2's libcuda is missing", on(WSL2, torch=blind(), wsl={"libcuda": False}),
       1, "gpu", "cu130", UNSEEN | {"wsl_libcuda": FAIL}, FROM_WSL)
ticket("/dev/dxg is missing: an old WSL", on(WSL2, torch=blind(), nvml=STRANGE, wsl={"dxg": False}),
       1, "cpu", "cu126", {"driver_floor": UNKNOWN, "nvml_alive": UNKNOWN, "cuda_available": FAIL, "wsl_libcuda": FAIL},
       FROM_WSL)
ticket("the loader does not search /usr/lib/wsl/lib",
       on(WSL2, torch=blind(), nvml=silent("absent", "no NVML library")),
       1, "cpu", "cu126", {"driver_floor": UNKNOWN, "nvml_alive": UNKNOWN, "cuda_available": FAIL},
       rf"export LD_LIBRARY_PATH=/usr/lib/wsl/lib:\$LD_LIBRARY_PATH ; {RESTART_SHELL}")

# ---- disk and paths

ELSEWHERE = rf"Free some space, or write elsewhere: export COURSE_RUNS=<a folder on a larger disk> ; {RESTART_SHELL}"
ticket("a full disk", on(LINUX, storage=disk(0, LINUX)), 1, "gpu", "cu130", {"disk_free": FAIL}, ELSEWHERE)
ticket("4.9 GB free is what three checkpoints and temporary files need", on(LINUX, storage=disk(4.9, LINUX)),
       0, "gpu", "cu130", {})
ticket("a full disk on Windows", on(WINDOWS, storage=disk(0, WINDOWS)),
       1, "gpu", "cu130", SPILLS | {"disk_free": FAIL},
       rf"Free some space, or write elsewhere: \$env:COURSE_RUNS = '<a folder on a larger disk>' ; {RESTART_SHELL}")
ticket("5 GB free is enough for three checkpoints of a downloaded GPT-2", on(LINUX, storage=disk(5, LINUX)),
       0, "gpu", "cu130", {})
ticket("5 GB free is too little to download it", on(LINUX, storage=disk(5, LINUX), files=ModelFiles(POCKET, None)),
       1, "gpu", "cu130", {"disk_free": FAIL}, ELSEWHERE)
TWO_DISKS = (place("runs", "/course/runs", 5), place("cache", "/cache", 5, "2"))
ticket("5 GB free is enough for all on two disks",
       on(LINUX, files=ModelFiles(POCKET, None), storage={"places": TWO_DISKS}),
       0, "gpu", "cu130", {})
ticket("2 GB free on a laptop: the pocket model fits", on(LAPTOP, storage=disk(2, LAPTOP)),
       0, "cpu", "cpu", {"torch_build": WARN, "disk_free": WARN}, NOTHING, also={"disk_free": ELSEWHERE})
ticket("0.1 GB free on a laptop", on(LAPTOP, storage=disk(0.1, LAPTOP)),
       1, "cpu", "cpu", {"torch_build": WARN, "disk_free": FAIL}, ELSEWHERE)
READ_ONLY = (place("runs", "/course/runs", writable=False), *LINUX.storage.places[1:])
ticket("a read-only disk", on(LAPTOP, storage={"places": READ_ONLY}),
       1, "cpu", "cpu", {"torch_build": WARN, "disk_free": FAIL},
       rf"export COURSE_RUNS=<a folder you may write to> ; {RESTART_SHELL}")
LOCKED_CACHE = (LINUX.storage.places[0], place("cache", "/cache", writable=False))
ticket("a read-only cache: GPT-2 cannot be downloaded", on(LINUX, storage={"places": LOCKED_CACHE}),
       1, "gpu", "cu130", {"disk_free": FAIL}, rf"export HF_HOME=<a folder you may write to> ; {RESTART_SHELL}")
ticket("a read-only cache: the pocket model needs none", on(LAPTOP, storage={"places": LOCKED_CACHE}),
       0, "cpu", "cpu", {"torch_build": WARN, "disk_free": WARN}, NOTHING)
OWN_CACHE = rf"export HF_HOME=<a folder of yours> ; {RESTART_SHELL}"
NO_CACHE = LINUX.storage.places[:1]
ticket("no home folder", on(CONTAINER, storage={"places": NO_CACHE}), 0, "gpu", "cu130", {"paths": WARN}, OWN_CACHE)
ticket("the project is in OneDrive", on(WINDOWS, storage={"project": "C:\\Ada\\OneDrive\\course"}),
       0, "gpu", "cu130", SPILLS | {"paths": WARN}, CONTROL_PANEL,
       also={"paths": rf"\$env:COURSE_RUNS = 'C:\\runs' ; \$env:HF_HOME = 'C:\\hf' ; {RESTART_SHELL}"})
ticket("runs are in a folder that Linux synchronises with OneDrive",
       on(LINUX, storage={"places": (place("runs", "/ada/OneDrive/runs"), *LINUX.storage.places[1:])}),
       0, "gpu", "cu130", {"paths": WARN},
       rf"export COURSE_RUNS=<a folder that is not synchronised> ; {OWN_CACHE}")
MOVE = r"Move the project below your Linux home: cp -r \. ~/course"
ticket("WSL2 works on a Windows disk", on(WSL2, storage={"project": "/mnt/c/course"}),
       0, "gpu", "cu130", {"paths": WARN}, MOVE)
ticket("WSL2 works in Windows' OneDrive", on(WSL2, storage={"project": "/mnt/c/OneDrive/course"}),
       0, "gpu", "cu130", {"paths": WARN}, MOVE)
ticket("/mnt/c on plain Linux is an ordinary disk", on(LINUX, storage={"project": "/mnt/c/course"}),
       0, "gpu", "cu130", {})
LONG_PATHS = rf"; {RESTART_SHELL} Or enable long paths: Set-ItemProperty .*"
LONG = (place("runs", "C:\\" + "long-folder\\" * 14), *WINDOWS.storage.places[1:])
ticket("long paths on Windows (E24)", on(WINDOWS, storage={"places": LONG}),
       0, "gpu", "cu130", SPILLS | {"paths": WARN}, CONTROL_PANEL,
       also={"paths": rf"\$env:COURSE_RUNS = 'C:\\runs' {LONG_PATHS}"})
LONG_CACHE = (WINDOWS.storage.places[0], place("cache", "C:\\" + "long-folder\\" * 14))
ticket("long paths on Windows, in the Hub's cache (E24)", on(WINDOWS, storage={"places": LONG_CACHE}),
       0, "gpu", "cu130", SPILLS | {"paths": WARN}, CONTROL_PANEL,
       also={"paths": rf"\$env:HF_HOME = 'C:\\hf' {LONG_PATHS}"})
ticket("long paths on Windows, switched on", on(WINDOWS, storage={"places": LONG, "long_paths": True}),
       0, "gpu", "cu130", SPILLS, CONTROL_PANEL)

# ---- main memory

CLOSE = r"Close other programs, browsers first\."
WSLCONFIG = r"In %UserProfile%\\\.wslconfig \(UTF-8\) write two lines, \[wsl2\] and memory=12GB .*: wsl --shutdown"
ticket("3.9 GiB of main memory beside a card", on(LINUX, memory=ram(3.9)),
       1, "gpu", "cu130", {"ram_available": FAIL}, CLOSE)
ticket("4 GiB of main memory beside a card", on(LINUX, memory=ram(4)),
       0, "gpu", "cu130", {"ram_available": WARN}, CLOSE)
ticket("7.9 GiB of main memory beside a card", on(LINUX, memory=ram(7.9)),
       0, "gpu", "cu130", {"ram_available": WARN}, CLOSE)
ticket("8 GiB of main memory is enough", on(LINUX, memory=ram(8)), 0, "gpu", "cu130", {})
ticket("WSL2 has been given too little memory (E9)", on(WSL2, memory=ram(3)),
       1, "gpu", "cu130", {"ram_available": FAIL}, WSLCONFIG)
ticket("a container has been given too little memory", on(CONTAINER, memory=ram(2)),
       1, "gpu", "cu130", {"ram_available": FAIL}, r"Give the container more memory \(docker run --memory=12g\), .*")
ticket("a laptop with 4 GiB free trains the pocket model", on(LAPTOP, memory=ram(4)),
       0, "cpu", "cpu", {"torch_build": WARN}, NOTHING)
ticket("a laptop with 3 GiB free", on(LAPTOP, memory=ram(3)),
       0, "cpu", "cpu", {"torch_build": WARN, "ram_available": WARN}, NOTHING)
ticket("a laptop with 1 GiB free", on(LAPTOP, memory=ram(1)),
       1, "cpu", "cpu", {"torch_build": WARN, "ram_available": FAIL}, CLOSE)

# ---- Python and its packages

VENV = r"Install Python 3\.13, then: rm -rf \.venv ; python3\.13 -m helpers install"
ticket("Python 3.10 with nothing installed (E17)",
       on(LAPTOP, python={"version": (3, 10, 14)}, torch=NO_TORCH,
          packages=packages(without=tuple(PACKAGES.installed))),
       1, "cpu", "cpu", {"python_version": FAIL, "package_floor": FAIL} | MISSING, VENV)
ticket("Python 3.11 is enough", on(LINUX, python={"version": (3, 11, 0)}), 0, "gpu", "cu130", {})
ticket("Python 3.14 is the newest", on(LINUX, python={"version": (3, 14, 1)}), 0, "gpu", "cu130", {})
ticket("Python 3.15", on(LINUX, python={"version": (3, 15, 0)}), 1, "gpu", "cu130", {"python_version": FAIL}, VENV)
ticket("a 32-bit Python on Windows", on(WINDOWS, python={"bits": 32}),
       1, "gpu", "cu130", SPILLS | {"python_version": FAIL},
       r"winget install Python\.Python\.3\.13 ; Remove-Item -Recurse \.venv ; py -3\.13 -m helpers install")
ticket("Python 3.10 in a conda environment", on(CONDA, python={"version": (3, 10, 14)}),
       1, "gpu", "cu130", {"python_version": FAIL},
       r"conda env create .* && conda activate gpt2-course && python -m helpers install --here")
ticket("Python 3.10 in a conda environment on Windows", on(WINDOWS, python={"version": (3, 10, 14), "is_conda": True}),
       1, "gpu", "cu130", SPILLS | {"python_version": FAIL},
       r"conda env create .* ; conda activate gpt2-course ; python -m helpers install --here")

ticket("the kernel runs another Python than the project's (E20)",
       on(LINUX, python={"prefix": "/usr", "executable": "/usr/bin/python3"}),
       1, "gpu", "cu130", {"env_kernel_match": FAIL},
       r"/course/\.venv/bin/python -m ipykernel install --sys-prefix ; then choose that kernel, or .*")
ticket("the kernel runs another Python than the project's, Windows, a folder with a space",
       on(WINDOWS, python={"expected": ("C:\\my course\\.venv",)}),
       1, "gpu", "cu130", SPILLS | {"env_kernel_match": FAIL},
       r"& 'C:\\my course\\\.venv\\Scripts\\python\.exe' -m ipykernel install --sys-prefix ; .*")
ticket("a conda environment is active on Windows, but another Python runs",
       on(WINDOWS, python={"expected": ("C:\\miniforge3\\envs\\gpt2-course",)}),
       1, "gpu", "cu130", SPILLS | {"env_kernel_match": FAIL},
       r"C:\\miniforge3\\envs\\gpt2-course\\python\.exe -m ipykernel install .*")
ticket("Jupyter's python3 kernel is in another environment", on(LINUX, python={"kernel": "/opt/old/bin/python"}),
       1, "gpu", "cu130", {"env_kernel_match": FAIL},
       r"/course/\.venv/bin/python -m ipykernel install --sys-prefix ; then choose that kernel")
ticket("Jupyter's python3 kernel names a Python that no longer exists",
       on(LINUX, python={"kernel": "/course/.venv/bin/python3.9", "kernel_exists": False}),
       1, "gpu", "cu130", {"env_kernel_match": FAIL},
       r"/course/\.venv/bin/python -m ipykernel install --sys-prefix ; then choose that kernel")
ticket("Jupyter's python3 kernel says only 'python'", on(LINUX, python={"kernel": "python"}), 0, "gpu", "cu130", {})
ticket("Windows writes one folder in two ways",
       on(WINDOWS, python={"kernel": "c:/Course/.venv/Scripts/python.exe", "expected": ("c:\\COURSE\\.venv\\",)}),
       0, "gpu", "cu130", SPILLS, CONTROL_PANEL)

ticket("transformers was upgraded under a running kernel (E21)",
       on(LINUX, packages=packages(loaded={"transformers": "5.22.0"})),
       1, "gpu", "cu130", {"stale_imports": FAIL}, r"Restart the kernel \(or Python\)\.")
ticket("another wheel of the same torch was installed under a running kernel",
       on(LINUX, packages=packages({"torch": "2.13.0+cu130"}, loaded={"torch": "2.13.0+cpu"})),
       1, "gpu", "cu130", {"stale_imports": FAIL}, r"Restart the kernel \(or Python\)\.")
ticket("torch names its CUDA version, the wheel none", on(LINUX, packages=packages(loaded={"torch": "2.13.0+cu130"})),
       0, "gpu", "cu130", {})
ticket("datasets is missing", on(LINUX, packages=packages(without=("datasets",))),
       1, "gpu", "cu130", {"package_floor": FAIL}, PROJECT)
ticket("transformers 4", on(WINDOWS, packages=packages({"transformers": "4.57.1"})),
       1, "gpu", "cu130", SPILLS | {"package_floor": FAIL}, WINDOWS_PROJECT)
ticket("transformers 6", on(LINUX, packages=packages({"transformers": "6.0.0"})),
       0, "gpu", "cu130", {"package_floor": WARN}, PROJECT)
ticket("numpy 3 is a newer major than tested", on(LINUX, packages=packages({"numpy": "3.0.1"})),
       0, "gpu", "cu130", {"package_floor": WARN}, PROJECT)
ticket("a newer minor version is fine", on(LINUX, packages=packages({"datasets": "5.9.0"})), 0, "gpu", "cu130", {})
ticket("transformers 4 beside another torch that works: it is kept",
       on(WINDOWS, packages=packages({"transformers": "4.57.1", "torch": "2.14.1"}),
          torch=seeing(version="2.14.1+cu130")),
       1, "gpu", "cu130", SPILLS | {"package_floor": FAIL},
       WINDOWS_PROJECT)
ticket("the deprecated pynvml (E16)", on(LINUX, packages=packages({"pynvml": "13.0.1"})),
       0, "gpu", "cu130", {"package_floor": WARN},
       r"(\S+) -m pip uninstall -y pynvml ; \1 -m pip install --force-reinstall nvidia-ml-py")
ticket("another package called helpers, which a notebook would import",
       on(LINUX, packages=packages({"helpers": "0.2.0"})),
       1, "gpu", "cu130", {"package_floor": FAIL}, r"(\S+) -m pip uninstall -y helpers ; \1 -m helpers install --here")
ticket("the doctor runs outside the course", on(LINUX, packages=packages(required={}, pinned={})),
       0, "gpu", "cu130", {"package_floor": WARN}, r"Run the doctor from the course's own folder\.")
ticket("no widgets", on(LINUX, packages=packages(without=("ipywidgets",))),
       1, "gpu", "cu130", {"package_floor": FAIL}, PROJECT)

# ---- accelerate's own settings

ticket("accelerate's variable says fp16, Windows", on(WINDOWS, env={"ACCELERATE_MIXED_PRECISION": "fp16"}),
       0, "gpu", "cu130", SPILLS | {"precision_choice": WARN}, CONTROL_PANEL,
       also={"precision_choice": rf"Remove-Item Env:ACCELERATE_MIXED_PRECISION; {RESTART_SHELL}"})
ticket("accelerate's variable says the CPU", on(LINUX, env={"ACCELERATE_USE_CPU": "true"}),
       0, "gpu", "cu130", {"precision_choice": WARN}, rf"unset ACCELERATE_USE_CPU; {RESTART_SHELL}")
ticket("accelerate's variable says fp16, and there is no card", on(LAPTOP, env={"ACCELERATE_MIXED_PRECISION": "fp16"}),
       0, "cpu", "cpu", {"torch_build": WARN, "precision_choice": WARN}, NOTHING)

# ---- the models' files

GET = r"-c \"from huggingface_hub import \w+; snapshot_download\('openai-community/gpt2', allow_patterns=.*\)\""
ONE_TOKEN = ("the tokenizer has 1 tokens, not 50257",)
ticket("the shipped model is truncated",
       on(LAPTOP, files={"pocket": replace(POCKET, problems=("model.safetensors is cut short",))}),
       1, "cpu", "cpu", {"torch_build": WARN, "tokenizer_and_model_files": FAIL},
       r"git checkout -- helpers/assets/pocket")
ticket("GPT-2 without its vocabulary", on(LINUX, files={"gpt2": replace(GPT2, problems=ONE_TOKEN)}),
       1, "gpu", "cu130", {"tokenizer_and_model_files": FAIL},
       rf"rm -r '/cache/hub/models--openai-community--gpt2' ; /course/\.venv/bin/python {GET}")
ticket("GPT-2 without its vocabulary, Windows",
       on(WINDOWS, files={"gpt2": replace(GPT2, path="C:\\hf\\hub\\gpt2\\snapshots\\6", problems=ONE_TOKEN)}),
       1, "gpu", "cu130", SPILLS | {"tokenizer_and_model_files": FAIL},
       rf'Remove-Item -Recurse "C:\\hf\\hub\\gpt2" ; C:\\course\\\.venv\\Scripts\\python\.exe {GET}')
ticket("GPT-2 without its vocabulary, and no card to train it on",
       on(LAPTOP, files={"gpt2": replace(GPT2, problems=ONE_TOKEN)}),
       0, "cpu", "cpu", {"torch_build": WARN, "tokenizer_and_model_files": WARN}, NOTHING)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
ticket("downloads are off, and GPT-2 is not here", on(LINUX, files=ModelFiles(POCKET, None, offline=OFFLINE)),
       0, "gpu", "cu130", {"tokenizer_and_model_files": WARN},
       rf"unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE; {RESTART_SHELL} To download it now: "
       rf"/course/\.venv/bin/python {GET}")
ticket("downloads are off on Windows, and GPT-2 is not here",
       on(WINDOWS, files=ModelFiles(POCKET, None, offline=OFFLINE[:1])),
       0, "gpu", "cu130", SPILLS | {"tokenizer_and_model_files": WARN}, CONTROL_PANEL,
       also={"tokenizer_and_model_files":
             rf"Remove-Item Env:HF_HUB_OFFLINE; {RESTART_SHELL} To download it now: \S+python\.exe {GET}"})
ticket("downloads are off, and GPT-2 is here", on(LINUX, files=ModelFiles(POCKET, GPT2, offline=OFFLINE)),
       0, "gpu", "cu130", {})
ticket("GPT-2 is not downloaded yet", on(LINUX, files=ModelFiles(POCKET, None)), 0, "gpu", "cu130", {})

# ---- unreadable facts


def unreadable() -> Unread:
    return Unread("PermissionError: [Errno 13] Permission denied")


for _group, _unknown in (
    ("python", ("python_version", "env_kernel_match")),
    ("packages", ("stale_imports", "package_floor")),
    ("torch", ("torch_build", "cuda_available", "arch_covered", "smoke_matmul")),
    ("memory", ("ram_available",)),
    ("storage", ("disk_free", "paths")),
    ("files", ("disk_free", "tokenizer_and_model_files")),
):
    ticket(f"{_group} cannot be read", on(LINUX, **{_group: unreadable()}),
           0, "gpu", "cu130", dict.fromkeys(_unknown, UNKNOWN))
ticket("NVML's answer cannot be read, and training works", on(LINUX, nvml=unreadable()), 0, "gpu", "cu130", NO_NVML)
ticket("NVML's answer cannot be read on Windows", on(WINDOWS, nvml=unreadable()),
       0, "gpu", "cu130", NO_NVML | {"sysmem_fallback": UNKNOWN})
ticket("NVML's answer cannot be read on a laptop without a card", on(LAPTOP, nvml=unreadable()),
       0, "cpu", "cpu", {"torch_build": WARN, "nvml_alive": UNKNOWN})
ticket("NVML's answer cannot be read, and the wheel beside the card is a CPU wheel",
       on(LINUX, nvml=unreadable(), torch=CPU_WHEEL),
       1, "cpu", "cu126",
       {"torch_build": FAIL, "driver_floor": UNKNOWN, "nvml_alive": UNKNOWN, "cuda_available": UNKNOWN},
       wheel_line("cu126"))
ticket("WSL2's files cannot be read", on(WSL2, wsl=unreadable()), 0, "gpu", "cu130", {"wsl_libcuda": UNKNOWN})
