"""Generate text in batches, with a seed, and measure the samples' variety and repetition."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.data.sources.documents import replace_lone_surrogates
from helpers.display import PlainTextMixin, html_table, progress_bar
from helpers.evaluation.sampling import check_length
from helpers.model import check_sound, describe_prompt, on_device
from helpers.settings import EvaluationSettings, SettingsError
from helpers.training.memory import sequences_at_once

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, LogitsProcessorList, PreTrainedTokenizerBase

_UNCHANGED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}  # the model's own distribution
# transformers warns about sampling arguments that are set while `do_sample` is off: None unsets them.
_NO_SAMPLING = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "num_return_sequences": 1}

DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {**_NO_SAMPLING, "repetition_penalty": 1.0},
    "greedy, repetition_penalty 1.3": {**_NO_SAMPLING, "repetition_penalty": 1.3},
    "beam search, num_beams 4": {**_NO_SAMPLING, "repetition_penalty": 1.0, "num_beams": 4},
    "temperature 1": _UNCHANGED,
    "top_p 0.9": {**_UNCHANGED, "top_p": 0.9},
    "these settings": {},
}


@dataclass(frozen=True)
class Sample:
    """What a model generated after a prompt.

    `token_ids` are those of the continuation, without end-of-text; `stopped` says whether the model ended the text
    itself, before `max_new_tokens`.
    """

    prompt: str
    continuation: str
    token_ids: tuple[int, ...]
    stopped: bool

    @property
    def text(self) -> str:
        """Prompt and continuation."""
        return self.prompt + self.continuation


def generate(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    settings: EvaluationSettings,
    **changes: Any,
) -> list[list[Sample]]:
    """Continue each prompt with the model; return a list of `num_return_sequences` samples for each prompt.

    The same seed gives the same samples. A progress bar appears after ten seconds.

    Args:
        model: any GPT-2.
        tokenizer: its tokenizer.
        prompts: at least one text; an empty one starts a new document.
        settings: sampling, length and seed.
        changes: arguments of `GenerationConfig` that replace those from the settings, such as `do_sample=False`, which
            gives one sample per prompt unless `num_return_sequences` and `num_beams` ask for more.

    Raises:
        SettingsError: a prompt and `max_new_tokens` together exceed the model's positions, there is no prompt, or the
            model does not match the tokenizer or has weights that are not finite.
    """
    import torch

    EvaluationSettings.check_type(settings)
    check_sound(model, tokenizer)
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise SettingsError(f"prompts = {prompts!r} must be a list of at least one text.")
    if settings.prompt in prompts and (note := describe_prompt(settings.prompt)):
        warnings.warn(note, stacklevel=2)
    arguments = _generation_arguments(tokenizer, settings, changes)
    prompts = [replace_lone_surrogates(prompt) for prompt in prompts]
    rows = [tokenizer.encode(prompt, verbose=False) or [tokenizer.eos_token_id] for prompt in prompts]
    check_length(max(map(len, rows)), arguments["max_new_tokens"], model.config.n_positions)
    n_samples, n_beams = arguments["num_return_sequences"], arguments.get("num_beams") or 1
    max_sequences = sequences_at_once(model.config, max(map(len, rows)) + arguments["max_new_tokens"])
    n_rows = max(1, max_sequences // max(n_samples, n_beams))
    batches = [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]
    # Even the samples of one prompt may be too many at once; the beams of a search must stay together.
    max_samples = max_sequences if n_beams == 1 else n_samples
    parts = [min(max_samples, n_samples - done) for done in range(0, n_samples, max_samples)]
    n_steps = len(batches) * len(parts) * arguments["max_new_tokens"]
    continuations = []
    with on_device(model.eval()), torch.inference_mode(), progress_bar(n_steps, unit="token") as bar:
        arguments["logits_processor"] = _draw_from(torch.Generator(model.device).manual_seed(settings.seed))
        for batch in batches:
            continued = [
                _continue_batch(model, tokenizer, batch, arguments | {"num_return_sequences": n}, bar) for n in parts
            ]
            continuations += [[ids for part in one for ids in part] for one in zip(*continued, strict=True)]
    return [
        [_read_sample(tokenizer, prompt, ids) for ids in several]
        for prompt, several in zip(prompts, continuations, strict=True)
    ]


def _draw_from(generator: "torch.Generator") -> "LogitsProcessorList":
    """Return a processor that makes a model's `generate` draw from a generator; transformers has no argument for that.

    The process's random state, even forked, is also used by training in another thread, such as a panel's.
    """
    import torch
    from transformers import LogitsProcessorList

    class Scores(torch.Tensor):  # a TorchFunctionMode would see every operation of the model: a third slower
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            if function is torch.multinomial:
                probabilities, *rest = arguments
                return function(probabilities.as_subclass(torch.Tensor), *rest, **(named or {}), generator=generator)
            return super().__torch_function__(function, types, arguments, named)

    return LogitsProcessorList([lambda ids, scores: scores.as_subclass(Scores)])


def _generation_arguments(
    tokenizer: "PreTrainedTokenizerBase", settings: EvaluationSettings, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments for the model's `generate`."""
    names = ("max_new_tokens", "num_return_sequences", "temperature", "top_k", "top_p", "repetition_penalty")
    values = {"do_sample": True, "pad_token_id": tokenizer.eos_token_id}
    values |= {name: getattr(settings, name) for name in names}
    return values | (_NO_SAMPLING if changes.get("do_sample") is False else {}) | changes


