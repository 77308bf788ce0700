"""Simulated Colab and Kaggle sessions; these tests never ran on the real services."""

import os
import sys
import types
from dataclasses import replace

import pytest

from helpers.environment import host
from helpers.environment.host import hosted_by, prepare_host
from tests.environment.baselines import LINUX, packages


@pytest.fixture
def installed(monkeypatch):
    """Make every installation succeed at once; return the options it was called with."""
    calls = []
    monkeypatch.setattr(host, "install", lambda **options: calls.append(options))
    monkeypatch.setattr(host, "read_machine", lambda quick: replace(LINUX, quick=quick))
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def colab(installed, monkeypatch):
    """Simulate Colab; return the list of mounted folders (with "refuse" in it, mounting fails)."""
    mounted = []

    def mount(folder):
        if mounted == ["refuse"]:
            raise ValueError("mount failed")
        mounted.append(folder)

    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    monkeypatch.setitem(sys.modules, "google.colab.drive", types.SimpleNamespace(mount=mount))
    return mounted


@pytest.mark.parametrize(
    ("env", "name"), [({"COLAB_RELEASE_TAG": "x"}, "Colab"), ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "Kaggle"), ({}, "")]
)
def test_a_host_is_recognised_by_its_environment_variables(env, name):
    assert hosted_by(env) == name


def test_other_machines_are_left_unchanged(installed):
    before = os.environ["COURSE_RUNS"]
    assert "nothing to do" in prepare_host()
    assert (installed, os.environ["COURSE_RUNS"]) == ([], before)


def test_colab_keeps_runs_on_drive(colab, installed):
    assert "on your Drive" in prepare_host()
    assert colab == ["/content/drive"]
    assert os.environ["COURSE_RUNS"] == "/content/drive/MyDrive/gpt2-course/runs"
    assert installed == [{"here": True}]


def test_without_drive_a_warning_says_that_runs_will_be_lost(colab, installed):
    colab.append("refuse")
    assert "Drive is not available (mount failed)" in (warning := prepare_host())
    assert "lost when the session ends" in warning
    assert os.environ["COURSE_RUNS"] == "/content/runs"


def test_kaggle_keeps_runs_in_its_output(installed, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "/kaggle/working/runs" in prepare_host()
    assert os.environ["COURSE_RUNS"] == "/kaggle/working/runs"


def test_replacing_a_loaded_package_asks_for_a_restart(colab, monkeypatch):
    machine = replace(LINUX, packages=packages(loaded={"numpy": "2.0.2"}))
    monkeypatch.setattr(host, "read_machine", lambda quick: machine)
    assert "Restart the session before you go on: numpy 2.0.2 is loaded, 2.4.6 is installed." in prepare_host()
