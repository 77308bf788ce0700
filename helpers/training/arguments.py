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

# On an H100 and an H200 compiling GPT-2 takes 19 to 35 s and saves 9 to 19 ms per pass (2026-11).
_PASSES_WORTH_COMPILING = 3000


def training_arguments(settings: TrainingSettings, folder: Path, *, n_blocks: int = 0) -> "TrainingArguments":
    """Return the settings as `TrainingArguments`, with what this course always sets.

    The number of blocks to train on decides whether compiling is worth its time.
    """
    import torch
    from transformers import TrainingArguments

    of_our_own = {"gradient_checkpointing", "optim", "report_to", "save_steps", "save_total_limit", "torch_compile"}
    same_names = (TrainingArguments.__dataclass_fields__.keys() & TrainingSettings.model_fields.keys()) - of_our_own
    precision = chosen_precision(settings)
    is_renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # since transformers 5.23
    checkpointing = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{name: getattr(settings, name) for name in same_names},
        **{checkpointing: settings.gradient_checkpointing},
        optim="adamw_torch_fused" if settings.optim == "muon" else settings.optim,  # Muon is handed in
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        # the best model can only be kept if there is a checkpoint for each validation
        save_steps=settings.eval_steps if settings.early_stopping_patience else settings.save_steps,
        save_total_limit=checkpoints_kept(settings),
        restore_callback_states_from_checkpoint=True,  # of Clock, and of early stopping, whose patience is in it
        load_best_model_at_end=bool(settings.early_stopping_patience),
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        torch_compile=compiles(settings, n_blocks, on_card=works_on(torch.device("cuda"))),
        prediction_loss_only=True,  # otherwise every logit of the validation text is kept in memory
        logging_nan_inf_filter=False,  # the default would log a loss that is not finite as 0.0
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},  # copies a batch while the card still computes
        disable_tqdm=True,  # the bar is in `callbacks`
        ddp_find_unused_parameters=False,  # every parameter is used, and searching for unused ones takes time
    )
    # In one process the Trainer would give each card a part of a batch (nn.DataParallel), and the engine's forward
    # pass, which belongs to one model, would meet tensors of another card. Several cards take several processes.
    arguments._n_gpu = min(1, arguments.n_gpu)
    # `accelerate config` may have chosen another precision, or to compile, which holds where these two are left open.
    arguments.mixed_precision = precision
    arguments.torch_compile_backend = arguments.torch_compile_backend or "no"  # as an argument it would switch it on
    return arguments


def checkpoints_kept(settings: TrainingSettings) -> int:
    """Return how many checkpoints a run keeps: with early stopping at least two, the best one and the newest.

    With a limit of 1 the Trainer ends by deleting all but the best one, also when it was stopped and is to continue.
    """
    return max(settings.save_total_limit, 2 if settings.early_stopping_patience else 1)


def float32_products() -> AbstractContextManager[None]:
    """Return a context in which float32 products are TF32, where the GPU can: NVIDIA's from capability 8.0 on.

    `TrainingArguments(tf32=True)` would leave it on, and every score in this process afterwards would be less exact.
    """
    import torch

    can = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    return torch.backends.flags(fp32_precision="tf32" if can else None)


def compiles(settings: TrainingSettings, n_blocks: int, *, on_card: bool) -> bool:
    """Tell whether the model is compiled: with `torch_compile='auto'` for a long run on a GPU under Linux.

    Compiling takes half a minute or more, and fails under Windows without long paths (pytorch#187283).
    """
    if settings.torch_compile != "auto":
        return settings.torch_compile == "always"
    passes = settings.num_train_epochs * n_blocks / settings.per_device_train_batch_size
    return on_card and platform.system() == "Linux" and passes >= _PASSES_WORTH_COMPILING


def autocast_dtype(settings: TrainingSettings) -> "torch.dtype | None":
    """Return the half precision that matrix products are computed in on this machine; None for float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen_precision(settings))


def chosen_precision(settings: TrainingSettings) -> str:
    """Return what `mixed_precision` means on this machine: 'bf16', 'fp16' or 'no' (float32).

    Raises:
        SettingsError: fp16 without a GPU: its loss scaling needs one.
    """
    import torch

    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise SettingsError("mixed_precision = 'fp16' needs an NVIDIA GPU: use 'auto', 'bf16' or 'no' on a CPU.")
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if has_bf16():
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "no"


def count_warmup_steps(settings: TrainingSettings, steps: int) -> int:
    """Return the steps of the warm-up in a training of so many steps, as `TrainingArguments.get_warmup_steps` does.

    >>> [count_warmup_steps(TrainingSettings(warmup_steps=warmup), 40) for warmup in (0.01, 1.5)]
    [1, 1]
    """
    warmup = settings.warmup_steps
    return int(warmup) if warmup >= 1 else math.ceil(warmup * steps)


def describe_long_warmup(settings: TrainingSettings, steps: int) -> str:
    """Return a sentence for a warm-up that is as long as the training or longer; empty for any other.

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
