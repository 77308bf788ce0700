from dataclasses import replace

import pytest

from helpers.data.preparation import prepare
from helpers.settings import SettingsError, run_folder
from helpers.training.fine_tuning import fine_tune
from helpers.training.finished_run import open_run
from helpers.training.run_files import read_history


def test_a_run_is_shown_as_one_line_with_its_measurements(tiny_run):
    assert f"{tiny_run.facts['steps']} steps" in str(tiny_run)
    assert tiny_run.facts["peak_bytes"] > 10**7
    assert "loss 800.000 nats per token (perplexity 1.0e+304)" in str(
        replace(tiny_run, history=[{"eval_loss": 800.0}])
    )


def test_the_tokens_of_a_run_are_counted_with_the_smaller_last_step_of_an_epoch(tiny_settings):
    run = fine_tune(tiny_settings.model_copy(update={"per_device_train_batch_size": 5}))
    n_blocks = len(prepare(tiny_settings).blocks["train"])
    assert n_blocks % 5, "the last step of an epoch takes fewer blocks"
    assert run.facts["tokens"] == 2 * n_blocks * 32


def test_a_run_keeps_what_was_predicted_beside_what_was_measured(tiny_run):
    time, memory = tiny_run.predicted_and_measured
    assert time["predicted"][0] < time["predicted"][1]
    assert time["measured"] == tiny_run.facts["seconds"] > 0
    assert memory["measured"] == tiny_run.facts["peak_bytes"]


def test_opening_a_run_that_is_not_finished_is_an_error():
    with pytest.raises(SettingsError, match="There is no finished run 'mine'"):
        open_run("mine")
    assert read_history(run_folder("mine")) == []
