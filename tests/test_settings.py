import os

import pytest
import yaml

from helpers import paths, settings
from helpers.paths import runs_folder
from helpers.settings import (
    DataSettings,
    EvaluationSettings,
    RunSettings,
    SettingsError,
    TrainingSettings,
    check_values,
    preset_names,
    read_preset,
    read_run_settings,
    run_folder,
)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 7}, ["learning_rate = 7", "above 0", "at most 0.1"]),
        ({"learning_rate": "fast"}, ["'fast'", "a number"]),
        ({"learning_rat": 1e-3}, ["'learning_rat'", "did you mean 'learning_rate'?"]),
        ({"mixed_precision": "bf8"}, ["'bf8'", "'auto', 'bf16', 'fp16', 'no'"]),
        ({"block_size": 7}, ["block_size = 7", "at least 8"]),
        ({"block_size": 8.5}, ["8.5", "a whole number"]),
        ({"from_scratch": "maybe"}, ["'maybe'", "true or false"]),
        ({"source": ""}, ["source = ''", "not empty"]),
    ],
)
def test_a_bad_value_is_answered_with_what_was_found_and_what_is_allowed(values, words):
    with pytest.raises(SettingsError) as error:
        TrainingSettings(**values)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "x" * 65, "nul", "COM1.txt", "end.", "-p", 7])
def test_a_run_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(SettingsError, match="run = "):
        RunSettings(run=name)


@pytest.mark.parametrize("name", ["pocket", "mine-2", "a.b_c", "007"])
def test_a_plain_run_name_is_a_folder_in_runs(name):
    assert run_folder(RunSettings(run=name).run).parent == runs_folder()


def test_two_faults_are_two_sentences():
    with pytest.raises(SettingsError) as error:
        TrainingSettings(learning_rate=-1, block_size=0)
    assert len(str(error.value).splitlines()) == 2


def test_a_setting_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().learning_rate = 1.0


@pytest.mark.parametrize("preset", ["pocket", "pocket-pretraining", "guide", "rtx-4070-ti", "8gb", "16gb"])
def test_a_preset_is_a_valid_papermill_parameter_file(preset):
    raw = yaml.safe_load((settings.PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert read_preset(preset) == raw, "a value changed its type: in YAML write 5.0e-5"
    assert TrainingSettings.from_preset(preset).run == preset


def test_the_guide_preset_holds_the_guides_values():
    guide = TrainingSettings.from_preset("guide")
    assert (guide.block_size, guide.per_device_train_batch_size, guide.gradient_accumulation_steps) == (512, 4, 4)
    assert (guide.num_train_epochs, guide.learning_rate, guide.weight_decay) == (3, 5e-5, 0.01)
    assert guide.mixed_precision == "fp16"


def test_the_presets_for_gpus_share_one_effective_batch():
    batches = {
        TrainingSettings.from_preset(name).effective_batch_size for name in preset_names() if "pocket" not in name
    }
    assert batches == {16}


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'guide'"):
        read_preset("gide")


def test_text_from_the_command_line_takes_the_settings_type():
    assert check_values({"learning_rate": "3e-4", "run": "007", "top_k": "5"}) == {
        "learning_rate": 3e-4,
        "run": "007",
        "top_k": 5,
    }


def test_an_unknown_name_on_the_command_line_is_refused():
    with pytest.raises(SettingsError, match="did you mean 'stride'"):
        check_values({"strid": 3})


@pytest.mark.parametrize("name", ["lora_r", "num_train_epochs"])
def test_a_truth_value_is_no_number(name):
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed: it must be a .*number"):
        TrainingSettings(**{name: True})
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed"):
        check_values({name: True})  # as in a study file


def test_a_notebook_gives_its_variables_and_nothing_else():
    namespace = {"run": "mine", "block_size": 64, "math": object(), "In": ["", "x = 1"]}
    result = DataSettings.from_notebook(namespace)
    assert (result.run, result.block_size, result.seed) == ("mine", 64, DataSettings().seed)


def test_a_name_that_papermill_injected_and_nobody_knows_is_an_error():
    namespace = {"blok_size": 64, "In": ["", "# Parameters\nblok_size = 64\n"]}
    with pytest.raises(SettingsError, match="did you mean 'block_size'"):
        DataSettings.from_notebook(namespace)


def test_a_setting_of_another_notebook_is_named_as_one():
    namespace = {"learning_rate": 1e-3, "In": ["", "# Parameters\nlearning_rate = 1e-3\n"]}
    with pytest.raises(SettingsError, match="learning_rate is a setting of another notebook"):
        DataSettings.from_notebook(namespace)


def test_a_part_takes_only_what_it_declares():
    part = TrainingSettings(run="mine", block_size=64).part(DataSettings)
    assert type(part) is DataSettings
    assert (part.run, part.block_size) == ("mine", 64)


def test_every_setting_has_help_and_is_shown_escaped():
    shown = EvaluationSettings(prompt="<script>alert(1)</script>")
    assert all(row["help"] for row in shown.rows() + TrainingSettings().rows())
    assert "<script>" not in shown._repr_html_()


def test_a_run_that_is_not_there_is_said_so():
    with pytest.raises(SettingsError, match="There is no run 'mine'"):
        read_run_settings("mine")


def test_a_run_of_another_version_is_named_as_one(runs):
    (runs / "mine").mkdir(parents=True)
    (runs / "mine/settings.json").write_text('{"settings": {"run": "mine", "future": 3}}')
    with pytest.raises(SettingsError, match="of another version of this course, which has the settings future"):
        read_run_settings("mine")
    (runs / "mine/settings.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"settings.json is damaged \(it holds no settings\)"):
        read_run_settings("mine")


def test_runs_stand_beside_the_notebooks_unless_moved(monkeypatch):
    monkeypatch.delenv("COURSE_RUNS")
    assert runs_folder() == paths.ROOT / "runs"


def test_runs_can_be_moved_into_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("COURSE_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"


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


@pytest.mark.skipif(os.name == "nt", reason="there a drive letter is a path like any other")
@pytest.mark.parametrize("written", [r"C:\texts\a b.txt", "c:/texts/a b.txt"])
def test_a_windows_path_is_looked_for_on_the_mounted_drive(monkeypatch, written):
    monkeypatch.setattr(paths.os.path, "lexists", lambda path: path == "/mnt/c/texts/a b.txt")
    assert str(paths.find_path(written)) == "/mnt/c/texts/a b.txt"
