"""Predict the peak memory of training, by part, and of evaluating a model, from its shape and the settings.

This is arithmetic only, without torch, a GPU or a download, so that a slider can call it while it moves. The formulas
are tested against traces of the real operations, and the one for training also against peaks measured on an H100 and an
H200, compiled or not (`tests/training/test_memory.py`). A half is a number of 2 bytes, bf16 or fp16.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from helpers.display import MIB
from helpers.settings import EvaluationSettings, TrainingSettings
from helpers.training.engine import CHUNK_TOKENS, FUSED_CHUNK_TOKENS, LONG_BLOCK, QUERIES
from helpers.training.fused_softmax import has_triton
from helpers.training.shape import adapter_parameters, block_parameters, inner_width, parameters, trained_parameters

# What a trace cannot see: constant bytes, and bytes per byte of activations. On a card, cuBLAS's workspaces: 72 to 127
# MiB in all on an H100 (2026-11), for 0.3 to 2.9 GiB of activations. On a processor glibc leaves more gaps.
_CARD_OVERHEAD, _PROCESSOR_OVERHEAD = (80 * MIB, 0.01), (25 * MIB, 1.0)
_PROCESS_BYTES = 500 * MIB  # Python with the libraries and a data set, on a processor
SAMPLE_TOKENS = 40  # generated for a sample after a validation
_SEQUENCES, _CACHE_BYTES = 64, 512 * MIB  # upper limits: sequences generated at once; their keys and values


@dataclass(frozen=True)
class Memory:
    """Bytes by part, on the card or in the process, at the moment of a training step that needs the most."""

    weights: int  # in float32; with an adapter, the blocks' frozen matrices as halves
    gradients: int  # in float32; exceeds the trained weights while the tied weight has two gradients, not yet summed
    optimizer: int  # its states for the trained weights, in float32, and its temporary tensors
    autocast_copies: int  # of the weights, as halves
    activations: int  # what the layers keep for the backward pass, and the temporary tensors of that pass
    loss: int  # logits and tensors computed from them
    overhead: int  # workspaces and unusable gaps in the allocator; on a processor also the rest of the process
    moment: str

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, as seen in a trace."""
        return self.total_bytes - self.overhead

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def optimizer_bytes(config: Any, settings: TrainingSettings) -> int:
    """Return the bytes that the optimizer keeps between steps."""
    return _state_and_temporary_bytes(config, settings)[0]


