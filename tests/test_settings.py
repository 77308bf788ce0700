import re
import sys

import pytest
import yaml

from helpers import files
from helpers.paths import runs_folder
from helpers.settings import (
    PRESETS,
    EvaluationSettings,
    RunSettings,
    SettingsError,
    TrainingSettings,
    check_values,
    describe_without_effect,
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
        ({"encoding": "undefined"}, ["encoding = 'undefined'", "is not an encoding that Python knows"]),
        ({"sample_prompt": "x" * 1001}, ["sample_prompt = 'xxx", "x…", "at most 1000 characters"]),
        ({"document_separator": "pattern:a{9999999999}"}, ["broken regular expression", "repetition number"]),
        ({"document_separator": "pattern:" + "(" * 5000}, ["broken regular expression", "recursion"]),
        ({"source": "C:\texts\new"}, [r"source = 'C:\texts\new' does not exist", "Write / instead of"]),
        ({"model_name_or_path": "D:\2024"}, ["does not exist, and contains a control character"]),
        ({"source": 'D:\\my texts" -p seed 7'}, ["does not exist, and contains a quotation mark"]),
    ],
)
def test_an_invalid_value_is_reported_with_what_is_allowed(values, words):
    with pytest.raises(SettingsError) as error:
        TrainingSettings(**values)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_a_temperature_too_small_to_divide_logits_by_is_refused():
    with pytest.raises(SettingsError, match=r"temperature = 1e-40 is too small: use at least 1e-06"):
        EvaluationSettings(temperature=1e-40)


class TestForgettingOnTheTrainingText:
    def test_it_is_refused_before_a_run_is_trained(self):
        with pytest.raises(SettingsError, match="general_source = 'fables' is the text that run 'new' is trained on"):
            EvaluationSettings.from_notebook({"run": "new", "general_source": "fables"})

    def test_it_is_refused_before_a_run_is_measured(self, tmp_path, monkeypatch):
        monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
        (tmp_path / "old").mkdir()
        files.write_json(tmp_path / "old" / "settings.json", {"settings": {"source": "python-reference"}})
        with pytest.raises(SettingsError, match="choose another general_source, such as 'fables'"):
            EvaluationSettings.from_notebook({"run": "old"})
        assert EvaluationSettings.from_notebook({"run": "old", "general_source": "fables"}).run == "old"


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "x" * 65, "nul", "COM1.txt", "end.", "-p", 7])
def test_a_run_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(SettingsError, match="run = "):
        RunSettings(run=name)
    with pytest.raises(SettingsError, match="run = "):
        run_folder(name)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow control characters in names")
def test_a_file_with_a_control_character_in_its_name_can_be_a_source(tmp_path):
    (tmp_path / "a\tb.txt").touch()
    assert TrainingSettings(source=str(tmp_path / "a\tb.txt")).source == str(tmp_path / "a\tb.txt")


@pytest.mark.parametrize("name", ["pocket", "mine-2", "a.b_c", "007"])
def test_a_plain_run_name_is_a_folder_in_runs(name):
    assert run_folder(RunSettings(run=name).run).parent == runs_folder()


def test_a_run_too_deep_for_windows_is_refused_before_anything_is_written(runs, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(runs / "long-folder" / ("x" * 250)))
    monkeypatch.setattr(files, "long_paths", lambda: None)
    assert run_folder("mine").name == "mine"  # on a system without the limit
    monkeypatch.setattr(files, "long_paths", lambda: False)
    with pytest.raises(SettingsError, match=r"mine is too deep: .* Windows allows 259. Set COURSE_RUNS to a folder"):
        run_folder("mine")
    monkeypatch.setattr(files, "long_paths", lambda: True)
    assert run_folder("mine").name == "mine"


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_a_valid_papermill_parameter_file(preset):
    raw = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert read_preset(preset) == raw, "a value changed its type: in YAML write 5.0e-5"
    assert TrainingSettings.from_preset(preset).run == preset


def test_the_guide_preset_has_the_guides_values():
    guide = TrainingSettings.from_preset("guide")
    assert (guide.block_size, guide.per_device_train_batch_size, guide.gradient_accumulation_steps) == (512, 4, 4)
    assert (guide.num_train_epochs, guide.learning_rate, guide.weight_decay) == (3, 5e-5, 0.01)
    assert guide.mixed_precision == "fp16"


def test_the_presets_for_gpus_have_the_same_effective_batch_size():
    batches = {
        TrainingSettings.from_preset(name).effective_batch_size for name in preset_names() if "pocket" not in name
    }
    assert batches == {16}


@pytest.mark.parametrize(
    ("idle", "instead"),
    [
        ({"lora_alpha": 32}, {"lora_r": 8}),
        ({"lora_dropout": 0.1}, {"lora_r": 8}),
        ({"vocab_size": 512}, {"tokenizer": "train", "from_scratch": True}),
        ({"adam_beta2": 0.95, "optim": "adafactor"}, {"optim": "muon"}),
        ({"source_config": "wikitext-2-raw-v1"}, {"source": "Salesforce/wikitext"}),
        ({"source_revision": "main", "source": str(PRESETS)}, {"source": "Salesforce/wikitext"}),
        ({"text_column": "story"}, {"source": str(PRESETS)}),
        ({"chat_template": "chatml", "source": "python-reference"}, {"source": "mine.jsonl"}),
    ],
)
def test_a_setting_without_effect_is_described_with_the_setting_that_disables_it(idle, instead):
    (name, value), *_ = idle.items()
    sentence = describe_without_effect(TrainingSettings(**idle))
    assert re.fullmatch(rf"{name} = {value!r} has no effect with {next(iter(instead))} = [^=]+\.", sentence)
    assert describe_without_effect(TrainingSettings(**idle | instead)) == ""


def test_no_preset_has_a_setting_without_effect():
    assert [*filter(describe_without_effect, map(TrainingSettings.from_preset, preset_names()))] == []


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(SettingsError, match="did you mean 'guide'"):
        read_preset("gide")


def test_text_from_the_command_line_is_converted_to_the_settings_type():
    assert check_values({"learning_rate": "3e-4", "run": "007", "top_k": "5"}) == {
        "learning_rate": 3e-4,
        "run": "007",
        "top_k": 5,
    }


def test_an_unknown_name_on_the_command_line_is_refused():
    with pytest.raises(SettingsError, match="did you mean 'stride'"):
        check_values({"strid": 3})


def test_a_missing_run_is_reported():
    with pytest.raises(SettingsError, match="There is no run 'mine'"):
        read_run_settings("mine")


def test_a_wrong_value_in_the_settings_of_a_run_is_named_with_their_file(runs):
    (runs / "mine").mkdir(parents=True)
    (runs / "mine/settings.json").write_text('{"settings": {"seed": null}}')
    with pytest.raises(SettingsError, match=r"mine.settings\.json cannot be used: seed = None is not allowed"):
        read_run_settings("mine")


def test_a_run_of_another_version_is_reported_as_such(runs):
    (runs / "mine").mkdir(parents=True)
    (runs / "mine/settings.json").write_text('{"settings": {"run": "mine", "future": 3}}')
    with pytest.raises(SettingsError, match="of another version of this course, which has the settings future"):
        read_run_settings("mine")
    (runs / "mine/settings.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"settings.json is damaged \(settings is missing\)"):
        read_run_settings("mine")
