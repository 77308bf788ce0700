"""One token after another, as `evaluation.generate` would draw them, and the candidates that each was drawn from."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.model import device
from helpers.settings import EvaluationSettings, SettingsError

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase


class Candidate(NamedTuple):
    """A next token: its id, its text, its chance as the model gives it, and its chance to be drawn."""

    token: int
    text: str
    chance: float
    drawn_chance: float


def encode_prompt(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", settings: EvaluationSettings) -> list:
    """Return the prompt's tokens; raise `SettingsError` when they and what is to come do not fit the positions."""
    ids = tokenizer.encode(settings.prompt)
    if len(ids) + settings.max_new_tokens > model.config.n_positions:
        raise SettingsError(
            f"The prompt has {len(ids)} tokens and max_new_tokens is {settings.max_new_tokens}: together at most "
            f"{model.config.n_positions}, the model's positions."
        )
    return ids


def draw(
    model: "GPT2LMHeadModel", ids: Sequence[int], settings: EvaluationSettings
) -> "Iterator[tuple[int, torch.Tensor]]":
    """Yield the tokens that follow `ids`, up to the end of the text or `max_new_tokens`, each with its logits (1, V).

    The same seed gives the same tokens as `evaluation.generate` for one sequence.
    """
    import torch

    target, shaped = device(), _shaping(settings)
    model = model.to(target).eval()
    dice = torch.Generator(target).manual_seed(settings.seed)
    so_far, step, cache = torch.tensor([list(ids)], device=target), None, None  # so_far: (1, T)
    for _ in range(settings.max_new_tokens):
        with torch.inference_mode():
            mask = torch.ones_like(so_far)
            out = model(
                input_ids=so_far if step is None else step,
                attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            logits = out.logits[:, -1].float()  # (1, V)
            scores = shaped(so_far, logits.clone())
            step, cache = torch.multinomial(scores.softmax(-1), 1, generator=dice), out.past_key_values
            so_far = torch.cat([so_far, step], dim=1)
        yield step.item(), logits.cpu()
        if step.item() == model.config.eos_token_id:
            return


def next_logits(model: "GPT2LMHeadModel", ids: Sequence[int]) -> "torch.Tensor":
    """Return the logits (1, V) of the token that follows `ids`."""
    import torch

    target = device()
    with torch.inference_mode():
        ids = torch.tensor([list(ids)], device=target)
        return model.to(target).eval()(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()


def candidates(
    logits: "torch.Tensor",
    ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    settings: EvaluationSettings,
    *,
    n: int = 8,
    drawn: int | None = None,
) -> list[Candidate]:
    """Return the likeliest next tokens, and the one that was drawn when it is not among them.

    Args:
        logits: (1, V), as the model gives them.
        ids: the tokens before; what is among them is penalised for repetition.
        tokenizer: gives the tokens' text.
        settings: temperature, top_k, top_p and repetition penalty.
        n: how many.
        drawn: a token that shall be among them.
    """
    import torch

    plain = logits.softmax(-1)[0]
    chances = _shaping(settings)(torch.tensor([list(ids)]), logits.clone()).softmax(-1)[0]
    tokens = plain.topk(n).indices.tolist()
    if drawn is not None and drawn not in tokens:
        tokens[-1] = drawn
    return [Candidate(token, tokenizer.decode([token]), plain[token].item(), chances[token].item()) for token in tokens]


def _shaping(settings: EvaluationSettings) -> Any:
    """Return what makes scores of logits, in the order of transformers' `generate`."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        found.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        found.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        found.append(TopPLogitsWarper(settings.top_p))
    return found
