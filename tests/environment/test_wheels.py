"""Which wheel is recommended, and why."""

from dataclasses import replace

import pytest

from helpers.environment.access import Access
from helpers.environment.diagnosis import diagnosis_of
from helpers.environment.facts import Torch
from helpers.environment.requirements import pins
from helpers.environment.wheels import LAST_TORCH, quote_program, triton_for_windows, wheel_advice
from tests.environment.baselines import (
    CONDA,
    CPU_WHEEL,
    LAPTOP,
    LINUX,
    NO_TORCH,
    WINDOWS,
    WSL2,
    blind,
    on,
    packages,
    seeing,
    silent,
)

CARDS = {"RTX 3060": (8, 6), "RTX 4070 Ti": (8, 9), "RTX 5060 Ti": (12, 0), "GTX 1080 Ti": (6, 1)}


@pytest.mark.parametrize(
    ("base", "older", "first"),
    [(LINUX, "525.60.12", "525.60.13"), (WINDOWS, "528.32", "528.33"), (WSL2, "528.32", "528.33")],
)
def test_the_minimum_driver_for_cuda_12_depends_on_the_platform(base, older, first):
    new = on(base, torch=NO_TORCH)
    drivers = ("390.157", older, first, "579.99", "580")
    tags = [wheel_advice(on(new, nvml={"driver": driver, "cuda": None})).tag for driver in drivers]
    assert tags == ["cpu", "cpu", "cu126", "cu126", "cu130"]


def test_a_driver_of_a_later_cuda_runs_the_newest_wheel():
    assert wheel_advice(on(LINUX, nvml={"driver": "650.10", "cuda": 14000}, torch=NO_TORCH)).tag == "cu130"


@pytest.mark.parametrize("state", ["hung", "crashed", "error", "nonsense"])
def test_on_windows_a_card_is_expected_if_nvml_failed_before_it_could_report_one(state):
    laptop = on(LAPTOP, nvml=silent(state, "no answer"), torch=NO_TORCH)
    assert wheel_advice(laptop).tag == "cpu", "on Linux the bus tells that there is none"
    assert wheel_advice(on(WINDOWS, nvml=silent(state, "no answer"), torch=NO_TORCH)).tag == "cu126"


@pytest.mark.parametrize(
    ("card", "driver", "requirement"),
    [  # what `python3 -m helpers course` installs on a machine where nothing is installed yet
        ("RTX 3060", "535.183.01", "torch==2.13.0+cu126"),
        ("RTX 3060", "550.127.05", "torch==2.13.0+cu126"),
        ("RTX 3060", "580.65.06", "torch==2.13.0+cu130"),
        ("RTX 4070 Ti", "470.256.02", "torch==2.13.0+cpu"),
        ("RTX 4070 Ti", "535.183.01", "torch==2.13.0+cu126"),
        ("RTX 4070 Ti", "550.127.05", "torch==2.13.0+cu126"),
        ("RTX 4070 Ti", "580.65.06", "torch==2.13.0+cu130"),
        ("RTX 5060 Ti", "570.124.06", "torch==2.11.0+cu128"),
        ("RTX 5060 Ti", "580.65.06", "torch==2.13.0+cu130"),
        ("GTX 1080 Ti", "535.183.01", "torch==2.13.0+cu126"),
        ("GTX 1080 Ti", "550.127.05", "torch==2.13.0+cu126"),
        ("GTX 1080 Ti", "580.65.06", "torch==2.13.0+cu126"),
    ],
)
@pytest.mark.parametrize("base", [LINUX, WINDOWS, WSL2], ids=["Linux", "Windows", "WSL2"])
def test_a_new_installation_gets_the_wheel_for_its_card_and_driver(base, card, driver, requirement):
    if base is not LINUX and driver == "535.183.01":
        driver = "537.13"  # Windows has its own driver versions
    with_card = on(base, card={"name": card, "capability": CARDS[card]})
    machine = on(with_card, nvml={"driver": driver, "cuda": None}, torch=NO_TORCH)
    assert wheel_advice(machine).pip_args.split()[0] == requirement


@pytest.mark.parametrize(
    ("machine", "requirement"),
    [
        (LAPTOP, "torch==2.13.0+cpu"),
        (on(WINDOWS, nvml=silent("absent", "no nvidia-smi")), "torch==2.13.0+cpu"),
        (on(LAPTOP, platform={"kind": "macOS", "architecture": "arm64"}), "torch==2.13.0"),
        (on(LAPTOP, platform={"kind": "macOS", "architecture": "x86_64"}), ""),
        (on(LAPTOP, platform={"other_graphics": ("AMD",)}), "torch==2.13.0+cpu"),
    ],
    ids=["Linux", "Windows", "Apple", "Intel Mac", "AMD"],
)
def test_a_machine_without_an_nvidia_card_downloads_no_cuda(machine, requirement):
    assert wheel_advice(on(machine, torch=NO_TORCH)).pip_args.partition(" ")[0] == requirement


WORKING = {
    "the last CUDA 12.8": seeing("cu128", version="2.11.0+cu128"),
    "CUDA 13.2": seeing("cu132"),
    "a newer torch": seeing(version="2.15.0+cu130"),
    "ROCm": seeing(version="2.13.0+rocm7.1", cuda=None),
    "XPU": replace(CPU_WHEEL, version="2.13.0+xpu", available=True),
}


