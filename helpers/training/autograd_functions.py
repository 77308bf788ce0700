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
        later = torch.full((n_queries, n_queries), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
        out = torch.empty_like(query)
        saved = []
        for begin in range(0, query.shape[1], n_queries):
            end = min(begin + n_queries, query.shape[1])
            scores = query[:, begin:end] @ key[:, :end].mT  # (rows, Q, end)
            scores[..., begin:] += later[: end - begin, : end - begin]
            weights = scores.softmax(-1)
            kept = functional.dropout(torch.ones_like(weights), dropout) if dropout else None
            out[:, begin:end] = (weights if kept is None else weights * kept) @ value[:, :end]
            if any(ctx.needs_input_grad):
                saved += [weights, kept]
        ctx.n_queries = n_queries
        ctx.save_for_backward(query, key, value, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, *saved = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for begin, weights, kept in zip(range(0, query.shape[1], ctx.n_queries), saved[::2], saved[1::2], strict=True):
            end = weights.shape[-1]
            grad = grad_output[:, begin:end]
            grad_weights = grad @ value[:, :end].mT  # (rows, Q, end)
            if kept is not None:
                grad_weights *= kept
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[:, begin:end] = grad_scores @ key[:, :end]
            grad_key[:, :end] += grad_scores.mT @ query[:, begin:end]
            grad_value[:, :end] += (weights if kept is None else weights * kept).mT @ grad
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
        head = _padded(weight.detach(), n_columns, dtype) if is_copied else weight.detach()
        # with an adapter the weight is frozen and needs no gradient; in validation `ctx` would still ask for both
        of_hidden, of_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_weight = weight.new_zeros(len(head), weight.shape[1], dtype=torch.float32) if of_weight else None
        loss_of = fused_softmax.nats_and_gradients if fused_softmax.works_on(hidden.device) else _nats_and_gradients
        with torch.autocast(device, enabled=False):
            is_kept = (targets != -100)[:, None]
            inputs = hidden.detach().to(dtype) * is_kept  # (N, width); ignored rows get no gradient
            for start in range(0, len(targets), chunk_tokens):
                rows = slice(start, start + chunk_tokens)
                # not assigned to a name here, so that `loss_of` can free the logits
                nats, slopes = loss_of(_logits(inputs[rows], head, n_columns), targets[rows], vocab_size)
                total = total + nats  # not in place: PyTorch 2.11 would compile that to a gradient of 0
                if of_hidden:
                    grad_hidden[rows] = slopes[:, : len(head)] @ head
                if of_weight:
                    _add_product(grad_weight, slopes[:, : len(head)].t(), inputs[rows])
                del slopes  # otherwise the next chunk's logits come on top of these in memory
            if of_hidden:
                grad_hidden *= is_kept
        if of_weight:
            grad_weight.resize_(weight.shape)  # not a view: autograd would copy it to add the embedding's gradient
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden and weight, scaled in place."""
        gradients = (grad if grad is None else grad.mul_(grad_output) for grad in ctx.saved_tensors)
        return *gradients, None, None, None


def _padded(weight: torch.Tensor, n_rows: int, dtype: torch.dtype) -> torch.Tensor:
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
    at_targets = torch.arange(len(targets), device=targets.device), targets.clamp(min=0)
    highest, of_targets = logits.amax(-1), logits[at_targets]  # (C,)
    slopes = logits.softmax(-1)
    del logits
    # A target's own probability may be rounded to 0, but the highest one of a row cannot. Taking the logarithm of all
    # probabilities, as `cross_entropy` does, would need a second exponential for the gradients.
    nats = (highest - slopes.amax(-1).log() - of_targets) * (targets != -100)
    slopes[at_targets] -= 1
    return nats.sum(), slopes.to(dtype)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a float32 matrix in place; a card sums products of halves without rounding them."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
