import json
import math
import shutil
import threading

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from helpers.model import load_model
from helpers.paths import NOTEBOOKS
from helpers.settings import SettingsError, TrainingSettings
from helpers.training import fine_tuning, finished_run
from helpers.training.engine import optimised_model
from helpers.training.fine_tuning import fine_tune
from helpers.training.finished_run import open_run
from helpers.training.lora import TARGET_MODULES, add_adapter
from helpers.training.run_files import last_complete_checkpoint
from helpers.training.stopping import TrainingStoppedError
from tests.training.saved_weights import same_weights, weights

IDS = torch.arange(2 * 24).reshape(2, 24) * 7


@pytest.fixture
def settings(tiny_settings):
    changes = {"run": "lora", "lora_r": 4, "lora_dropout": 0.1, "learning_rate": 0.01}
    return tiny_settings.model_copy(update=changes | {"num_train_epochs": 1})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "runs"


@pytest.fixture
def run(settings, saved, runs):
    """Return a finished run, trained once for this module; each test gets a copy of its folder."""
    if saved.exists():
        shutil.copytree(saved, runs)
        return open_run("lora")
    finished = fine_tune(settings)
    shutil.copytree(runs, saved)
    return finished


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_saves_a_plain_merged_model_and_an_adapter_that_peft_loads(run, settings):
    losses = [row["loss"] for row in run.history if "loss" in row]
    assert losses[-1] < losses[0]
    base = load_model(settings.model_name_or_path)
    untouched = {name: value.clone() for name, value in base.state_dict().items()}
    adapted, merged = PeftModel.from_pretrained(base, run.folder / "adapter"), load_model(str(run.model_folder))
    with torch.no_grad():
        logits = adapted.eval()(input_ids=IDS).logits
        torch.testing.assert_close(merged.eval()(input_ids=IDS).logits, logits, atol=1e-5, rtol=0)
        with adapted.disable_adapter():
            assert (adapted(input_ids=IDS).logits - logits).abs().max() > 0.01, "the adapter has an effect"
    assert same_weights(adapted.unload().state_dict(), untouched)
    for name, value in merged.state_dict().items():
        is_target = name.split(".")[-2] in TARGET_MODULES and name.endswith("weight")
        assert torch.equal(value, untouched[name]) is not is_target, name


