import json
import subprocess
import sys

import pytest
import torch

from helpers import environment
from helpers.environment import Check, Diagnosis, diagnose, preset_for


def reading(identity):
    return next(check for check in diagnose().checks if check.id == identity)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "driver_version", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)


def test_a_machine_without_a_gpu_can_take_the_course(no_gpu):
    diagnosis = diagnose()
    assert diagnosis.exit_code == 0
    assert diagnosis.verdict.startswith("CPU course mode")


def test_a_cpu_wheel_on_a_machine_with_a_card_fails_with_the_command_that_mends_it(no_gpu, monkeypatch):
    monkeypatch.setattr(environment, "driver_version", lambda: "560.35.03")
    diagnosis = diagnose()
    check = diagnosis.checks[0]
    assert (check.id, check.status) == ("torch_build", "fail")
    assert "--index-url https://download.pytorch.org/whl/cu126" in check.fix
    assert diagnosis.exit_code == 1
    assert "torch_build" in diagnosis.verdict


@pytest.mark.parametrize(("version", "status"), [("524.99", "fail"), ("525.60.13", "ok"), ("580.65.06", "ok")])
def test_the_driver_must_be_new_enough_for_cuda_12(no_gpu, monkeypatch, version, status):
    monkeypatch.setattr(environment, "driver_version", lambda: version)
    assert reading("driver").status == status


def test_a_hidden_card_is_found_out(no_gpu, monkeypatch):
    monkeypatch.setattr(environment, "driver_version", lambda: "560.35.03")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    check = reading("gpu")
    assert check.status == "fail"
    assert "Unset CUDA_VISIBLE_DEVICES" in check.fix


def test_a_working_card_is_named_with_its_preset(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 1024**3, 12 * 1024**3 - 10**8))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 4070 Ti")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(environment, "driver_version", lambda: "560.35.03")
    diagnosis = diagnose()
    assert diagnosis.verdict == "Ready to train on the GPU."
    assert "preset rtx-4070-ti" in reading("gpu").reading


@pytest.mark.parametrize(
    ("gib", "preset"), [(4, "pocket"), (6, "pocket"), (8, "8gb"), (12, "rtx-4070-ti"), (16, "16gb"), (24, "16gb")]
)
def test_the_preset_is_chosen_by_bytes(gib, preset):
    assert preset_for(gib * 1024**3 - 3 * 10**8) == preset


def test_a_missing_package_is_a_finding(monkeypatch):
    monkeypatch.setattr(environment, "_NEEDED", ("torch", "no-such-package"))
    check = reading("packages")
    assert (check.status, check.reading) == ("fail", "missing: no-such-package")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")]
)
def test_python_must_be_one_that_is_tested(monkeypatch, version, status):
    monkeypatch.setattr(environment.sys, "version_info", (*version, 0))
    assert environment._python().status == status


def test_a_broken_torch_is_unknown_with_its_cause_and_no_traceback(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    check = reading("torch_build")
    assert check.status == "unknown"
    assert "torch" in check.reading


def test_a_full_disk_is_warned_of(monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    assert reading("disk").status == "warn"


def test_nvidia_smi_that_fails_does_not_stop_the_doctor(monkeypatch):
    def broken():
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(environment, "driver_version", broken)
    assert reading("driver").status == "unknown"


@pytest.mark.parametrize(
    ("system", "release", "kind"),
    [("Linux", "6.1", "Linux"), ("Linux", "5.15-microsoft-standard-WSL2", "WSL2"), ("Windows", "11", "Windows"),
     ("Darwin", "23", "macOS")],
)  # fmt: skip
def test_the_platform_is_told_apart(monkeypatch, system, release, kind):
    monkeypatch.setattr(environment.platform, "system", lambda: system)
    monkeypatch.setattr(environment.platform, "release", lambda: release)
    assert environment.platform_kind() == kind


def test_the_worst_stands_first_and_the_table_is_escaped():
    bad = Diagnosis([Check("a", "fail", "<b>", "why", "fix"), Check("gpu", "ok", "x", "why")])
    assert "<b></td>" not in bad._repr_html_()
    assert "&lt;b&gt;" in bad._repr_html_()
    assert json.loads(json.dumps(bad.to_dict()))["checks"][0]["status"] == "fail"
    order = ["fail", "unknown", "warn", "ok"]
    statuses = [order.index(check.status) for check in diagnose().checks]
    assert statuses == sorted(statuses)
