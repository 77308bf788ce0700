"""What the settings of a run mean on this machine: `TrainingArguments`, the number format, whether to compile."""

import math
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.environment.torch_probe import has_bf16
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.fused_softmax import works_on

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

# On an H100 and an H200, compiling GPT-2 takes 19 to 35 s and saves 9 to 19 ms per pass (2026-11).
_MIN_PASSES_TO_COMPILE = 3000


def training_arguments(settings: TrainingSettings, folder: Path, *, n_blocks: int = 0) -> "TrainingArguments":
    """Return the settings as `TrainingArguments`, plus the arguments that this course always sets.

    `n_blocks`, the number of blocks to train on, decides whether compiling is worth its time.
    """
    import torch
    from transformers import TrainingArguments

    set_separately = {"gradient_checkpointing", "optim", "report_to", "save_steps", "save_total_limit", "torch_compile"}
    same_names = (TrainingArguments.__dataclass_fields__.keys() & TrainingSettings.model_fields.keys()) - set_separately
    precision = chosen_precision(settings)
    is_renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # since transformers 5.23
    checkpointing = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{name: getattr(settings, name) for name in same_names},
        **{checkpointing: settings.gradient_checkpointing},
        optim="adamw_torch_fused" if settings.optim == "muon" else settings.optim,  # Muon is passed in
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        # the best model can be kept only if every validation has a checkpoint
        save_steps=settings.eval_steps if settings.early_stopping_patience else settings.save_steps,
        save_total_limit=checkpoints_kept(settings),
        restore_callback_states_from_checkpoint=True,  # of Clock and of early stopping, including its patience counter
        load_best_model_at_end=bool(settings.early_stopping_patience),
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        torch_compile=compiles(settings, n_blocks, on_card=works_on(torch.device("cuda"))),
        prediction_loss_only=True,  # otherwise all logits of the validation text stay in memory
        logging_nan_inf_filter=False,  # the default would log a non-finite loss as 0.0
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},  # copies a batch while the card computes
        disable_tqdm=True,  # the bar is in `callbacks`
        ddp_find_unused_parameters=False,  # every parameter is used, and the search takes time
    )
    # In a single process the Trainer would split a batch over the cards (nn.DataParallel), and the engine's forward
    # pass, which belongs to one model, would meet tensors on another card. Several cards need several processes.
    arguments._n_gpu = min(1, arguments.n_gpu)
    # Unless these two are set, a precision or a compiler chosen with `accelerate config` would apply.
    arguments.mixed_precision = precision
    arguments.torch_compile_backend = arguments.torch_compile_backend or "no"  # as an argument it would turn it on
    return arguments


def checkpoints_kept(settings: TrainingSettings) -> int:
    """Return how many checkpoints a run keeps; with early stopping at least two, the best and the newest.

    With a limit of 1 the Trainer finally deletes all but the best one, even if it was stopped and should continue.
    """
    return max(settings.save_total_limit, 2 if settings.early_stopping_patience else 1)


def float32_products() -> AbstractContextManager[None]:
    """Return a context in which float32 products use TF32 if the GPU can: NVIDIA, capability 8.0 or higher.

    `TrainingArguments(tf32=True)` would leave it on and make all later scores in this process less exact.
    """
    import torch

    has_tf32 = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    return torch.backends.flags(fp32_precision="tf32" if has_tf32 else None)


def compiles(settings: TrainingSettings, n_blocks: int, *, on_card: bool) -> bool:
    """Return whether to compile the model; `torch_compile='auto'` compiles for a long run on a GPU under Linux.

    Compiling takes half a minute or more, and fails on Windows without long paths (pytorch#187283).
    """
    if settings.torch_compile != "auto":
        return settings.torch_compile == "always"
    passes = settings.num_train_epochs * n_blocks / settings.per_device_train_batch_size
    return on_card and platform.system() == "Linux" and passes >= _MIN_PASSES_TO_COMPILE


def autocast_dtype(settings: TrainingSettings) -> "torch.dtype | None":
    """Return the half-precision dtype of matrix products on this machine; None for float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen_precision(settings))


def chosen_precision(settings: TrainingSettings) -> str:
    """Return what `mixed_precision` means on this machine: 'bf16', 'fp16' or 'no' (float32).

    Raises:
        SettingsError: fp16 is chosen without a GPU, which its loss scaling needs.
    """
    import torch

    TrainingSettings.check_type(settings)
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise SettingsError("mixed_precision = 'fp16' needs an NVIDIA GPU: use 'auto', 'bf16' or 'no' on a CPU.")
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if has_bf16():
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "no"


def count_warmup_steps(settings: TrainingSettings, steps: int) -> int:
    """Return the number of warm-up steps out of `steps`, as `TrainingArguments.get_warmup_steps` does.

    >>> [count_warmup_steps(TrainingSettings(warmup_steps=warmup), 40) for warmup in (0.01, 1.5)]
    [1, 1]
    """
    warmup = settings.warmup_steps
    return int(warmup) if warmup >= 1 else math.ceil(warmup * steps)


def describe_long_warmup(settings: TrainingSettings, steps: int) -> str:
    """Return a note if the warm-up is at least as long as the training; otherwise ''.

    >>> describe_long_warmup(TrainingSettings(warmup_steps=0.05), 8)
    ''
    """
    warmup, n_warmup = settings.warmup_steps, count_warmup_steps(settings, steps)
    if n_warmup < steps:
        return ""
    reached = settings.learning_rate * (steps - 1) / n_warmup  # the first step has a rate of 0
    return (
        f"warmup_steps = {warmup:g} and the training has {steps:,}: the learning rate only climbs to {reached:.2g} of "
        f"{settings.learning_rate:.2g}. Below 1, warmup_steps is a share of all steps, rounded up; 0 is no warm-up."
    )
