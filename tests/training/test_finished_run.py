import json
import math
from dataclasses import replace

import pytest

from helpers.data.preparation import prepare
from helpers.display import duration_text, size_text
from helpers.settings import SettingsError, run_folder
from helpers.training.fine_tuning import fine_tune
from helpers.training.finished_run import open_run
from helpers.training.run_files import read_history


def test_a_run_is_printed_with_its_steps_and_a_perplexity_that_may_be_too_large(tiny_run):
    assert f"{tiny_run.facts['steps']} steps" in str(tiny_run)
    assert tiny_run.facts["peak_bytes"] > 10**7
    assert "loss 800.000 nats per token (perplexity too large)" in str(
        replace(tiny_run, history=[{"eval_loss": 800.0}])
    )


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"steps": 3, "tokens": 5, "seconds": 1.0}, "does not record precision, device, peak_bytes"),
        ({}, "steps, tokens"),
    ],
)
def test_a_run_whose_measurements_are_incomplete_is_refused_in_a_sentence(facts, fault):
    run_folder("mine").mkdir(parents=True)
    (run_folder("mine") / "training.json").write_text(json.dumps(facts))
    with pytest.raises(SettingsError, match=rf"training.json is damaged \(it .*{fault}.*delete it and repeat"):
        open_run("mine")


def test_the_token_count_of_a_run_includes_the_smaller_last_step_of_each_epoch(tiny_settings):
    run = fine_tune(tiny_settings.model_copy(update={"per_device_train_batch_size": 5}))
    n_blocks = len(prepare(tiny_settings).blocks["train"])
    assert n_blocks % 5, "the last step of an epoch takes fewer blocks"
    assert run.facts["tokens"] == 2 * n_blocks * 32


def test_a_run_keeps_its_prediction_next_to_its_measurements(tiny_run):
    shortest, longest = tiny_run.facts["predicted"]["seconds"]
    assert shortest < longest
    steps, run, memory = tiny_run.predicted_and_measured
    assert steps[1] == f"{duration_text(shortest)} to {duration_text(longest)}"
    assert run[1:] == ("", duration_text(tiny_run.facts["seconds"]))
    assert memory[2] == size_text(tiny_run.facts["peak_bytes"])


def test_an_early_stopped_run_keeps_its_planned_steps_and_scales_its_predicted_time(tiny_settings, monkeypatch):
    predicted = {"on": "this", "seconds": [900.0, 1800.0], "peak_bytes": 1, "process_bytes": 0}
    monkeypatch.setattr("helpers.training.fine_tuning.predict_on_this_machine", lambda *_, **__: dict(predicted))
    stops = {"learning_rate": 0.1, "num_train_epochs": 30.0, "early_stopping_patience": 1, "eval_steps": 2}
    run = fine_tune(tiny_settings.model_copy(update=stops | {"warmup_steps": 0, "lr_scheduler_type": "linear"}))
    n_blocks = len(prepare(tiny_settings).blocks["train"])
    steps = run.facts["steps"]
    assert run.planned_steps == 30 * math.ceil(n_blocks / 4) > steps
    assert f"{steps} of {run.planned_steps} steps" in str(run)
    logged = [row for row in run.history if "learning_rate" in row][-1]
    assert logged["learning_rate"] == pytest.approx(0.1 * (1 - (logged["step"] - 1) / run.planned_steps))
    share = steps / run.planned_steps
    assert run.facts["predicted"]["seconds"] == pytest.approx([900 * share, 1800 * share])


def test_opening_an_unfinished_run_is_an_error():
    with pytest.raises(SettingsError, match="There is no finished run 'mine'"):
        open_run("mine")
    assert read_history(run_folder("mine")) == []
