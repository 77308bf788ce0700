"""Build the shipped pocket model: gather docstrings and comments, and pretrain a small GPT-2 on them.

    python -m helpers.assets.pocket.recipe [--output FOLDER] [--steps N]

It gathers the English prose in the docstrings and comments of the installed Python packages, trains a new GPT-2 and its
tokenizer on them with the preset `pocket-pretraining`, and writes both with a model card. Only docstrings are held out.
After an interruption, the same command resumes the training.
"""

import ast
import hashlib
import inspect
import json
import math
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from helpers.files import atomic_folder
from helpers.paths import ASSETS, POCKET, runs_folder

PRESET = "pocket-pretraining"
SEED = 20261123
HELD_OUT_SHARE = 50  # one document in this many is held out

_ROLE = re.compile(r":[a-z]+(?::[a-z]+)*:`([^`]*)`")  # :class:`~torch.Tensor` -> ~torch.Tensor
_LITERAL = re.compile(r"``([^`]*)``")
_FIELD = re.compile(r"^(:\w|\.\. |>>>|\.\.\. |[-=~^*#+|]{3,}|\w+ ?:$|@\w)")
_DESCRIPTION = re.compile(r":\w[^:]*:\s+|[-*+] |[\w*`, ]+ : .*|[\w*`, ]+(?: ?\([^)]*\))? ?:\s+")  # name, type, bullet
_COMMENT = re.compile(r"(?:^[ \t]*#(?!!).*\n?)+", re.MULTILINE)
_PROSE_CHARACTER = re.compile(r"[A-Za-z ,.;'\n]")
_FUNCTION_WORDS = frozenset("the a an of to in is are and or for that this it be with by if as on from not".split())


def prose_of(docstring: str) -> str:
    r"""Return the English prose of one docstring, one paragraph per line; '' if there is none.

    Code, tables, field lists and headings are left out; reStructuredText roles and literals keep their text.

    >>> prose_of("Return the ``sum`` of all the values in a list.\n\n>>> sum([1])\n1")
    'Return the sum of all the values in a list.'
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(_FIELD.match(line) for line in lines):
            continue
        text = _LITERAL.sub(r"\1", _ROLE.sub(r"\1", " ".join(lines)))
        if _is_prose(text):
            kept.append(text)
    return "\n".join(kept)


def descriptions(docstring: str) -> list[str]:
    r"""Return the prose in a docstring's field lists, about parameters, results and errors.

    >>> descriptions("Args:\n    depth (int): How far we go down,\n        counted from the root of the tree.")
    ['How far we go down, counted from the root of the tree.']
    """
    entries: list[list[str]] = [[]]
    depth = None  # indentation of an entry's lines after the first
    for line in inspect.cleandoc(docstring).splitlines():
        text, here = line.strip(), len(line) - len(line.lstrip())
        head = _DESCRIPTION.match(text)
        if not text or head or depth not in (None, here):
            entries.append([])
        entries[-1].append(text[head.end() :] if head else text)
        depth = None if head or not text else here
    return [prose for entry in entries if (prose := prose_of(" ".join(entry).strip()))]


def _is_prose(text: str) -> bool:
    words = text.lower().split()
    if len(words) < 6 or text[-1] not in ".!?" or not text.isascii():
        return False
    function_words = sum(word.strip(",.;:()") in _FUNCTION_WORDS for word in words)
    return function_words >= len(words) / 6 and len(_PROSE_CHARACTER.findall(text)) >= 0.9 * len(text)


def package_folders() -> list[Path]:
    """Return the folders that hold the standard library and the installed packages."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths[key]) for key in ("stdlib", "purelib", "platlib")})


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield text and syntax tree of every Python file in the standard library and installed packages, in path order."""
    for folder in package_folders():
        for path in sorted(folder.rglob("*.py")):
            if folder.name != "site-packages" and "site-packages" in path.parts:
                continue  # the standard library's folder may contain the packages' folder
            try:
                source = path.read_text(encoding="utf-8")
                with warnings.catch_warnings(action="ignore"):  # other people's invalid escapes
                    tree = ast.parse(source)
            except (SyntaxError, ValueError, RecursionError, OSError):
                continue  # a template, a test of bad input, or not UTF-8: nothing to read
            yield source, tree  # outside the try: the caller's warnings and errors must not be hidden


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield every docstring of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text


def comments(source: str) -> Iterator[str]:
    r"""Yield every block of comment lines, without the # characters.

    >>> list(comments("x = 1\n# Two lines\n# of one thought.\ny = 2\n"))
    ['Two lines\nof one thought.']
    """
    for block in _COMMENT.findall(source):
        yield "\n".join(line.strip().lstrip("#").strip() for line in block.splitlines())


def gather() -> tuple[list[str], list[str]]:
    """Return the prose of all installed packages as (docstrings, other prose); no paragraph is in two documents.

    The other prose, comments and descriptions of parameters, is only trained on; held-out text is docstrings alone.
    """
    docstring_prose, other_prose = [], []
    for source, tree in sources():
        for docstring in docstrings(tree):
            docstring_prose.append(prose_of(docstring))
            other_prose += descriptions(docstring)
        other_prose += map(prose_of, comments(source))
    seen: set[str] = set()
    return _without_repeats(docstring_prose, seen), _without_repeats(other_prose, seen)


def _without_repeats(documents: list[str], seen: set[str]) -> list[str]:
    """Return the documents without the paragraphs in `seen`, and add theirs to it."""
    kept = []
    for document in documents:
        paragraphs = [p for p in document.split("\n") if p and p.lower() not in seen]
        seen.update(p.lower() for p in paragraphs)
        if paragraphs:
            kept.append("\n".join(paragraphs))
    return kept


def is_held_out(document: str) -> bool:
    """Return whether a document is held out: decided by its hash, so that order and other documents do not matter."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:4]) % HELD_OUT_SHARE == 0