def _state_and_temporary_bytes(config: Any, settings: TrainingSettings) -> tuple[int, int]:
    """Return the bytes that the optimizer keeps, and the bytes of its temporary tensors in a step.

    AdamW keeps two averages per trained weight, and works in place. Muon keeps one for the blocks' matrices and
    AdamW's two for the rest; it needs a temporary tensor the size of a matrix, two of the same size as halves, and two
    small squares. Adafactor keeps one value per row and per column of a matrix, and one per weight of a vector
    (https://arxiv.org/abs/1804.04235); it needs two temporary tensors the size of a matrix.
    """
    width, inner, rank = config.n_embd, inner_width(config), settings.lora_r
    largest = (rank or width) * max(3 * width, inner)  # largest matrix of a block
    if settings.optim == "adamw_torch_fused":
        return 8 * trained_parameters(config, settings), 0
    if settings.optim == "muon":
        kept = 8 * parameters(config) - 4 * config.n_layer * width * (4 * width + 2 * inner)
        return kept, 8 * largest + 4 * width**2
    if settings.optim != "adafactor":
        raise NotImplementedError(f"The memory of optim = {settings.optim!r} is not known here.")
    if rank:
        return 4 * (adapter_parameters(config, rank) // rank + 8 * rank * config.n_layer), 8 * largest
    block = (8 * width + 2 * inner) + (5 * width + inner) + 4 * width  # matrices, biases, norms
    kept = 4 * (config.vocab_size + config.n_positions + 2 * width + config.n_layer * block + 2 * width)
    return kept, 8 * max(largest, width * max(config.vocab_size, config.n_positions))


def predict(
    config: Any,
    settings: TrainingSettings,
    *,
    precision: str | None = None,
    on_processor: bool = False,
    overhead: tuple[int, float] | None = None,
    n_processes: int = 1,
    fused_softmax: bool | None = None,
    compiled: bool = False,
) -> Memory:
    """Predict the peak memory of training, from the second step on, when the optimizer has its states.

    Validation is not one of the moments: it takes less than the loss of a training step, which is tested.

    Args:
        config: a `GPT2Shape` or a `GPT2Config`.
        settings: block, batch, accumulation, precision, checkpointing, optimizer, dropout, adapter and prompt are used.
        precision: 'bf16', 'fp16' or 'no'; by default that of the settings, with bf16 for 'auto'.
        on_processor: train on a processor instead of a GPU; `overhead` then includes the rest of the process.
        overhead: constant bytes, and bytes per byte of activations, that the formula cannot see; estimated by default.
        n_processes: how many processes train together, each with this batch and a copy of the model.
        fused_softmax: whether the card has the kernel for the loss; by default whether Triton is installed here.
        compiled: whether the model is compiled for a card.
    """
    precision = precision or {"auto": "bf16"}.get(settings.mixed_precision, settings.mixed_precision)
    constant, share = overhead or estimate_overhead(on_processor=on_processor)
    is_fused = not on_processor and (has_triton() if fused_softmax is None else fused_softmax)
    step = _Step(config, settings, precision != "no", on_processor, n_processes, is_fused, compiled)
    moments = [step.at_loss(), step.at_last_block(), step.at_first_block(), step.at_optimizer(), step.at_sample()]
    if not settings.lora_r:
        moments.append(step.at_embeddings())
    largest = max(memory.activations + memory.loss for memory in moments)  # gaps outlive the tensors around them
    peak = max(moments, key=lambda memory: memory.total_bytes)
    return replace(peak, overhead=constant + int(share * largest))


def estimate_overhead(*, on_processor: bool, process_bytes: int = 0) -> tuple[int, float]:
    """Return the overhead besides the tensors if nothing was measured: constant bytes, and bytes per activation byte.

    On a processor it includes the process: `process_bytes` besides training, estimated by default.
    """
    if not on_processor:
        return _CARD_OVERHEAD
    constant, share = _PROCESSOR_OVERHEAD
    return constant + (process_bytes or _PROCESS_BYTES), share


def sequences_at_once(config: Any, n_tokens: int) -> int:
    """Return how many sequences of `n_tokens` to generate at once, so that keys and values stay small.

    >>> from helpers.training.shape import read_shape
    >>> sequences_at_once(read_shape("gpt2"), 100), sequences_at_once(read_shape("gpt2-xl"), 100)
    (64, 8)
    """
    return max(1, min(_SEQUENCES, _CACHE_BYTES // _cache_bytes(config, n_tokens)))


def _cache_bytes(config: Any, n_tokens: int) -> int:
    return 8 * config.n_layer * config.n_embd * n_tokens  # a key and a value in float32


def scoring_bytes(config: Any, *, per_device_eval_batch_size: int) -> int:
    """Return the peak bytes, besides the weights, while full-length windows are scored in float32."""
    width, tokens = config.n_embd, per_device_eval_batch_size * config.n_positions
    # GELU's input and output, or q, k and v; the same other tensors in both cases; one window's position embeddings
    in_block = tokens * (20 * width + max(8 * inner_width(config), 12 * width)) + 4 * config.n_positions * width
    at_logits = 4 * tokens * width + 8 * min(tokens, CHUNK_TOKENS) * config.vocab_size
    return max(in_block, at_logits)


def evaluation_bytes(config: Any) -> int:
    """Predict the peak memory on a card when one model is scored and sampled in float32, with the default batch."""
    positions = config.n_positions
    cache = sequences_at_once(config, positions) * _cache_bytes(config, positions)
    batch = EvaluationSettings().per_device_eval_batch_size
    working_bytes = max(scoring_bytes(config, per_device_eval_batch_size=batch), cache)
    constant, share = _CARD_OVERHEAD
    return 4 * parameters(config) + working_bytes + constant + int(share * working_bytes)


class _Step:
    """One training step: the memory at each of its moments, in bytes.

    Memory grows until the loss. In the backward pass, blocks free their activations while gradients accumulate. So the
    peak is at the loss, at either end of the backward pass, or where the embedding's gradient is computed.

    A compiled model keeps the same for the backward pass, but returns gradients only at its end. With checkpointing it
    keeps no copies of the weights, and GELU's values are float32 while a block is recomputed.
    """

    def __init__(
        self,
        config: Any,
        settings: TrainingSettings,
        is_half: bool,
        on_processor: bool,
        n_processes: int,
        has_fused_softmax: bool,
        compiled: bool,
    ) -> None:
        self.is_half, self.compiled, self.has_fused_softmax = is_half, compiled, has_fused_softmax
        self.mask_bytes = 4 if on_processor else 1  # dropout on a processor keeps floats
        self.checkpointing, self.rank = settings.gradient_checkpointing, settings.lora_r
        self.adapter_dropout = settings.lora_r > 0 and settings.lora_dropout > 0
        self.tokens = settings.per_device_train_batch_size * settings.block_size
        self.layers, self.width, self.inner = config.n_layer, config.n_embd, inner_width(config)
        self.vocabulary, self.trained = config.vocab_size, trained_parameters(config, settings)
        self.states, self.temporary_states = _state_and_temporary_bytes(config, settings)
        self.embedding = 4 * self.vocabulary * self.width  # bytes of the token embedding in float32
        self.stream = 4 * self.tokens * self.width  # the residual stream stays float32 under autocast
        self.block = self.tokens * self._block_bytes_per_token(config)
        is_in_parts = is_half or settings.attn_pdrop or settings.block_size < LONG_BLOCK
        if on_processor and is_in_parts:  # attention in parts keeps its weights
            keys = min(settings.block_size, (settings.block_size + QUERIES) // 2)  # per query, on average
            scores = self.tokens * config.n_head * keys
            self.block += scores * (2 if is_half else 4) * (2 if settings.attn_pdrop else 1)
        matrices = self.width * (4 * self.width + 2 * self.inner)  # of a block
        self.weights = 4 * parameters(config)
        if self.rank:
            self.weights += 4 * self.trained - 2 * is_half * self.layers * (block_parameters(config) - 4 * self.width)
            self.block_copies = 2 * is_half * self.trained // self.layers
            self.head_gradient = 0
            self.late_gradients = 4 * self.trained
        else:
            self.block_copies = 2 * is_half * matrices
            self.head_gradient = self.embedding
            pending = block_parameters(config) + config.n_positions * config.n_embd
            self.late_gradients = 4 * (self.trained - pending)  # when only the first block is left
        # A card sums the products of the head's gradient in place; a processor first computes each one as halves.
        self.head_product = self.head_gradient // 2 * on_processor
        # Several processes keep a buffer for the gradients they exchange; the last pass of a step moves them there.
        self.kept_gradients = 4 * self.trained * (n_processes > 1)
        accumulates = settings.gradient_accumulation_steps > 1
        self.old_gradients = self.kept_gradients + 4 * self.trained * accumulates  # from earlier passes of the step
        # A prompt has at most as many tokens as bytes: in a script unknown to the vocabulary, each byte is a token.
        prompt_bytes = len(settings.sample_prompt.encode(errors="replace"))
        self.sample_tokens = min(prompt_bytes + SAMPLE_TOKENS, config.n_positions)
        # Before an adapter's first block nothing needs a gradient, so its input is not kept. With checkpointing the
        # input does, to carry gradients into the blocks, and is kept together with the embedding it was made from.
        self.input = (self.stream if self.checkpointing else -self.stream) * (self.rank > 0)
        has_mask = config.embd_pdrop > 0 and (self.checkpointing or not self.rank)
        self.embedding_mask = self.mask_bytes * self.tokens * self.width * has_mask

    def _block_bytes_per_token(self, config: Any) -> int:
        """Return the bytes that a block keeps per token, besides its input, the residual stream."""
        product = 2 if self.is_half else 4
        masks = 2 * self.width * self.mask_bytes * (config.resid_pdrop > 0)  # one per value that dropout may drop
        attention = 5 * self.width * product + 4 * config.n_head  # input, q, k, v and output; one log-sum per head
        norms = 4 * self.width + 2 * 8  # the second norm's input; mean and deviation of both
        # each adapter's value between its two matrices; a copy of attention's output, because peft casts or drops it
        copies_output = self.is_half or self.adapter_dropout
        adapters = self.rank and 4 * self.rank * product + self.width * product * copies_output
        adapters += (3 * self.width + self.inner) * self.mask_bytes * self.adapter_dropout
        gelu = 2 * self.inner * product  # its input and its output
        return masks + attention + norms + self.width * product + gelu + adapters

    def _backward_temporaries(self) -> int:
        """Return the bytes of temporary tensors in the backward pass through a block's second half."""
        product = 2 if self.is_half else 4
        matrix = self.inner * self.width * (4 - 2 * self.is_half) * (not self.rank)  # its gradient, not its half copy
        recomputed = 4 * self.tokens * (self.width + self.inner) * (self.compiled and self.checkpointing)
        # the larger of the two moments: before and after the last matrix's gradient
        temporaries = self.tokens * self.inner * product + max(self.tokens * self.width * product, matrix)
        return self.stream + recomputed + temporaries

    def _memory(self, moment: str, *, gradients: int, copies: int, activations: int, loss: int = 0) -> Memory:
        return Memory(self.weights, gradients, self.states, copies, activations, loss, 0, moment)

    def at_loss(self) -> Memory:
        """Return the memory at the loss: every block has run, and the logits exist."""
        kept = self.stream if self.checkpointing else self.stream + self.block
        after_blocks = 2 * self.stream + 8 * self.tokens  # the final norm's input, output, mean and deviation
        copied_layers = self.layers
        if self.compiled and self.checkpointing:
            after_blocks, copied_layers = self.stream, 0  # the last block's output is recomputed
        return self._memory(
            "the loss",
            gradients=self.old_gradients + self.head_gradient,
            copies=copied_layers * self.block_copies + (self.embedding // 2) * self.is_half,
            activations=self.embedding_mask + self.layers * kept + self.input + after_blocks,
            loss=self._chunked_loss(),
        )

    def _chunked_loss(self) -> int:
        """Return the bytes of a chunk's logits with their gradients, and of all hidden states with theirs."""
        chunk_tokens = FUSED_CHUNK_TOKENS if self.has_fused_softmax else CHUNK_TOKENS
        logits = min(self.tokens, chunk_tokens) * self.vocabulary
        product = 2 if self.is_half else 4
        if self.has_fused_softmax:
            in_chunk = product * logits  # the gradients overwrite the logits
        else:  # float32 logits and log-probabilities; then log-probabilities and gradients
            in_chunk = max(8 * logits, 4 * logits + self.is_half * (2 * logits + self.head_product))
        return in_chunk + self.tokens * self.width * product + self.stream

    def at_last_block(self) -> Memory:
        """Return the memory when the backward pass begins: the head has its gradient, no block has freed anything."""
        kept = self.layers * self.stream + self.input + self.block * (1 if self.checkpointing else self.layers)
        copies = self.block_copies * (1 if self.checkpointing else self.layers)
        return self._backward("the last block", self.old_gradients + self.head_gradient, copies, kept)

    def at_first_block(self) -> Memory:
        """Return the memory when the backward pass ends: one block is left, and nearly all gradients exist."""
        accumulates = self.old_gradients and not self.compiled
        gradients = self.old_gradients + (self.head_gradient if accumulates else self.late_gradients)
        return self._backward("the first block", gradients, self.block_copies, self.stream + self.block)

    def _backward(self, moment: str, gradients: int, copies: int, kept: int) -> Memory:
        activations = self.embedding_mask + kept + self._backward_temporaries()
        return self._memory(moment, gradients=gradients, copies=copies, activations=activations)

    def at_embeddings(self) -> Memory:
        """Return the memory when the tied weight's second gradient is computed, after the one from the head."""
        pass_gradients = self.old_gradients if self.compiled else self.embedding * (self.old_gradients > 0)
        gradients = 4 * self.trained + self.embedding + pass_gradients
        activations = self.stream * (3 if self.compiled else 1)
        return self._memory("the embedding's gradient", gradients=gradients, copies=0, activations=activations)

    def at_sample(self) -> Memory:
        """Return the memory when a sample is generated after a validation: keys and values of all its tokens."""
        product = 2 if self.is_half else 4
        cache = 2 * self.layers * self.sample_tokens * self.width * product
        head_copy = (self.embedding // 2) * self.is_half  # made after the blocks ran
        in_block = self.sample_tokens * (self.width + 2 * self.inner) * product  # outputs of a norm, c_fc and GELU
        temporaries = 8 * self.sample_tokens * self.width + max(0, in_block - head_copy)
        copies = self.layers * self.block_copies + head_copy
        return self._memory("a sample", gradients=self.kept_gradients, copies=copies, activations=cache + temporaries)

    def at_optimizer(self) -> Memory:
        """Return the memory at the optimizer's step."""
        memory = self._memory("the optimizer's step", gradients=4 * self.trained, copies=0, activations=0)
        return replace(memory, optimizer=self.states + self.temporary_states)
