import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers.settings import SettingsError, TrainingSettings
from helpers.training import arguments
from helpers.training.arguments import chosen_precision, compiles, float32_products, training_arguments
from helpers.training.plan import plan_run
from helpers.training.run_files import checkpoint_bytes, model_bytes


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
    trainer_arguments = vars(training_arguments(settings, tmp_path))
    names = trainer_arguments.keys() & TrainingSettings.model_fields.keys() - {
        "report_to",
        "torch_compile",
    }  # machine-dependent
    assert {name: trainer_arguments[name] for name in names} == settings.model_dump(include=names)


ALWAYS = {
    "use_cpu": True, "prediction_loss_only": True, "logging_nan_inf_filter": False, "disable_tqdm": True,
    "restore_callback_states_from_checkpoint": True, "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False, "bf16": False, "fp16": False, "torch_compile": False,
    "torch_compile_backend": "no", "load_best_model_at_end": False, "metric_for_best_model": None,
}  # fmt: skip
CHANGES = [
    ({}, {}),
    ({"per_device_train_batch_size": 3}, {"per_device_eval_batch_size": 3}),
    ({"mixed_precision": "bf16"}, {"bf16": True}),
    ({"torch_compile": "always"}, {"torch_compile": True, "torch_compile_backend": "inductor"}),
    ({"optim": "adafactor"}, {"optim": "adafactor"}),
    ({"optim": "muon"}, {"optim": "adamw_torch_fused"}),
    ({"save_steps": 9, "eval_steps": 7}, {"save_steps": 9}),
    (
        {"save_steps": 9, "eval_steps": 7, "early_stopping_patience": 2},
        {"save_steps": 7, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"},
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES)
def test_the_course_sets_other_training_arguments(tmp_path, monkeypatch, changes, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer_arguments = training_arguments(TrainingSettings(**{"mixed_precision": "no"} | changes), tmp_path)
    assert {name: getattr(trainer_arguments, name) for name in ALWAYS | expected} == ALWAYS | expected


def test_one_process_uses_only_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 2)))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))
    assert training_arguments(TrainingSettings(), tmp_path).n_gpu == 1


def test_precision_and_compiling_follow_the_settings_and_not_accelerates_configuration(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    settings = TrainingSettings(mixed_precision="no", torch_compile="never")
    trainer = Trainer(tiny[0], training_arguments(settings, tmp_path), eval_dataset=[{}])
    assert trainer.accelerator.mixed_precision == "no"
    assert trainer.accelerator.prepare_model(tiny[0]) is tiny[0]


@pytest.mark.parametrize(("limit", "patience", "kept"), [(1, 0, 1), (1, 3, 2), (4, 3, 4)])
def test_early_stopping_keeps_the_newest_checkpoint_next_to_the_best(tmp_path, limit, patience, kept):
    settings = TrainingSettings(save_total_limit=limit, early_stopping_patience=patience)
    assert training_arguments(settings, tmp_path).save_total_limit == kept
    plan = plan_run(settings)
    run = plan.shape, plan.settings
    assert plan.disk_bytes == (kept + 1) * checkpoint_bytes(*run) + model_bytes(*run)


@pytest.mark.parametrize(
    ("gpu", "hip", "capability", "has_tf32"),
    [
        (True, None, (8, 0), True),
        (True, None, (7, 5), False),
        (True, "6.4", (9, 0), False),
        (False, None, (8, 9), False),
    ],
)
def test_tf32_is_used_only_on_gpus_that_have_it_and_only_during_training(monkeypatch, gpu, hip, capability, has_tf32):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    before = torch.backends.fp32_precision
    with pytest.raises(ZeroDivisionError), float32_products():
        assert (torch.backends.fp32_precision == "tf32") == has_tf32
        _ = 1 / 0
    assert torch.backends.fp32_precision == before != "tf32"


@pytest.mark.parametrize(
    ("choice", "gpu", "system", "blocks", "compiled"),
    [
        ("always", False, "Linux", 1, True),
        ("never", True, "Linux", 10**6, False),
        ("auto", True, "Linux", 8000, True),  # 3,000 passes: 1.5 epochs, 4 blocks per pass
        ("auto", True, "Linux", 7999, False),
        ("auto", True, "Windows", 10**6, False),
        ("auto", False, "Linux", 10**6, False),
    ],
)
def test_auto_compiles_only_long_runs_on_a_gpu_under_linux(monkeypatch, choice, gpu, system, blocks, compiled):
    monkeypatch.setattr("platform.system", lambda: system)
    assert compiles(TrainingSettings(torch_compile=choice), blocks, on_card=gpu) is compiled
