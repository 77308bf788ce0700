import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers.settings import SettingsError, TrainingSettings
from helpers.training import arguments
from helpers.training.arguments import chosen_precision, compiles, float32_products, training_arguments
from helpers.training.plan import plan_run


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
    settings = TrainingSettings(learning_rate=3e-4, weight_decay=0.2, seed=7, adam_beta2=0.9, mixed_precision="no")
    made = vars(training_arguments(settings, tmp_path))
    names = made.keys() & TrainingSettings.model_fields.keys() - {"report_to", "torch_compile"}  # for this machine
    assert {name: made[name] for name in names} == settings.model_dump(include=names)
    assert made["logging_nan_inf_filter"] is False


def test_one_process_uses_one_card_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 2)))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))
    assert training_arguments(TrainingSettings(), tmp_path).n_gpu == 1


def test_precision_and_compiling_are_those_of_the_settings_whatever_accelerate_was_configured_for(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    settings = TrainingSettings(mixed_precision="no", torch_compile="never")
    trainer = Trainer(tiny[0], training_arguments(settings, tmp_path), eval_dataset=[{}])
    assert trainer.accelerator.mixed_precision == "no"
    assert trainer.accelerator.prepare_model(tiny[0]) is tiny[0]


@pytest.mark.parametrize(("limit", "patience", "kept"), [(1, 0, 1), (1, 3, 2), (4, 3, 4)])
def test_early_stopping_keeps_the_newest_checkpoint_beside_the_best(tmp_path, limit, patience, kept):
    settings = TrainingSettings(save_total_limit=limit, early_stopping_patience=patience)
    assert training_arguments(settings, tmp_path).save_total_limit == kept
    assert (
        plan_run(settings).disk_bytes
        == (kept + 1) * plan_run(settings).checkpoint_bytes + plan_run(settings).model_bytes
    )


def test_tf32_ends_with_the_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    before = torch.backends.fp32_precision
    with pytest.raises(ZeroDivisionError), float32_products():
        assert torch.backends.fp32_precision == "tf32"
        _ = 1 / 0
    assert torch.backends.fp32_precision == before != "tf32"


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
