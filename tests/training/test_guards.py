import math
from contextlib import nullcontext

import pytest
import torch
from transformers import TrainerControl, TrainerState

from helpers.settings import TrainingSettings
from helpers.training.arguments import training_arguments
from helpers.training.guards import DiskSpaceGuard, Guard, TrainingBrokenError
from helpers.training.shape import parameters, read_shape


@pytest.mark.parametrize(("loss", "words"), [(0.0, "exactly 0"), (math.nan, "Lower learning_rate"), (math.inf, "inf")])
def test_a_broken_loss_stops_the_run(tmp_path, loss, words):
    guard = Guard(4096)
    arguments = training_arguments(TrainingSettings(), tmp_path)
    with pytest.raises(TrainingBrokenError, match=words):
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": loss})
    guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0})


def test_a_non_finite_validation_loss_stops_the_run(tmp_path):
    arguments = training_arguments(TrainingSettings(), tmp_path)
    with pytest.raises(TrainingBrokenError, match="The validation loss is inf"):
        Guard(4096).on_log(arguments, TrainerState(), TrainerControl(), logs={"eval_loss": math.inf})


@pytest.mark.parametrize(("is_saved", "stops"), [(True, True), (False, False)])
def test_weights_are_checked_before_they_are_saved(tmp_path, is_saved, stops):
    arguments, model = training_arguments(TrainingSettings(), tmp_path), torch.nn.Linear(2, 2)
    model.weight.data[1, 1] = math.nan
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    frozen.weight.data[:] = math.nan
    control = TrainerControl(should_save=is_saved)
    Guard(4096).on_step_end(arguments, TrainerState(), control, model=frozen)
    with pytest.raises(TrainingBrokenError, match="A weight is not finite") if stops else nullcontext():
        Guard(4096).on_step_end(arguments, TrainerState(), control, model=model)


@pytest.mark.parametrize(("fp16", "stops"), [(False, True), (True, False)])
def test_a_non_finite_gradient_stops_the_run_except_during_loss_scaling(tmp_path, fp16, stops):
    guard, arguments = Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    arguments.fp16 = fp16
    with pytest.raises(TrainingBrokenError, match="inf") if stops else nullcontext():
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0, "grad_norm": math.inf})


def learns_nothing(tmp_path, log):
    guard, arguments = Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    try:
        guard.on_log(arguments, TrainerState(log_history=log), TrainerControl(), logs=log[-1])
    except TrainingBrokenError as error:
        return "a uniform guess among 4,096 tokens" in str(error)
    return False


def test_a_loss_that_stays_at_a_uniform_guess_stops_the_run(tmp_path):
    even = math.log(4096)
    flat = [{"loss": 1.009 * even, "step": step} for step in range(10, 410, 10)]
    assert learns_nothing(tmp_path, [*flat[:20], {"eval_loss": 1.0, "step": 200}])
    assert not learns_nothing(tmp_path, [row | {"step": 199} for row in flat]), "too early"
    assert not learns_nothing(tmp_path, flat[-19:]), "too few rows"
    assert learns_nothing(tmp_path, [{"loss": 2 * even, "step": 1}, *flat]), "only the last 20 rows count"
    for loss in (0.98 * even, 1.02 * even):
        assert not learns_nothing(tmp_path, [*flat, {"loss": loss, "step": 410}])


@pytest.mark.parametrize(("optim", "n_bytes_per_weight"), [("adamw_torch_fused", 12), ("adafactor", 4)])
def test_a_checkpoint_needs_disk_space_for_its_optimizer_and_a_model_for_its_weights(optim, n_bytes_per_weight):
    shape = read_shape("gpt2")
    guard = DiskSpaceGuard(shape, TrainingSettings(optim=optim))
    assert (
        n_bytes_per_weight * parameters(shape) < guard.checkpoint_bytes < 1.2 * n_bytes_per_weight * parameters(shape)
    )
    assert 4 * parameters(shape) < guard.model_bytes < 6 * parameters(shape)


@pytest.mark.parametrize(
    ("moment", "step", "is_saved", "needed"),
    [
        ("begin", 0, False, {"checkpoint"}),
        ("begin", 6, False, {"checkpoint", "model"}),  # the next checkpoint, at step 9, is the last
        ("begin", 9, False, {"model"}),  # a run killed after its last checkpoint
        ("end", 2, False, set()),
        ("end", 3, True, {"checkpoint"}),
        ("end", 9, True, {"checkpoint", "model"}),
    ],
)
def test_the_disk_needs_space_for_the_files_written_next(tmp_path, monkeypatch, moment, step, is_saved, needed):
    settings = TrainingSettings(save_steps=3)
    arguments, state = training_arguments(settings, tmp_path), TrainerState(global_step=step, max_steps=9)
    guard, control = DiskSpaceGuard(read_shape("gpt2"), settings), TrainerControl(should_save=is_saved)
    look = guard.on_train_begin if moment == "begin" else guard.on_step_end
    n_bytes = sum(getattr(guard, f"{name}_bytes") for name in needed)
    for free in (n_bytes, n_bytes - 1):
        monkeypatch.setattr("helpers.training.guards.free_bytes", lambda folder, free=free: free)
        with pytest.raises(TrainingBrokenError, match="are needed") if free < n_bytes and needed else nullcontext():
            look(arguments, state, control)
