"""Compare a run's base model and tuned model: which is better, by how much, what was forgotten, what is copied.

Each measuring function opens a run, raises `SettingsError` if it is not finished, and writes its result to a section of
`evaluation.json` (`helpers.evaluation.record`), which also updates the model card.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

import pandas
from datasets import Dataset

from helpers.data.in_memory import dialogues, load_documents
from helpers.data.run_data import load_run_tokenizer, name_general_source, open_prepared
from helpers.data.sources import Source, public_name
from helpers.data.sources.chat import Dialogue, as_question, question_frame
from helpers.display import PlainTextMixin, cut, html_table, metric_text
from helpers.evaluation import record
from helpers.evaluation.copying import CopyReport, search_training_text
from helpers.evaluation.generation import DECODINGS, DecodingReport, generate
from helpers.evaluation.intervals import CONFIDENCE, MIN_DOCUMENTS, RESAMPLES, STRETCHES, bootstrap_intervals
from helpers.evaluation.scoring import Score, score
from helpers.model import load_model, load_start, load_tokenizer
from helpers.settings import (
    DataSettings,
    EvaluationSettings,
    SettingsError,
    read_run_settings,
    refuse_training_text,
    run_folder,
)

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_PROMPT_TOKENS = 8  # of a held-out document, as the prompt of a sample that is searched for copies
_MAX_OPENING_TOKENS = 64  # tokens; in scripts without spaces a "word" can be a whole paragraph
# (model, source, configuration) -> stride -> perplexity by the transformers documentation's protocol. At 1024 from
# https://github.com/karpathy/llm.c/pull/276, at 512 from the card of smpanaro/gpt2-AutoGPTQ-4bit-128g on the Hub.
_PUBLISHED = {("openai-community/gpt2", "Salesforce/wikitext", "wikitext-2-raw-v1"): {1024: 29.94, 512: 25.19}}


@dataclass(frozen=True)
class Comparison(PlainTextMixin):
    """The scores of the base model and the tuned model on the same documents, named by `source`.

    `seed` determines which documents the bootstrap draws.
    """

    source: str
    documents: Sequence[str]
    base: Score
    tuned: Score
    seed: int

    @property
    def is_continuous(self) -> bool:
        """Whether the documents are passages of one text."""
        return self.base.protocol_name == "passages"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per model, for a table or a plot; the intervals are None with too few documents."""
        return [
            {
                **getattr(self, name).to_dict(),
                "model": name,
                "perplexity_interval": self._intervals[f"{name}_perplexity"],
                "bits_per_byte_interval": self._intervals[f"{name}_bits_per_byte"],
            }
            for name in ("base", "tuned")
        ]

    @property
    def difference(self) -> dict[str, Any]:
        """Bits per byte saved (tuned is better if above 0), and perplexity ratio tuned / base (better if below 1).

        The intervals come from a paired bootstrap: documents, or stretches of one continuous text, are resampled with
        replacement, and both models are compared on each draw (https://aclanthology.org/W04-3250).
        """
        return {
            "bits_per_byte": self.base.bits_per_byte - self.tuned.bits_per_byte,
            "perplexity_ratio": math.exp(min(700, self.tuned.loss_nats - self.base.loss_nats)),
            "interval": self._intervals["bits_per_byte"],
            "perplexity_ratio_interval": self._intervals["perplexity_ratio"],
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        }

    @property
    def gains(self) -> list[dict[str, Any]]:
        """One row per document, largest gain first: its first line, and the bits per byte of base, tuned and gain."""
        bits = math.log(2) * self.base.document_bytes.clip(min=1)  # an empty document has 0 bytes, but an end-of-text
        before, after = (self.base.document_nats / bits).tolist(), (self.tuned.document_nats / bits).tolist()
        rows = [
            {"document": cut(text.strip().split("\n")[0], 60), "base": base, "tuned": tuned, "gain": base - tuned}
            for text, base, tuned in zip(self.documents, before, after, strict=True)
        ]
        return sorted(rows, key=lambda row: -row["gain"])

    @property
    def verdict(self) -> str:
        """The conclusion from the metrics, in one or two sentences."""
        saved, interval = self.difference["bits_per_byte"], self.difference["interval"]
        base, tuned = self.base.bits_per_byte, self.tuned.bits_per_byte
        kind = "passage" if self.is_continuous else "document"
        documents = f"{self.base.n_documents:,} {kind}{'s' * (self.base.n_documents != 1)}"
        is_joined = self.is_continuous and self.base.n_documents > STRETCHES
        over = f" over {STRETCHES} stretches of them, because neighbours are alike," if is_joined else ""

        def scores(digits: int = 3) -> str:
            return (
                f"On {documents} of {self.source} the tuned model needs {tuned:.{digits}f} bits per byte and the base "
                f"model {base:.{digits}f}"
            )

        if interval is None:
            return f"{scores()}. Fewer than {MIN_DOCUMENTS} {kind}s give no interval: this may be due to chance."
        nearest, farthest = sorted(map(abs, interval))
        if farthest < 0.0005:  # it would be shown as 0.000
            return f"{scores()}: a difference of less than 0.001, which is too small to matter."
        low, high = interval
        is_clear = low > 0 or high < 0
        digits = 3
        while is_clear and digits < 9 and 0 in (round(nearest, digits), round(base, digits) - round(tuned, digits)):
            digits += 1  # so that a clear difference is not shown as 0
        shown = abs(round(base, digits) - round(tuned, digits))  # the difference of the two shown values
        text = (
            f"{scores(digits)}: {shown:.{digits}f} {'fewer' if saved > 0 else 'more'} "
            f"({CONFIDENCE:.0%} interval of the gain{over} {low:.{digits}f} to {high:.{digits}f})"
        )
        if not is_clear:
            return f"{text}. The interval includes 0, so this may be due to the choice of {kind}s."
        return f"{text}, so it is {'better' if saved > 0 else 'worse'} on this text."

    def to_dict(self) -> dict[str, Any]:
        """Return a section of evaluation.json: both scores, their difference, and one row per document, in order."""
        base, tuned = self.rows
        documents = {
            "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in self.documents],
            "bytes": self.base.document_bytes,
            "tokens": self.base.document_tokens,
            "base_nats": self.base.document_nats,
            "tuned_nats": self.tuned.document_nats,
        }
        return {
            "source": self.source,
            "verdict": self.verdict,
            "text_sha256": self.base.text_sha256,
            "base": base | {"model": self.base.model},
            "tuned": tuned | {"model": self.tuned.model},
            "difference": self.difference,
            "documents": pandas.DataFrame(documents).to_dict("records"),
        }

    @cached_property
    def _intervals(self) -> dict[str, list[float] | None]:
        nats = self.base.document_nats, self.tuned.document_nats
        sizes = self.base.document_tokens, self.base.document_bytes
        return bootstrap_intervals(*nats, *sizes, seed=self.seed, is_continuous=self.is_continuous)

    def _repr_html_(self) -> str:
        rows = (
            (
                row["model"],
                metric_text(row["perplexity"], ",.2f", row["perplexity_interval"]),
                metric_text(row["bits_per_byte"], ".3f", row["bits_per_byte_interval"]),
                metric_text(row["word_perplexity"], ",.4g"),
                row["protocol"],
            )
            for row in self.rows
        )
        table = html_table(("model", "perplexity", "bits per byte", "word perplexity", "protocol"), rows)
        return f"<p><b>{escape(self.verdict)}</b></p>{table}"


