"""Perplexity, bits per byte and samples: the base model and the tuned one on the same held-out documents.

Protocol of every score: the documents are one stream, an end-of-text token before the first and after each; windows
of `context` tokens move by `stride`, each predicts the tokens that none before it predicted; nats are summed in float64
and divided once by the number of predicted tokens. Bytes are the documents' own, in UTF-8.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from helpers.data import open_prepared
from helpers.model import device, load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError, read_run_settings, run_folder

if TYPE_CHECKING:
    import numpy as np
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Score:
    """How well a model expects some documents.

    Attributes:
        document_nats: (documents,) summed nats of each document, its end-of-text token included.
        n_tokens: scored tokens.
        n_bytes: bytes of the documents in UTF-8.
        stride: tokens between two windows.
        context: tokens in a window.
    """

    document_nats: "np.ndarray"
    n_tokens: int
    n_bytes: int
    stride: int
    context: int

    @property
    def loss_nats(self) -> float:
        """Mean nats a scored token."""
        return float(self.document_nats.sum()) / self.n_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the mean nats a token; compares only models with the same tokenizer."""
        return math.exp(self.loss_nats)

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for each byte of text; compares models with any tokenizers."""
        return float(self.document_nats.sum()) / math.log(2) / self.n_bytes

    @property
    def protocol(self) -> str:
        """How the figures were made, in one line."""
        return (
            f"{len(self.document_nats)} documents, {self.n_tokens:,} tokens, {self.n_bytes:,} bytes, "
            f"context {self.context}, stride {self.stride}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures with their protocol, ready for JSON."""
        names = ("perplexity", "bits_per_byte", "loss_nats", "n_tokens", "n_bytes", "stride", "context", "protocol")
        return {name: getattr(self, name) for name in names}


def score(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[str],
    *,
    stride: int,
    context: int | None = None,
    per_device_eval_batch_size: int = 8,
) -> Score:
    """Score documents with a sliding window; memory does not grow with the text.

    Args:
        model: a GPT-2 in float32.
        tokenizer: its tokenizer.
        documents: texts of any length.
        stride: tokens each window scores, 1 to `context`; smaller gives each token more context and takes longer.
        context: tokens in a window; the model's positions when not given.
        per_device_eval_batch_size: windows in one pass.

    Raises:
        SettingsError: there are no documents, or the stride or the context does not fit the model.
    """
    import numpy as np

    context = context or model.config.n_positions
    if not documents:
        raise SettingsError("There are no documents to score: give at least one.")
    if not 1 < context <= model.config.n_positions:
        raise SettingsError(f"context = {context} does not fit: the model has {model.config.n_positions} positions.")
    if not 1 <= stride <= context:
        raise SettingsError(f"stride = {stride} does not fit: it must be 1 to {context}, the tokens in a window.")
    lengths, stream = _stream(documents, tokenizer)
    nats = np.empty(len(stream) - 1)  # of each token but the first
    for begin, values in _scored(model.to(device()).eval(), stream, stride, context, per_device_eval_batch_size):
        nats[begin : begin + len(values)] = values
    starts = np.cumsum([0, *lengths[:-1]])
    n_bytes = sum(len(text.encode()) for text in documents)
    return Score(np.add.reduceat(nats, starts), len(nats), n_bytes, stride, context)


def _stream(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], "np.ndarray"]:
    """Return each document's tokens counted with its end-of-text, and all tokens behind a first end-of-text."""
    import numpy as np

    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(documents), verbose=False)["input_ids"]]
    stream = np.array([tokenizer.eos_token_id, *(token for row in rows for token in row)])
    return [len(row) for row in rows], stream


