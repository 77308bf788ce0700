from pathlib import Path

import pytest

from helpers.settings import SettingsError
from helpers.studies.study_file import STUDIES, find_study, read_study
from tests.studies.conftest import error_of


def test_text_is_converted_to_the_type_of_its_setting(tmp_path, cheap_notebook):
    path = tmp_path / "a.yaml"
    path.write_text(f"vary:\n  learning_rate: [3e-4, 1e-3]\nnotebooks: [{cheap_notebook}]\n")  # YAML reads text here
    assert read_study(path).vary["learning_rate"] == [3e-4, 1e-3]
    assert read_study(path).study == "a"


def test_a_notebook_can_be_given_as_a_number(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("vary: {learning_rate: [0.001]}\nnotebooks: [3, 04]\n")
    assert read_study(path).notebooks == ["03", "04"]


def test_a_storage_address_can_contain_an_environment_variable(study_file, monkeypatch):
    monkeypatch.setenv("PASSWORD", "secret")
    assert read_study(study_file(storage="postgresql+psycopg://me:${PASSWORD}@h/d")).storage.endswith("secret@h/d")


def test_a_relative_sqlite_path_is_relative_to_the_study_file(study_file, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = f"sqlite:///{tmp_path.as_posix()}/study.db?timeout=9"
    for address in ("sqlite:///study.db?timeout=9", absolute):
        assert read_study(study_file(storage=address)).storage == absolute


BAD = """\
study: "../x"
preset: poket
settings:
  run: other
  blok_size: 64
vary:
  learning_rate: [3.0e-4, 7]
  weight_decay: {low: 0.5, high: 0.1}
  warmup_steps: {low: 0, high: 1, scale: log}
  optimiser: [adam]
  source: {low: 1, high: 2}
  num_train_epochs: {low: 1}
  seed: 3
  max_grad_norm: [1.0, 1.0]
  block_size: {low: 8, hihg: 64}
notebooks: ["03"]
budgets:
  trial: 3
  hours: -1
prune: maybe
optimise: los
storag: x
source: mine.txt
"""
WORDS = {
    "study": "not a plain name",
    "preset": "did you mean 'pocket'?",
    "settings.run": "A study cannot set `run`",
    "settings.blok_size": "did you mean 'block_size'?",
    "vary.learning_rate.1": "learning_rate = 7 is not allowed: it must be a number, above 0, at most 0.1",
    "vary.weight_decay": "low must be below high",
    "vary.warmup_steps": "on a log scale it must begin above 0",
    "vary.optimiser": "There is no setting 'optimiser'",
    "vary.source": "source has no range: it must be text",
    "vary.num_train_epochs.high": "The range of num_train_epochs lacks high",
    "vary.seed": "seed = 3 is not allowed: it must be a list of values, or a range with low and high",
    "vary.max_grad_norm": "max_grad_norm has the same value twice",
    "vary.block_size.hihg": "There is no 'hihg' here; did you mean 'high'?",
    "budgets.trial": "There is no 'trial' here; did you mean 'trials'?",
    "budgets.hours": "hours = -1 is not allowed: it must be a number, at least 0",
    "prune": "prune = 'maybe' is not allowed: it must be true or false",
    "optimise": "optimise = 'los' is not allowed: it must be one of 'perplexity', 'bits_per_byte', 'eval_loss'",
    "source": "source is a setting of the runs: write it under `settings`",
    "storag": "A study has no 'storag'; did you mean 'storage'?",
}


def test_each_error_is_reported_with_its_location(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD, encoding="utf-8")
    faults = {}
    for line in error_of(path).splitlines():
        where, _, sentence = line.partition(": ")
        faults.setdefault(where.removeprefix("bad.yaml, "), []).append(sentence)
    assert {place for place in WORDS if not any(WORDS[place] in fault for fault in faults.get(place, []))} == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vary: [1", "bad.yaml, line 1: this cannot be read as YAML"),
        ("a: 1\nb: {\n", "cannot be read as YAML"),
        ("- 1\n", "a study is a mapping"),
        ("", "a study is a mapping"),
        ("preset: pocket\n", "`vary` names no setting"),
        ("vary: 3\n", "vary = 3 is not allowed"),
        ("vary: {seed: []}\n", "seed = [] is not allowed"),
        ("vary: {seed: [1]}\nnotebooks: 3\n", "notebooks = 3 is not allowed"),
        ('vary: {seed: [1]}\nnotebooks: ["09"]\n', "There is no notebook '09'"),
        ("vary: {seed: [1]}\nbudgets: 3\n", "budgets = 3 is not allowed"),
        ("vary: {seed: [1]}\nsettings: [1]\n", "settings = [1] is not allowed"),
        ("vary: {1: [1]}\n", "There is no setting '1'"),
        ("vary: {run: [a, b]}\n", "A study cannot set `run`"),
        ("vary: {seed: [1]}\nsettings:\n  seed: 1\n", "vary.seed: seed is also under `settings`"),
        ("vary: {seed: [1]}\npreset: pocket\nvary: {seed: [2]}\n", "'vary' is set twice, keep one of the two"),
        ("vary:\n  seed: [1]\n  seed: [2]\n", "'seed' is set twice, keep one of the two"),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\nvary: {source: *b}\n",
            "line 2: this cannot be read as YAML (an alias (*name) is not allowed",
        ),
        ('vary:\n  source: ["C:\\Users\\me"]\n', "line 2: this cannot be read as YAML (expected escape sequence"),
        ('vary: {source: ["C:\\Daten"]}\n', "in double quotes write / instead"),
        ("study: 2026-13-01\nvary: {seed: [1]}\n", "this cannot be read as YAML (month must be in 1..12"),
        (f"vary: {'[' * 5000}\n", "this cannot be read as YAML (maximum recursion depth exceeded"),
        ("vary: {stride: [3]}\nnotebooks: [3]\n", "vary.stride: None of the notebooks 03 takes 'stride'"),
        ("vary: {learning_rate: [0.001, 1e-3]}\n", "vary.learning_rate: learning_rate has the same value twice"),
    ],
)
def test_an_invalid_study_file_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    sentence = error_of(path)
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "source: C:\\Müller".encode("cp1252"), b"a: \x00"])
def test_a_file_that_is_not_utf_8_text_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "bad.yaml").write_bytes(content)
    sentence = error_of(tmp_path / "bad.yaml")
    assert sentence.startswith("bad.yaml: this cannot be read as YAML")
    assert "save the file as UTF-8" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_with_or_without_a_bom_and_utf_16_are_read(tmp_path, encoding):
    text = "settings: {sample_prompt: Füchse}\r\nvary: {seed: [1]}\r\n"
    (tmp_path / "mine.yaml").write_bytes(text.encode(encoding))
    assert read_study(tmp_path / "mine.yaml").settings == {"sample_prompt": "Füchse"}


