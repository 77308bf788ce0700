"""Every test is offline, draws to no screen, and keeps its runs in a temporary folder."""

import gc
import json
import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ["MPLBACKEND"] = "Agg"

from pathlib import Path

import pytest

from helpers.course import without_address_grammar
from helpers.paths import NOTEBOOKS
from helpers.settings import EvaluationSettings, TrainingSettings

with without_address_grammar():  # whatever else imports it later finds it imported
    import nbformat


def pytest_configure(config):
    """On a card only report warnings: its drivers and its versions of the libraries have some of their own."""
    if config.option.markexpr == "gpu":
        config.addinivalue_line("filterwarnings", "default")


LONGEST = ("tests/troubleshooting/test_notebook.py", "tests/test_true_size.py", "tests/studies/test_commands.py")


def pytest_collection_modifyitems(items):
    """Begin with what takes longest: at the end one worker would run it alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Keep this test's runs apart; return their folder."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def plans_without_triton(request, monkeypatch):
    """Predict the same memory whether or not Triton is installed here, but on a card what is true there."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr("helpers.training.memory.has_triton", lambda: False)


@pytest.fixture(autouse=True)
def closed_pictures():
    """Close what a test has drawn: matplotlib warns of the twenty-first open picture of a process."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True, scope="module")
def frozen_libraries():
    """Keep what is loaded out of garbage collection: each training collects, which takes 0.4 s with all of torch."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Return the folder of a GPT-2 of one layer with the pocket model's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from helpers.model import load_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=4095)
    GPT2LMHeadModel(config).save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model):
    """Return that model and its tokenizer, ready to be asked; tests that change a model load their own."""
    from helpers.model import load_model, load_tokenizer

    return load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))


@pytest.fixture(scope="session")
def model():
    """Return the pocket model, ready to be asked; tests that change a model load their own."""
    from helpers.model import load_model

    return load_model("pocket").eval()


@pytest.fixture(scope="session")
def tokenizer():
    """Return the pocket model's tokenizer."""
    from helpers.model import load_tokenizer

    return load_tokenizer("pocket")


@pytest.fixture(scope="session")
def sampling_settings() -> EvaluationSettings:
    """Return settings with which the pocket model continues a fable by one short sample."""
    return EvaluationSettings(prompt="The Fox and the", max_new_tokens=30, num_return_sequences=1)


class FakeCard:
    """A GPU that computes nothing: a model on it is in main memory all the same.

    Attributes:
        present: ids of the models that are on it now.
        most: the most of them that were there at once.
        n_visits: how often one came.
    """

    def __init__(self) -> None:
        self.present, self.most, self.n_visits = set(), 0, 0

    def move(self, model, target):
        """Note that a model goes to a device."""
        if str(target) == "cpu":
            self.present.discard(id(model))
        elif id(model) not in self.present:
            self.n_visits += 1
            self.present.add(id(model))
            self.most = max(self.most, len(self.present))
        return model


@pytest.fixture
def fake_card(monkeypatch) -> FakeCard:
    """Let `helpers.model.device` find a GPU, and return it."""
    import torch
    from transformers import GPT2LMHeadModel

    card = FakeCard()
    monkeypatch.setattr(GPT2LMHeadModel, "to", lambda model, target: card.move(model, target))
    monkeypatch.setattr("helpers.model.device", lambda: torch.device("cuda"))
    return card


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Return a text file of 40 short documents, a block of lines each."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    animals = ("fox", "owl", "hen", "ram", "cat", "dog", "bee", "eel")
    places = ("well", "barn", "hill", "road", "wood")
    stories = [f"The {a} went to the {p}.\nIt found the {p} empty and came home." for a in animals for p in places]
    path.write_text("\n\n".join(stories), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_settings(tiny_model, text_file) -> TrainingSettings:
    """Return settings of a training that takes a second."""
    return TrainingSettings(
        run="tiny",
        model_name_or_path=str(tiny_model),
        source=str(text_file),
        block_size=32,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        num_train_epochs=2,
        logging_steps=1,
        eval_steps=4,
        save_steps=3,
        mixed_precision="no",
        sample_prompt="",  # a sample takes longer than the steps before it
    )


@pytest.fixture
def write_notebook(tmp_path):
    """Return a function that writes a notebook: its name, the tagged cell, the cells after it; it returns the path."""

    def write(name, parameters, *cells) -> Path:
        tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        nb = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nb, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def training_notebook(write_notebook):
    """Return a notebook that trains and does nothing else."""
    declared = "\n".join(f"{name} = {value!r}" for name, value in TrainingSettings().model_dump().items())
    code = "from helpers.settings import TrainingSettings\nfrom helpers.training import fine_tune\n"
    return write_notebook("training.ipynb", declared, f"{code}fine_tune(TrainingSettings.from_notebook(globals()))")


@pytest.fixture(scope="session")
def notebook_until(tmp_path_factory):
    """Return a function that writes a notebook up to the cell with some words: what comes after would take time."""

    def cut(name, words) -> Path:
        nb = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
        last = next(n for n, cell in enumerate(nb["cells"]) if words in "".join(cell["source"]))
        path = tmp_path_factory.mktemp("notebooks") / name
        path.write_text(json.dumps(nb | {"cells": nb["cells"][: last + 1]}), encoding="utf-8")
        return path

    return cut


@pytest.fixture(scope="session")
def notebook_03_until_trained(notebook_until) -> Path:
    """Return notebook 03 up to the cell that trains."""
    return notebook_until("03_fine_tuning.ipynb", "fine_tune(settings")


@pytest.fixture(scope="session")
def trained_runs(tiny_settings, tmp_path_factory) -> Path:
    """Return a folder of runs in which a run of the tiny model is finished; it is trained once."""
    from helpers.training.fine_tuning import fine_tune

    folder = tmp_path_factory.mktemp("trained") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(folder))
        fine_tune(tiny_settings)
    return folder


@pytest.fixture
def tiny_run(trained_runs, runs):
    """Return a finished run of the tiny model, which a test may change: it is a copy."""
    from helpers.training.finished_run import open_run

    shutil.copytree(trained_runs, runs, dirs_exist_ok=True)
    return open_run("tiny")