def compare_with_base(settings: EvaluationSettings) -> Comparison:
    """Score a finished run, and the model it started from, on the run's test documents.

    A window has `block_size` tokens, as in training; a longer stride is reduced to that, as the protocol records.
    """
    EvaluationSettings.check_type(settings)
    run_settings = read_run_settings(settings.run)
    documents = open_prepared(settings.run).documents["test"]
    comparison = _compare_on(documents, settings, source=f"the test part of {public_name(run_settings.source)}")
    record.write_section(settings.run, "test", comparison.to_dict())
    return comparison


def measure_forgetting(settings: EvaluationSettings) -> Comparison:
    """Score both models on general text that the run was not trained on, to see what was lost for the gain.

    Reads `general_documents` documents of `general_source`, drawn with the seed, from its test part if there is one.
    `SettingsError`: the run was trained on that source, or the source cannot be read.
    """
    EvaluationSettings.check_type(settings)
    refuse_training_text(settings.general_source, source=read_run_settings(settings.run).source, run=settings.run)
    with name_general_source(settings.general_source):
        splits = load_documents(DataSettings(run=settings.run, source=settings.general_source))
    held_out = splits["test"] if "test" in splits else splits["train"]
    if not held_out:
        raise SettingsError(f"general_source = {settings.general_source!r} holds no text: choose another.")
    if "continues" not in held_out.column_names:
        held_out = held_out.shuffle(seed=settings.seed)
    documents = held_out.take(min(len(held_out), settings.general_documents))
    comparison = _compare_on(documents, settings, source=public_name(settings.general_source))
    record.write_section(settings.run, "forgetting", comparison.to_dict())
    return comparison


