"""The shape of a GPT-2, and its number of parameters and of operations per token."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveInt, TypeAdapter, ValidationError

from helpers.paths import POCKET
from helpers.settings import SettingsError, TrainingSettings


class UnknownShapeError(SettingsError):
    """A model of the Hub whose shape is not known before its download."""


class GPT2Shape(NamedTuple):
    """The values that determine a GPT-2's size; names as in `GPT2Config`, which can be used instead."""

    n_layer: PositiveInt
    n_embd: PositiveInt
    n_head: PositiveInt
    vocab_size: PositiveInt = 50257
    n_positions: PositiveInt = 1024
    n_inner: PositiveInt | None = None
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1


_SHAPES = {
    "distilgpt2": GPT2Shape(6, 768, 12),
    "gpt2": GPT2Shape(12, 768, 12),
    "gpt2-medium": GPT2Shape(24, 1024, 16),
    "gpt2-large": GPT2Shape(36, 1280, 20),
    "gpt2-xl": GPT2Shape(48, 1600, 25),
}
_OWNER_PREFIXES = ("openai-community/", "distilbert/")


def read_shape(model_name_or_path: str) -> GPT2Shape:
    """Return a model's shape without a download, for the shipped model, OpenAI's four, distilgpt2, or a folder.

    Raises:
        SettingsError: the model is not known here, or is not a GPT-2.

    >>> read_shape("openai-community/gpt2-xl").n_embd
    1600
    """
    name_without_owner = model_name_or_path
    for owner in _OWNER_PREFIXES:
        name_without_owner = name_without_owner.removeprefix(owner)
    if name_without_owner in _SHAPES and not Path(model_name_or_path).is_dir():
        return _SHAPES[name_without_owner]
    path = (POCKET if model_name_or_path == "pocket" else Path(model_name_or_path)) / "config.json"
    if not path.is_file():
        raise UnknownShapeError(
            f"The shape of the model {model_name_or_path!r} is not known here: give one of pocket, "
            f"{', '.join(_SHAPES)}, or the folder it was downloaded to."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
        values = {"n_layer": 12, "n_embd": 768, "n_head": 12}  # GPT2Config's defaults, for values missing in the file
        values |= {name: config[name] for name in GPT2Shape._fields if name in config}
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(f"{path} cannot be read ({error}): download the model again.") from None
    if kind is None:
        raise SettingsError(f"{path} names no model_type, so it is no complete config.json: download the model again.")
    if kind != "gpt2":
        raise SettingsError(f"{model_name_or_path!r} is a {kind} model: this course trains GPT-2 models.")
    try:
        return TypeAdapter(GPT2Shape).validate_python(values, strict=True)
    except ValidationError as error:
        (name, *_), fault = error.errors()[0]["loc"], error.errors()[0]
        raise SettingsError(
            f"{path} has {name} = {fault['input']!r}, which no model can have: download the model again."
        ) from None


def parameters(config: Any) -> int:
    """Return the number of parameters; the head has none of its own because it shares the token embedding.

    >>> parameters(read_shape("gpt2"))
    124439808
    """
    embeddings = (config.vocab_size + config.n_positions) * config.n_embd
    return embeddings + config.n_layer * block_parameters(config) + 2 * config.n_embd


def block_parameters(config: Any) -> int:
    """Return the parameters of one block."""
    width, inner = config.n_embd, inner_width(config)
    return 4 * width * width + 2 * width * inner + 9 * width + inner  # matrices, then biases and the two norms


def adapter_parameters(config: Any, lora_r: int) -> int:
    """Return the parameters of a LoRA adapter: per matrix, one from the inputs to the rank and one to the outputs.

    >>> adapter_parameters(read_shape("gpt2"), 8)
    1179648
    """
    width, inner = config.n_embd, inner_width(config)
    return config.n_layer * lora_r * ((width + 3 * width) + (width + width) + 2 * (width + inner))


def trained_parameters(config: Any, settings: TrainingSettings) -> int:
    """Return the number of parameters that training changes: all, or those of the adapter."""
    return adapter_parameters(config, settings.lora_r) or parameters(config)


def operations_per_token(shape: Any, block_size: int, settings: TrainingSettings | None = None) -> int:
    """Return the floating-point operations to train on one token, forward and backward pass.

    Six per parameter, except position embeddings, plus those of attention, as counted in appendix B of PaLM
    (https://arxiv.org/abs/2204.02311): a third each for the forward pass, activation gradients and weight gradients.
    With settings, frozen weights beside an adapter have no gradient, and checkpointing repeats the forward pass.
    """
    weights = parameters(shape) - shape.n_positions * shape.n_embd
    attention = 12 * shape.n_layer * shape.n_embd * block_size
    adapter = adapter_parameters(shape, settings.lora_r) if settings else 0
    operations = (4 if adapter else 6) * weights + 6 * adapter + attention
    recomputed = 2 * (weights + adapter) + attention // 3 if settings and settings.gradient_checkpointing else 0
    return operations + recomputed


def inner_width(config: Any) -> int:
    """Return the width between an MLP's two matrices; `n_inner` None means four times `n_embd`."""
    return config.n_inner or 4 * config.n_embd
