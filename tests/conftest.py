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

from helpers.course import hide_uri_grammar
from helpers.paths import NOTEBOOKS
from helpers.settings import EvaluationSettings, TrainingSettings

hide_uri_grammar()  # later imports reuse it
import nbformat  # noqa: E402


def pytest_configure(config):
    """On a GPU machine only report warnings: its drivers and library versions raise some of their own."""
    if config.option.markexpr == "gpu":
        config.addinivalue_line("filterwarnings", "default")


LONGEST = ("tests/troubleshooting/test_notebook.py", "tests/test_true_size.py", "tests/studies/test_commands.py")


def pytest_collection_modifyitems(items):
    """Run the longest tests first: at the end one worker would run them alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Keep this test's runs apart; return their folder."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def plans_without_triton(request, monkeypatch):
    """Predict the same memory with or without Triton here; tests on a GPU keep the real answer."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr("helpers.training.memory.has_triton", lambda: False)


@pytest.fixture(autouse=True)
def closed_pictures():
    """Close the pictures of a test: matplotlib warns about the twenty-first open one."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True, scope="module")
def frozen_libraries():
    """Exclude loaded modules from garbage collection: each training run collects, which takes 0.4 s with torch."""
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
    """Return that model in evaluation mode and its tokenizer; tests that change a model load their own."""
    from helpers.model import load_model, load_tokenizer

    return load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))


@pytest.fixture(scope="session")
def model():
    """Return the pocket model in evaluation mode; tests that change a model load their own."""
    from helpers.model import load_model

    return load_model("pocket").eval()


@pytest.fixture(scope="session")
def tokenizer():
    """Return the pocket model's tokenizer."""
    from helpers.model import load_tokenizer

    return load_tokenizer("pocket")


@pytest.fixture(scope="session")
def chat_tokenizer():
    """Return the pocket model's tokenizer as a run on chat data has it."""
    from helpers.data.sources.chat import TEMPLATES
    from helpers.model import load_tokenizer

    tokenizer = load_tokenizer("pocket")
    tokenizer.chat_template = TEMPLATES["roles"].jinja
    return tokenizer


@pytest.fixture(scope="session")
def sampling_settings() -> EvaluationSettings:
    """Return settings for one short sample of a fable from the pocket model."""
    return EvaluationSettings(prompt="The Fox and the", max_new_tokens=30, num_return_sequences=1)


class FakeCard:
    """A GPU that computes nothing: models on it stay in main memory.

    Attributes:
        present: ids of the models that are on it now.
        most: the highest number of models on it at once.
        n_visits: how many times a model was moved to it.
    """

    def __init__(self) -> None:
        self.present, self.most, self.n_visits = set(), 0, 0

    def move(self, model, target):
        """Record that a model moves to a device."""
        if str(target) == "cpu":
            self.present.discard(id(model))
        elif id(model) not in self.present:
            self.n_visits += 1
            self.present.add(id(model))
            self.most = max(self.most, len(self.present))
        return model


@pytest.fixture
def fake_card(monkeypatch) -> FakeCard:
    """Make `helpers.model.device` find a fake GPU, and return that GPU."""
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
    """Return the settings of a training run that takes a second."""
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
    """Return a function that writes a notebook from a name, a parameters cell and other cells; it returns the path."""

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
    """Return a function that writes a notebook up to the cell that contains some words, to save time."""

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
    """Return a folder with one finished run of the tiny model, which is trained once."""
    from helpers.training.fine_tuning import fine_tune

    folder = tmp_path_factory.mktemp("trained") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(folder))
        fine_tune(tiny_settings)
    return folder


@pytest.fixture
def tiny_run(trained_runs, runs):
    """Return a copy of the finished run of the tiny model, which a test can change."""
    from helpers.training.finished_run import open_run

    shutil.copytree(trained_runs, runs, dirs_exist_ok=True)
    return open_run("tiny")
