"""Predict the most memory that a training holds on a GPU, by part, from the model's shape and the settings.

It is arithmetic alone: no torch, no GPU and no download, so that a slider can ask for it. The formula is held against
a trace of a real training step (`tests/test_memory.py`), not yet against a card: every figure is a prediction. What
`torch.compile` changes is not in it. A half is a number of 2 bytes, bf16 or fp16.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from helpers.settings import POCKET, SettingsError, TrainingSettings
from helpers.training.engine import CHUNK_TOKENS

MIB = 2**20
Engine = Literal["course", "stock"]

# What a trace cannot see, estimated 2026-11 and not fitted on a card: cuBLAS's workspaces, and the share of what comes
# and goes that the allocator cannot fill again.
_WORKSPACE_BYTES = 32 * MIB
_UNFILLED_SHARE = 0.03


class GPT2Shape(NamedTuple):
    """What decides a GPT-2's memory; the names are those of `GPT2Config`, which can stand in its place."""

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
    """Bytes on the card at the moment that takes the most, by part.

    Attributes:
        weights: float32.
        gradients: float32; more than the weights' while a tied weight's two gradients wait for each other.
        optimizer: AdamW's two states, float32.
        autocast_copies: halves of the weights.
        activations: what the layers keep for the way back, and what the way back has in hand.
        loss: logits and what is made of them.
        overhead: workspaces and what the allocator cannot fill; estimated.
        moment: which moment that is.
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
        """Name -> bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}

    @property
    def tensor_bytes(self) -> int:
        """All tensors: what a trace sees."""
        return self.total_bytes - self.overhead

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())


def read_shape(model_name_or_path: str) -> GPT2Shape:
    """Return a model's shape without a download: the shipped one, OpenAI's four, distilgpt2, or a folder's.

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
        values = {"n_layer": 12, "n_embd": 768, "n_head": 12}  # GPT2Config's, for what the file leaves out
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
    """Return the number of parameters; the head's are those of the token embedding.

    >>> parameters(read_shape("gpt2"))
    124439808
    """
    embeddings = (config.vocab_size + config.n_positions) * config.n_embd
    return embeddings + config.n_layer * _block_parameters(config) + 2 * config.n_embd


def _block_parameters(config: Any) -> int:
    width, inner = config.n_embd, _inner(config)
    return 4 * width * width + 2 * width * inner + 9 * width + inner  # matrices; biases and the two norms


def _inner(config: Any) -> int:
    return config.n_inner or 4 * config.n_embd


def predict(
    config: Any, settings: TrainingSettings, *, engine: Engine = "course", precision: str | None = None
) -> Memory:
    """Predict a training's peak on a GPU, from the second step on, when AdamW has its states.

    Args:
        config: a `GPT2Shape` or a `GPT2Config`.
        settings: block, batch, accumulation, precision and checkpointing count; the rest does not.
        engine: 'course', or 'stock' for the model as transformers runs it under autocast, its logits held whole.
        precision: 'bf16', 'fp16' or 'no'; None takes the settings', and bf16 for 'auto'.
    """
    precision = precision or {"auto": "bf16"}.get(settings.mixed_precision, settings.mixed_precision)
    step = _Step(config, settings, engine, is_half=precision != "no")
    moments = [step.at_loss(), step.at_last_block(), step.at_first_block(), step.at_embeddings()]
    return max(moments, key=lambda memory: memory.total_bytes)


class _Step:
    """One training step: what each of its moments holds, in bytes.

    Everything grows up to the loss; on the way back blocks give up what they kept while gradients grow, so the most
    is held at the loss, at either end of the way back, or where the embedding's gradient is made.
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
        self.late_gradients = 4 * (self.parameters - not_yet)  # there when the way back reaches the first block
        is_added_to = settings.gradient_accumulation_steps > 1
        self.old_gradients = 4 * self.parameters * is_added_to  # of the step's earlier passes

    def _block_bytes_per_token(self, config: Any) -> int:
        """What a block keeps of a token, beside the stream that enters it."""
        product = 2 if self.is_half else 4
        masks = 2 * self.width * (config.resid_pdrop > 0)  # a byte for each value that dropout may drop
        attention = 5 * self.width * product + 4 * config.n_head  # its input, q, k, v and output; a log-sum per head
        norms = 4 * self.width + 2 * 8  # the second one's input; mean and deviation of both
        return masks + attention + norms + self.width * product + self.inner * self._gelu_bytes()

    def _gelu_bytes(self) -> int:
        """What GELU and the product after it keep of a value: `gelu_new` is eight operations, its power in float32."""
        if self.course:
            return 4 if self.is_half else 8
        return 16 if self.is_half else 20

    def _in_hand(self) -> int:
        """What the way back through a block's second half has in hand, beyond what was kept."""
        product = 2 if self.is_half else 4
        matrix = self.inner * self.width * (4 - 2 * self.is_half)  # its gradient is there, its copy has gone
        if self.course:  # before the last matrix's gradient, or after it
            return self.stream + max(
                self.tokens * (self.width + self.inner) * product, self.tokens * self.inner * product + matrix
            )
        return self.stream + self.tokens * self.inner * (12 if self.is_half else 8) + matrix

    def _memory(self, moment: str, *, gradients: int, copies: int, activations: int, loss: int = 0) -> Memory:
        overhead = _WORKSPACE_BYTES + int(_UNFILLED_SHARE * (activations + loss))
        weights = 4 * self.parameters
        return Memory(weights, gradients, 2 * weights, copies, activations, loss, overhead, moment)

    def at_loss(self) -> Memory:
        """Every block has run; logits are at hand."""
        kept = self.stream if self.checkpointing else self.stream + self.block
        after_blocks = 2 * self.stream + 8 * self.tokens  # the last norm's input, output, mean and deviation
        copied_layers = self.layers
        if not self.course and self.is_half:  # on the way back already
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
        """A chunk's float32 logits and log-probabilities, or its part of the head's gradient, and its hidden states."""
        rows = min(self.tokens, CHUNK_TOKENS)
        held = 6 if self.is_half else 4  # log-probabilities, and their gradient in halves
        with_gradient = held * rows * self.vocabulary + self.embedding // (2 if self.is_half else 1)
        chunk = 2 * rows * self.width * self.is_half
        return max(8 * rows * self.vocabulary, with_gradient) + chunk + self.stream  # the hidden states' gradient

    def at_last_block(self) -> Memory:
        """The way back begins: the head has its gradient, all blocks still hold what they kept."""
        kept = self.layers * self.stream + self.block * (1 if self.checkpointing else self.layers)
        copies = self.block_copies * (1 if self.checkpointing else self.layers)
        return self._backward("the last block", self.old_gradients + self.embedding, copies, kept)

    def at_first_block(self) -> Memory:
        """The way back ends: one block is left, nearly all gradients are there."""
        gradients = self.old_gradients + (self.embedding if self.old_gradients else self.late_gradients)
        return self._backward("the first block", gradients, self.block_copies, self.stream + self.block)

    def _backward(self, moment: str, gradients: int, copies: int, kept: int) -> Memory:
        activations = self.embedding_mask + kept + self._in_hand()
        return self._memory(moment, gradients=gradients, copies=copies, activations=activations)

    def at_embeddings(self) -> Memory:
        """The tied weight's second gradient is made while the first, from the head, waits to be added to it."""
        waiting = self.embedding * (2 if self.old_gradients else 1)
        gradients = 4 * self.parameters + waiting
        return self._memory("the embedding's gradient", gradients=gradients, copies=0, activations=self.stream)
