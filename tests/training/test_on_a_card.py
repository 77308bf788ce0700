"""Tests that need a GPU. `DRY_RUN=1` runs them on a processor, to check the tests themselves."""

import gc
import json
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from helpers.display import MIB
from helpers.environment.live import sample
from helpers.evaluation.scoring import compute_token_nats
from helpers.model import load_model, on_device
from helpers.paths import NOTEBOOKS
from helpers.settings import EvaluationSettings, TrainingSettings
from helpers.training import devices, fine_tuning
from helpers.training.arguments import chosen_precision
from helpers.training.engine import optimised_model
from helpers.training.fine_tuning import fine_tune
from helpers.training.memory import evaluation_bytes
from helpers.training.stopping import TrainingStoppedError
from tests.benchmarks import card

HAS_CARD = torch.cuda.is_available()
DEVICE = "cuda" if HAS_CARD else "cpu"
needs_a_card = pytest.mark.skipif(
    not HAS_CARD and "DRY_RUN" not in os.environ, reason="needs an NVIDIA GPU: `make test TORCH=auto` on one"
)


def loss_and_gradients(model, ids, half, run):
    model.zero_grad()
    with torch.autocast(DEVICE, half, enabled=half is not None):
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
    (loss * 2**16).backward()  # the Trainer does this in fp16; otherwise stock's gradients of the logits underflow
    return loss.item(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_engine_gives_the_stock_loss_and_gradients(precision, compiled):
    scale, half = card.CARD if HAS_CARD else card.DRY, card.HALF.get(precision)
    shape = scale.shape._replace(n_layer=2, resid_pdrop=0.0, embd_pdrop=0.0)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # the Trainer sets TF32 for the whole process
    model = GPT2LMHeadModel(card.config_of(shape)).to(DEVICE)
    model.loss_type = "ForCausalLM"
    ids = torch.randint(shape.vocab_size, (2, scale.block), device=DEVICE)
    stock = loss_and_gradients(model, ids, half, model)
    with optimised_model(model):
        run = torch.compile(model, backend="inductor" if HAS_CARD else "aot_eager") if compiled else model
        ours = loss_and_gradients(model, ids, half, run)
    torch.compiler.reset()
    assert ours[0] == pytest.approx(stock[0], rel=2e-3 if half else 1e-5)  # bf16 keeps 8 bits
    assert torch.nn.functional.cosine_similarity(ours[1], stock[1], dim=0) > (0.999 if half else 0.99999)


@pytest.mark.gpu
@needs_a_card
def test_a_model_is_on_the_gpu_only_while_it_scores_and_stays_within_the_predicted_memory():
    shape = (card.CARD if HAS_CARD else card.DRY).shape
    model = GPT2LMHeadModel(card.config_of(shape)).eval()
    ids = np.zeros((EvaluationSettings().per_device_eval_batch_size, shape.n_positions + 1), np.int64)
    before = torch.cuda.memory_allocated()
    devices.reset_peak()
    with on_device(model), optimised_model(model):
        assert model.device.type == DEVICE
        compute_token_nats(model, ids, shape.n_positions)
    assert model.device.type == "cpu"
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.cuda.memory_allocated() - before < 64 * MIB, "cuBLAS keeps its workspace"
    assert torch.cuda.max_memory_allocated() - before <= evaluation_bytes(shape)


@pytest.mark.gpu
@needs_a_card
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny_settings):
    settings = tiny_settings.model_copy(update={"mixed_precision": "auto"})
    expected = fine_tune(settings)
    cut, stop = settings.model_copy(update={"run": "cut"}), threading.Event()
    with pytest.raises(TrainingStoppedError):
        fine_tune(cut, stop=stop, watch=lambda _, progress: stop.set() if progress.step >= 4 else None)
    resumed = fine_tune(cut)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in expected.history]
    losses = [[row["loss"] for row in run.history if "loss" in row] for run in (resumed, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # GPU kernels add in a varying order
    one, other = (load_model(str(run.model_folder)).state_dict() for run in (resumed, expected))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=2e-3, rtol=2e-2)


@contextmanager
def little_memory(monkeypatch):
    """Limit training to 384 MiB of a card; on a processor, refuse batches of more than 16 blocks."""
    if HAS_CARD:
        gc.collect()
        torch.cuda.empty_cache()
        limit = torch.cuda.memory_reserved() + 384 * MIB  # includes the workspaces that cuBLAS keeps
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    train = fine_tuning._train_once

    def too_small(settings, *args, **how):
        if settings.per_device_train_batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        train(settings, *args, **how)

    monkeypatch.setattr(fine_tuning, "_train_once", too_small)
    yield


@pytest.mark.gpu
@needs_a_card
def test_a_batch_that_does_not_fit_into_memory_is_halved(monkeypatch):
    settings = TrainingSettings(
        run="halved", per_device_train_batch_size=128, max_tokens=60_000, num_train_epochs=1, sample_prompt=""
    )
    with little_memory(monkeypatch), pytest.warns(UserWarning, match="Out of memory with per_device_train_batch_size"):
        run = fine_tune(settings)
    batch, passes = run.facts["per_device_train_batch_size"], run.facts["gradient_accumulation_steps"]
    assert batch < 128 == batch * passes
    assert run.facts["steps"] > 0


@pytest.mark.gpu
@needs_a_card
def test_the_doctor_recognises_the_gpu():
    command = [sys.executable, "-m", "helpers", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NOTEBOOKS.parent)
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"], done.stderr
    if HAS_CARD:
        assert found["mode"] == "gpu"
        assert found["card"]["name"] == torch.cuda.get_device_name()
        assert found["card"]["capability"] == list(torch.cuda.get_device_capability())
        assert found["card"]["precision"] == chosen_precision(TrainingSettings())
        assert found["card"]["peak_tflops"], "the table of compute capabilities includes this card"


@pytest.mark.gpu
@needs_a_card
def test_the_monitor_reads_the_gpu_memory_in_use():
    held = torch.ones(2**28, dtype=torch.uint8, device=DEVICE)
    seen = sample()
    assert seen.device == ("gpu" if HAS_CARD else "cpu")
    assert seen.reading.total_bytes - seen.reading.free_bytes >= held.nbytes
    assert seen.row()["memory_gib"] > 0


@pytest.mark.parametrize("part", card.PARTS)
def test_every_gpu_benchmark_also_runs_on_a_cpu(part, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "MEMORY", card.MEMORY[::6])
    monkeypatch.setattr(card, "NANOGPT", tmp_path / "not there")
    eager = {name: change for name, change in card.LEVERS.items() if "compile_mode" not in change}
    monkeypatch.setattr(card, "LEVERS", eager)
    rows = {name: card.training_step.ROWS[name] for name in ("guide, documents", "ours")}
    monkeypatch.setattr(card.training_step, "ROWS", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = card.measure(part, card.DRY, tmp_path / "card.json")
    record = json.loads((tmp_path / "card.json").read_text())
    assert [row["what"] for row in record[part]] == [row["what"] for row in rows]
    assert rows
    assert record["machine"]["torch"] == torch.__version__
    if part == "against":
        assert "| ours |" in card.readme_table(record)
