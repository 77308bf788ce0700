"""Checks that stop a training run which cannot succeed: broken loss or weights, a full disk."""

import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from helpers.display import size_text
from helpers.files import free_bytes
from helpers.settings import TrainingSettings
from helpers.training.processes import LOCK, is_first_process
from helpers.training.run_files import checkpoint_bytes, model_bytes


class TrainingBrokenError(RuntimeError):
    """Training cannot succeed; the message says what was seen and the usual cause."""


def folder_lost_error(folder: Path) -> TrainingBrokenError:
    """Return the error for a run whose folder is gone."""
    return TrainingBrokenError(
        f"The folder {folder}, or {LOCK} in it, was deleted or renamed during training. Under its new "
        "name the run continues from its last checkpoint."
    )


class FolderGuard(TrainerCallback):
    """Stop if the run's folder is gone, even if another run has started in a new folder of the same name.

    A new folder has a different lock file. (Windows cannot delete a folder in which a lock is held.)
    """

    def __init__(self, folder: Path) -> None:
        self.lock = folder / LOCK
        self.held = self.lock.stat() if is_first_process() else None  # only the first process writes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the folder before a checkpoint is written."""
        if self.held and not (self.lock.exists() and os.path.samestat(self.held, self.lock.stat())):
            raise folder_lost_error(self.lock.parent)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check it before a row is written; after the last step, this is also before the model is saved."""
        self.on_step_end(args, state, control)


class Guard(TrainerCallback):
    """Stop when the loss, gradient or weights show that training is broken, before the weights are saved."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Check the losses and the gradient norm."""
        loss, grad_norm = logs.get("loss", 1.0), logs.get("grad_norm", 1.0)
        if loss == 0:
            raise TrainingBrokenError(
                f"The loss is exactly 0 at step {state.global_step}: no label is left to learn from. "
                "Decode a training row and look at its labels; an empty tokenizer does this too."
            )
        # With fp16 a gradient may overflow while the GradScaler searches for its scale: it skips that step.
        if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not args.fp16):
            self._stop(f"The loss is {loss} and the gradient norm {grad_norm}", args, state)
        if not math.isfinite(val_loss := logs.get("eval_loss", 1.0)):
            self._stop(f"The validation loss is {val_loss}", args, state)
        if _learns_nothing(state.log_history, math.log(self.vocab_size)):
            raise TrainingBrokenError(
                f"The loss stays at {loss:.2f}, a uniform guess among {self.vocab_size:,} tokens, up to step "
                f"{state.global_step}: nothing is learned. Look at a training row, decoded; then raise "
                f"learning_rate (it was {args.learning_rate})."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Check the weights."""
        # Only before they are saved (also after the last step), because reading all of them takes time.
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        if control.should_save and not all(parameter.isfinite().all() for parameter in trained):
            self._stop("A weight is not finite", args, state)

    def _stop(self, observation: str, args: Any, state: Any) -> None:
        raise TrainingBrokenError(
            f"{observation} at step {state.global_step}: the weights are broken. Lower learning_rate (it was "
            f"{args.learning_rate}), keep max_grad_norm near 1, and prefer bf16 to fp16."
        )


def _learns_nothing(log_history: list[dict[str, float]], uniform_loss: float) -> bool:
    """Return whether, after at least 200 steps, the last 20 losses are all within 1% of a uniform guess."""
    last = [row for row in log_history if "loss" in row][-20:]
    is_long = len(last) == 20 and last[-1]["step"] >= 200
    return is_long and all(abs(row["loss"] / uniform_loss - 1) < 0.01 for row in last)


class DiskSpaceGuard(TrainerCallback):
    """Stop before writing a checkpoint or model that does not fit on the disk; the last complete checkpoint stays."""

    def __init__(self, config: Any, settings: TrainingSettings) -> None:
        # The other files, such as the tokenizer, are small.
        self.checkpoint_bytes = int(1.08 * checkpoint_bytes(config, settings))
        self.model_bytes = int(1.25 * model_bytes(config, settings))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check before the first step, so that no work is wasted."""
        is_last = state.global_step + args.save_steps >= state.max_steps
        self._check(args, is_saved=state.global_step < state.max_steps, is_last=is_last)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare the free space with the size of what is written next."""
        self._check(args, is_saved=control.should_save, is_last=state.global_step >= state.max_steps)

    def _check(self, args: Any, *, is_saved: bool, is_last: bool) -> None:
        needed = self.checkpoint_bytes * is_saved + self.model_bytes * is_last
        if needed and (free := free_bytes(Path(args.output_dir).parent)) < needed:
            is_kept = any(Path(args.output_dir).glob("checkpoint-*"))
            advice = " It continues from its last checkpoint." if is_kept else ""
            raise TrainingBrokenError(
                f"The disk of {args.output_dir} has {size_text(free)} left and {size_text(needed)} are needed: free "
                f"some space or lower save_total_limit, and start the same run again.{advice}"
            )
