"""Perplexity of text of any length with a sliding window; memory holds six bytes per token and no logits.

There are three protocols:

- `documents`, used in this course: one stream of tokens, with an end-of-text token before the first document and after
  each one. Windows of `context` tokens move by `stride`. Every token after the first is scored exactly once.
- `passages`, used if the documents are passages of one continuous text: the same, but with a single end-of-text token,
  before the first passage.
- `transformers`, from "Perplexity of fixed-length models" in the transformers documentation, which gave GPT-2's
  published perplexity on WikiText-2: rows joined by a blank line, without end-of-text tokens. The first token is not
  scored, and at stride = context neither is the first token of each window, because nothing precedes it.

For a `Dialogue`, only completions are scored: the tokens and bytes of prompts are context and are not counted.

In each protocol, a window scores only tokens that no earlier window contained. Nats come from float32 logits, are
summed in float64 and divided once by the number of scored tokens. Bytes are counted in UTF-8.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from helpers.data.sources.chat import Dialogue
from helpers.data.sources.documents import replace_lone_surrogates
from helpers.data.tokens import TokenStream, batches_of
from helpers.display import progress_bar
from helpers.model import check_sound, on_device, shown_name
from helpers.settings import SettingsError
from helpers.training.engine import CHUNK_TOKENS, optimised_model

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

Protocol = Literal["documents", "passages", "transformers"]
PROMPT = -1  # owner of tokens that are not scored


@dataclass(frozen=True)
class Score:
    """How well a model predicts some documents.

    Attributes:
        document_nats: (documents,) sum of the nats of each document's scored tokens.
        document_tokens: (documents,) number of scored tokens in each.
        document_bytes: (documents,) scored bytes of each, in UTF-8.
        n_words: number of scored words, separated by white space, in all documents.
        text_sha256: hash of the documents, computed as in `data.json`.
        model: name of the model.
        revision: its commit on the Hub, if it has one, and a hash of its weights.
        stride: tokens between the starts of two windows.
        context: tokens in a window.
        protocol_name: one of the protocols at the top of this module.
    """

    document_nats: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray
    n_words: int
    text_sha256: str
    model: str
    revision: str
    stride: int
    context: int
    protocol_name: Protocol = "documents"

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.document_nats)

    @property
    def n_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.document_tokens.sum())

    @property
    def n_bytes(self) -> int:
        """Scored bytes of the text, in UTF-8."""
        return int(self.document_bytes.sum())

    @property
    def nats(self) -> float:
        """Sum of the nats of all scored tokens."""
        return float(self.document_nats.sum())

    @property
    def loss_nats(self) -> float:
        """Mean nats per scored token."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the mean nats per token; comparable only between models with the same tokenizer."""
        return _exp(self.loss_nats)

    @property
    def word_perplexity(self) -> float:
        """Exponential of the mean nats per word; comparable between any models if the text has words."""
        return _exp(self.nats / self.n_words)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs per byte of text; comparable between any models."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def protocol(self) -> str:
        """One line that says how the values were measured."""
        return (
            f"{self.model} ({self.revision}), text {self.text_sha256[:12]}: {self.n_documents:,} documents, "
            f"{self.n_tokens:,} tokens, {self.n_bytes:,} bytes, context {self.context}, stride {self.stride}, "
            f"protocol {self.protocol_name}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics and their protocol, ready for JSON; a perplexity too large for a float is None."""
        names = (
            "perplexity", "bits_per_byte", "word_perplexity", "loss_nats", "n_documents", "n_tokens", "n_bytes",
            "n_words", "stride", "context", "model", "revision", "text_sha256", "protocol",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {name: None if value == math.inf else value for name, value in values.items()}  # JSON has no infinity


def score(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[str],
    *,
    stride: int,
    context: int | None = None,
    per_device_eval_batch_size: int = 8,
    protocol: Protocol = "documents",
    name: str | None = None,
) -> Score:
    """Score documents with a sliding window; show a progress bar after ten seconds.

    To reproduce GPT-2's published perplexity on WikiText-2, 29.94, with access to the Hub: score the rows of
    `load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1")["test"]["text"]` with `stride=1024` and
    `protocol="transformers"`. With `stride=512` it is 25.19.

    Args:
        model: a GPT-2 in float32.
        tokenizer: its tokenizer.
        documents: texts of any length; a data set's column is read from disk bit by bit.
        stride: tokens that each window scores, 1 to `context`. A smaller stride gives each token more context and
            takes longer.
        context: tokens in a window; by default the model's number of positions.
        per_device_eval_batch_size: windows in one forward pass.
        protocol: 'documents', 'passages' or 'transformers', described at the top of this module.
        name: name of the model in the result; by default where it was loaded from.

    Raises:
        SettingsError: there is no text, the protocol is unknown, the stride or context does not fit the model, or the
            model does not match the tokenizer or has weights that are not finite.
    """
    context = model.config.n_positions if context is None else context
    _check_window(model, stride, context)
    if protocol not in get_args(Protocol):
        raise SettingsError(f"protocol = {protocol!r} is unknown: it must be one of {get_args(Protocol)}.")
    check_sound(model, tokenizer)
    with_start = protocol != "transformers"
    if not with_start:
        documents = ["\n\n".join(_check_texts(documents))]
    n_bytes, n_words, text_sha256 = _measure_text(documents)
    nats, tokens = np.zeros(len(n_bytes)), np.zeros(len(n_bytes), np.int64)
    ids, owners = encode(_check_texts(documents), tokenizer, with_start=with_start, with_ends=protocol == "documents")
    with progress_bar(len(ids), unit="token") as bar, on_device(model.eval()), optimised_model(model):
        # `context` tokens go into the model. Our own protocols add one more: the target of the last one.
        windows = slide_windows(ids, owners, stride=stride, width=context + with_start)
        for rows, row_owners in batch_windows(windows, per_device_eval_batch_size):
            token_nats, is_scored = compute_token_nats(model, rows, row_owners.shape[1]), row_owners != PROMPT
            # Not `nats[owners] += ...`, which adds only one token per document and batch.
            np.add.at(nats, row_owners[is_scored], token_nats[is_scored])
            np.add.at(tokens, row_owners[is_scored], 1)
            bar.update(token_nats.size)
    if not tokens.any():
        raise SettingsError("No token is scored: the text has only one token, without context, or only prompts.")
    name = name or shown_name(model.config._name_or_path or "unnamed")
    return Score(
        nats, tokens, n_bytes, n_words, text_sha256, name, describe_revision(model), stride, context, protocol
    )  # fmt: skip


def describe_revision(model: "GPT2LMHeadModel") -> str:
    """Return an identification of a model's state: its commit on the Hub, if any, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().view(-1).numpy().data)
    commit = getattr(model.config, "_commit_hash", None)
    return (f"commit {commit[:12]}, " if commit else "") + f"weights {digest.hexdigest()[:12]}"


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # math.exp raises OverflowError above 709


def _check_window(model: "GPT2LMHeadModel", stride: int, context: int) -> None:
    if not 1 < context <= model.config.n_positions:
        raise SettingsError(
            f"context = {context} does not fit: it must be 2 to {model.config.n_positions}, the model's positions."
        )
    if not 1 <= stride <= context:
        raise SettingsError(f"stride = {stride} does not fit: it must be 1 to {context}, the tokens in a window.")


def _check_texts(documents: Sequence[str]) -> Iterator[str]:
    """Yield the documents without unpaired surrogates; raise `SettingsError` if one is not text."""
    if isinstance(documents, str):
        raise SettingsError("documents is a single text: put it in a list, [text].")
    for number, text in enumerate(documents):
        if not isinstance(text, str):
            raise SettingsError(f"Document {number} is not a text but {type(text).__name__}: give a list of texts.")
        yield text if isinstance(text, Dialogue) else replace_lone_surrogates(text)  # a dialogue has no surrogates


def _measure_text(documents: Sequence[str]) -> tuple[np.ndarray, int, str]:
    """Return the scored bytes per document, the scored words and the hash of all; raise `SettingsError` if none."""
    digest, n_bytes, n_words = hashlib.sha256(), [], 0
    for text in _check_texts(documents):
        segments = text.segments if isinstance(text, Dialogue) else [(text, False)]
        scored = [segment for segment, is_prompt in segments if not is_prompt]
        n_bytes.append(sum(len(segment.encode()) for segment in scored))
        n_words += sum(len(segment.split()) for segment in scored)
        digest.update(text.encode())
        digest.update(b"\0")  # so that document boundaries change the hash, as in `data.json`
    if not n_bytes:
        raise SettingsError("There are no documents to score: give at least one.")
    if not n_words:
        raise SettingsError("There is no text to score: the documents contain only white space.")
    return np.array(n_bytes), n_words, digest.hexdigest()


def encode(
    documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", *, with_ends: bool, with_start: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all documents in one row, and the number of the document that each belongs to; (tokens,).

    Tokens of a prompt belong to `PROMPT`. `with_ends` adds an end-of-text token after each document, which belongs to
    what precedes it; dialogues always have one. `with_start` adds one before the first document.
    """
    tokens, n_read = TokenStream(tokenizer), 0
    pieces, owners = [np.array([tokens.eos] * with_start, tokens.dtype)], [np.array([0] * with_start, np.int32)]
    for batch in batches_of(documents):
        if isinstance(batch[0], Dialogue):
            ids, n_tokens, is_prompt = tokens.encode_dialogues(batch)
        else:
            (ids, n_tokens), is_prompt = tokens.encode(batch, with_ends=with_ends), False
        document_numbers = np.repeat(np.arange(n_read, n_read + len(batch), dtype=np.int32), n_tokens)
        pieces.append(ids)
        owners.append(np.where(is_prompt, np.int32(PROMPT), document_numbers))
        n_read += len(batch)
    return np.concatenate(pieces), np.concatenate(owners)


def slide_windows(
    ids: np.ndarray, owners: np.ndarray, *, stride: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield windows over tokens (tokens,): ids (T + 1,) and owners (scored,).

    `owners` are the documents of the window's last tokens, which are the ones it scores.

    >>> import numpy as np
    >>> windows = slide_windows(np.arange(8), np.zeros(8, int), stride=2, width=5)
    >>> [(ids.tolist(), len(owners)) for ids, owners in windows]
    [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2), ([4, 5, 6, 7], 1)]
    """
    start, n_context = 0, 1  # unscored tokens at the window's start: its first, and those scored before
    while start + n_context < len(ids):
        yield ids[start : start + width], owners[start + n_context : start + width]
        start, n_context = start + stride, max(1, width - stride)


def batch_windows(
    windows: Iterator[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield up to `size` windows of the same shape at a time: ids (B, T + 1) and owners (B, scored)."""
    for _, same_shape in groupby(windows, key=lambda window: (len(window[0]), len(window[1]))):
        while rows := list(islice(same_shape, size)):
            yield np.stack([ids for ids, _ in rows]).astype(np.int64), np.stack([owners for _, owners in rows])


def compute_token_nats(model: "GPT2LMHeadModel", ids: np.ndarray, n_scored: int) -> np.ndarray:
    """Return the nats (B, n_scored) of the last `n_scored` tokens of each row of ids (B, T + 1).

    Raises:
        SettingsError: the model's logits overflow.
    """
    import torch

    with torch.inference_mode():
        nats = _token_nats(model, torch.from_numpy(ids).to(model.device), n_scored)
    if not nats.isfinite().all():
        raise SettingsError("The model's logits overflow, so it has no finite score: train with a lower learning_rate.")
    return nats.view(len(ids), n_scored).double().cpu().numpy()


def _token_nats(model: "GPT2LMHeadModel", rows: "torch.Tensor", n_scored: int) -> "torch.Tensor":
    """Return the nats (B * n_scored,) of the last tokens of rows (B, T + 1); `scoring_bytes` predicts its memory."""
    import torch
    from torch.nn import functional

    hidden = model.transformer(rows[:, :-1], use_cache=False)[0][:, -n_scored:].flatten(0, 1)  # (B * scored, width)
    targets = rows[:, -n_scored:].flatten()
    # The logits of all tokens at once would be by far the largest tensor: 1.6 GB for 8 x 1024 tokens of GPT-2.
    nats = [
        functional.cross_entropy(model.lm_head(hidden_chunk).float(), target_chunk, reduction="none")
        for hidden_chunk, target_chunk in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    ]
    return torch.cat(nats)
