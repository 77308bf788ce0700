"""The recipe of the shipped pocket model: docstrings and comments in, a small GPT-2 out.

    python -m helpers.assets.pocket.recipe [--output FOLDER] [--steps N]

It gathers the English prose in the docstrings and comments of the installed Python packages, trains a byte-level BPE
tokenizer on it, pretrains a GPT-2 of about 2.6 million parameters from random weights and writes both with a model
card. Held out is docstring text alone.
Interrupted, the same command goes on from the last checkpoint.
"""

import ast
import hashlib
import inspect
import json
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from helpers.settings import POCKET, runs_folder

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
N_POSITIONS = 256
BATCH_SIZE = 16
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
    r"""Return the English prose of one docstring, a paragraph a line; empty when there is none.

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
    r"""Return the prose that a docstring's field lists say of parameters, results and errors.

    >>> descriptions("Args:\n    depth (int): How far we go down,\n        counted from the root of the tree.")
    ['How far we go down, counted from the root of the tree.']
    """
    entries: list[list[str]] = [[]]
    depth = None  # of an entry's lines after its head
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
    """Yield text and syntax tree of every Python file of the installed packages, in path order."""
    for folder in package_folders():
        for path in sorted(folder.rglob("*.py")):
            if folder.name != "site-packages" and "site-packages" in path.parts:
                continue  # the standard library's folder may hold the packages' folder
            try:
                source = path.read_text(encoding="utf-8")
                with warnings.catch_warnings(action="ignore"):  # other people's invalid escapes
                    tree = ast.parse(source)
            except (SyntaxError, ValueError, RecursionError, OSError):
                continue  # a template, a test of bad input, or not UTF-8: no docstring to be had
            yield source, tree  # out here, where the caller's warnings are heard, and its errors are its own


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield every docstring of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text


def comments(source: str) -> Iterator[str]:
    r"""Yield every block of comment lines, without its signs.

    >>> list(comments("x = 1\n# Two lines\n# of one thought.\ny = 2\n"))
    ['Two lines\nof one thought.']
    """
    for block in _COMMENT.findall(source):
        yield "\n".join(line.strip().lstrip("#").strip() for line in block.splitlines())


def gather() -> tuple[list[str], list[str]]:
    """Return the prose of all installed packages as (docstrings, the rest); no paragraph stands in two documents.

    The rest, comments and the descriptions of parameters, is there to learn from; it is not what is held out.
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
    """Return the documents without the paragraphs in `seen`, which then holds theirs too."""
    kept = []
    for document in documents:
        paragraphs = [p for p in document.split("\n") if p and p.lower() not in seen]
        seen.update(p.lower() for p in paragraphs)
        if paragraphs:
            kept.append("\n".join(paragraphs))
    return kept


def is_held_out(document: str) -> bool:
    """Tell whether a document is kept out of training: by its hash, so that order and neighbours do not matter."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:4]) % HELD_OUT_SHARE == 0


def train_tokenizer(documents: list[str]):
    """Train a byte-level BPE laid out as GPT-2's: bytes first, merges next, the end-of-text token last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: VOCAB_SIZE - 1}
    merges = [tuple(pair) for pair in model["merges"]]
    return GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=N_POSITIONS)


def token_blocks(documents: list[str], tokenizer):
    """Return (N, N_POSITIONS) token ids: each document ends with the end-of-text token, joined and cut."""
    import torch

    encodings = tokenizer.backend_tokenizer.encode_batch_fast(documents)
    stream = [token for e in encodings for token in (*e.ids, tokenizer.eos_token_id)]
    n_blocks = len(stream) // N_POSITIONS
    return torch.tensor(stream[: n_blocks * N_POSITIONS]).view(n_blocks, N_POSITIONS)  # (N, T)


