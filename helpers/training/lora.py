"""LoRA: train two small matrices beside each frozen matrix of a model's blocks, and merge them when the run is saved.

The method is from https://arxiv.org/abs/2106.09685, implemented by `peft`. A run keeps its adapter in `adapter/`; its
`model/` is a plain GPT-2 with the adapter merged into the base model.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

# Never the head: it is also the token embedding, and merging would change both.
TARGET_MODULES = ("c_attn", "c_proj", "c_fc")
# peft uses the name that gradient checkpointing had before transformers 5.23.
_RENAMED = {"action": "ignore", "category": FutureWarning}


def add_adapter(
    model: "GPT2LMHeadModel", settings: TrainingSettings, *, half: "torch.dtype | None" = None
) -> "PeftModel":
    """Freeze a model and add an adapter of rank `lora_r` to its blocks, in place; at first the adapter has no effect.

    `half` is the autocast dtype of training, bf16 or fp16, if any: the frozen matrices are then stored in it.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(TARGET_MODULES),
        fan_in_fan_out=True,  # GPT-2's Conv1D keeps its weights as (inputs, outputs)
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings(**_RENAMED):
        torch.manual_seed(settings.seed)
        adapted = get_peft_model(model, config)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()  # otherwise no input of a checkpointed block needs a gradient
    if half is not None:
        _freeze_in_half(model, half)
    return adapted


def _freeze_in_half(model: "GPT2LMHeadModel", dtype: "torch.dtype") -> None:
    """Store the blocks' frozen matrices in the half precision that autocast would convert them to in each pass.

    The products are bit-identical, in a third of the memory: autocast's copies would exist beside the weights.
    """
    for block in model.transformer.h:
        for module in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            frozen = module.get_base_layer()
            frozen.weight.data, frozen.bias.data = frozen.weight.to(dtype), frozen.bias.to(dtype)


def merge_adapter(model: "GPT2LMHeadModel", folder: Path) -> "GPT2LMHeadModel":
    """Merge the adapter saved in a folder into its base model, in float32, and return the plain model.

    `model` must be freshly loaded, not the trained one in memory, whose frozen weights may be halves.
    """
    from peft import PeftModel

    with warnings.catch_warnings(**_RENAMED):
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
