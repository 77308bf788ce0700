"""Predict the peak memory of a training on a GPU, by part, from the model's shape and the settings.

This is arithmetic only, without torch, a GPU or a download, so that a slider can call it while it moves. The formula is
tested against a trace of a real training step (`tests/training/test_memory.py`), not yet against a card: every value is
a prediction. What `torch.compile` changes is not included. A half is a number of 2 bytes, bf16 or fp16.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from helpers.display import MIB
from helpers.settings import POCKET, SettingsError, TrainingSettings
from helpers.training.engine import CHUNK_TOKENS

Engine = Literal["course", "stock"]

# What a trace cannot see, estimated 2026-11 and not fitted to a card: cuBLAS's workspaces, and the share of the
# memory for activations that the allocator cannot reuse.
_WORKSPACE_BYTES = 32 * MIB
_UNFILLED_SHARE = 0.03


class GPT2Shape(NamedTuple):
    """The values that decide a GPT-2's memory; names as in `GPT2Config`, which can be used instead."""

    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int = 50257
    n_positions: int = 1024
    n_inner: int | None = None
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1


_SHAPES = {
    "distilgpt2": GPT2Shape(6, 768, 12),
    "gpt2": GPT2Shape(12, 768, 12),
    "gpt2-medium": GPT2Shape(24, 1024, 16),
    "gpt2-large": GPT2Shape(36, 1280, 20),
    "gpt2-xl": GPT2Shape(48, 1600, 25),
}
_OWNERS = ("openai-community/", "distilbert/")


