"""Predict the memory that measuring a model takes: scores of texts, and samples with their keys and values.

As in `memory`, this is arithmetic only, tested against traces.
"""

from typing import Any

from helpers.display import MIB, size_text
from helpers.settings import EvaluationSettings
from helpers.training.devices import GraphicsCard
from helpers.training.engine import CHUNK_TOKENS
from helpers.training.memory import estimate_overhead
from helpers.training.shape import inner_width, parameters

_SEQUENCES, _CACHE_BYTES = 64, 512 * MIB  # generated at once, at most; their keys and values, at most


def sequences_at_once(config: Any, n_tokens: int) -> int:
    """Return how many sequences of some tokens are generated at once, so that keys and values stay small.

    >>> from helpers.training.shape import read_shape
    >>> sequences_at_once(read_shape("gpt2"), 100), sequences_at_once(read_shape("gpt2-xl"), 100)
    (64, 8)
    """
    return max(1, min(_SEQUENCES, _CACHE_BYTES // _cache_bytes(config, n_tokens)))


def _cache_bytes(config: Any, n_tokens: int) -> int:
    return 8 * config.n_layer * config.n_embd * n_tokens  # a key and a value in float32


def scoring_bytes(config: Any, *, per_device_eval_batch_size: int) -> int:
    """Return the bytes, besides the weights, while windows of all positions are scored in float32."""
    width, tokens = config.n_embd, per_device_eval_batch_size * config.n_positions
    # GELU's input and output, or q, k and v; what is beside them is the same; the position embeddings of one window
    in_block = tokens * (20 * width + max(8 * inner_width(config), 12 * width)) + 4 * config.n_positions * width
    at_logits = 4 * tokens * width + 8 * min(tokens, CHUNK_TOKENS) * config.vocab_size
    return max(in_block, at_logits)


def evaluation_bytes(config: Any) -> int:
    """Predict the peak memory on a card when one model is scored and sampled in float32, with the default batch."""
    positions = config.n_positions
    cache = sequences_at_once(config, positions) * _cache_bytes(config, positions)
    batch = EvaluationSettings().per_device_eval_batch_size
    most = max(scoring_bytes(config, per_device_eval_batch_size=batch), cache)
    constant, share = estimate_overhead(on_processor=False)
    return 4 * parameters(config) + most + constant + int(share * most)


def describe_evaluation(config: Any, card: GraphicsCard, *, training_bytes: int) -> str:
    """Return a sentence where measuring a model takes much of the card, and more than training it; else empty.

    Empty for a processor, for which it is not predicted.
    """
    needed, usable = evaluation_bytes(config), card.usable_bytes
    if card.is_processor or needed <= min(usable, max(training_bytes, usable // 2)):
        return ""
    if needed > usable:
        return f"does not fit: notebook 04 measures in float32, which takes {size_text(needed)}"
    return f"{size_text(needed)} in notebook 04, which measures in float32: more than the training takes"
