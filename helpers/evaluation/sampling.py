"""Generate token by token, with the candidates for each, for the playground and the demo page."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from helpers.data.sources.chat import as_question
from helpers.data.sources.documents import replace_lone_surrogates
from helpers.model import on_device
from helpers.settings import EvaluationSettings, SettingsError

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, LogitsProcessorList, PreTrainedTokenizerBase

_N_CANDIDATES = 8


class Candidate(NamedTuple):
    """A possible next token: its id and text, the model's probability, and the probability of being drawn."""

    token: int
    text: str
    probability: float
    drawn_probability: float


def encode_prompt(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", settings: EvaluationSettings) -> list:
    """Return the prompt's tokens; raise `SettingsError` if they and `max_new_tokens` exceed the model's positions."""
    prompt = as_question(replace_lone_surrogates(settings.prompt), tokenizer)
    ids = tokenizer.encode(prompt, verbose=False) or [tokenizer.eos_token_id]
    check_length(len(ids), settings.max_new_tokens, model.config.n_positions)
    return ids


def check_length(n_prompt: int, max_new_tokens: int, n_positions: int) -> None:
    """Raise `SettingsError` if a prompt's tokens plus the new ones exceed the model's positions."""
    if n_prompt + max_new_tokens > n_positions:
        raise SettingsError(
            f"The prompt has {n_prompt} tokens and max_new_tokens is {max_new_tokens}: together at most {n_positions}, "
            "the model's positions. Shorten the prompt, or lower max_new_tokens."
        )


def sample_tokens(
    model: "GPT2LMHeadModel", ids: Sequence[int], settings: EvaluationSettings
) -> "Iterator[tuple[int, torch.Tensor]]":
    """Yield the tokens after `ids`, until end-of-text or `max_new_tokens`, each with its logits (1, V).

    The same seed gives the same tokens as `generation.generate` for one sequence. The model stays on the card until the
    iterator ends or is closed.
    """
    # The model's own `generate` returns logits only at the end, and draws from the notebook's random state.
    import torch
    from transformers import DynamicCache

    processors = _logits_processors(settings)
    with on_device(model.eval()):
        generator = torch.Generator(model.device).manual_seed(settings.seed)
        ids, next_token = torch.tensor([list(ids)], device=model.device), None  # ids: (1, T)
        cache = DynamicCache()  # passed by position and kept here: transformers 5.24 renames argument and result
        for _ in range(settings.max_new_tokens):
            with torch.inference_mode():
                out = model(
                    ids if next_token is None else next_token, cache, attention_mask=torch.ones_like(ids),
                    use_cache=True, logits_to_keep=1,
                )  # fmt: skip
                logits = out.logits[:, -1].float()  # (1, V) in float32, as in `generate`
                # A clone, because some processors modify the scores.
                next_token = torch.multinomial(processors(ids, logits.clone()).softmax(-1), 1, generator=generator)
                ids = torch.cat([ids, next_token], dim=1)
            yield next_token.item(), logits.cpu()
            if next_token.item() == model.config.eos_token_id:
                return


def next_logits(model: "GPT2LMHeadModel", ids: Sequence[int]) -> "torch.Tensor":
    """Return the logits (1, V) of the token after `ids`."""
    import torch

    # Not with sample_tokens: drawing from NaN raises an error, and on CUDA it kills the kernel.
    with on_device(model.eval()), torch.inference_mode():
        batch = torch.tensor([list(ids)], device=model.device)  # (1, T)
        return model(input_ids=batch, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()


def candidates(
    logits: "torch.Tensor",
    ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    settings: EvaluationSettings,
    *,
    include: int | None = None,
) -> list[Candidate]:
    """Return the most probable next tokens after `ids`, from the model's logits (1, V).

    If the token `include` is not among the most probable, it takes the last place.
    """
    import torch

    probs = logits.softmax(-1)[0]
    drawn = _logits_processors(settings)(torch.tensor([list(ids)]), logits.clone()).softmax(-1)[0]
    tokens = probs.topk(_N_CANDIDATES).indices.tolist()
    if include is not None and include not in tokens:
        tokens[-1] = include
    return [Candidate(token, tokenizer.decode([token]), probs[token].item(), drawn[token].item()) for token in tokens]


def _logits_processors(settings: EvaluationSettings) -> "LogitsProcessorList":
    """Return the processors that turn logits into scores for drawing, in the order of transformers' `generate`."""
    import transformers as t

    processors = t.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(t.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        processors.append(t.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(t.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(t.TopPLogitsWarper(settings.top_p))
    return processors
