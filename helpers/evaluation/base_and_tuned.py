"""A run's base model and tuned model on the same text: which is better, by how much, what was forgotten and copied.

Each function here opens a finished run, measures, and keeps what it found in a section of `evaluation.json`
(`helpers.evaluation.record`), which brings the model card up to date.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any

from helpers.data.preparation import load_documents, open_prepared
from helpers.display import html_table
from helpers.evaluation import copying as copies
from helpers.evaluation import record as figures
from helpers.evaluation.bootstrap import CONFIDENCE, RESAMPLES, interval, resampled_sums
from helpers.evaluation.generation import DECODINGS, Speech, generate, sample, speak
from helpers.evaluation.scoring import Score, score
from helpers.model import load_model, load_tokenizer
from helpers.settings import DataSettings, EvaluationSettings, SettingsError, read_run_settings, run_folder
from helpers.training.model_card import metric_text, public_name

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

__all__ = [
    "Comparison",
    "Score",
    "compare",
    "forgetting",
    "generate",
    "load_base",
    "load_tuned",
    "measure_copying",
    "score",
    "speaking",
]  # fmt: skip

_PROMPT_TOKENS = 8  # of a held-out document that a sample goes on from, when copies are looked for


@dataclass(frozen=True)
class Comparison:
    """The base model and the tuned one on the same documents.

    Attributes:
        run: its name.
        source: what the documents are of.
        documents: their texts.
        base: score of the model the run started from.
        tuned: score of the run's final model.
        seed: of the resamples.
    """

    run: str
    source: str
    documents: Sequence[str]
    base: Score
    tuned: Score
    seed: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a model, for a table or a plot; the intervals are None where there is one document only."""
        intervals = self._intervals
        return [
            {
                **getattr(self, name).to_dict(),
                "model": name,
                "perplexity_interval": intervals[f"{name}_perplexity"],
                "bits_per_byte_interval": intervals[f"{name}_bits_per_byte"],
            }
            for name in ("base", "tuned")
        ]

    @property
    def difference(self) -> dict[str, Any]:
        """What fine-tuning changed: bits a byte saved (above 0: better), perplexity tuned / base (below 1: better).

        The intervals come from a paired bootstrap: documents are drawn again with replacement, and both models are
        compared on each draw (https://aclanthology.org/W04-3250).
        """
        intervals = self._intervals
        return {
            "bits_per_byte": self.base.bits_per_byte - self.tuned.bits_per_byte,
            "perplexity_ratio": math.exp(min(700, self.tuned.loss_nats - self.base.loss_nats)),
            "interval": intervals["bits_per_byte"],
            "perplexity_ratio_interval": intervals["perplexity_ratio"],
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        }

    @property
    def gains(self) -> list[dict[str, Any]]:
        """One row a document, the greatest gain first: its first line, and bits a byte before, after and saved."""
        bits = math.log(2) * self.base.document_bytes.clip(min=1)
        before, after = self.base.document_nats / bits, self.tuned.document_nats / bits
        rows = [
            {"document": _first_line(text), "base": float(b), "tuned": float(a), "gain": float(b - a)}
            for text, b, a in zip(self.documents, before, after, strict=True)
        ]
        return sorted(rows, key=lambda row: -row["gain"])

    @property
    def verdict(self) -> str:
        """What the figures say, in one sentence."""
        saved, interval = self.difference["bits_per_byte"], self.difference["interval"]
        start = (
            f"On {self.base.n_documents:,} documents of {self.source} the tuned model needs "
            f"{self.tuned.bits_per_byte:.3f} bits a byte and the base model {self.base.bits_per_byte:.3f}"
        )
        if interval is None:
            return f"{start}: one document tells nothing about others."
        low, high = interval
        change = f"{start}: {abs(saved):.3f} {'fewer' if saved > 0 else 'more'}"
        if low <= 0 <= high:
            return f"{change}, which may be chance ({CONFIDENCE:.0%} interval of the gain {low:.3f} to {high:.3f})."
        sign = "better" if saved > 0 else "worse"
        return f"{change} ({CONFIDENCE:.0%} interval of the gain {low:.3f} to {high:.3f}), so it is {sign} there."

    def to_dict(self) -> dict[str, Any]:
        """Return a section of evaluation.json: scores, difference, and a row for each document in its order."""
        base, tuned = (
            row | {"model": of.model} for row, of in zip(self.rows, (self.base, self.tuned), strict=True)
        )  # fmt: skip
        columns = zip(
            self.documents, self.base.document_bytes.tolist(), self.base.document_tokens.tolist(),
            self.base.document_nats.tolist(), self.tuned.document_nats.tolist(), strict=True,
        )  # fmt: skip
        return {
            "source": self.source,
            "text_sha256": self.base.text_sha256,
            "base": base,
            "tuned": tuned,
            "difference": self.difference,
            "documents": [
                {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": n_bytes, "tokens": n_tokens,
                 "base_nats": before, "tuned_nats": after}
                for text, n_bytes, n_tokens, before, after in columns
            ],
        }  # fmt: skip

    @cached_property
    def _intervals(self) -> dict[str, list[float] | None]:
        """Return the interval of each figure over resampled documents."""
        import numpy as np

        names = ("base_perplexity", "tuned_perplexity", "base_bits_per_byte", "tuned_bits_per_byte", "bits_per_byte",
                 "perplexity_ratio")  # fmt: skip
        if self.base.n_documents < 2:
            return dict.fromkeys(names)
        base, tuned, tokens, n_bytes = resampled_sums(
            self.base.document_nats, self.tuned.document_nats, self.base.document_tokens, self.base.document_bytes,
            seed=self.seed,
        )  # fmt: skip
        bits = math.log(2) * n_bytes.clip(min=1)
        losses = base / tokens, tuned / tokens, tuned / tokens - base / tokens
        perplexities = [np.exp(loss.clip(max=700)) for loss in losses]
        found = (*perplexities[:2], base / bits, tuned / bits, (base - tuned) / bits, perplexities[2])
        return {name: interval(values) for name, values in zip(names, found, strict=True)}

    def _repr_html_(self) -> str:
        rows = (
            (
                row["model"],
                metric_text(row["perplexity"], ",.1f", row["perplexity_interval"]),
                metric_text(row["bits_per_byte"], ".3f", row["bits_per_byte_interval"]),
                metric_text(row["word_perplexity"], ",.0f"),
                row["protocol"],
            )
            for row in self.rows
        )
        table = html_table(("model", "perplexity", "bits a byte", "word perplexity", "protocol"), rows)
        return f"<p><b>{escape(self.verdict)}</b></p>{table}"


