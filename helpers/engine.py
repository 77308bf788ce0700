"""Equal results for less work: what a training step of GPT-2 on packed blocks need not do, left out.

Three changes to a stock `GPT2LMHeadModel`, each proved equal by a test and none of them saved with the model:

- attention without a mask: packed rows need none, and with none the flash kernel runs, compiled or not; on a CPU
  attention goes part by part where that is faster than the kernel;
- the tanh GELU in one operation instead of eight;
- a loss that never holds the logits of all tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

CHUNK_TOKENS = 512  # rows of logits that are held at once
_QUERIES = 128  # queries that attend at once where attention goes part by part
_ATTENTION = "course_causal"  # no mask is made for a name that transformers has no mask function for


@contextmanager
def equal_results_less_work(model: "GPT2LMHeadModel") -> Iterator["GPT2LMHeadModel"]:
    """Make a model cheap to train on rows without left padding; as it came when the block ends.

    Args:
        model: with the scaled-dot-product attention that transformers chooses by itself.
    """
    attention = model.config._attn_implementation
    activations = [block.mlp.act for block in model.transformer.h]
    use_causal_attention(model)
    use_fused_gelu(model)
    use_chunked_loss(model)
    try:
        yield model
    finally:
        model.set_attn_implementation(attention)
        del model.forward  # the one that stood in front of the class's own
        for block, activation in zip(model.transformer.h, activations, strict=True):
            block.mlp.act = activation


def use_causal_attention(model: "GPT2LMHeadModel") -> None:
    """Attend causally without a mask: for rows that are full, or padded on the right with labels of -100.

    transformers builds a (B, 1, T, T) mask when it is compiled, and with a mask the flash kernel is out of reach
    (https://github.com/huggingface/transformers/issues/48925).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _causal_attention)
    model.set_attn_implementation(_ATTENTION)


def _causal_attention(
    module: Any,
    query: "torch.Tensor",  # (B, heads, T, head_dim), as are key and value
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    from torch.nn import functional

    is_causal = query.shape[2] > 1  # a single token, in generation, may look at all that is kept of those before
    if is_causal and query.device.type == "cpu" and (query.dtype.itemsize == 2 or dropout):
        out = attention_in_parts(query, key, value, dropout=dropout, scaling=scaling)
    else:
        out = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=is_causal
        )
    return out.transpose(1, 2).contiguous(), None  # (B, T, heads, head_dim)


def attention_in_parts(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> "torch.Tensor":
    """Attend causally, some queries at a time, each part to no key after its last query: (B, heads, T, head_dim).

    On a CPU the flash kernel's way back is slow in half precision, and with dropout no fused kernel runs at all.

    Args:
        query: (B, heads, T, head_dim), as are key and value.
        key: see query.
        value: see query.
        dropout: share of the chances that is dropped.
        scaling: of the products; 1 / sqrt(head_dim) when left out.
    """
    import torch
    from torch.nn import functional

    query = query * (scaling or query.shape[-1] ** -0.5)
    later = torch.full((_QUERIES, _QUERIES), -torch.inf, dtype=query.dtype).triu(1)
    parts = []
    for begin in range(0, query.shape[2], _QUERIES):
        part = query[:, :, begin : begin + _QUERIES]  # (B, heads, Q, head_dim)
        end = begin + part.shape[2]
        scores = part @ key[:, :, :end].mT  # (B, heads, Q, end)
        scores[..., begin:] += later[: end - begin, : end - begin]
        chances = functional.dropout(scores.softmax(-1), dropout)
        parts.append(chances @ value[:, :, :end])
    return torch.cat(parts, dim=2)


def use_fused_gelu(model: "GPT2LMHeadModel") -> None:
    """Compute `gelu_new` by PyTorch's one fused operation instead of eight; the configuration stays as it came.

    Both are the tanh approximation of https://arxiv.org/abs/1606.08415; they differ by rounding alone.
    """
    from torch import nn
    from transformers.activations import NewGELUActivation

    for block in model.transformer.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = nn.GELU(approximate="tanh")


def use_chunked_loss(model: "GPT2LMHeadModel", *, chunk_tokens: int = CHUNK_TOKENS) -> None:
    """Let the model compute its loss a chunk of tokens at a time, and give no logits, whenever it is given labels."""
    from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

    stock = model.forward

    def forward(input_ids: Any = None, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return stock(input_ids=input_ids, **kwargs)
        kwargs.pop("return_dict", None)
        hidden_states = model.transformer(input_ids, **kwargs)[0]  # (B, T, width)
        loss = chunked_loss(
            hidden_states,
            model.lm_head.weight,
            labels,
            num_items_in_batch=num_items_in_batch,
            chunk_tokens=chunk_tokens,
        )
        return CausalLMOutputWithCrossAttentions(loss=loss)

    model.forward = forward


def chunked_loss(
    hidden_states: "torch.Tensor",
    weight: "torch.Tensor",
    labels: "torch.Tensor",
    *,
    num_items_in_batch: "torch.Tensor | int | None" = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> "torch.Tensor":
    """Return the loss in nats a token, as `GPT2LMHeadModel` computes it, holding a chunk of the logits at a time.

    Args:
        hidden_states: (B, T, width), the trunk's last.
        weight: (V, width), the head's.
        labels: (B, T); -100 is left out; the label of a position is the next one's, as in transformers.
        num_items_in_batch: labels of the whole step, which the sum is divided by; None: those that are here.
        chunk_tokens: rows of logits that are held at once.
    """
    from torch.nn import functional

    targets = functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1).to(hidden_states.device)  # (B * T,)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum()
    nats = _loss_function().apply(hidden_states.flatten(0, 1), weight, targets, chunk_tokens)
    return nats / num_items_in_batch


def _loss_function() -> Any:
    """Return the autograd function; a class of torch's, so it is made when torch is first needed."""
    global _LossFunction
    if _LossFunction is None:
        _LossFunction = _make_loss_function()
    return _LossFunction


_LossFunction: Any = None


def _make_loss_function() -> Any:
    import torch
    from torch.nn import functional

    class ChunkedCrossEntropy(torch.autograd.Function):
        """Sum of nats over rows; its gradients are made in the forward pass, while a chunk's logits are at hand."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, chunk_tokens: int) -> Any:
            dtype = torch.get_autocast_dtype(hidden.device.type) if _autocast_is_on(hidden) else hidden.dtype
            head = weight.detach().to(dtype)
            needs_gradients = any(ctx.needs_input_grad[:2])
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden) if needs_gradients else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_gradients else None
            with torch.autocast(hidden.device.type, enabled=False):
                for start in range(0, len(targets), chunk_tokens):
                    rows = slice(start, start + chunk_tokens)
                    chunk = hidden[rows].detach().to(dtype)  # (C, width)
                    log_probs = functional.log_softmax(functional.linear(chunk, head).float(), dim=-1)  # (C, V)
                    total += functional.nll_loss(log_probs, targets[rows], reduction="sum")
                    if needs_gradients:
                        slope = _logit_gradients(log_probs, targets[rows]).to(dtype)
                        grad_hidden[rows] = slope @ head
                        grad_weight += slope.t() @ chunk
                        del slope
                    del log_probs  # else the next chunk's logits come on top of this one's
            if needs_gradients:
                ctx.save_for_backward(grad_hidden, grad_weight)
            return total

        @staticmethod
        def backward(ctx: Any, grad_output: Any) -> Any:
            grad_hidden, grad_weight = ctx.saved_tensors
            return grad_hidden.mul_(grad_output), grad_weight.mul_(grad_output), None, None  # no second copy

    return ChunkedCrossEntropy


def _autocast_is_on(tensor: "torch.Tensor") -> bool:
    import torch

    return torch.is_autocast_enabled(tensor.device.type)


def _logit_gradients(log_probs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Return softmax minus one-hot, (C, V), in the memory of `log_probs`; 0 where the target is -100."""
    import torch

    is_kept = (targets != -100)[:, None]
    slope = log_probs.exp_()
    slope[torch.arange(len(targets), device=slope.device), targets.clamp(min=0)] -= 1
    return slope.mul_(is_kept)
