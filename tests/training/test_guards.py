import math
from contextlib import nullcontext

import pytest
from transformers import TrainerControl, TrainerState

from helpers.settings import TrainingSettings
from helpers.training.arguments import training_arguments
from helpers.training.guards import DiskSpaceGuard, Guard, TrainingBrokenError
from helpers.training.shape import parameters, read_shape


@pytest.mark.parametrize(("loss", "words"), [(0.0, "exactly 0"), (math.nan, "Lower learning_rate"), (math.inf, "inf")])
def test_a_loss_of_a_broken_training_stops_it(tmp_path, loss, words):
    guard = Guard(4096)
    arguments = training_arguments(TrainingSettings(), tmp_path)
    with pytest.raises(TrainingBrokenError, match=words):
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": loss})
    guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0})


@pytest.mark.parametrize(("fp16", "stops"), [(False, True), (True, False)])
def test_a_gradient_that_is_not_finite_stops_the_run_except_during_loss_scaling(tmp_path, fp16, stops):
    guard, arguments = Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    arguments.fp16 = fp16
    with pytest.raises(TrainingBrokenError, match="inf") if stops else nullcontext():
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0, "grad_norm": math.inf})


def test_a_loss_that_stays_at_an_even_guess_stops_the_run(tmp_path):
    guard, arguments = Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    flat = [{"loss": math.log(4096) + 0.01, "step": step} for step in range(0, 400, 10)]
    with pytest.raises(TrainingBrokenError, match="a uniform guess among 4,096 tokens"):
        guard.on_log(arguments, TrainerState(log_history=flat), TrainerControl(), logs=flat[-1])
    falling = [row | {"loss": row["loss"] - row["step"] / 1000} for row in flat]
    guard.on_log(arguments, TrainerState(log_history=falling), TrainerControl(), logs=falling[-1])


@pytest.mark.parametrize(("optim", "n_bytes_per_weight"), [("adamw_torch_fused", 12), ("adafactor", 4)])
def test_a_checkpoint_needs_the_disk_space_of_its_optimizer(tmp_path, monkeypatch, optim, n_bytes_per_weight):
    settings, shape = TrainingSettings(optim=optim), read_shape("gpt2")
    arguments, state = training_arguments(settings, tmp_path), TrainerState(global_step=1, max_steps=9)
    guard, control, free = DiskSpaceGuard(shape, settings), TrainerControl(should_save=True), [0]
    monkeypatch.setattr("helpers.training.guards.free_bytes", lambda folder: free[0])
    written = n_bytes_per_weight * parameters(shape)
    for free[0], stops in ((written, True), (1.2 * written, False)):
        with pytest.raises(TrainingBrokenError, match="are needed") if stops else nullcontext():
            guard.on_step_end(arguments, state, control)
