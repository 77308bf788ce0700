"""Which model the experiments of notebook 03 train, and on which labels."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from helpers.paths import NOTEBOOKS
from helpers.settings import TrainingSettings
from helpers.training import FinishedRun, as_batch, choose_experiment

GPT2 = {"model_name_or_path": "openai-community/gpt2", "source": "Salesforce/wikitext", "learning_rate": 1e-4}


def choose(*, seconds_per_step, **values):
    settings = TrainingSettings(run="mine", **values)
    trained = FinishedRun("mine", Path("mine"), [], {"seconds": 100 * seconds_per_step, "steps": 100})
    return settings, *choose_experiment(settings, trained)


@pytest.mark.parametrize(
    "values",
    [{}, GPT2, {"from_scratch": True, "n_layer": 12}],
    ids=["the pocket model", "GPT-2 on a GPU", "a model from scratch"],
)
def test_fast_experiments_train_the_readers_own_model(values):
    settings, experiment, why = choose(seconds_per_step=0.5, **values)
    assert experiment == settings
    assert why == "The experiments below train your model on your text."


@pytest.mark.parametrize(
    "values",
    [GPT2, GPT2 | {"streaming": True, "max_tokens": 10**9}, {"from_scratch": True, "n_layer": 12}],
    ids=["GPT-2 on a CPU", "GPT-2 from a stream", "a model from scratch"],
)
def test_slow_experiments_train_the_pocket_model_on_the_readers_text_instead(values):
    settings, experiment, why = choose(seconds_per_step=60, seed=7, text_column="body", **values)
    assert why.startswith("At the speed of your run the experiments below would take 1 h 04 min: ")
    assert why.endswith("the pocket model is trained instead, on the beginning of your text.")
    assert (experiment.source, experiment.text_column, experiment.seed) == (settings.source, "body", 7)
    assert (experiment.run, experiment.max_tokens) == ("mine-experiment", 200_000)


def test_the_experiment_of_a_run_with_the_longest_name_has_a_valid_name():
    settings = TrainingSettings(run="r" * 64, lora_r=8)
    experiment, _ = choose_experiment(settings, FinishedRun(settings.run, Path("r"), [], {"seconds": 1, "steps": 1}))
    assert experiment.run == "r" * 53 + "-experiment"
    defaults = TrainingSettings()
    for name in ("model_name_or_path", "learning_rate", "block_size", "from_scratch", "streaming"):
        assert getattr(experiment, name) == getattr(defaults, name)


@pytest.mark.parametrize("values", [{"lora_r": 8}, {"optim": "adafactor"}, {"lora_r": 8, "block_size": 64}])
def test_adapters_and_other_optimizers_are_left_out_of_experiments(values):
    settings, experiment, why = choose(seconds_per_step=0.1, **values)
    assert why.startswith("Adapters and other optimizers need a different training loop: ")
    assert (experiment.lora_r, experiment.optim) == (0, "adamw_torch_fused")
    assert experiment.block_size == settings.block_size


def test_a_slow_run_of_the_pocket_model_is_not_replaced():
    settings, experiment, _ = choose(seconds_per_step=60)
    assert experiment == settings


def test_experiments_on_a_stream_train_on_its_stored_beginning():
    _, experiment, why = choose(seconds_per_step=0.1, **GPT2, streaming=True, max_tokens=10**9)
    assert (experiment.run, experiment.streaming, experiment.max_tokens) == ("mine-experiment", False, 2_000_000)
    assert experiment.model_name_or_path == GPT2["model_name_or_path"]
    assert why.endswith("train your model on the beginning of your text.")


def test_the_validation_of_notebook_03_counts_each_target_once(tiny):
    cells = json.loads((NOTEBOOKS / "03_fine_tuning.ipynb").read_text(encoding="utf-8"))["cells"]
    ids = torch.randint(4096, (3, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :12] = -100  # a prompt: this row has 4 targets, every other row has 15
    rows = [{"input_ids": row, "labels": target} for row, target in zip(ids, labels, strict=True)]
    names = {
        "torch": torch, "islice": islice, "DataLoader": DataLoader, "as_batch": as_batch,
        "chosen_precision": lambda settings: "no",
        "data": SimpleNamespace(blocks={"validation": rows}),
        "experiment": TrainingSettings(per_device_train_batch_size=1),
    }  # fmt: skip
    exec(next("".join(cell["source"]) for cell in cells if cell["id"] == "03-loop-1b"), names)
    assert [names["n_targets"](as_batch([row])) for row in rows] == [4, 15, 15]
    with torch.no_grad():
        log_p = tiny[0](ids).logits[:, :-1].log_softmax(-1)
    nats = -log_p.gather(-1, ids[:, 1:, None])[labels[:, 1:, None] != -100]
    assert names["validate"](tiny[0]) == pytest.approx(nats.mean().item(), rel=1e-5)
