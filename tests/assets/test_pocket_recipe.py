import json
import math
import warnings

import pytest

from helpers.assets.pocket import recipe as pocket
from helpers.model import load_model, load_tokenizer
from helpers.settings import POCKET

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
    assert pocket.prose_of(DOCSTRING).split("\n") == [
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
    assert pocket.descriptions(docstring) == [
        "The name of the file that is read, with its folder.",
        "How many of them are to be read.",
        "The axis on which the values are added.",
        "how far it goes down from the root.",
    ]


def test_docstrings_and_comments_are_found_and_broken_files_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        '#!x\n"""Module."""\nclass A:\n    """Class."""\n    # One\n    # block.\n    def f(self):\n        "Do."\n'
    )
    (tmp_path / "b.py").write_text("def broken(:")
    (tmp_path / "c.py").write_bytes(b'"""\xff"""')
    monkeypatch.setattr(pocket, "package_folders", lambda: [tmp_path])
    [(source, tree)] = pocket.sources()
    assert sorted(pocket.docstrings(tree)) == ["Class.", "Do.", "Module."]
    assert list(pocket.comments(source)) == ["One\nblock."]


def test_other_peoples_warnings_are_silent_and_the_callers_are_heard(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('"""A fox."""\nname = "\\d"\n')  # an invalid escape
    monkeypatch.setattr(pocket, "package_folders", lambda: [tmp_path])
    with pytest.warns(UserWarning, match="heard") as heard:
        for _ in pocket.sources():
            warnings.warn("heard", stacklevel=1)
    assert len(heard) == 1


def test_a_paragraph_is_gathered_once(tmp_path, monkeypatch):
    sentence = "Return the number of items that are in the list of the caller."
    comment = "The list is as long as it was when it was made."
    (tmp_path / "a.py").write_text(f"# {sentence}\n")
    for name in ("b.py", "c.py"):
        (tmp_path / name).write_text(f'"""{sentence}"""\n# {comment}\n')
    monkeypatch.setattr(pocket, "package_folders", lambda: [tmp_path])
    assert pocket.gather() == ([sentence], [comment])


def test_docstrings_alone_are_held_out_by_their_own_hash():
    documents, others = [f"document {i}" for i in range(2000)], [f"comment {i}" for i in range(500)]
    held_out, training = pocket.held_out_and_training(documents, others)
    assert sorted(held_out + training) == sorted(documents + others)
    assert set(others) <= set(training)
    assert len(held_out) / len(documents) == pytest.approx(1 / pocket.HELD_OUT_SHARE, rel=0.5)
    assert pocket.held_out_and_training(documents[::-1], others)[0] == held_out[::-1]


def test_the_tokenizer_is_laid_out_as_gpt2s():
    tokenizer = pocket.train_tokenizer([f"the fox number {i} ran over the hill {i * 7}" for i in range(300)])
    assert tokenizer.eos_token_id == pocket.VOCAB_SIZE - 1
    assert tokenizer.decode(tokenizer.encode("caf\u00e9 over the hill")) == "caf\u00e9 over the hill"
    blocks = pocket.token_blocks(["the fox ran over the hill " * 60] * 3, tokenizer)
    assert blocks.shape[1] == pocket.N_POSITIONS


def test_the_recipe_trains_and_resumes_and_saves_a_stock_model(tmp_path):
    tokenizer = load_tokenizer("pocket")
    blocks = pocket.token_blocks(["the fox ran over the hill and came home again " * 30] * 60, tokenizer)
    quick = {"torch_compile": False, "bf16": False, "save_steps": 2}  # compiling takes longer than these steps
    pocket.pretrain(blocks, tmp_path / "checkpoints", max_steps=2, **quick)
    model = pocket.pretrain(blocks, tmp_path / "checkpoints", max_steps=4, **quick)
    assert (tmp_path / "checkpoints/checkpoint-4").exists()
    pocket.save(model.state_dict(), tokenizer, tmp_path / "out")
    figures = pocket.write_card(tmp_path / "out", held_out=["the fox ran home"], training=["the hill"], max_steps=4)
    assert load_model(str(tmp_path / "out")).config.activation_function == "gelu_new"
    assert 0 < figures["held_out"]["loss_nats"] < math.log(4096)
    assert f"{figures['held_out']['bits_per_byte']:.4f}" in (tmp_path / "out/README.md").read_text()


def test_the_shipped_card_says_what_the_shipped_recipe_measured():
    figures = json.loads((POCKET / "recipe.json").read_text())
    card = (POCKET / "README.md").read_text()
    assert card == pocket._card(figures)
    assert figures["parameters"] == sum(p.numel() for p in load_model("pocket").parameters())
    assert figures["tokens_seen"] >= 20_000_000
