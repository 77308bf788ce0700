import pytest
import torch

from helpers.model import load_model
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.fine_tuning import fine_tune
from helpers.training.memory import optimizer_bytes
from helpers.training.muon import MuonWithAdamW
from helpers.training.shape import GPT2Shape
from tests.training.saved_weights import same_weights, weights


@pytest.fixture
def stepped(tiny_model):
    """Return a model and its optimizer after a step."""
    model = load_model(str(tiny_model))
    optimizer = MuonWithAdamW(model, TrainingSettings(optim="muon"))
    ids = torch.arange(32)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return model, optimizer


def test_muon_updates_the_matrices_of_blocks_and_adamw_everything_else(stepped):
    model, optimizer = stepped
    muon, adamw = optimizer._parts
    named = {id(weights): name for name, weights in model.named_parameters()}
    of_muon = {named[id(weights)] for weights in muon.state}
    assert {name.rsplit(".", 2)[-2] for name in of_muon} == {"c_attn", "c_proj", "c_fc"}
    assert {named[id(weights)] for weights in adamw.state} == set(named.values()) - of_muon
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01, 0.0}


def test_the_optimizer_state_has_the_predicted_size(stepped):
    model, optimizer = stepped
    states = [state for part in optimizer._parts for state in part.state.values()]
    kept = sum(v.nbytes for state in states for name, v in state.items() if name != "step")
    shape = GPT2Shape(**{name: getattr(model.config, name) for name in GPT2Shape._fields})
    assert optimizer_bytes(shape, TrainingSettings(optim="muon")) == kept


def test_a_matrix_update_is_similarly_large_in_every_direction(tiny_model):
    model = load_model(str(tiny_model))
    weights = model.transformer.h[0].attn.c_proj.weight  # (32, 32)
    before = weights.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    MuonWithAdamW(model, TrainingSettings(optim="muon", learning_rate=1e-2, weight_decay=0.0)).step()
    singular = torch.linalg.svdvals(before - weights.detach())
    assert singular.max() < 2.5 * singular.min()  # those of the random gradient differ far more
    assert (before - weights).square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.25)  # like AdamW's


def test_an_interrupted_run_ends_with_the_same_weights(tiny_settings):
    settings = tiny_settings.model_copy(update={"optim": "muon", "num_train_epochs": 1})

    def stop_at_4(history, progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    uninterrupted, cut = fine_tune(settings), settings.model_copy(update={"run": "cut"})
    with pytest.raises(KeyboardInterrupt):
        fine_tune(cut, watch=stop_at_4)
    assert same_weights(weights(uninterrupted.model_folder), weights(fine_tune(cut).model_folder))


def test_an_adapter_is_refused():
    with pytest.raises(SettingsError, match=r"optim = 'muon' .* set lora_r = 0, or another optim"):
        TrainingSettings(optim="muon", lora_r=8)
