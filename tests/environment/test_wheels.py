"""Which wheel is advised, and its reason."""

from dataclasses import replace

import pytest

from helpers.environment.report import diagnosis_of
from helpers.environment.wheels import wheel_advice
from tests.environment.baselines import CONDA, LINUX, WINDOWS, WSL2, on


@pytest.mark.parametrize(
    ("base", "older", "first"),
    [(LINUX, "525.60.12", "525.60.13"), (WINDOWS, "528.32", "528.33"), (WSL2, "528.32", "528.33")],
)
def test_the_floor_of_cuda_12_is_the_platforms_own(base, older, first):
    tags = [
        wheel_advice(on(base, nvml={"driver": driver, "cuda": None})).tag for driver in (older, first, "579.99", "580")
    ]
    assert tags == ["cpu", "cu126", "cu126", "cu130"]


def test_the_wheel_of_a_venv_and_of_conda_is_the_same_by_the_right_pip():
    venv, conda = wheel_advice(LINUX), wheel_advice(CONDA)
    wheel = "-m pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
    assert venv.pip == f"/course/.venv/bin/python {wheel}"
    assert venv.conda == f"conda run -n gpt2-course python {wheel}"
    assert conda.pip == conda.conda == f"/opt/conda/envs/gpt2-course/bin/python {wheel}"
    assert "conda channel ended" in conda.reason
    assert "conda" not in venv.reason
    assert wheel_advice(on(LINUX, platform={"kind": "macOS"})).pip_args == "torch==2.13.0"
    assert venv.pip_args == conda.pip_args == wheel.removeprefix("-m pip install ")


def test_the_last_torch_with_a_cuda_12_wheel_is_named_where_the_pin_is_newer():
    packages = replace(LINUX.packages, pinned={"torch": "2.15.0"})
    old_driver = on(LINUX, packages=packages, nvml={"driver": "560.35.03", "cuda": 12060})
    assert wheel_advice(old_driver).pip_args.startswith("torch==2.14.1+cu126 ")
    assert wheel_advice(on(LINUX, packages=packages)).pip_args.startswith("torch==2.15.0+cu130 ")


def test_a_toolkit_changes_no_verdict_and_the_reason_says_why():
    with_nvcc = on(LINUX, platform={"nvcc": "11.5"})
    assert diagnosis_of(with_nvcc).checks == diagnosis_of(LINUX).checks
    assert wheel_advice(with_nvcc).pip == wheel_advice(LINUX).pip
    assert "nvcc 11.5) does not matter" in wheel_advice(with_nvcc).reason
