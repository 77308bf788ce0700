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
def test_printed_commands_start_with_the_platforms_python(monkeypatch, platform, conda, python):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    if conda:
        monkeypatch.setenv("CONDA_PREFIX", conda)
    assert runpy.run_path(paths.__file__)["COMMAND"] == f"{python} -m helpers"


def test_messages_use_command_instead_of_a_hard_coded_python():
    own = ("fixes.py", "known_failures.py")  # conda's command; and the one that writes COMMAND into the file below
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


def test_runs_are_next_to_the_notebooks_by_default(monkeypatch):
    monkeypatch.delenv("COURSE_RUNS")
    assert runs_folder() == paths.ROOT / "runs"


def test_runs_can_be_moved_into_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("COURSE_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"


@pytest.mark.parametrize("written", ['"/data/all runs"', "/data/all runs "])
def test_quotes_and_spaces_around_the_runs_folder_are_dropped(written):
    assert runs_folder({"COURSE_RUNS": written}) == runs_folder({"COURSE_RUNS": "/data/all runs"})


def test_a_runs_folder_relative_to_a_drive_becomes_absolute():
    assert runs_folder({"COURSE_RUNS": "C:runs"}).is_absolute()


def test_a_wheel_without_notebooks_keeps_runs_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_folder(project=tmp_path / "site-packages") == tmp_path / "runs"


@pytest.mark.parametrize("written", ["mine.txt", "./mine.txt", "more/../mine.txt", "~/mine.txt"])
def test_a_relative_path_is_resolved_in_the_callers_folder(tmp_path, monkeypatch, written):
    (tmp_path / "mine.txt").write_text("words")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    values = TrainingSettings(source=written, model_name_or_path=written).model_dump()
    assert values["source"] == values["model_name_or_path"] == str(tmp_path / "mine.txt")
    assert EvaluationSettings(general_source=written).general_source == str(tmp_path / "mine.txt")


def test_hub_names_and_shipped_names_are_not_resolved_as_paths(tmp_path, monkeypatch):
    for name in ("fables", "pocket"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    names = TrainingSettings(source="Salesforce/wikitext"), TrainingSettings()
    assert [chosen.source for chosen in names] == ["Salesforce/wikitext", "fables"]
    assert names[1].model_name_or_path == "pocket"


def test_a_notebook_in_its_own_folder_also_finds_files_in_the_parent_folder(tmp_path, monkeypatch):
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
def test_similar_paths_are_suggested_for_a_misspelled_one(tmp_path, monkeypatch, written, meant):
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "a.txt").touch()
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.similar_paths(written, ("pocket", "fables")) == meant
    monkeypatch.chdir(tmp_path.parent)
    absolute = (tmp_path / "my_text").as_posix()
    assert paths.similar_paths(absolute) == [f"{absolute}s"]


@pytest.mark.skipif(os.name == "nt", reason="on Windows such a path is used as it is")
@pytest.mark.parametrize("written", [r"C:\texts\a b.txt", "c:/texts/a b.txt"])
def test_a_windows_path_is_mapped_to_the_mounted_drive(monkeypatch, written):
    monkeypatch.setattr(paths.os.path, "lexists", lambda path: str(path) == "/mnt/c/texts/a b.txt")
    assert str(paths.find_path(written)) == "/mnt/c/texts/a b.txt"
    assert str(runs_folder({"COURSE_RUNS": written})) == "/mnt/c/texts/a b.txt"


@pytest.mark.parametrize(
    ("before", "is_same"),
    [(r"c:\Texts\a.txt", True), (r"texts\A.txt", True), (r"D:\texts\a.txt", False), ("b.txt", False)],
)
def test_windows_paths_are_compared_without_case(monkeypatch, before, is_same):
    monkeypatch.setattr("helpers.paths.Path", PureWindowsPath)
    assert is_same_place(before, r"C:\texts\a.txt") is is_same


def test_paths_of_gives_two_places_for_a_relative_path_and_one_for_an_absolute_one(tmp_path, monkeypatch):
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
def test_a_leading_dot_or_the_windows_attribute_hides_a_file(monkeypatch, name, attributes, expected):
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(**attributes))
    assert is_hidden(Path(name)) == expected
