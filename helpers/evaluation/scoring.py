"""Perplexity of text of any length by a sliding window, at flat memory, with the protocol that gave it.

Two protocols, offered by name:

- `documents`, this course's: an end-of-text token before the first document and after each, all in one stream. Windows
  of `context` tokens move by `stride`, and every token after the first is scored, once.
- `transformers`, that of "Perplexity of fixed-length models" in the transformers documentation, by which GPT-2's
  figures on WikiText-2 were published: rows joined by a blank line, no end-of-text, and what no window can predict
  (the first token, and at stride = context the first of each window) is not scored.

In both, each window scores the tokens that none before it held; nats come from float32 logits, are summed in float64
and divided once by the number of scored tokens. Bytes are those of the text in UTF-8.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from helpers.evaluation.token_windows import batches, pieces, token_stream, windows
from helpers.model import check_sound, device, shown_name
from helpers.settings import SettingsError
from helpers.training.engine import CHUNK_TOKENS, equal_results_less_work

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

Protocol = Literal["documents", "transformers"]


@dataclass(frozen=True)
class Score:
    """How well a model expects some documents.

    Attributes:
        document_nats: (documents,) summed nats of each document.
        document_tokens: (documents,) scored tokens of each.
        document_bytes: (documents,) bytes of each in UTF-8.
        n_words: words, as white space separates them.
        text_sha256: of the documents, as `data.json` has it for a split.
        model: the model's name.
        revision: its commit on the Hub, where it has one, and a hash of its weights.
        stride: tokens between two windows.
        context: tokens in a window.
        protocol_name: 'documents' or 'transformers'.
    """

    document_nats: "np.ndarray"
    document_tokens: "np.ndarray"
    document_bytes: "np.ndarray"
    n_words: int
    text_sha256: str
    model: str
    revision: str
    stride: int
    context: int
    protocol_name: Protocol = "documents"

    @property
    def n_documents(self) -> int:
        """Documents that were read."""
        return len(self.document_nats)

    @property
    def n_tokens(self) -> int:
        """Tokens that were scored."""
        return int(self.document_tokens.sum())

    @property
    def n_bytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return int(self.document_bytes.sum())

    @property
    def nats(self) -> float:
        """Sum of the nats of all scored tokens."""
        return float(self.document_nats.sum())

    @property
    def loss_nats(self) -> float:
        """Mean nats a scored token."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the mean nats a token; compares only models with the same tokenizer."""
        return _exp(self.loss_nats)

    @property
    def word_perplexity(self) -> float:
        """Exponential of the nats a word; compares models with any tokenizers, on text that has words."""
        return _exp(self.nats / self.n_words)

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for each byte of text; compares models with any tokenizers."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def protocol(self) -> str:
        """How the figures were made, in one line."""
        return (
            f"{self.model} ({self.revision}), text {self.text_sha256[:12]}: {self.n_documents:,} documents, "
            f"{self.n_tokens:,} tokens, {self.n_bytes:,} bytes, context {self.context}, stride {self.stride}, "
            f"protocol {self.protocol_name}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures with their protocol, ready for JSON; None stands for what is beyond all numbers."""
        names = (
            "perplexity", "bits_per_byte", "word_perplexity", "loss_nats", "n_documents", "n_tokens", "n_bytes",
            "n_words", "stride", "context", "model", "revision", "text_sha256", "protocol",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {name: None if value == math.inf else value for name, value in values.items()}  # JSON knows no infinity


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
    progress: bool = True,
) -> Score:
    """Score documents with a sliding window; memory does not grow with the text.

    GPT-2's published 29.94 on WikiText-2, where a network is: the rows of `load_dataset("Salesforce/wikitext",
    "wikitext-2-raw-v1")["test"]["text"]`, with `stride=1024, protocol="transformers"`; 25.19 with `stride=512`.

    Args:
        model: a GPT-2 in float32.
        tokenizer: its tokenizer.
        documents: texts of any length; a column of a data set is read from the disk as it is needed.
        stride: tokens each window scores, 1 to `context`; smaller gives each token more context and takes longer.
        context: tokens in a window; the model's positions when not given.
        per_device_eval_batch_size: windows in one pass.
        protocol: 'documents' or 'transformers'; the module says what they are.
        name: what the model shall be called; by default what it was loaded from.
        progress: show a bar, once two seconds have gone.

    Raises:
        SettingsError: there is no text or no such protocol, the stride or the context does not fit the model, or the
            model does not fit the tokenizer or holds weights that are no numbers.
    """
    import numpy as np
    from tqdm.auto import tqdm

    context = model.config.n_positions if context is None else context
    _check_window(model, stride, context)
    if protocol not in get_args(Protocol):
        raise SettingsError(f"protocol = {protocol!r} is unknown: it must be 'documents' or 'transformers'.")
    check_sound(model, tokenizer)
    if protocol == "transformers":
        documents = ["\n\n".join(_checked(documents))]
    n_bytes, n_words, text_sha256 = _measure(documents)
    nats, tokens = np.zeros(len(n_bytes)), np.zeros(len(n_bytes), np.int64)
    with tqdm(
        total=int(n_bytes.sum()), unit="B", unit_scale=True, delay=2, leave=False, disable=not progress
    ) as bar, equal_results_less_work(model.to(device()).eval()):  # fmt: skip
        stream = token_stream(documents, tokenizer, with_ends=protocol == "documents", advance=bar.update)
        wanted = windows(stream, stride, context + (protocol == "documents"))
        for ids, owners in batches(wanted, per_device_eval_batch_size):
            np.add.at(nats, owners, _token_nats(model, ids, owners.shape[1]))
            np.add.at(tokens, owners, 1)
    if not tokens.any():
        raise SettingsError("The text has one token, and this protocol does not score the first: give a longer text.")
    return Score(
        nats, tokens, n_bytes, n_words, text_sha256, name or model_name(model), revision_of(model), stride, context,
        protocol,
    )  # fmt: skip


def model_name(model: "GPT2LMHeadModel") -> str:
    """Return what a model was loaded from: a Hub id, or the name of a folder without the path to it."""
    return shown_name(model.config._name_or_path or "unnamed")


def revision_of(model: "GPT2LMHeadModel") -> str:
    """Return what tells one state of a model from another: its commit on the Hub, if any, and its weights' hash."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().view(-1).numpy().data)
    commit = getattr(model.config, "_commit_hash", None)
    return (f"commit {commit[:12]}, " if commit else "") + f"weights {digest.hexdigest()[:12]}"


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # above it a float overflows


def _check_window(model: "GPT2LMHeadModel", stride: int, context: int) -> None:
    if not 1 < context <= model.config.n_positions:
        raise SettingsError(f"context = {context} does not fit: the model has {model.config.n_positions} positions.")
    if not 1 <= stride <= context:
        raise SettingsError(f"stride = {stride} does not fit: it must be 1 to {context}, the tokens in a window.")


def _checked(documents: Sequence[str]) -> Iterator[str]:
    """Yield the documents; raise `SettingsError` for what is no list of texts."""
    if isinstance(documents, str):
        raise SettingsError("documents is one text: put it into a list, [text].")
    for number, text in enumerate(documents):
        if not isinstance(text, str):
            raise SettingsError(f"Document {number} is no text but {type(text).__name__}: give a list of texts.")
        yield text


def _measure(documents: Sequence[str]) -> tuple["np.ndarray", int, str]:
    """Return the bytes of each document, the words of all, and their hash; raise `SettingsError` for no text."""
    import numpy as np

    digest, n_bytes, n_words = hashlib.sha256(), [], 0
    for text in _checked(documents):
        n_bytes.append(0)
        for piece in pieces(text):
            encoded = piece.encode()
            digest.update(encoded)
            n_bytes[-1] += len(encoded)
            n_words += len(piece.split())
        digest.update(b"\0")
    if not n_bytes:
        raise SettingsError("There are no documents to score: give at least one.")
    if not n_words:
        raise SettingsError(f"There is no text to score: {len(n_bytes)} documents hold nothing but white space.")
    return np.array(n_bytes), n_words, digest.hexdigest()


def _token_nats(model: "GPT2LMHeadModel", ids: "np.ndarray", scored: int) -> "np.ndarray":
    """Return (B, scored) nats of the last `scored` tokens of each row (B, T + 1); only their logits are made."""
    import torch
    from torch.nn import functional

    rows = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode():
        hidden = model.transformer(rows[:, :-1], use_cache=False)[0][:, -scored:].flatten(0, 1)  # (B * scored, width)
        targets = rows[:, -scored:].flatten()
        nats = torch.cat(list(_cross_entropies(functional, model.lm_head, hidden, targets)))
    if not nats.isfinite().all():
        raise SettingsError("The model's logits overflow: it gives no finite score. Train it with a lower rate.")
    return nats.view(len(ids), scored).double().cpu().numpy()


def _cross_entropies(functional: Any, head: Any, hidden: "torch.Tensor", targets: "torch.Tensor") -> Iterator[Any]:
    """Yield the nats of some tokens at a time, so that few logits are held at once."""
    for some, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
        yield functional.cross_entropy(head(some).float(), wanted, reduction="none")