def held_out_and_training(docstring_prose: list[str], other_prose: list[str]) -> tuple[list[str], list[str]]:
    """Split into (held out, training), with the training documents in a seeded random order."""
    held_out = [document for document in docstring_prose if is_held_out(document)]
    training = [document for document in docstring_prose if not is_held_out(document)] + other_prose
    random.Random(SEED).shuffle(training)  # noqa: S311 (an order, not a secret)
    return held_out, training


def write_corpus(folder: Path, *, training: list[str], held_out: list[str]) -> Path:
    """Save the documents as a `source` with its own splits: half of the held-out ones for validation, half for test."""
    from datasets import Dataset, DatasetDict

    if not folder.exists():  # otherwise an interrupted recipe continues, whose run expects the same files
        splits = {"train": training, "validation": held_out[::2], "test": held_out[1::2]}
        corpus = DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()})
        with atomic_folder(folder) as new:
            corpus.save_to_disk(new)
    return folder


def pretrain(run: str, *, source: Path, max_steps: int, start: Path | None = None, **changes: Any) -> Path:
    """Train a run on what `write_corpus` wrote, or resume it; return the folder of its model.

    The settings are the preset's with some changes. It trains the model in the folder `start`, or else a new one.
    """
    from helpers.data import prepare
    from helpers.settings import NEW_MODEL, DataSettings, TrainingSettings
    from helpers.training import fine_tune

    if start:
        defaults = {name: TrainingSettings.model_fields[name].default for name in ("from_scratch", *NEW_MODEL)}
        changes = defaults | {"model_name_or_path": str(start)} | changes
    settings = TrainingSettings.from_preset(
        PRESET,
        **{"near_duplicates": "keep", "document_separator": "row", "torch_compile": "always"}
        | {"logging_steps": 100, "eval_steps": 1000, "save_steps": 500}
        | {"optim": "adamw_torch_fused", "learning_rate": 2e-3}  # as the shipped weights were trained
        | {"run": run, "source": str(source), "seed": SEED}
        | changes,
    )
    n_blocks = len(prepare(settings.part(DataSettings)).blocks["train"])
    epochs = max_steps / math.ceil(n_blocks / settings.effective_batch_size)
    return fine_tune(settings.model_copy(update={"num_train_epochs": epochs}), progress=True).folder / "model"


