"""How a model speaks: batches of samples, seeded, and the ways of decoding side by side with measures of what comes.

Prompts of different lengths are padded on the left under an attention mask, so that a batch gives what single calls
would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.display import html_table
from helpers.model import check_sound, device
from helpers.settings import EvaluationSettings, SettingsError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_SEQUENCES_AT_ONCE = 64
_PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
_NO_CHANCE = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "num_return_sequences": 1}

DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {**_NO_CHANCE, "repetition_penalty": 1.0},
    "greedy, repetition_penalty 1.3": {**_NO_CHANCE, "repetition_penalty": 1.3},
    "beam search, num_beams 4": {**_NO_CHANCE, "repetition_penalty": 1.0, "num_beams": 4},
    "temperature 0.7": {**_PLAIN, "temperature": 0.7},
    "temperature 1": _PLAIN,
    "top_k 40": {**_PLAIN, "top_k": 40},
    "top_p 0.9": {**_PLAIN, "top_p": 0.9},
    "these settings": {},
}


@dataclass(frozen=True)
class Sample:
    """What a model said after a prompt.

    Attributes:
        prompt: what it went on from.
        continuation: what it said.
        token_ids: of the continuation, without the end-of-text.
        stopped: whether it ended by itself, before `max_new_tokens`.
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
) -> list[list[str]]:
    """Let a model go on from prompts: a list of `num_return_sequences` texts for each prompt, prompt included.

    The arguments and errors are those of `sample`.
    """
    found = sample(model, tokenizer, prompts, settings, **changes)
    return [[said.text for said in samples] for samples in found]


