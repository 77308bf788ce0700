"""Run folders written by version 0.1.0 still open, resume and evaluate as they did then.

`saved_by_0_1_0` holds a GPT-2 of 3,000 weights, its text, a finished run, and a run killed after step 3 whose
checkpoint is of step 2. Both have the same settings, so the resumed run must end with the finished run's weights.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.data import open_prepared
from helpers.evaluation.base_and_tuned import load_tuned
from helpers.evaluation.scoring import score
from helpers.settings import SettingsError, read_run_settings, run_folder
from helpers.training import fine_tune, open_or_train
from tests.training.saved_weights import weights

SAVED = Path(__file__).with_name("saved_by_0_1_0")


@pytest.fixture(autouse=True)
def saved_runs(tmp_path, monkeypatch):
    """Work in a copy, because the settings give the paths of model and text relative to the current folder."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "saved/all_runs"))


def test_a_finished_run_opens_without_training_again():
    before = (run_folder("finished") / "model/model.safetensors").read_bytes()
    finished = open_or_train("finished")
    assert finished.history[-1]["step"] == 4
    assert (run_folder("finished") / "model/model.safetensors").read_bytes() == before


def test_a_run_whose_history_was_deleted_is_shown_without_a_validation_loss():
    assert "validation loss 5.565 nats per token (perplexity 261.18)" in str(open_or_train("finished"))
    (run_folder("finished") / "history.jsonl").unlink()
    assert str(open_or_train("finished")).endswith(", no validation loss in history.jsonl")


def assert_weights_of_the_finished_run(run):
    expected = weights(run_folder("finished") / "model")
    for name, tensor in weights(run_folder(run) / "model").items():
        # The gradient of a key bias is 0, so AdamW amplifies its rounding error.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_an_interrupted_run_resumes_to_the_weights_of_the_finished_one():
    resumed = fine_tune(read_run_settings("stopped"))
    assert [row["step"] for row in resumed.history if "loss" in row] == [1, 2, 3, 4]
    assert_weights_of_the_finished_run("stopped")


def test_a_finished_run_has_the_same_metrics_as_before():
    stored = json.loads((run_folder("finished") / "evaluation.json").read_text(encoding="utf-8"))["test"]
    model, tokenizer = load_tuned("finished")
    again = score(model, tokenizer, open_prepared("finished").documents["test"]["text"], context=32, stride=16)
    assert again.loss_nats == pytest.approx(stored["tuned"]["loss_nats"], rel=1e-5)
    assert again.n_tokens == stored["tuned"]["n_tokens"]


def test_an_interrupted_run_resumes_when_renamed_with_moved_text_and_other_logging():
    run_folder("stopped").rename(run_folder("renamed"))
    text = Path("text.txt").rename("moved.txt").absolute()
    changes = {"source": str(text), "logging_steps": 2, "save_total_limit": 1}
    settings = read_run_settings("renamed").model_copy(update=changes)
    resumed = fine_tune(settings)
    assert [row["step"] for row in resumed.history if "loss" in row] == [1, 2, 4]
    assert len(list((resumed.folder / "checkpoints").iterdir())) == 1
    assert read_run_settings("renamed") == settings
    assert_weights_of_the_finished_run("renamed")


def test_an_interrupted_run_resumes_without_its_text_file():
    Path("text.txt").unlink()
    assert fine_tune(read_run_settings("stopped")).history[-1]["step"] == 4


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"eval_steps": 1}])
def test_settings_that_change_the_result_cannot_be_changed(change):
    with pytest.raises(SettingsError, match=f"was started with {next(iter(change))} = .* choose another run name"):
        fine_tune(read_run_settings("stopped").model_copy(update=change))