def test_only_the_adapter_is_trained_and_kept_in_checkpoints(run):
    # (inputs + outputs) * rank, for c_attn, attn.c_proj, c_fc and mlp.c_proj of a block of width 32
    assert run.facts["trained_parameters"] == 4 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))
    checkpoint = last_complete_checkpoint(run.folder / "checkpoints")
    assert not (checkpoint / "model.safetensors").exists()
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == run.facts["trained_parameters"]
    (checkpoint / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.warns(UserWarning, match=r"its adapter_model\.safetensors is missing or incomplete"):
        assert last_complete_checkpoint(run.folder / "checkpoints") != checkpoint


def test_an_interrupted_run_ends_with_the_weights_and_history_of_an_uninterrupted_one(run, settings):
    cut, stop = settings.model_copy(update={"run": "cut"}), threading.Event()
    with pytest.raises(TrainingStoppedError):
        fine_tune(cut, stop=stop, watch=lambda _, progress: stop.set() if progress.step >= 4 else None)
    resumed = fine_tune(cut)
    assert same_weights(weights(resumed.model_folder), weights(run.model_folder))
    assert resumed.history == run.history


def test_a_run_killed_after_its_last_step_is_finished_from_its_last_checkpoint(run, settings):
    expected = weights(run.model_folder)
    (run.folder / "training.json").unlink()
    shutil.rmtree(run.model_folder)
    again = fine_tune(settings)
    assert same_weights(weights(again.model_folder), expected)
    assert again.history == run.history


def loss_and_gradients(settings, *, half=None, dtype=torch.float32):
    """Return the engine's loss and the adapter's gradients, with a random B instead of the initial 0."""
    model = load_model(settings.model_name_or_path)
    adapted = add_adapter(model, settings.model_copy(update={"lora_dropout": 0.0}), half=half).eval()
    generator = torch.Generator().manual_seed(1)
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    for name, value in trained.items():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) / 10
    if settings.gradient_checkpointing:
        adapted.train()
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.23
        for module in model.modules():
            module.p = 0.0  # no dropout
    with optimised_model(model), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = adapted(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
    return loss.item(), {name: value.grad for name, value in trained.items()}


def test_the_engine_gives_the_loss_and_gradients_of_a_stock_model_with_the_adapter(settings):
    ours = loss_and_gradients(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.optimised_model", lambda _: torch.enable_grad())
        stock = loss_and_gradients(settings)
    assert ours[0] == pytest.approx(stock[0], abs=1e-5)
    torch.testing.assert_close(ours[1], stock[1], atol=1e-5, rtol=1e-4)


def test_checkpointing_gives_the_same_loss_and_gradients(settings):
    plain = loss_and_gradients(settings)
    checkpointed = loss_and_gradients(settings.model_copy(update={"gradient_checkpointing": True}))
    assert checkpointed[0] == pytest.approx(plain[0], abs=1e-6)
    torch.testing.assert_close(checkpointed[1], plain[1])


def test_frozen_weights_in_half_precision_give_bit_identical_loss_and_gradients(settings):
    in_float32 = loss_and_gradients(settings, dtype=torch.bfloat16)
    in_half = loss_and_gradients(settings, half=torch.bfloat16, dtype=torch.bfloat16)
    assert in_half[0] == in_float32[0]
    assert all(torch.equal(in_half[1][name], grad) for name, grad in in_float32[1].items())


def test_a_run_in_half_precision_trains_samples_and_merges_into_float32(settings):
    changes = {"mixed_precision": "bf16", "gradient_checkpointing": True, "sample_prompt": "The fox"}
    run = fine_tune(settings.model_copy(update=changes))
    assert any("sample" in row for row in run.history)
    base = load_model(settings.model_name_or_path).state_dict()
    merged = weights(run.model_folder)
    assert merged["transformer.wte.weight"].dtype == torch.float32
    assert torch.equal(merged["transformer.h.0.attn.c_attn.bias"], base["transformer.h.0.attn.c_attn.bias"])
    assert math.isfinite(run.eval_loss)


def test_the_measured_peak_does_not_include_merging(settings, monkeypatch):
    merges, merge = [], fine_tuning.merge_adapter
    monkeypatch.setattr(fine_tuning, "merge_adapter", lambda *both: merges.append(both) or merge(*both))
    monkeypatch.setattr(finished_run, "peak_bytes", lambda: 1 + len(merges))
    assert fine_tune(settings).facts["peak_bytes"] == 1
    assert len(merges) == 1


def test_lora_without_a_pretrained_model_is_refused():
    with pytest.raises(SettingsError, match=r"^lora_r = 8 freezes a pretrained model, .*: set lora_r = 0, or [^.]*\.$"):
        TrainingSettings(lora_r=8, from_scratch=True)


def test_the_handwritten_adapter_of_notebook_03_matches_peft(settings):
    cells = json.loads((NOTEBOOKS / "03_fine_tuning.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"math": math, "torch": torch}
    exec(next("".join(cell["source"]) for cell in cells if cell["id"] == "03-lora-01"), names)
    by_hand, peft = (load_model(settings.model_name_or_path).eval() for _ in range(2))
    names["add_adapter"](by_hand)
    add_adapter(peft, settings.model_copy(update={"lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0}))
    ours, theirs = ([p for p in model.parameters() if p.requires_grad] for model in (by_hand, peft))
    with torch.no_grad():
        assert torch.equal(by_hand(IDS).logits, load_model(settings.model_name_or_path).eval()(IDS).logits)
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one.normal_(std=0.1).T)
        assert torch.allclose(by_hand(IDS).logits, peft(IDS).logits, atol=1e-5)