def compare(settings: EvaluationSettings) -> Comparison:
    """Score a finished run and the model it started from on its test documents.

    Windows hold `block_size` tokens, as in training; a longer stride is cut to that, and the protocol says so.

    Raises:
        SettingsError: the run is not there or not finished, or its model is broken.
    """
    trained = read_run_settings(settings.run)
    documents = open_prepared(settings.run).documents["test"]["text"]
    found = _compare_on(documents, settings, source=f"the test part of {public_name(trained.source)}")
    figures.keep(settings.run, "test", found.to_dict())
    return found


def forgetting(settings: EvaluationSettings) -> Comparison:
    """Score both models on general text, which the run did not train on: what did the gain cost?

    Read are `general_documents` documents of `general_source`, drawn by the seed; the held-out part of a data set
    that has one.

    Raises:
        SettingsError: the run is not finished or trained on that source, or the source cannot be read.
    """
    if settings.general_source == read_run_settings(settings.run).source:
        raise SettingsError(
            f"general_source = {settings.general_source!r} is what run {settings.run!r} was trained on: what it forgot "
            "shows on other text, such as 'python-reference'."
        )
    parts = load_documents(DataSettings(run=settings.run, source=settings.general_source))
    whole = parts["test"] if "test" in parts else parts["train"]
    texts = (text for text in whole.shuffle(seed=settings.seed)["text"] if text and text.strip())
    documents = list(islice(texts, settings.general_documents))
    found = _compare_on(documents, settings, source=public_name(settings.general_source))
    figures.keep(settings.run, "forgetting", found.to_dict())
    return found


def _compare_on(documents: Sequence[str], settings: EvaluationSettings, *, source: str) -> Comparison:
    context = read_run_settings(settings.run).block_size
    base, tuned = (
        score(
            *load(settings.run),
            documents,
            stride=min(settings.stride, context),
            context=context,
            per_device_eval_batch_size=settings.per_device_eval_batch_size,
            name=name,
        )
        for load, name in ((load_base, None), (load_tuned, f"run {settings.run}"))
    )
    return Comparison(settings.run, source, documents, base, tuned, settings.seed)


def measure_copying(settings: EvaluationSettings) -> copies.CopyReport:
    """Let the tuned model go on from held-out documents, and look for what it says in the training text.

    Each of `copy_samples` test documents gives its first tokens as a prompt, and what really follows them as the
    control, cut to the length of a sample.

    Raises:
        SettingsError: the run is not finished, or no test document is long enough for a prompt.
    """
    model, tokenizer = load_tuned(settings.run)
    documents = open_prepared(settings.run).documents
    rows = [tokenizer.encode(text, verbose=False) for text in documents["test"]["text"][: settings.copy_samples]]
    rows = [row for row in rows if len(row) > _PROMPT_TOKENS]
    if not rows:
        raise SettingsError(
            f"No test document has more than {_PROMPT_TOKENS} tokens, which are the prompt: use longer ones."
        )
    prompts = [tokenizer.decode(row[:_PROMPT_TOKENS]) for row in rows]
    said = sample(model, tokenizer, prompts, settings, num_return_sequences=1)
    control = [row[_PROMPT_TOKENS : _PROMPT_TOKENS + settings.max_new_tokens] for row in rows]
    found = copies.report(tokenizer, [one.token_ids for (one,) in said], control, documents["train"]["text"])
    figures.keep(settings.run, "copying", found.to_dict())
    return found


def speaking(settings: EvaluationSettings, *, decodings: Mapping[str, Mapping[str, Any]] = DECODINGS) -> Speech:
    """Let the tuned model go on from the prompt and three openings of test documents, in each way of decoding.

    Raises:
        SettingsError: the run is not finished, or the prompt and the length do not fit into the model's positions.
    """
    model, tokenizer = load_tuned(settings.run)
    openings = [" ".join(text.split()[:3]) for text in open_prepared(settings.run).documents["test"]["text"][:3]]
    found = speak(model, tokenizer, [settings.prompt, *openings], settings, decodings=decodings)
    figures.keep(settings.run, "speech", found.to_dict())
    return found


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


def _first_line(text: str) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= 60 else line[:59] + "…"
