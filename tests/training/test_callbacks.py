from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from helpers.settings import TrainingSettings
from helpers.training.arguments import training_arguments
from helpers.training.callbacks import Progress, StepTimer, _ResumeOverrides


def test_progress_is_one_line():
    assert str(Progress(4, 10, 1234.4, 9.6, 2**30)) == "step 4 of 10, 1,234 tokens/s, 10 s left, 1,024 MiB"
    assert str(Progress(1, 10, None, None, 2**20)) == "step 1 of 10, 1 MiB"


@pytest.mark.parametrize(("is_exact", "should_log", "waits"), [(False, False, 0), (False, True, 1), (True, False, 1)])
def test_only_steps_with_a_log_row_or_exact_timing_wait_for_the_gpu(monkeypatch, is_exact, should_log, waits):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    timer, on_a_card = StepTimer(is_exact=is_exact), SimpleNamespace(device=torch.device("cuda"))
    timer.on_step_begin(on_a_card, None, None)
    timer.on_step_end(on_a_card, None, TrainerControl(should_log=should_log))
    assert (len(waited), len(timer.seconds)) == (waits, 1)


def test_a_resumed_run_uses_its_own_settings_and_folder(tmp_path):
    (tmp_path / "checkpoints/checkpoint-3").mkdir(parents=True)
    arguments = training_arguments(TrainingSettings(logging_steps=7), tmp_path)
    state = TrainerState(max_steps=9, logging_steps=2, best_global_step=3, best_model_checkpoint="/old/checkpoint-3")
    _ResumeOverrides().on_train_begin(arguments, state, TrainerControl())
    assert state.logging_steps == 7
    assert state.best_model_checkpoint == str(tmp_path / "checkpoints/checkpoint-3")