def _continue_batch(
    model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", rows: list[list[int]], arguments: Any, bar: Any
) -> list[list[list[int]]]:
    """Return, for each row of prompt tokens, the new token ids of each sample."""
    import torch

    def count(*_: Any) -> bool:  # transformers calls it after each token; True would stop the generation
        bar.update()
        return False

    # Padded on the left, because new tokens must directly follow the prompt, and masked, so that a batch gives the same
    # result as single prompts. GPT-2 has no padding token, which the tokenizer needs for padding; any token works.
    width, pad_id = max(map(len, rows)), tokenizer.eos_token_id
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=model.device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(input_ids=ids, attention_mask=mask, **arguments, stopping_criteria=[count])
    new = output[:, width:].tolist()  # B * n_each rows: the samples of a prompt follow each other
    n_each = len(new) // len(rows)
    return [new[start : start + n_each] for start in range(0, len(new), n_each)]


def _read_sample(tokenizer: "PreTrainedTokenizerBase", prompt: str, row: list[int]) -> Sample:
    stopped = tokenizer.eos_token_id in row
    ids = row[: row.index(tokenizer.eos_token_id)] if stopped else row  # only padding follows
    return Sample(prompt, tokenizer.decode(ids), tuple(ids), stopped)


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of distinct n-grams among all n-grams of the samples (https://arxiv.org/abs/1510.03055).

    >>> distinct_n([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    grams = [gram for row in rows for gram in _list_ngrams(row, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the mean share of a sample's n-grams that repeat an earlier one (https://arxiv.org/abs/1908.04319).

    >>> repeated_n([[1, 2, 1, 2, 1], [5, 6, 7]], 2)
    0.25
    """
    shares = [1 - len(set(grams)) / len(grams) for row in rows if (grams := _list_ngrams(row, n))]
    return sum(shares) / len(shares) if shares else 0.0


def _list_ngrams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def measure_samples(samples: Sequence[Sample]) -> dict[str, float]:
    """Return variety (distinct_1, distinct_2), repetition (repeated_4), mean length and the share that stopped."""
    rows = [sample.token_ids for sample in samples]
    return {
        "distinct_1": distinct_n(rows, 1),
        "distinct_2": distinct_n(rows, 2),
        "repeated_4": repeated_n(rows, 4),
        "mean_tokens": sum(map(len, rows)) / len(rows),
        "stopped_share": sum(sample.stopped for sample in samples) / len(samples),
    }


@dataclass(frozen=True)
class DecodingReport(PlainTextMixin):
    """Samples of several decoding methods for the same prompts: method name -> samples for all prompts.

    `before` is what the base model generated with the settings.
    """

    samples: dict[str, list[Sample]]
    settings: EvaluationSettings
    before: Sample

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per decoding method: metrics of its samples, and the first sample."""
        return [
            {"decoding": decoding, **measure_samples(samples), "sample": samples[0].text}
            for decoding, samples in self.samples.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the prompts, the settings, the base model's sample and the rows, ready for JSON."""
        prompts = list(dict.fromkeys(sample.prompt for sample in next(iter(self.samples.values()))))
        settings = self.settings.model_dump()
        return {"prompts": prompts, "settings": settings, "before": self.before.text, "decodings": self.rows}

    def _repr_html_(self) -> str:
        names = ["first sample" if name == "sample" else name for name in self.rows[0]]
        return html_table(names, (list(row.values()) for row in self.rows))
