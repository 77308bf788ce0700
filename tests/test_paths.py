import ast
import os
import re
import runpy
import stat
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from helpers import paths
from helpers.paths import is_hidden, is_same_place, runs_folder
from helpers.settings import (
    EvaluationSettings,
    TrainingSettings,
)


@pytest.mark.parametrize(
    ("platform", "conda", "python"),
    [("linux", "", "python3"), ("linux", "/conda", "python3"), ("win32", "", "py"), ("win32", "C:/conda", "python")],
)
def test_a_printed_command_starts_with_a_python_that_the_system_has(monkeypatch, platform, conda, python):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    if conda:
        monkeypatch.setenv("CONDA_PREFIX", conda)
    assert runpy.run_path(paths.__file__)["COMMAND"] == f"{python} -m helpers"


def test_no_message_has_a_start_of_its_own():
    own = ("fixes.py", "known_failures.py")  # conda's; and the one that writes COMMAND into the file below
    messages = [
        node.value
        for path in (paths.ROOT / "helpers").rglob("*.py")
        if path.name not in own
        for parent in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if not isinstance(parent, ast.Expr)  # a docstring
        for node in ast.iter_child_nodes(parent)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(messages) > 1000
    assert [text for text in messages if re.search(r"\bpython3? -m helpers\b", text)] == []
    assert "python -m helpers" not in (paths.ASSETS / "failures.yaml").read_text(encoding="utf-8")


def test_runs_stand_beside_the_notebooks_unless_moved(monkeypatch):
    monkeypatch.delenv("COURSE_RUNS")
    assert runs_folder() == paths.ROOT / "runs"


def test_runs_can_be_moved_into_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("COURSE_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"


@pytest.mark.parametrize("written", ['"/data/all runs"', "/data/all runs "])
def test_quotation_marks_and_spaces_that_a_shell_leaves_around_the_folder_of_runs_are_no_part_of_it(written):
    assert runs_folder({"COURSE_RUNS": written}) == runs_folder({"COURSE_RUNS": "/data/all runs"})


def test_the_folder_of_runs_is_the_same_from_each_notebook_where_it_begins_in_a_drives_current_folder():
    assert runs_folder({"COURSE_RUNS": "C:runs"}).is_absolute()


def test_a_wheel_without_notebooks_keeps_runs_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_folder(project=tmp_path / "site-packages") == tmp_path / "runs"


@pytest.mark.parametrize("written", ["mine.txt", "./mine.txt", "more/../mine.txt", "~/mine.txt"])
def test_a_path_means_the_callers_folder_and_stays_the_same_file_everywhere(tmp_path, monkeypatch, written):
    (tmp_path / "mine.txt").write_text("words")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    values = TrainingSettings(source=written, model_name_or_path=written).model_dump()
    assert values["source"] == values["model_name_or_path"] == str(tmp_path / "mine.txt")
    assert EvaluationSettings(general_source=written).general_source == str(tmp_path / "mine.txt")


def test_what_is_not_there_and_what_is_shipped_keeps_its_name(tmp_path, monkeypatch):
    for name in ("fables", "pocket"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    names = TrainingSettings(source="Salesforce/wikitext"), TrainingSettings()
    assert [chosen.source for chosen in names] == ["Salesforce/wikitext", "fables"]
    assert names[1].model_name_or_path == "pocket"


def test_a_notebook_in_its_own_folder_also_finds_what_is_next_to_it(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mine.txt").write_text("words")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert paths.find_path("mine.txt") is None, "no other folder is searched"
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    assert paths.find_path("mine.txt") == tmp_path / "mine.txt"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("my_text", ["my_texts"]),
        ("./my_text/", ["my_texts"]),
        ("my_text/a.txt", ["my_texts/a.txt"]),
        ("my_texts/b.txt", ["my_texts/a.txt"]),
        ("~/my_texts/aa.txt", ["~/my_texts/a.txt"]),
        ("my_text/none.txt", []),
        ("nothing/alike", []),
        ("my_texts", []),
        ("pocet", ["pocket"]),
        ("x" * 300, []),
    ],
)
def test_what_may_be_meant_by_a_misspelled_path_is_next_to_it(tmp_path, monkeypatch, written, meant):
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "a.txt").touch()
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.similar_paths(written, ("pocket", "fables")) == meant
    monkeypatch.chdir(tmp_path.parent)
    absolute = (tmp_path / "my_text").as_posix()
    assert paths.similar_paths(absolute) == [f"{absolute}s"]


@pytest.mark.skipif(os.name == "nt", reason="there a drive letter is a path like any other")
@pytest.mark.parametrize("written", [r"C:\texts\a b.txt", "c:/texts/a b.txt"])
def test_a_windows_path_means_the_mounted_drive(monkeypatch, written):
    monkeypatch.setattr(paths.os.path, "lexists", lambda path: str(path) == "/mnt/c/texts/a b.txt")
    assert str(paths.find_path(written)) == "/mnt/c/texts/a b.txt"
    assert str(runs_folder({"COURSE_RUNS": written})) == "/mnt/c/texts/a b.txt"


@pytest.mark.parametrize(
    ("before", "is_same"),
    [(r"c:\Texts\a.txt", True), (r"texts\A.txt", True), (r"D:\texts\a.txt", False), ("b.txt", False)],
)
def test_windows_writes_the_same_place_in_upper_or_lower_case(monkeypatch, before, is_same):
    monkeypatch.setattr("helpers.paths.Path", PureWindowsPath)
    assert is_same_place(before, r"C:\texts\a.txt") is is_same


def test_what_was_looked_for_is_named_once_if_it_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.setattr("helpers.paths.NOTEBOOKS", notebooks)
    monkeypatch.chdir(notebooks)
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path / "home"))
    assert paths.paths_of("a.txt") == [notebooks / "a.txt", tmp_path / "a.txt"]
    assert paths.paths_of("~/a.txt") == [tmp_path / "home" / "a.txt"]
    assert paths.paths_of(str(tmp_path / "a.txt")) == [tmp_path / "a.txt"]


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("a.txt", {}, False),
        (".env", {}, True),
        ("a.txt", {"st_file_attributes": stat.FILE_ATTRIBUTE_ARCHIVE}, False),
        ("My Music", {"st_file_attributes": stat.FILE_ATTRIBUTE_HIDDEN | stat.FILE_ATTRIBUTE_REPARSE_POINT}, True),
    ],
)
def test_a_dot_hides_a_file_and_on_windows_an_attribute_too(monkeypatch, name, attributes, expected):
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(**attributes))
    assert is_hidden(Path(name)) == expected