def save(trained: Path, output: Path) -> None:
    """Write the trained model with GPT-2's own dropout, so that it fine-tunes like any other GPT-2."""
    from transformers import GPT2Config

    from helpers.model import load_model, load_tokenizer

    model, stock = load_model(str(trained)), GPT2Config()
    for name in ("resid_pdrop", "embd_pdrop"):
        setattr(model.config, name, getattr(stock, name))
    model.save_pretrained(output)
    load_tokenizer(str(trained)).save_pretrained(output)


def write_card(output: Path, *, held_out: list[str], training: list[str], max_steps: int) -> dict[str, Any]:
    """Score the model in `output` on the held-out documents, write README.md and recipe.json; return the numbers."""
    from helpers.evaluation import generate, score
    from helpers.model import load_model, load_tokenizer
    from helpers.settings import EvaluationSettings, TrainingSettings

    preset = TrainingSettings.from_preset(PRESET)
    model, tokenizer = load_model(str(output)), load_tokenizer(str(output))
    result = score(model, tokenizer, held_out, stride=model.config.n_positions // 2)
    digest = hashlib.sha256("\0".join(sorted(training)).encode()).hexdigest()
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_documents": len(training),
        "training_bytes": sum(len(text.encode()) for text in training),
        "training_sha256": digest,
        "tokens_seen": max_steps * preset.effective_batch_size * preset.block_size,
        "seed": SEED,
        "held_out": result.to_dict(),
    }
    settings = EvaluationSettings(run="pocket", seed=SEED, max_new_tokens=60, num_return_sequences=1)
    prompts = ["Return the", "This class", "If the file"]
    metrics["samples"] = [samples[0].text for samples in generate(model, tokenizer, prompts, settings)]
    (output / "recipe.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    (output / "README.md").write_text(_card(metrics), encoding="utf-8")
    return metrics


def _card(metrics: dict[str, Any]) -> str:
    quoted = "\n".join(f"> {' '.join(sample.split())}\n" for sample in metrics["samples"])
    template = (ASSETS / "templates" / "pocket_card.md").read_text(encoding="utf-8")
    return template.format(**metrics, quoted_samples=quoted)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=POCKET, show_default=True, help="Where it goes.")
@click.option("--steps", default=18_000, show_default=True, help="Steps of 4,096 tokens on all text; a sixth follows.")
def main(output: Path, steps: int) -> None:
    """Gather the corpus, train tokenizer and model, write both with their card."""
    docstring_prose, other_prose = gather()
    held_out, training = held_out_and_training(docstring_prose, other_prose)
    click.echo(f"{len(training):,} documents to train on, {len(held_out):,} held out")
    work = runs_folder() / "pocket-recipe"
    everything = write_corpus(work / "everything", training=training, held_out=held_out)
    model = pretrain("pocket-recipe-everything", source=everything, max_steps=steps)
    # Finish on the kind of text it is measured on: docstrings alone, for a sixth as many steps at half the rate.
    is_docstring = set(docstring_prose)
    last = [document for document in training if document in is_docstring]
    docstrings = write_corpus(work / "docstrings", training=last, held_out=held_out)
    model = pretrain(
        "pocket-recipe-docstrings", source=docstrings, start=model, max_steps=steps // 6, learning_rate=1e-3
    )
    save(model, output)
    metrics = write_card(output, held_out=held_out, training=training, max_steps=steps + steps // 6)
    click.echo(f"{metrics['held_out']['bits_per_byte']:.4f} bits per byte on {metrics['held_out']['protocol']}")


if __name__ == "__main__":
    main()
