import json
import shutil
from pathlib import Path

import pytest

from helpers.data.preparation import prepare
from helpers.data.run_data import is_same_text, refuse_missing
from helpers.paths import NOTEBOOKS
from helpers.settings import SettingsError, run_folder


def test_a_moved_file_or_model_is_the_same_text_and_another_one_is_not(tmp_path, text_file, tiny_settings):
    prepare(tiny_settings)
    model = shutil.copytree(tiny_settings.model_name_or_path, tmp_path / "model")
    assert is_same_text(tiny_settings.model_copy(update={"model_name_or_path": str(model)}))
    assert not is_same_text(tiny_settings.model_copy(update={"model_name_or_path": "pocket"}))
    moved = shutil.copy(text_file, tmp_path / "moved.txt")
    assert is_same_text(tiny_settings.model_copy(update={"source": str(moved)}))
    moved.write_text("Something else.")
    assert not is_same_text(tiny_settings.model_copy(update={"source": str(moved)}))
    assert not is_same_text(tiny_settings.model_copy(update={"source": "Salesforce/wikitext"}))
    assert not is_same_text(tiny_settings.model_copy(update={"test_share": 0.2}))


def test_a_setting_missing_from_the_recorded_ones_counts_as_its_default(tiny_settings):
    prepare(tiny_settings)
    path = run_folder(tiny_settings.run) / "data/data.json"
    facts = json.loads(path.read_text())
    del facts["settings"]["source"]
    path.write_text(json.dumps(facts))
    assert not is_same_text(tiny_settings)


def test_data_in_use_can_be_prepared_with_other_settings(tiny_settings):
    wide = prepare(tiny_settings)
    assert not wide.blocks["train"].cache_files, "Windows cannot replace a memory-mapped file"
    narrow = prepare(tiny_settings.model_copy(update={"block_size": 16}))
    assert [data.blocks["train"]["input_ids"][:].shape[1] for data in (wide, narrow)] == [32, 16]
    assert wide.documents["test"]["text"][:] == narrow.documents["test"]["text"][:]


def test_a_large_text_is_not_read_into_memory(tiny_settings, monkeypatch):
    monkeypatch.setattr("helpers.data.run_data._READ_BYTES", 1000)
    prepared = prepare(tiny_settings)
    assert all(part.cache_files for parts in (prepared.blocks, prepared.documents) for part in parts.values())


def test_a_prepared_run_no_longer_needs_its_text_file(tmp_path, text_file, tiny_settings):
    copy = shutil.copy(text_file, tmp_path / "copy.txt")
    settings = tiny_settings.model_copy(update={"source": str(copy)})
    before = prepare(settings).facts
    copy.unlink()
    assert prepare(settings).facts == before
    refuse_missing(settings.model_dump())
    with pytest.raises(SettingsError, match=r"copy\.txt' is not there"):
        refuse_missing(settings.model_dump() | {"run": "other"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "nowhere.txt"}, "is not there: looked for"),
        ({"general_source": "./nowhere"}, r"^general_source = './nowhere' cannot be read\. .*is not there: looked for"),
        ({"model_name_or_path": "mymodel"}, "is not there: looked for"),
        ({"model_name_or_path": "./my/model"}, "is not there: looked for"),
        ({"model_name_or_path": str(Path(__file__).parent)}, "not a model.s folder: it has no config.json"),
    ],
)
def test_a_missing_text_or_model_is_refused_before_anything_starts(values, words):
    with pytest.raises(SettingsError, match=words):
        refuse_missing(values)


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("source", "my_text/", "my_texts"),
        ("source", "my_text", "my_texts"),
        ("source", "fabels", "fables"),
        ("general_source", "python_reference", "python-reference"),
        ("model_name_or_path", "./my_text/model", "my_texts/model"),
        ("model_name_or_path", "pocet", "pocket"),
    ],
)
def test_a_misspelled_text_or_model_is_refused_with_a_suggestion(tmp_path, monkeypatch, name, written, meant):
    (tmp_path / "my_texts" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=rf"{name} = '{written}' .*; did you mean '{meant}'\?"):
        refuse_missing({name: written})


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "."])
def test_the_courses_own_files_are_refused_as_a_source(monkeypatch, name):
    monkeypatch.chdir(NOTEBOOKS.parent)
    with pytest.raises(SettingsError, match="is part of this course and not your text"):
        refuse_missing({"source": name})
