"""Equal results with less work: skip what a training step of GPT-2 on packed blocks does not need.

Three changes to a stock `GPT2LMHeadModel`. Tests check that each gives equal results; none is saved with the model:

- attention without a mask: packed rows need none, and without one the flash kernel can run, compiled or not; on a CPU,
  attention is computed in parts where that is faster than the kernel;
- the tanh GELU in one operation instead of eight;
- a loss that never holds the logits of all tokens.

And one change to the process, on a CPU under Linux: memory that a step frees is kept for the next step.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from helpers.training import fused_softmax

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

CHUNK_TOKENS = 1024  # rows of logits that exist at once
# With the kernel, at a quarter of the memory per row: fewer chunks read and write the head's gradient less often.
FUSED_CHUNK_TOKENS = 2048
QUERIES = 128  # per part, when attention is computed in parts
# From this length a CPU's kernel takes 256 queries at once, not 64, which is as fast in float32 and uses less memory.
LONG_BLOCK = 768
_n_keeping = 0  # active `keep_freed_memory` contexts
_ATTENTION = "course_causal"  # transformers builds no mask for a name without a mask function


@contextmanager
def optimised_model(model: "GPT2LMHeadModel") -> Iterator["GPT2LMHeadModel"]:
    """Make a model cheaper to train inside this context, on rows without left padding; restore it afterwards."""
    import torch

    attention, forward = model.config._attn_implementation, vars(model).get("forward")
    activations = [block.mlp.act for block in model.transformer.h]
    use_causal_attention(model)
    use_fused_gelu(model)
    use_chunked_loss(model)
    try:
        with nullcontext() if torch.cuda.is_available() else keep_freed_memory():
            yield model
    finally:
        model.set_attn_implementation(attention)
        del model.forward  # our forward on the instance, which hid the class's or an outer context's
        if forward is not None:
            model.forward = forward
        for block, activation in zip(model.transformer.h, activations, strict=True):
            block.mlp.act = activation


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the process keep the memory that it frees inside this context; this needs glibc, elsewhere nothing changes.

    When such contexts overlap, the effect lasts until the last one ends.

    By default glibc returns each large tensor to the system when it is freed, and the next one costs a page fault
    per 4 KiB: tens of thousands in a training step (https://man7.org/linux/man-pages/man3/mallopt.3.html).
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    global _n_keeping
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3  # their numbers in malloc.h
    max_threshold = 2**25  # glibc's own maximum for this threshold; before 2.35 mallopt refuses more, returning 0
    if not libc.mallopt(m_mmap_threshold, 2**30):  # blocks from this size get their own mapping
        libc.mallopt(m_mmap_threshold, max_threshold)
    libc.mallopt(m_trim_threshold, 2**31 - 1)  # the heap shrinks from this many free bytes
    _n_keeping += 1
    try:
        yield
    finally:
        _n_keeping -= 1
        if not _n_keeping:
            libc.mallopt(m_mmap_threshold, max_threshold)
            libc.mallopt(m_trim_threshold, 2 * max_threshold)
            libc.malloc_trim(0)


def use_causal_attention(model: "GPT2LMHeadModel") -> None:
    """Use causal attention without a mask: for full rows, or rows padded on the right with labels of -100.

    transformers builds a (B, 1, T, T) mask when it is compiled, and with a mask the flash kernel cannot run
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
    import torch
    from torch.nn import functional

    n_queries, n_keys = query.shape[2], key.shape[2]  # additional keys are from a cache; every token attends to them
    is_block = n_queries == n_keys > 1
    is_slow_in_kernel = query.dtype.itemsize == 2 or dropout or (query.requires_grad and n_keys < LONG_BLOCK)
    if is_block and query.device.type == "cpu" and is_slow_in_kernel:
        out = chunked_attention(query, key, value, dropout=dropout, scaling=scaling)
    else:
        mask = None
        if 1 < n_queries < n_keys:
            mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=is_block
        )
    return out.transpose(1, 2).contiguous(), None  # (B, T, heads, head_dim)


def chunked_attention(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> "torch.Tensor":
    """Compute causal attention for some queries at a time, without the keys after the last of them.

    On a CPU the flash kernel's backward pass is slow in half precision and for short blocks, and with dropout no fused
    kernel runs at all.
    All tensors are (B, heads, T, head_dim); products are multiplied by `scaling`, 1 / sqrt(head_dim) by default.
    """
    from helpers.training.autograd_functions import CausalAttention

    query = query * (scaling or query.shape[-1] ** -0.5)
    rows = (tensor.reshape(-1, *tensor.shape[2:]) for tensor in (query, key, value))  # (B * heads, T, head_dim)
    return CausalAttention.apply(*rows, dropout, QUERIES).view(query.shape)


def use_fused_gelu(model: "GPT2LMHeadModel") -> None:
    """Compute `gelu_new` with one fused PyTorch operation instead of eight; the configuration does not change.

    Both are the tanh approximation of https://arxiv.org/abs/1606.08415; they differ only by rounding.
    """
    from torch import nn
    from transformers.activations import NewGELUActivation

    for block in model.transformer.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = nn.GELU(approximate="tanh")


def use_chunked_loss(model: "GPT2LMHeadModel", *, chunk_tokens: int | None = None) -> None:
    """Make a model compute its loss one chunk of tokens at a time when it gets labels, and return no logits."""
    import torch
    from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

    stock = model.forward
    # The compiler would unroll the chunks, keep a gradient of the head for each, and sum them at the end.
    compute_loss = torch.compiler.disable(chunked_loss)

    def forward(input_ids: Any = None, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return stock(input_ids=input_ids, **kwargs)
        kwargs.pop("return_dict", None)
        hidden_states = model.transformer(input_ids, **kwargs)[0]  # (B, T, width)
        loss = compute_loss(
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
    chunk_tokens: int | None = None,
) -> "torch.Tensor":
    """Return the same loss as `GPT2LMHeadModel`, in nats per token, with the logits of one chunk at a time.

    Args:
        hidden_states: (B, T, width), the output of the last block after the final norm.
        weight: (V, width), the weight of the head.
        labels: (B, T), not shifted, as in transformers; -100 is ignored.
        num_items_in_batch: the number of labels in the whole step, which divides the sum; by default those in
            `labels`.
        chunk_tokens: rows of logits that exist at once; the default suits the device.
    """
    import torch
    from torch.nn import functional

    from helpers.training.autograd_functions import ChunkedCrossEntropy

    targets = functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1).to(hidden_states.device)  # (B * T,)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum()
    if chunk_tokens is None:
        chunk_tokens = FUSED_CHUNK_TOKENS if fused_softmax.works_on(hidden_states.device) else CHUNK_TOKENS
    nats = ChunkedCrossEntropy.apply(
        hidden_states.flatten(0, 1), weight, targets, chunk_tokens, torch.is_grad_enabled()
    )
    return nats / num_items_in_batch