def test_a_file_whose_name_is_invalid_can_set_another_study_name(tmp_path, cheap_notebook):
    path = tmp_path / "my study.yaml"
    text = f"vary: {{learning_rate: [0.001]}}\nnotebooks: [{cheap_notebook}]\n"
    path.write_text(text)
    assert "'my study' is not a plain name" in error_of(path)
    assert error_of(path).endswith("rename the file, or set `study:` in it.")
    path.write_text(f"study: renamed\n{text}")
    assert read_study(path).study == "renamed"


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": [*range(3000)]},
        {"preset": "x" * 5000},
        {"settings": {"x" * 5000: 1}},
        {"settings": {"seed": "x" * 5000}},
        {"vary": {"learning_rate": "x" * 5000}},
        {"vary": {"learning_rate": {"low": "x" * 5000, "high": 1}}},
        {"vary": {"learning_rate": [*range(3000)]}},
        {"notebooks": [{"a": "x" * 5000}]},
        {"study": "x" * 5000},
        {"x" * 5000: 1},
    ],
)
def test_an_error_shortens_a_long_value(study_file, changes):
    assert 0 < len(error_of(study_file(**changes))) < 8000


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_study_is_valid_and_found_by_name(path):
    assert find_study(path.stem) == path
    assert read_study(path).points


@pytest.mark.parametrize(
    ("name", "meant"),
    [("raets", "did you mean 'rates'"), ("min.yaml", "did you mean 'mine.yaml'"), ("x", "there are rates, s")],
)
def test_the_error_for_an_unknown_study_suggests_similar_names(name, meant, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"There is no study file '{name}'; {meant}"):
        find_study(name)
    assert find_study(str(STUDIES / "rates.yaml")) == Path(STUDIES / "rates.yaml")


def test_a_path_is_resolved_from_the_study_files_folder_then_from_the_current_one(study_file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("a.txt", "here/a.txt", "here/b.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    over = ["a.txt", "b.txt"]
    file = study_file(notebooks=["03"], settings={"source": "a.txt"}, vary={"model_name_or_path": over})
    study = read_study(file)
    assert study.settings == {"source": str(tmp_path / "a.txt")}
    assert study.vary["model_name_or_path"] == [str(tmp_path / "a.txt"), str(tmp_path / "here/b.txt")]