def sample(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    settings: EvaluationSettings,
    **changes: Any,
) -> list[list[Sample]]:
    """Let a model go on from prompts: a list of `num_return_sequences` samples for each prompt.

    The same seed gives the same samples. After two seconds a progress bar is shown.

    Args:
        model: any GPT-2.
        tokenizer: its tokenizer.
        prompts: one text or more; an empty one starts a document.
        settings: sampling, length, seed.
        changes: arguments of `GenerationConfig` that replace those of the settings, such as `do_sample=False`, with
            which there is one sample for each prompt unless `num_return_sequences` and `num_beams` ask for more.

    Raises:
        SettingsError: a prompt and `max_new_tokens` do not fit into the model's positions, there is no prompt, or the
            model does not fit the tokenizer or holds weights that are no numbers.
    """
    import torch
    from tqdm.auto import tqdm

    check_sound(model, tokenizer)
    arguments = _arguments(tokenizer, settings, changes)
    _check_length(_token_rows(tokenizer, prompts), arguments["max_new_tokens"], model.config.n_positions)
    n_each = max(arguments["num_return_sequences"], arguments.get("num_beams") or 1)
    n_prompts = max(1, _SEQUENCES_AT_ONCE // n_each)
    batches = [prompts[start : start + n_prompts] for start in range(0, len(prompts), n_prompts)]
    model.to(device()).eval()
    found = []
    n_steps = len(batches) * arguments["max_new_tokens"]
    with (
        torch.random.fork_rng(),
        torch.inference_mode(),
        tqdm(total=n_steps, unit="token", delay=2, leave=False) as bar,
    ):
        torch.manual_seed(settings.seed)
        for batch in batches:
            found += _sample_batch(model, tokenizer, batch, arguments, bar)
    return found


def _arguments(
    tokenizer: "PreTrainedTokenizerBase", settings: EvaluationSettings, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the model's own `generate`."""
    names = ("max_new_tokens", "num_return_sequences", "temperature", "top_k", "top_p", "repetition_penalty")
    values = {"do_sample": True, "pad_token_id": tokenizer.eos_token_id}
    values |= {name: getattr(settings, name) for name in names}
    return values | (_NO_CHANCE if changes.get("do_sample") is False else {}) | changes


def _sample_batch(
    model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], arguments: Any, bar: Any
) -> list[list[Sample]]:
    def count(*_: Any) -> bool:  # called after each token
        bar.update()
        return False

    encoded = left_padded(tokenizer, prompts)
    inputs = {name: tensor.to(model.device) for name, tensor in encoded.items()}
    ids = model.generate(**inputs, **arguments, stopping_criteria=[count])  # (B * n, T)
    rows = ids[:, encoded["input_ids"].shape[1] :].tolist()
    n_each = len(rows) // len(prompts)
    said = [_sample_of(tokenizer, prompts[i // n_each], row) for i, row in enumerate(rows)]
    return [said[start : start + n_each] for start in range(0, len(said), n_each)]


def _sample_of(tokenizer: "PreTrainedTokenizerBase", prompt: str, row: list[int]) -> Sample:
    stopped = tokenizer.eos_token_id in row
    ids = row[: row.index(tokenizer.eos_token_id)] if stopped else row
    return Sample(prompt, tokenizer.decode(ids), tuple(ids), stopped)


def left_padded(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> dict[str, Any]:
    """Return `input_ids` and `attention_mask` (B, T), filled up on the left: what comes next must follow the prompt."""
    import torch

    rows = _token_rows(tokenizer, prompts)
    width = max(map(len, rows))
    fill = tokenizer.eos_token_id  # GPT-2 has no padding token; under the mask any token will do
    return {
        "input_ids": torch.tensor([[fill] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def _token_rows(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> list[list[int]]:
    if isinstance(prompts, str) or not prompts:
        raise SettingsError(f"prompts = {prompts!r} must be a list of at least one text.")
    return [tokenizer.encode(prompt, verbose=False) or [tokenizer.eos_token_id] for prompt in prompts]


def _check_length(rows: list[list[int]], max_new_tokens: int, n_positions: int) -> None:
    n_prompt = max(map(len, rows))
    if n_prompt >= n_positions:
        raise SettingsError(
            f"The longest prompt has {n_prompt} tokens and the model {n_positions} positions: shorten the prompt, so "
            "that it and max_new_tokens fit together."
        )
    if n_prompt + max_new_tokens > n_positions:
        raise SettingsError(
            f"The longest prompt has {n_prompt} tokens and max_new_tokens is {max_new_tokens}: together at "
            f"most {n_positions}, the model's positions."
        )


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among all of some samples (https://arxiv.org/abs/1510.03055).

    >>> distinct_n([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    grams = [gram for row in rows for gram in _ngrams(row, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the mean share of a sample's n-grams that it has said before (https://arxiv.org/abs/1908.04319).

    >>> repeated_n([[1, 2, 1, 2, 1], [5, 6, 7]], 2)
    0.25
    """
    shares = [1 - len(set(grams)) / len(grams) for row in rows if (grams := _ngrams(row, n))]
    return sum(shares) / len(shares) if shares else 0.0


def _ngrams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def measures(samples: Sequence[Sample]) -> dict[str, float]:
    """Return variety (`distinct_1`, `distinct_2`), loops (`repeated_4`), mean length and the share that stopped."""
    rows = [said.token_ids for said in samples]
    return {
        "distinct_1": distinct_n(rows, 1),
        "distinct_2": distinct_n(rows, 2),
        "repeated_4": repeated_n(rows, 4),
        "mean_tokens": sum(map(len, rows)) / len(rows),
        "stopped_share": sum(said.stopped for said in samples) / len(samples),
    }


@dataclass(frozen=True)
class Speech:
    """The ways of decoding, each on the same prompts.

    Attributes:
        samples: decoding -> all that came of it.
        settings: length and seed of all, and what 'these settings' are.
    """

    samples: dict[str, list[Sample]]
    settings: EvaluationSettings

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a decoding: its measures, and the first sample."""
        return [
            {"decoding": decoding, **measures(samples), "sample": samples[0].text}
            for decoding, samples in self.samples.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return prompts, settings and rows, ready for JSON."""
        prompts = list(dict.fromkeys(said.prompt for said in next(iter(self.samples.values()))))
        return {"prompts": prompts, "settings": self.settings.model_dump(), "decodings": self.rows}

    def _repr_html_(self) -> str:
        names = ["first sample" if name == "sample" else name for name in self.rows[0]]
        return html_table(names, (list(row.values()) for row in self.rows))


def speak(
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    settings: EvaluationSettings,
    *,
    decodings: Mapping[str, Mapping[str, Any]] = DECODINGS,
) -> Speech:
    """Let a model go on from the same prompts in each way of decoding.

    Args:
        model: any GPT-2.
        tokenizer: its tokenizer.
        prompts: one text or more.
        settings: length, seed, and the sampling of a decoding that changes nothing.
        decodings: name -> changes to the settings, as `sample` takes them.
    """
    found = {name: sample(model, tokenizer, prompts, settings, **changes) for name, changes in decodings.items()}
    return Speech({name: [said for samples in rows for said in samples] for name, rows in found.items()}, settings)
