import json
import math

import pytest

from helpers import pocket
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


def test_docstrings_are_found_and_broken_files_passed_over(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
    )
    (tmp_path / "b.py").write_text("def broken(:")
    (tmp_path / "c.py").write_bytes(b'"""\xff"""')
    assert sorted(pocket.docstrings(tmp_path)) == ["Class.", "Method.", "Module."]


def test_a_paragraph_is_gathered_once(tmp_path, monkeypatch):
    line = '"""Return the number of items that are in the list of the caller."""\n'
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(line)
    monkeypatch.setattr(pocket, "package_folders", lambda: [tmp_path])
    assert pocket.gather() == ["Return the number of items that are in the list of the caller."]


def test_documents_are_split_by_their_own_hash():
    documents = [f"document {i}" for i in range(2000)]
    held_out, training = pocket.held_out_and_training(documents)
    assert sorted(held_out + training) == sorted(documents)
    assert len(held_out) / len(documents) == pytest.approx(1 / pocket.HELD_OUT_SHARE, rel=0.5)
    assert pocket.held_out_and_training(documents[::-1])[0] == held_out[::-1]


def test_the_tokenizer_is_laid_out_as_gpt2s():
    tokenizer = pocket.train_tokenizer([f"the fox number {i} ran over the hill {i * 7}" for i in range(300)])
    assert tokenizer.eos_token_id == pocket.VOCAB_SIZE - 1
    assert tokenizer.decode(tokenizer.encode("caf\u00e9 over the hill")) == "caf\u00e9 over the hill"
    blocks = pocket.token_blocks(["the fox ran over the hill " * 60] * 3, tokenizer)
    assert blocks.shape[1] == pocket.N_POSITIONS


def test_the_recipe_trains_and_resumes_and_saves_a_stock_model(tmp_path, monkeypatch):
    tokenizer = load_tokenizer("pocket")
    blocks = pocket.token_blocks(["the fox ran over the hill and came home again " * 30] * 60, tokenizer)
    real = __import__("transformers").TrainingArguments

    def uncompiled(**options):  # compiling takes longer than these steps
        return real(**{**options, "torch_compile": False, "bf16": False, "save_steps": 2})

    monkeypatch.setattr("transformers.TrainingArguments", uncompiled)
    pocket.pretrain(blocks, tmp_path / "checkpoints", max_steps=2)
    model = pocket.pretrain(blocks, tmp_path / "checkpoints", max_steps=4)
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
