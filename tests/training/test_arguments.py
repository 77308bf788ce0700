import pytest
import torch

from helpers.settings import SettingsError, TrainingSettings
from helpers.training import arguments
from helpers.training.arguments import chosen_precision, compiles, training_arguments


@pytest.mark.parametrize(
    ("gpu", "bf16", "expected"), [(True, True, "bf16"), (True, False, "fp16"), (False, False, "no")]
)
def test_auto_precision_follows_the_hardware(monkeypatch, gpu, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(arguments, "has_bf16", lambda: bf16)
    assert chosen_precision(TrainingSettings()) == expected


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="needs an NVIDIA GPU"):
        chosen_precision(TrainingSettings(mixed_precision="fp16"))


def test_settings_reach_the_trainer_under_their_own_names(tmp_path):
    made = training_arguments(TrainingSettings(learning_rate=3e-4, weight_decay=0.2, seed=7), tmp_path)
    assert (made.learning_rate, made.weight_decay, made.seed) == (3e-4, 0.2, 7)
    assert made.logging_nan_inf_filter is False


@pytest.mark.parametrize(
    ("asked", "gpu", "system", "blocks", "compiled"),
    [
        ("always", False, "Linux", 1, True),
        ("never", True, "Linux", 10**6, False),
        ("auto", True, "Linux", 10**6, True),
        ("auto", True, "Linux", 100, False),
        ("auto", True, "Windows", 10**6, False),
        ("auto", False, "Linux", 10**6, False),
    ],
)
def test_compiling_is_for_long_runs_on_a_gpu_under_linux(monkeypatch, asked, gpu, system, blocks, compiled):
    monkeypatch.setattr("platform.system", lambda: system)
    assert compiles(TrainingSettings(torch_compile=asked), blocks, on_card=gpu) is compiled
