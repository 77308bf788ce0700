"""What the project requires, read from its own files."""

import sys

import pytest

from helpers.environment.requirements import pins, read_packages, version_number
from helpers.paths import ROOT

PYPROJECT = """
[project]
name = "gpt2-course"
dependencies = [
    "click>=8.1",
    "torch>=2.11",  # a comment
    "transformers>=5.17,<6",
]

[project.optional-dependencies]
gpu = ["nvidia-ml-py>=12.560"]
"""


@pytest.fixture
def project(make_access, tmp_path):
    access = make_access(
        version_of={"click": "8.2.0", "torch": "2.13.0", "nvidia-ml-py": "13.1"}.get,
        modules={"torch": type(sys)("torch"), "numpy": type("numpy", (), {"__version__": "2.1"})},
    )
    (tmp_path / "project" / "pyproject.toml").write_text(PYPROJECT)
    return access


def test_floors_are_read(project):
    assert read_packages(project).required == {"click": "8.1", "torch": "2.11", "transformers": "5.17"}


def test_installed_and_loaded_versions_are_reported(project):
    result = read_packages(project)
    assert result.installed == {"click": "8.2.0", "torch": "2.13.0", "nvidia-ml-py": "13.1"}
    assert result.loaded == {"numpy": "2.1"}  # the torch here has no version: it is half imported


def test_pins_are_read_from_the_constraints_file(project, tmp_path):
    assert pins(project) == {}
    (tmp_path / "project" / "constraints.txt").write_text("# comment\nclick==8.1.7\nnvidia-ml-py==13.615.71\n")
    assert pins(project) == {"click": "8.1.7", "nvidia-ml-py": "13.615.71"}


def test_requirements_match_those_of_a_toml_parser(make_access):
    tomllib = pytest.importorskip("tomllib")
    from packaging.requirements import Requirement

    required = read_packages(make_access(project=ROOT)).required
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert list(required) == [Requirement(line).name for line in declared]
    for requirement in map(Requirement, declared):
        assert f">={required[requirement.name]}" in map(str, requirement.specifier)


def test_no_toml_parser_is_needed(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib", None)  # Python 3.10: importing it is an error
    monkeypatch.setitem(sys.modules, "packaging", None)
    assert read_packages(project).required["torch"] == "2.11"


def test_without_pyproject_nothing_is_required(make_access):
    assert read_packages(make_access()).required == {}


@pytest.mark.parametrize(
    ("version", "number"),
    [("2.13.0+cu126", (2, 13)), ("5.17rc1", (5, 17)), ("6.0.0", (6,)), ("0", ()), ("banana", ()), ("", ())],
)
def test_version_number_reads_the_leading_numbers(version, number):
    assert version_number(version) == number
