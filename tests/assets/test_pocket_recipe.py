import json
import math
import warnings
from functools import partial

import pytest
from datasets import load_from_disk

from helpers.assets.pocket import recipe
from helpers.model import load_model
from helpers.paths import POCKET
from helpers.settings import run_folder
from helpers.training import fine_tuning
from helpers.training.run_files import read_history

DOCSTRING = """Return the number of items that are in the list of the caller.

    Use :class:`~torch.Tensor` and the ``sum`` of all values when it is not empty.

    Args:
        x: not prose

    >>> f(1)
    1

    ======  =====
    a       b
    ======  =====

    Too short.
    """


def test_only_the_prose_of_a_docstring_is_kept():
    assert recipe.prose_of(DOCSTRING).split("\n") == [
        "Return the number of items that are in the list of the caller.",
        "Use ~torch.Tensor and the sum of all values when it is not empty.",
    ]


def test_the_descriptions_of_parameters_are_kept_without_names_and_types():
    docstring = """Draw it.

    Args:
        path (str): The name of the file that is read,
            with its folder.
        count: How many of them are to be read.

    Parameters
    ----------
    axis : int, optional
        The axis on which the values are added.
    :param depth: how far it goes down from the root.
    """
    assert recipe.descriptions(docstring) == [
        "The name of the file that is read, with its folder.",
        "How many of them are to be read.",
        "The axis on which the values are added.",
        "how far it goes down from the root.",
    ]


def test_docstrings_and_comments_are_found_and_broken_files_are_skipped(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        '#!x\n"""Module."""\nclass A:\n    """Class."""\n    # One\n    # block.\n    def f(self):\n        "Do."\n'
    )
    (tmp_path / "b.py").write_text("def broken(:")
    (tmp_path / "c.py").write_bytes(b'"""\xff"""')
    monkeypatch.setattr(recipe, "package_folders", lambda: [tmp_path])
    [(source, tree)] = recipe.sources()
    assert sorted(recipe.docstrings(tree)) == ["Class.", "Do.", "Module."]
    assert list(recipe.comments(source)) == ["One\nblock."]


def test_warnings_of_parsed_files_are_silenced_and_the_callers_are_not(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('"""A fox."""\nname = "\\d"\n')  # an invalid escape
    monkeypatch.setattr(recipe, "package_folders", lambda: [tmp_path])
    with pytest.warns(UserWarning, match="heard") as heard:
        for _ in recipe.sources():
            warnings.warn("heard", stacklevel=1)
    assert len(heard) == 1


def test_a_paragraph_is_gathered_once(tmp_path, monkeypatch):
    sentence = "Return the number of items that are in the list of the caller."
    comment = "The list is as long as it was when it was made."
    (tmp_path / "a.py").write_text(f"# {sentence}\n")
    for name in ("b.py", "c.py"):
        (tmp_path / name).write_text(f'"""{sentence}"""\n# {comment}\n')
    monkeypatch.setattr(recipe, "package_folders", lambda: [tmp_path])
    assert recipe.gather() == ([sentence], [comment])


def test_only_docstrings_are_held_out_by_their_own_hash():
    documents, others = [f"document {i}" for i in range(2000)], [f"comment {i}" for i in range(500)]
    held_out, training = recipe.held_out_and_training(documents, others)
    assert sorted(held_out + training) == sorted(documents + others)
    assert set(others) <= set(training)
    assert len(held_out) / len(documents) == pytest.approx(1 / recipe.HELD_OUT_SHARE, rel=0.5)
    assert recipe.held_out_and_training(documents[::-1], others)[0] == held_out[::-1]


def test_the_recipe_trains_through_fine_tune_resumes_and_saves_a_stock_model(tmp_path, monkeypatch):
    documents = [f"the fox number {i} ran over the hill and came home again " * 30 for i in range(30)]
    corpus = recipe.write_corpus(
        tmp_path / "corpus", training=documents, held_out=[f"the owl {i} " * 200 for i in range(4)]
    )
    quick = {"source": corpus, "torch_compile": "never", "mixed_precision": "no"}
    quick |= {"n_embd": 32, "n_layer": 1, "n_head": 2}
    schedule = {"max_steps": 4, "save_steps": 2, "logging_steps": 1}

    def killed_at_step_3(history, progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(fine_tuning, "fine_tune", partial(fine_tuning.fine_tune, watch=killed_at_step_3))
        recipe.pretrain("all", **schedule, **quick)
    assert not (run_folder("all") / "model").exists()
    trained = recipe.pretrain("all", **schedule, **quick)
    assert [row["step"] for row in read_history(run_folder("all")) if "loss" in row] == [1, 2, 3, 4]
    assert json.loads((run_folder("all") / "settings.json").read_text())["settings"]["adam_beta2"] == 0.95
    further = recipe.pretrain("last", source=corpus, start=trained, max_steps=2, torch_compile="never")
    assert load_model(str(further)).config.n_layer == 1
    recipe.save(further, tmp_path / "out")
    metrics = recipe.write_card(tmp_path / "out", held_out=["the fox ran home"], training=["the hill"], max_steps=4)
    config = load_model(str(tmp_path / "out")).config
    assert (config.activation_function, config.resid_pdrop, config.embd_pdrop) == ("gelu_new", 0.1, 0.1)
    assert 0 < metrics["held_out"]["loss_nats"] < math.log(4096)
    assert f"{metrics['held_out']['bits_per_byte']:.4f}" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_an_existing_corpus_is_not_written_again(tmp_path):
    folder = recipe.write_corpus(tmp_path / "corpus", training=["a fox", "a hen"], held_out=["an owl", "a ram"])
    recipe.write_corpus(folder, training=["other"], held_out=["texts", "here"])
    assert load_from_disk(str(folder))["train"]["text"] == ["a fox", "a hen"]


def test_the_shipped_model_card_matches_the_shipped_metrics():
    metrics = json.loads((POCKET / "recipe.json").read_text())
    card = (POCKET / "README.md").read_text(encoding="utf-8")
    assert card == recipe._card(metrics)
    assert metrics["parameters"] == sum(p.numel() for p in load_model("pocket").parameters())
    assert metrics["tokens_seen"] >= 20_000_000