def measure_published_protocol(settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Score both models by the protocol behind GPT-2's published perplexities: 'transformers' in `scoring`.

    All rows of the source's own test part are joined, regardless of what this run treats as documents or duplicates.
    `SettingsError`: the source has no rows with its own test part.

    Returns:
        One row per stride (the full window and half of it): `protocol`, `stride`, the perplexities `base` and `tuned`,
        and `published`, the known value for this base model and text, or None.
    """
    EvaluationSettings.check_type(settings)
    run_settings = read_run_settings(settings.run)
    rows = Source(run_settings.part(DataSettings)).rows_of("test")
    if rows is None:
        raise SettingsError(
            f"Not measured by the published protocol: it joins the rows of a data set's own test part, and "
            f"{public_name(run_settings.source)} has none."
        )
    texts, scores = list(rows), {}
    for name, load in (("base", load_base), ("tuned", load_tuned)):
        model, tokenizer = load(settings.run)
        for stride in (model.config.n_positions, model.config.n_positions // 2):
            scores.setdefault(stride, {})[name] = score(
                model,
                tokenizer,
                texts,
                stride=stride,
                per_device_eval_batch_size=settings.per_device_eval_batch_size,
                protocol="transformers",
            )
    base = "" if run_settings.from_scratch else run_settings.model_name_or_path
    published = _PUBLISHED.get((base, run_settings.source, run_settings.source_config), {})
    table = [
        {
            "protocol": "transformers",
            "stride": stride,
            **{name: result.to_dict()["perplexity"] for name, result in by_name.items()},
            "published": published.get(stride),
        }
        for stride, by_name in scores.items()
    ]
    record.write_section(settings.run, "published_protocol", table)
    return table


def fill_prompt(settings: EvaluationSettings) -> EvaluationSettings:
    """Return the settings with a prompt; if none is set, it is the first words of the run's first test document.

    For a model of chat data, the prompt is a question, written as in the data; by default the first one of the test.
    """
    EvaluationSettings.check_type(settings)
    tokenizer = load_run_tokenizer(read_run_settings(settings.run))
    prompt = as_question(settings.prompt, tokenizer)
    if not prompt:
        text = open_prepared(settings.run).documents["test"][0]["text"]
        prompt = opening(text, tokenizer, n_words=5)  # about as long as a title
    return settings.model_copy(update={"prompt": prompt})


def opening(text: str, tokenizer: "PreTrainedTokenizerBase", *, n_words: int) -> str:
    """Return a text's first words, or a conversation up to its first answer, without most of a very long question.

    These are at most 64 tokens: in scripts without spaces a "word" can be a whole paragraph.
    """
    _, after = question_frame(tokenizer)
    if after and after in text:
        words = text[: text.index(after)]
    else:
        words, after = re.match(rf"\s*(?:\S+\s+){{0,{n_words - 1}}}\S*", text)[0].rstrip(), ""
    ids = tokenizer.encode(words[: 16 * _MAX_OPENING_TOKENS], verbose=False)  # few tokens have more than 16 characters
    if len(ids) > _MAX_OPENING_TOKENS:
        words = _decode_beginning(ids[:_MAX_OPENING_TOKENS], tokenizer).rstrip()
    return words + after


def _decode_beginning(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a document's first tokens, without a partial character at the end."""
    return tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")


def _compare_on(documents: Dataset, settings: EvaluationSettings, *, source: str) -> Comparison:
    run_settings = read_run_settings(settings.run)
    context, base_name = run_settings.block_size, "random weights" if run_settings.from_scratch else None
    texts, protocol = dialogues(documents), "passages" if "continues" in documents.column_names else "documents"
    base, tuned = (
        score(
            *load(settings.run),
            texts,
            stride=min(settings.stride, context),
            context=context,
            per_device_eval_batch_size=settings.per_device_eval_batch_size,
            protocol=protocol,
            name=name,
        )
        for load, name in ((load_base, base_name), (load_tuned, f"run {settings.run}"))
    )
    return Comparison(source, texts, base, tuned, settings.seed)


def measure_copying(settings: EvaluationSettings) -> CopyReport:
    """Let the tuned model continue held-out documents, and search the training text for what it generates.

    The prompt is the beginning of each of `copy_samples` test documents, or its question if the model learned only
    answers. The control of a sample is the real continuation, cut to its length. If no test document has a prompt of a
    suitable length with text after it, the report is empty and nothing is recorded.
    """
    EvaluationSettings.check_type(settings)
    model, tokenizer = load_tuned(settings.run)
    documents = open_prepared(settings.run).documents
    texts = dialogues(documents["test"].take(min(len(documents["test"]), settings.copy_samples)))
    pairs = [_split_off_prompt(text, tokenizer) for text in texts]
    max_tokens = max(_PROMPT_TOKENS, model.config.n_positions - settings.max_new_tokens)  # longest possible question
    pairs = [(prompt, rest) for prompt, rest in pairs if 0 < len(prompt) <= max_tokens and rest]
    if not pairs:
        return CopyReport([], [], [], {})
    prompts = [_decode_beginning(prompt, tokenizer) for prompt, _ in pairs]
    samples = generate(model, tokenizer, prompts, settings, num_return_sequences=1)
    # A longer text shares longer runs by chance, and many samples end before `max_new_tokens`.
    control = [rest[: len(sample.token_ids)] for (_, rest), (sample,) in zip(pairs, samples, strict=True)]
    report = search_training_text(
        tokenizer, [sample.token_ids for (sample,) in samples], control, documents["train"]["text"]
    )  # fmt: skip
    record.write_section(settings.run, "copying", report.to_dict())
    return report


def _split_off_prompt(document: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the ids of a document's prompt and of the rest; for a dialogue, the first question and its answer."""
    if isinstance(document, Dialogue):
        turns = dropwhile(lambda segment: not segment[1], document.segments)  # a dialogue may begin with an answer
        question, answer, *_ = *(text for text, _ in turns), "", ""
        return tokenizer.encode(question, verbose=False), tokenizer.encode(answer, verbose=False)
    ids = tokenizer.encode(document, verbose=False)
    return ids[:_PROMPT_TOKENS], ids[_PROMPT_TOKENS:]


def compare_decodings(
    settings: EvaluationSettings, *, decodings: Mapping[str, Mapping[str, Any]] = DECODINGS
) -> DecodingReport:
    """Let the tuned model continue the prompt and the openings of three test documents, with each decoding method.

    The base model also continues the prompt, with the settings unchanged. `decodings` maps each method to its changes
    of the settings, which are passed to `generate`; errors are those of `generate`.
    """
    settings = fill_prompt(settings)
    model, tokenizer = load_tuned(settings.run)
    documents = open_prepared(settings.run).documents["test"]["text"][:3]
    openings = [opening(text, tokenizer, n_words=3) for text in documents]
    samples = {}
    for name, changes in decodings.items():
        by_prompt = generate(model, tokenizer, [settings.prompt, *openings], settings, **changes)
        samples[name] = [sample for group in by_prompt for sample in group]
    ((before,),) = generate(*load_base(settings.run), [settings.prompt], settings, num_return_sequences=1)
    report = DecodingReport(samples, settings, before)
    record.write_section(settings.run, "speech", report.to_dict())
    return report


def load_base(run: str) -> tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]:
    """Load the model that a run started from (pretrained, or with random weights) and its tokenizer."""
    settings = read_run_settings(run)
    tokenizer = load_run_tokenizer(settings)
    return load_start(settings, tokenizer), tokenizer


def load_tuned(run: str) -> tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]:
    """Load a run's final model and its tokenizer; raise `SettingsError` if there is none yet."""
    folder = run_folder(run) / "model"
    if not folder.exists():
        raise SettingsError(f"Run {run!r} has no final model yet: train it in notebook 3 first.")
    return load_model(str(folder)), load_tokenizer(str(folder))