def configuration():
    """Return the pocket model's GPT2Config: GPT-2's own, with smaller numbers."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=N_POSITIONS, n_embd=192, n_layer=4, n_head=6,
        bos_token_id=VOCAB_SIZE - 1, eos_token_id=VOCAB_SIZE - 1,
    )  # fmt: skip


def pretrain(blocks, checkpoints: Path, *, max_steps: int, start: dict[str, Any] | None = None, **changed: Any):
    """Train on `blocks` (N, T) with the Trainer; go on from the last checkpoint there is.

    Args:
        blocks: token ids.
        checkpoints: where they are kept.
        max_steps: optimizer steps in all.
        start: weights to begin with; None: random ones.
        changed: `TrainingArguments` that shall not be the recipe's own.
    """
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(SEED)
    config = configuration()
    # A little dropout between the layers keeps a dozen passes over the text from being learnt by heart; in the
    # attention it would leave the fused kernel. The tanh GELU is the same function as `gelu_new`, several times faster.
    config.resid_pdrop = config.embd_pdrop = 0.05
    config.attn_pdrop = 0.0
    config.activation_function = "gelu_pytorch_tanh"
    model = GPT2LMHeadModel(config)
    if start is not None:
        model.load_state_dict(start)
    rows = [{"input_ids": row, "labels": row} for row in blocks]
    recipe = {
        "per_device_train_batch_size": BATCH_SIZE, "learning_rate": 2e-3, "lr_scheduler_type": "cosine",
        "warmup_steps": max_steps // 50, "weight_decay": 0.1, "adam_beta2": 0.95, "max_grad_norm": 1.0,
        "bf16": True, "torch_compile": True, "use_cpu": not torch.cuda.is_available(), "seed": SEED,
        "save_steps": 500, "save_total_limit": 2, "logging_steps": 100, "report_to": "none",
        "dataloader_drop_last": True, "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(checkpoints), max_steps=max_steps, **recipe | changed)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.exists() else None)
    return model


def held_out_and_training(docstring_prose: list[str], other_prose: list[str]) -> tuple[list[str], list[str]]:
    """Split into (held out, training), the training documents in a seeded random order."""
    held_out = [document for document in docstring_prose if is_held_out(document)]
    training = [document for document in docstring_prose if not is_held_out(document)] + other_prose
    random.Random(SEED).shuffle(training)  # noqa: S311 (an order, not a secret)
    return held_out, training


def save(state: dict[str, Any], tokenizer: Any, output: Path) -> None:
    """Write trained weights as a stock GPT-2: `gelu_new`, GPT-2's own dropouts, float32 safetensors."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(configuration())
    model.load_state_dict(state)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def write_card(output: Path, *, held_out: list[str], training: list[str], max_steps: int) -> dict[str, Any]:
    """Score the model in `output` on the held-out documents, write README.md and recipe.json; return the figures."""
    from helpers.evaluation import generate, score
    from helpers.model import load_model, load_tokenizer
    from helpers.settings import EvaluationSettings

    model, tokenizer = load_model(str(output)), load_tokenizer(str(output))
    result = score(model, tokenizer, held_out, stride=N_POSITIONS // 2)
    digest = hashlib.sha256("\0".join(sorted(training)).encode()).hexdigest()
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_documents": len(training),
        "training_bytes": sum(len(text.encode()) for text in training),
        "training_sha256": digest,
        "tokens_seen": max_steps * BATCH_SIZE * N_POSITIONS,
        "seed": SEED,
        "held_out": result.to_dict(),
    }
    settings = EvaluationSettings(run="pocket", seed=SEED, max_new_tokens=60, num_return_sequences=1)
    prompts = ["Return the", "This class", "If the file"]
    figures["samples"] = [samples[0].text for samples in generate(model, tokenizer, prompts, settings)]
    (output / "recipe.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    (output / "README.md").write_text(_card(figures), encoding="utf-8")
    return figures


def _card(figures: dict[str, Any]) -> str:
    held_out = figures["held_out"]
    samples = "\n".join(f"> {' '.join(sample.split())}\n" for sample in figures["samples"])
    return f"""---
library_name: transformers
pipeline_tag: text-generation
language: en
---

# The pocket model

A GPT-2 of {figures["parameters"]:,} parameters (4 layers, width 192, 6 heads, {N_POSITIONS} positions, a byte-level BPE
of {VOCAB_SIZE:,} tokens), small enough to fine-tune on any CPU. It differs from `openai-community/gpt2` in nothing but
its numbers.

| what | figure |
| --- | --- |
| corpus | English prose in docstrings and comments of Python and of the packages this course installs |
| order | all of it six parts of the time, then the docstrings alone for one |
| documents, bytes | {figures["training_documents"]:,}, {figures["training_bytes"]:,} |
| SHA-256 of the corpus | {figures["training_sha256"]} |
| tokens seen | {figures["tokens_seen"]:,} |
| seed | {figures["seed"]} |
| held out | docstring prose only, chosen by hash |
| held-out bits per byte | {held_out["bits_per_byte"]:.4f} |
| held-out perplexity | {held_out["perplexity"]:.2f} |
| protocol | {held_out["protocol"]} |

No paragraph stands in two documents; near repetitions between training and held-out text were not looked for.

## Samples

{samples}
## Recipe

`python -m helpers.assets.pocket.recipe --output FOLDER` gathers, trains and writes it all again; with other package
versions the corpus, and so the model, will differ a little.

## Limits

It knows the language of software documentation and nothing else. It states falsehoods, repeats itself, and may give
back sentences of its corpus. It is for learning how fine-tuning works, not for use.
"""


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=POCKET, show_default=True, help="Where it goes.")
@click.option("--steps", default=18_000, show_default=True, help="Steps of 4,096 tokens on all text; a sixth follows.")
def main(output: Path, steps: int) -> None:
    """Gather the corpus, train tokenizer and model, write both with their card."""
    docstring_prose, other_prose = gather()
    held_out, training = held_out_and_training(docstring_prose, other_prose)
    click.echo(f"{len(training):,} documents to train on, {len(held_out):,} held out")
    tokenizer = train_tokenizer(training)
    checkpoints = runs_folder() / "pocket-recipe"
    model = pretrain(token_blocks(training, tokenizer), checkpoints / "all", max_steps=steps)
    is_docstring = set(docstring_prose)  # at the end it reads what it is to be good at, and nothing else
    last = [document for document in training if document in is_docstring]
    model = pretrain(
        token_blocks(last, tokenizer),
        checkpoints / "docstrings",
        max_steps=steps // 6,
        start=model.state_dict(),
        learning_rate=1e-3,
    )
    save(model.state_dict(), tokenizer, output)
    figures = write_card(output, held_out=held_out, training=training, max_steps=steps + steps // 6)
    click.echo(f"{figures['held_out']['bits_per_byte']:.4f} bits per byte on {figures['held_out']['protocol']}")


if __name__ == "__main__":
    main()
