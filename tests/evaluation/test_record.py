import json

import pytest

from helpers.evaluation import record as figures
from helpers.settings import SettingsError, run_folder


@pytest.fixture
def folder():
    path = run_folder("mine")
    path.mkdir(parents=True)
    return path


def test_a_section_is_kept_beside_the_others(folder):
    figures.keep("mine", "test", {"a": 1})
    figures.keep("mine", "speech", {"b": 2})
    figures.keep("mine", "test", {"a": 3})
    assert figures.read("mine") == {
        "version": 1, "run": "mine", "test": {"a": 3}, "forgetting": None, "copying": None, "speech": {"b": 2}
    }  # fmt: skip


def test_a_figure_that_is_no_number_leaves_what_was_there(folder):
    figures.keep("mine", "test", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        figures.keep("mine", "test", {"a": float("nan")})
    assert figures.read("mine")["test"] == {"a": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": 1, "run"', "cannot be read: run notebook 04"),
        ("[]", "cannot be read: run notebook 04"),
        ('{"test": []}', "cannot be read: run notebook 04"),
        ('{"version": 7}', "is of version 7, and this course reads version 1"),
    ],
)
def test_a_file_that_is_broken_or_of_another_version_is_said_so_and_replaced(folder, content, words):
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(SettingsError, match=words):
        figures.read("mine")
    figures.keep("mine", "test", {"a": 1})
    assert json.loads((folder / "evaluation.json").read_text())["test"] == {"a": 1}


def test_a_run_that_was_not_evaluated_is_said_so():
    with pytest.raises(SettingsError, match="'mine' has not been evaluated"):
        figures.read("mine")
