"""The engine's two autograd functions: each computes its gradients by hand, which saves memory and time."""

from typing import Any

import torch
from torch.nn import functional

from helpers.training import fused_softmax

# The vocabulary is padded to a multiple of this, 50,257 to 50,304: a card's fast kernels need rows of a multiple of 8
# halves, and 64 are best (https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html).
# On a processor, a float32 product writes aligned rows 1.4 times as fast.
_ROWS = 64


class CausalAttention(torch.autograd.Function):
    """Causal attention computed for some queries at a time, without later keys; all tensors are (rows, T, head_dim).

    Done by hand, the gradients of keys and values are summed in place; autograd would allocate a full tensor per part.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, n_queries: int
    ) -> torch.Tensor:
        """Return the attended values, (rows, T, head_dim); `query` must already be scaled."""
        causal_mask = torch.full((n_queries, n_queries), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
        out = torch.empty_like(query)
        saved = []
        for begin in range(0, query.shape[1], n_queries):
            end = min(begin + n_queries, query.shape[1])
            scores = query[:, begin:end] @ key[:, :end].mT  # (rows, Q, end)
            scores[..., begin:] += causal_mask[: end - begin, : end - begin]
            weights = scores.softmax(-1)
            mask = functional.dropout(torch.ones_like(weights), dropout) if dropout else None
            out[:, begin:end] = (weights if mask is None else weights * mask) @ value[:, :end]
            if any(ctx.needs_input_grad):
                saved += [weights, mask]
        ctx.n_queries = n_queries
        ctx.save_for_backward(query, key, value, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, *saved = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for begin, weights, mask in zip(range(0, query.shape[1], ctx.n_queries), saved[::2], saved[1::2], strict=True):
            end = weights.shape[-1]
            grad = grad_output[:, begin:end]
            grad_weights = grad @ value[:, :end].mT  # (rows, Q, end)
            if mask is not None:
                grad_weights *= mask
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[:, begin:end] = grad_scores @ key[:, :end]
            grad_key[:, :end] += grad_scores.mT @ query[:, begin:end]
            grad_value[:, :end] += (weights if mask is None else weights * mask).mT @ grad
        return grad_query, grad_key, grad_value, None, None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy in nats, summed over rows; the forward pass computes the gradients while a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        with_gradients: bool,
    ) -> torch.Tensor:
        """Return the sum for hidden (N, width), weight (V, width) and targets (N,), where -100 is ignored."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        vocab_size, is_copied = len(weight), dtype != weight.dtype
        n_columns = -(-vocab_size // _ROWS) * _ROWS
        head = _pad_rows(weight.detach(), n_columns, dtype) if is_copied else weight.detach()
        # with an adapter the weight is frozen and needs no gradient; in validation `ctx` would still ask for both
        needs_grad_hidden, needs_grad_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad_hidden else None
        grad_weight = weight.new_zeros(len(head), weight.shape[1], dtype=torch.float32) if needs_grad_weight else None
        backend = fused_softmax.nats_and_gradients if fused_softmax.works_on(hidden.device) else _nats_and_gradients
        with torch.autocast(device, enabled=False):
            is_target = (targets != -100)[:, None]
            inputs = hidden.detach().to(dtype) * is_target  # (N, width); ignored rows get no gradient
            for start in range(0, len(targets), chunk_tokens):
                rows = slice(start, start + chunk_tokens)
                # not assigned to a name here, so that the function can free the logits
                nats, grad_logits = backend(_logits(inputs[rows], head, n_columns), targets[rows], vocab_size)
                total = total + nats  # not in place: PyTorch 2.11 would compile that to a gradient of 0
                if needs_grad_hidden:
                    grad_hidden[rows] = grad_logits[:, : len(head)] @ head
                if needs_grad_weight:
                    _add_product(grad_weight, grad_logits[:, : len(head)].t(), inputs[rows])
                del grad_logits  # otherwise the next chunk's logits come on top of these in memory
            if needs_grad_hidden:
                grad_hidden *= is_target
        if needs_grad_weight:
            grad_weight.resize_(weight.shape)  # not a view: autograd would copy it to add the embedding's gradient
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden and weight, scaled in place."""
        gradients = (grad if grad is None else grad.mul_(grad_output) for grad in ctx.saved_tensors)
        return *gradients, None, None, None


def _pad_rows(weight: torch.Tensor, n_rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy of a matrix in another number format, padded with zeros to `n_rows` rows."""
    padded = weight.new_empty(n_rows, weight.shape[1], dtype=dtype)
    padded[: len(weight)] = weight
    padded[len(weight) :] = 0
    return padded


def _logits(inputs: torch.Tensor, head: torch.Tensor, n_columns: int) -> torch.Tensor:
    """Return (C, n_columns) for inputs (C, width) and head (V or n_columns, width); columns from V on mean nothing."""
    logits = inputs.new_empty(len(inputs), n_columns)
    logits[:, : len(head)].addmm_(inputs, head.t(), beta=0)
    return logits


def _nats_and_gradients(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same as `fused_softmax.nats_and_gradients` with PyTorch's operations, but not in place."""
    dtype = logits.dtype
    logits[:, vocab_size:] = -torch.inf  # a probability of 0
    logits = logits.float()
    target_index = torch.arange(len(targets), device=targets.device), targets.clamp(min=0)
    max_logits, target_logits = logits.amax(-1), logits[target_index]  # (C,)
    grad_logits = logits.softmax(-1)
    del logits
    # A target's own probability may be rounded to 0, but the highest one of a row cannot. Taking the logarithm of all
    # probabilities, as `cross_entropy` does, would need a second exponential for the gradients.
    nats = (max_logits - grad_logits.amax(-1).log() - target_logits) * (targets != -100)
    grad_logits[target_index] -= 1
    return nats.sum(), grad_logits.to(dtype)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a float32 matrix in place; a card sums products of halves without rounding them."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