@pytest.mark.parametrize("torch", WORKING.values(), ids=WORKING)
def test_a_working_wheel_is_never_replaced(torch):
    advice = wheel_advice(on(LINUX if torch.cuda else LAPTOP, torch=torch, packages=packages(without=("datasets",))))
    assert advice.pip_args.split()[0] == f"torch=={torch.version}"
    assert "keep it" in advice.reason


@pytest.mark.parametrize(
    "torch",
    [
        seeing(version="2.10.0+cu128"),  # below what the course needs
        seeing(product="torch.float32 is off by 3.2"),
        blind("cu126"),
        CPU_WHEEL,
        Torch("broken", "libamdhip64.so is missing", version="2.13.0+rocm7.1"),
    ],
    ids=["too old", "wrong product", "sees no card", "CPU wheel", "broken"],
)
def test_a_wheel_that_does_not_work_is_replaced(torch):
    assert wheel_advice(on(LINUX, torch=torch)).pip_args.startswith("torch==2.13.0+cu130 ")


def test_a_volta_card_does_not_keep_an_untested_cuda_128_wheel():
    quick = Torch("quick", version="2.11.0+cu128", cuda="12.8")
    volta = on(LINUX, card={"capability": (7, 0)}, torch=quick, quick=True)
    assert wheel_advice(volta).tag == "cu126"
    assert wheel_advice(on(volta, card={"capability": (7, 5)})).tag == "cu128"


def test_a_quick_look_keeps_a_wheel_only_if_card_and_driver_are_known_to_fit():
    known = on(LINUX, torch=Torch("quick", version="2.14.0+cu130", cuda="13.0"), quick=True)
    assert wheel_advice(known).pip_args.startswith("torch==2.14.0+cu130 ")
    for unknown in (on(known, card={"capability": None}), on(known, nvml={"driver": "", "cuda": None})):
        assert "keep it" not in wheel_advice(unknown).reason
    older = on(known, card={"capability": (12, 0)}, torch={"version": "2.14.0+cu126", "cuda": "12.6"})
    assert wheel_advice(older).tag == "cu130", "CUDA 12.6 has no code for this card"


@pytest.mark.parametrize(
    ("machine", "program", "command"),
    [
        (LINUX, "/course/.venv/bin/python", "/course/.venv/bin/python"),
        (LINUX, "/my $course(1)/python", "'/my $course(1)/python'"),
        (WSL2, "/it's/python", """'/it'"'"'s/python'"""),
        (WINDOWS, "C:\\Kürs_1~\\python.exe", "C:\\Kürs_1~\\python.exe"),
        (WINDOWS, "C:\\Tom&Ann(1)\\python.exe", "& 'C:\\Tom&Ann(1)\\python.exe'"),
        (WINDOWS, "C:\\it's $x\\python.exe", "& 'C:\\it''s $x\\python.exe'"),
    ],
)
def test_a_program_path_is_quoted_for_the_platforms_shell(machine, program, command):
    assert quote_program(machine, program) == command


def test_venv_and_conda_get_the_same_wheel_through_their_own_pip():
    venv, conda = wheel_advice(LINUX), wheel_advice(CONDA)
    wheel = "-m pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
    assert venv.pip == f"/course/.venv/bin/python {wheel}"
    assert venv.conda == f"conda run -n gpt2-course python {wheel}"
    assert conda.pip == conda.conda == f"/opt/conda/envs/gpt2-course/bin/python {wheel}"
    assert "conda channel ended" in conda.reason
    assert "conda" not in venv.reason
    assert wheel_advice(on(LAPTOP, platform={"kind": "macOS", "architecture": "arm64"})).pip_args == "torch==2.13.0"
    assert venv.pip_args == conda.pip_args == wheel.removeprefix("-m pip install ")


def test_a_pin_without_a_cuda_12_wheel_falls_back_to_the_last_torch_with_one():
    newer = replace(LINUX.packages, pinned={"torch": "2.15.0"})
    new = on(LINUX, packages=newer, torch=NO_TORCH)
    old_driver = on(new, nvml={"driver": "560.35.03", "cuda": 12060})
    assert wheel_advice(old_driver).pip_args.startswith("torch==2.14.1+cu126 ")
    assert wheel_advice(new).pip_args.startswith("torch==2.15.0+cu130 ")


def test_an_installed_cuda_toolkit_changes_no_verdict_and_the_reason_says_so():
    with_nvcc = on(LINUX, platform={"nvcc": "11.5"})
    assert diagnosis_of(with_nvcc).checks == diagnosis_of(LINUX).checks
    assert wheel_advice(with_nvcc).pip == wheel_advice(LINUX).pip
    assert "nvcc 11.5) does not matter" in wheel_advice(with_nvcc).reason


def test_each_supported_torch_has_a_matching_triton_for_windows():
    wheels = [f"{pins(Access())['torch']}+cu130", *(f"{torch}+{tag}" for tag, torch in LAST_TORCH.items())]
    assert [triton_for_windows(torch) for torch in wheels] == [
        f"triton-windows=={triton}.*" for triton in ("3.7", "3.8", "3.6")
    ]
