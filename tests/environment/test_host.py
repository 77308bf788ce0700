"""Simulated sessions of Colab and Kaggle: neither was seen by these tests."""

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
    """Let an installation succeed at once; return what was asked of it."""
    asked = []
    monkeypatch.setattr(host, "install", lambda **options: asked.append(options))
    monkeypatch.setattr(host, "read_machine", lambda quick: replace(LINUX, quick=quick))
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.fixture
def colab(installed, monkeypatch):
    """Make this Colab; return the folders that are mounted, or an error to raise instead."""
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
def test_a_host_is_known_by_its_variables(env, name):
    assert hosted_by(env) == name


def test_any_other_machine_is_left_alone(installed):
    before = os.environ["COURSE_RUNS"]
    assert "nothing to do" in prepare_host()
    assert (installed, os.environ["COURSE_RUNS"]) == ([], before)


def test_colab_keeps_runs_on_drive(colab, installed):
    assert "on your Drive" in prepare_host()
    assert colab == ["/content/drive"]
    assert os.environ["COURSE_RUNS"] == "/content/drive/MyDrive/gpt2-course/runs"
    assert installed == [{"here": True}]


def test_without_drive_runs_are_said_to_be_lost(colab, installed):
    colab.append("refuse")
    assert "Drive is not available (mount failed)" in (said := prepare_host())
    assert "lost when the session ends" in said
    assert os.environ["COURSE_RUNS"] == "/content/runs"


def test_kaggle_keeps_runs_in_its_output(installed, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "/kaggle/working/runs" in prepare_host()
    assert os.environ["COURSE_RUNS"] == "/kaggle/working/runs"


def test_a_package_that_was_replaced_while_loaded_asks_for_a_restart(colab, monkeypatch):
    machine = replace(LINUX, packages=packages(loaded={"numpy": "2.0.2"}))
    monkeypatch.setattr(host, "read_machine", lambda quick: machine)
    assert "Restart the session before you go on: numpy 2.0.2 is loaded, 2.4.6 is installed." in prepare_host()