@dataclass(frozen=True)
class Memory:
    """Bytes on the card, by part, at the moment of a training step that takes the most.

    Attributes:
        weights: in float32.
        gradients: in float32; more than the weights while the tied weight has two gradients that are not added yet.
        optimizer: AdamW's two averages, in float32.
        autocast_copies: copies of the weights as halves.
        activations: what the layers keep for the backward pass, and the temporary tensors of the backward pass.
        loss: logits and what is computed from them.
        overhead: workspaces and memory that the allocator cannot reuse; estimated.
        moment: the moment of the step.
    """

    weights: int
    gradients: int
    optimizer: int
    autocast_copies: int
    activations: int
    loss: int
    overhead: int
    moment: str

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, which is what a trace sees."""
        return self.total_bytes - self.overhead

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def read_shape(model_name_or_path: str) -> GPT2Shape:
    """Return a model's shape without a download: of the shipped model, OpenAI's four, distilgpt2, or a folder.

    Raises:
        SettingsError: the model is not known here, or is not a GPT-2.

    >>> read_shape("openai-community/gpt2-xl").n_embd
    1600
    """
    bare = model_name_or_path
    for owner in _OWNERS:
        bare = bare.removeprefix(owner)
    if bare in _SHAPES and not Path(model_name_or_path).is_dir():
        return _SHAPES[bare]
    path = (POCKET if model_name_or_path == "pocket" else Path(model_name_or_path)) / "config.json"
    if not path.is_file():
        raise SettingsError(
            f"The shape of the model {model_name_or_path!r} is not known here: give one of pocket, "
            f"{', '.join(_SHAPES)}, or the folder it was downloaded to."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
        values = {"n_layer": 12, "n_embd": 768, "n_head": 12}  # GPT2Config's defaults, for what the file leaves out
        values |= {name: config[name] for name in GPT2Shape._fields if name in config}
        is_whole = all(value is None or value >= 0 for value in values.values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SettingsError(f"{path} cannot be read ({error}): download the model again.") from None
    if kind != "gpt2":
        raise SettingsError(f"{model_name_or_path!r} is a {kind} model: this course trains GPT-2 models.")
    if not is_whole:
        raise SettingsError(f"{path} has a size below 0: download the model again.")
    return GPT2Shape(**values)


def parameters(config: Any) -> int:
    """Return the number of parameters; the head has none of its own, it shares those of the token embedding.

    >>> parameters(read_shape("gpt2"))
    124439808
    """
    embeddings = (config.vocab_size + config.n_positions) * config.n_embd
    return embeddings + config.n_layer * _block_parameters(config) + 2 * config.n_embd


def _block_parameters(config: Any) -> int:
    width, inner = config.n_embd, _inner(config)
    return 4 * width * width + 2 * width * inner + 9 * width + inner  # matrices, then biases and the two norms


def _inner(config: Any) -> int:
    return config.n_inner or 4 * config.n_embd


def predict(
    config: Any, settings: TrainingSettings, *, engine: Engine = "course", precision: str | None = None
) -> Memory:
    """Predict the peak memory of a training on a GPU, from the second step on, when AdamW has its averages.

    Args:
        config: a `GPT2Shape` or a `GPT2Config`.
        settings: only block, batch, accumulation, precision and checkpointing are used.
        engine: 'course', or 'stock' for the model as transformers runs it under autocast, with all logits at once.
        precision: 'bf16', 'fp16' or 'no'; by default that of the settings, and bf16 for 'auto'.
    """
    precision = precision or {"auto": "bf16"}.get(settings.mixed_precision, settings.mixed_precision)
    step = _Step(config, settings, engine, is_half=precision != "no")
    moments = [step.at_loss(), step.at_last_block(), step.at_first_block(), step.at_embeddings()]
    return max(moments, key=lambda memory: memory.total_bytes)


class _Step:
    """One training step: the memory at each of its moments, in bytes.

    Memory grows up to the loss. In the backward pass blocks free what they kept while gradients grow. So the peak is
    at the loss, at either end of the backward pass, or where the embedding's gradient is computed.
    """

    def __init__(self, config: Any, settings: TrainingSettings, engine: Engine, *, is_half: bool) -> None:
        self.course, self.is_half = engine == "course", is_half
        self.checkpointing = settings.gradient_checkpointing
        self.tokens = settings.per_device_train_batch_size * settings.block_size
        self.layers, self.width, self.inner = config.n_layer, config.n_embd, _inner(config)
        self.vocabulary, self.parameters = config.vocab_size, parameters(config)
        self.embedding = 4 * self.vocabulary * self.width  # bytes of the token embedding in float32
        self.stream = 4 * self.tokens * self.width  # the residual stream stays float32 under autocast
        self.embedding_mask = self.tokens * self.width * (config.embd_pdrop > 0)
        self.block = self.tokens * self._block_bytes_per_token(config)
        self.block_copies = 2 * self.width * (4 * self.width + 2 * self.inner) * is_half
        not_yet = _block_parameters(config) + config.n_positions * config.n_embd
        self.late_gradients = 4 * (self.parameters - not_yet)  # when only the first block is left
        is_added_to = settings.gradient_accumulation_steps > 1
        self.old_gradients = 4 * self.parameters * is_added_to  # from the earlier passes of the step

    def _block_bytes_per_token(self, config: Any) -> int:
        """Return the bytes that a block keeps for a token, besides its input, the residual stream."""
        product = 2 if self.is_half else 4
        masks = 2 * self.width * (config.resid_pdrop > 0)  # a byte per value that dropout may drop
        attention = 5 * self.width * product + 4 * config.n_head  # input, q, k, v and output; a log-sum per head
        norms = 4 * self.width + 2 * 8  # the second one's input; mean and deviation of both
        return masks + attention + norms + self.width * product + self.inner * self._gelu_bytes()

    def _gelu_bytes(self) -> int:
        """Return the bytes that GELU and the product after it keep per value.

        transformers' `gelu_new` is eight operations, of which the power is computed in float32.
        """
        if self.course:
            return 4 if self.is_half else 8
        return 16 if self.is_half else 20

    def _in_hand(self) -> int:
        """Return the bytes of temporary tensors in the backward pass through a block's second half."""
        product = 2 if self.is_half else 4
        matrix = self.inner * self.width * (4 - 2 * self.is_half)  # its gradient exists, its copy is freed
        if self.course:  # the larger of before and after the last matrix's gradient
            return self.stream + max(
                self.tokens * (self.width + self.inner) * product, self.tokens * self.inner * product + matrix
            )
        return self.stream + self.tokens * self.inner * (12 if self.is_half else 8) + matrix

    def _memory(self, moment: str, *, gradients: int, copies: int, activations: int, loss: int = 0) -> Memory:
        overhead = _WORKSPACE_BYTES + int(_UNFILLED_SHARE * (activations + loss))
        weights = 4 * self.parameters
        return Memory(weights, gradients, 2 * weights, copies, activations, loss, overhead, moment)

    def at_loss(self) -> Memory:
        """Return the memory at the loss: every block has run, and the logits exist."""
        kept = self.stream if self.checkpointing else self.stream + self.block
        after_blocks = 2 * self.stream + 8 * self.tokens  # the last norm's input, output, mean and deviation
        copied_layers = self.layers
        if not self.course and self.is_half:  # the peak is in the backward pass of the loss already
            after_blocks -= self.stream // 2  # the head keeps the output as halves
            copied_layers = 0 if self.checkpointing else self.layers
        return self._memory(
            "the loss",
            gradients=self.old_gradients + (self.embedding if self.course else 0),
            copies=copied_layers * self.block_copies + (self.embedding // 2) * self.is_half,
            activations=self.embedding_mask + self.layers * kept + after_blocks,
            loss=self._chunked_loss() if self.course else 12 * self.tokens * self.vocabulary,
        )

    def _chunked_loss(self) -> int:
        """Return the bytes of a chunk: its hidden states, and float32 logits and log-probabilities or gradients."""
        rows = min(self.tokens, CHUNK_TOKENS)
        held = 6 if self.is_half else 4  # log-probabilities, and their gradient in halves
        with_gradient = held * rows * self.vocabulary + self.embedding // (2 if self.is_half else 1)
        chunk = 2 * rows * self.width * self.is_half
        return max(8 * rows * self.vocabulary, with_gradient) + chunk + self.stream  # the gradient of the hidden states

    def at_last_block(self) -> Memory:
        """Return the memory when the backward pass begins: the head has its gradient, no block has freed anything."""
        kept = self.layers * self.stream + self.block * (1 if self.checkpointing else self.layers)
        copies = self.block_copies * (1 if self.checkpointing else self.layers)
        return self._backward("the last block", self.old_gradients + self.embedding, copies, kept)

    def at_first_block(self) -> Memory:
        """Return the memory when the backward pass ends: one block is left, nearly all gradients exist."""
        gradients = self.old_gradients + (self.embedding if self.old_gradients else self.late_gradients)
        return self._backward("the first block", gradients, self.block_copies, self.stream + self.block)

    def _backward(self, moment: str, gradients: int, copies: int, kept: int) -> Memory:
        activations = self.embedding_mask + kept + self._in_hand()
        return self._memory(moment, gradients=gradients, copies=copies, activations=activations)

    def at_embeddings(self) -> Memory:
        """Return the memory when the tied weight's second gradient is computed; the first one came from the head."""
        waiting = self.embedding * (2 if self.old_gradients else 1)
        gradients = 4 * self.parameters + waiting
        return self._memory("the embedding's gradient", gradients=gradients, copies=0, activations=self.stream)