def _windows(n_inputs: int, stride: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, scored): inputs begin to end, of which the last `scored` predict a token of their own.

    >>> list(_windows(7, 2, 4))
    [(0, 4, 4), (2, 6, 2), (3, 7, 1)]
    """
    scored_to, end = 0, min(context, n_inputs)
    while scored_to < n_inputs:
        yield max(0, end - context), end, end - scored_to
        scored_to, end = end, min(end + stride, n_inputs)


def _scored(
    model: "GPT2LMHeadModel", stream: "np.ndarray", stride: int, context: int, batch_size: int
) -> Iterator[tuple[int, "np.ndarray"]]:
    """Yield (index of the first scored input, nats of the tokens it and those after it predict), window by window."""
    import torch

    for (_, scored), same in groupby(_windows(len(stream) - 1, stride, context), key=_shape):
        for batch in _batches(same, batch_size):
            ids = torch.from_numpy(stream[[range(begin, end + 1) for begin, end, _ in batch]])  # (B, T + 1)
            nats = _token_nats(model, ids.to(model.device), scored)
            yield from ((end - scored, row) for (_, end, _), row in zip(batch, nats, strict=True))


def _batches(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(rows, size)):
        yield batch


def _shape(window: tuple[int, int, int]) -> tuple[int, int]:
    begin, end, scored = window
    return end - begin, scored


def _token_nats(model: "GPT2LMHeadModel", ids: Any, scored: int) -> "np.ndarray":
    """Return (B, scored) nats of the last `scored` tokens of each row (B, T + 1); only their logits are made."""
    import torch
    from torch.nn import functional as F

    with torch.inference_mode():
        logits = model(input_ids=ids[:, :-1], logits_to_keep=scored, use_cache=False).logits  # (B, scored, V)
        targets = ids[:, -scored:]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return nats.view(targets.shape).double().cpu().numpy()


@dataclass(frozen=True)
class Comparison:
    """The base model and the tuned one on the same held-out documents of a run."""

    run: str
    base: Score
    tuned: Score

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a model, for a table or a plot."""
        return [{"model": name} | getattr(self, name).to_dict() for name in ("base", "tuned")]

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{row['model']}</td><td>{row['perplexity']:,.1f}</td><td>{row['bits_per_byte']:.3f}</td>"
            f"<td>{row['protocol']}</td></tr>"
            for row in self.rows
        )
        return f"<table><tr><th>model</th><th>perplexity</th><th>bits a byte</th><th>protocol</th></tr>{body}</table>"


def compare(settings: EvaluationSettings) -> Comparison:
    """Score a finished run and the model it started from on its test documents; keep it in evaluation.json.

    Windows hold `block_size` tokens, as in training; a longer stride is cut to that, and the protocol says so.

    Raises:
        SettingsError: the run is not there or not finished, or the stride does not fit.
    """
    trained = read_run_settings(settings.run)
    documents = open_prepared(settings.run).documents["test"]["text"][:]
    base, tuned = (
        score(model, tokenizer, documents, stride=min(settings.stride, trained.block_size), context=trained.block_size,
              per_device_eval_batch_size=settings.per_device_eval_batch_size)
        for model, tokenizer in (load_base(settings.run), load_tuned(settings.run))
    )  # fmt: skip
    comparison = Comparison(settings.run, base, tuned)
    path = run_folder(settings.run) / "evaluation.json"
    path.write_text(json.dumps({"test": comparison.rows}, indent=2), encoding="utf-8")
    return comparison


def load_base(run: str) -> tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]:
    """Return the pretrained model a run started from, and its tokenizer."""
    name = read_run_settings(run).model_name_or_path
    return load_model(name), load_tokenizer(name)


def load_tuned(run: str) -> tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]:
    """Return a run's final model and its tokenizer; raise `SettingsError` while there is none."""
    folder = run_folder(run) / "model"
    if not folder.exists():
        raise SettingsError(f"Run {run!r} has no final model yet: train it in notebook 03 first.")
    return load_model(str(folder)), load_tokenizer(str(folder))


def generate(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    settings: EvaluationSettings,
    **changes: Any,
) -> list[list[str]]:
    """Let a model go on from prompts: a list of `num_return_sequences` texts for each prompt, prompt included.

    Prompts of different lengths are padded on the left under an attention mask, so that a batch gives what single
    calls would. The same seed gives the same texts.

    Args:
        model: any GPT-2.
        tokenizer: its tokenizer.
        prompts: one text or more.
        settings: sampling, length, seed.
        changes: arguments of `GenerationConfig` that replace those of the settings, such as `do_sample=False`.

    Raises:
        SettingsError: a prompt and `max_new_tokens` do not fit into the model's positions.
    """
    import torch

    encoded = _left_padded(tokenizer, prompts)
    n_prompt = encoded["input_ids"].shape[1]
    if n_prompt + settings.max_new_tokens > model.config.n_positions:
        raise SettingsError(
            f"The longest prompt has {n_prompt} tokens and max_new_tokens is {settings.max_new_tokens}: together at "
            f"most {model.config.n_positions}, the model's positions."
        )
    sampling = {
        name: getattr(settings, name)
        for name in ("max_new_tokens", "num_return_sequences", "temperature", "top_k", "top_p", "repetition_penalty")
    }
    target = device()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(settings.seed)
        ids = model.to(target).eval().generate(
            **{name: tensor.to(target) for name, tensor in encoded.items()},
            **{"do_sample": True, "pad_token_id": tokenizer.eos_token_id, **sampling, **changes},
        )  # fmt: skip
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    n_each = len(texts) // len(prompts)
    return [texts[start : start + n_each] for start in range(0, len(texts), n_each)]


def _left_padded(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> dict[str, Any]:
    """Return `input_ids` and `attention_mask` (B, T), filled up on the left: what comes next must follow the prompt."""
    import torch

    rows = [tokenizer.encode(prompt) for prompt in prompts]
    width = max(map(len, rows))
    fill = tokenizer.eos_token_id  # GPT-2 has no padding token; under the mask any token will do
    return {
        "input_ids": torch.tensor([[fill] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
