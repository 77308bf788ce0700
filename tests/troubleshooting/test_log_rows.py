"""The numbers of a training run are found in the log of any program."""

import math

import pytest

from helpers.troubleshooting.reading import read_text

TWO = ({"step": 1.0, "loss": 3.5}, {"step": 2.0, "loss": 3.25})


@pytest.mark.parametrize(
    "text",
    [
        "{'step': 1, 'loss': 3.5}\n{'step': 2, 'loss': '3.25'}",
        "{'step': 1, 'loss': 3.5, 'saved': 'D:\\data'}\n{'step': 2, 'loss': 3.25}",
        '{"step": 1, "train/loss": 3.5}\n{"step": 2, "train/loss": 3.25}',
        "step 1: train loss 3.5\nstep 2: train loss 3.25",
        "iter 1: loss 3.5\niter 2: loss 3.25",
        "step 1 | loss: 3.5\nstep 2 | loss: 3.25",
        "Step\tTraining Loss\n1\t3.5\n2\t3.25",
        "| Step | Training Loss |\n|---|---|\n| 1 | 3.5 |\n| 2 | 3.25 |",
        "Step  Training Loss\n1     3.5\n2     3.25",
        "step,loss\n1,3.5\n2,3.25",
        '{"log_history": [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 3.25}]}',
        '[{"step": 1, "loss": 3.5}, {"step": 2, "loss": 3.25}]',
        "2026-01-01 10:00:00 {'step': 1, 'loss': 3.5}\n2026-01-01 10:00:01 {'step': 2, 'loss': 3.25}",
    ],
)
def test_rows_have_the_trainers_names(text):
    assert read_text(text).rows == TWO


def test_non_finite_numbers_are_kept():
    (row,) = read_text("{'loss': nan, 'grad_norm': inf, 'step': 3}").rows
    assert math.isnan(row["loss"])
    assert row["grad_norm"] == math.inf


def test_held_out_losses_are_distinguished_from_training_losses():
    (row,) = read_text("step 5: train loss 1.5, val loss 2.5").rows
    assert row == {"step": 5.0, "loss": 1.5, "eval_loss": 2.5}


def test_text_without_training_numbers_has_no_rows():
    assert read_text("the loss of time\nstep by step\nloss scale: 1.0").rows == ()


@pytest.mark.parametrize(
    "text",
    ['print(f"loss {[1.0]}")', "{{[]: 'loss'}}", "loss {'step': 1" + "0" * 400 + "}"],
)
def test_braces_without_a_row_are_ignored(text):
    assert read_text(text).rows == ()
