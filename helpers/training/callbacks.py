"""What looks on while the Trainer works: the history, the guards, the room on the disk, whoever watches.

Each function returns a `TrainerCallback`; transformers is imported when the first is made.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.settings import SettingsError
from helpers.training.history import history_rows, write_history

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, TrainerCallback


class TrainingBrokenError(RuntimeError):
    """A training that cannot come to anything: the message names the sign that was seen and the usual cause."""


@dataclass(frozen=True)
class Progress:
    """How far a training is: `tokens_per_second` and `seconds_left` are None before the second reading."""

    step: int
    max_steps: int
    tokens_per_second: float | None
    seconds_left: float | None
    memory_bytes: int

    def __str__(self) -> str:
        """Return it in one line."""
        rate = "" if self.tokens_per_second is None else f", {self.tokens_per_second:,.0f} tokens/s"
        left = "" if self.seconds_left is None else f", {self.seconds_left:,.0f} s left"
        return f"step {self.step} of {self.max_steps}{rate}{left}, {self.memory_bytes / 2**20:,.0f} MiB"


Watch = Callable[[list[dict[str, Any]], Progress], None]


def history(folder: Path, tokenizer: Any, sample_prompt: str) -> "TrainerCallback":
    """Write history.jsonl from the Trainer's own log, which a checkpoint carries: no gaps or repeats after a resume.

    After each validation the model goes on from `sample_prompt`, greedily, so that no random state is touched.
    """
    from transformers import TrainerCallback

    class History(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if control.should_save:  # the losses since the last row are in no checkpoint: let there be none
                control.should_log = True

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                write_history(folder, history_rows(state.log_history))

        def on_evaluate(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
            if state.is_world_process_zero and sample_prompt:
                text = greedy_sample(model, tokenizer, sample_prompt)
                state.log_history.append({"step": state.global_step, "sample": text})
                write_history(folder, history_rows(state.log_history))

    return History()


def clock() -> "TrainerCallback":
    """Count the seconds of a run, those before a resume included: a checkpoint carries them.

    What a killed process did after its last checkpoint is not counted, because it is done again.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Clock(TrainerCallback, ExportableState):
        def __init__(self, seconds: float = 0.0) -> None:
            self.before, self.start = seconds, None

        @property
        def seconds(self) -> float:
            return self.before if self.start is None else self.before + time.perf_counter() - self.start

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.before, self.start = self.seconds, None

        def state(self) -> dict[str, Any]:
            return {"args": {"seconds": self.seconds}, "attributes": {}}

    return Clock()


def greedy_sample(model: "GPT2LMHeadModel", tokenizer: Any, prompt: str, *, max_new_tokens: int = 40) -> str:
    """Return `prompt` and the likeliest way on from it."""
    import torch

    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    was_training = model.training
    with torch.no_grad():
        out = model.eval().generate(
            **ids, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=tokenizer.eos_token_id
        )
    model.train(was_training)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def watching(watch: Watch, *, tokens_per_step: int, memory_bytes: Callable[[], int]) -> "TrainerCallback":
    """Call `watch` with the history and the progress after each row; speed is that of this process."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start, self.first_step = time.perf_counter(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            steps, seconds = state.global_step - self.first_step, time.perf_counter() - self.start
            rate = steps / seconds if steps else None
            progress = Progress(
                step=state.global_step,
                max_steps=state.max_steps,
                tokens_per_second=rate and rate * tokens_per_step,
                seconds_left=rate and (state.max_steps - state.global_step) / rate,
                memory_bytes=memory_bytes(),
            )
            watch(history_rows(state.log_history), progress)

    return Watching()


def progress_bar(*, tokens_per_step: int, memory_bytes: Callable[[], int]) -> "TrainerCallback":
    """Show a bar of the steps with the time that is left, loss, tokens a second and memory."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        loss = ""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            others = not state.is_world_process_zero
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=others)
            self.start, self.first_step = time.perf_counter(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rate = tokens_per_step * (state.global_step - self.first_step) / (time.perf_counter() - self.start)
            told = f"{self.loss}{rate:,.0f} tokens/s, {memory_bytes() / 2**20:,.0f} MiB"
            self.bar.set_postfix_str(told, refresh=False)
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                self.loss = f"loss {logs['loss']:.3f}, "

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Bar()


def tensorboard(folder: Path) -> "TrainerCallback":
    """Pass what the Trainer logs on to TensorBoard: `tensorboard --logdir runs` shows it.

    Raises:
        SettingsError: the package is not installed.
    """
    from transformers.integrations import TensorBoardCallback

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError(
            "report_to = 'tensorboard' needs a package that is not installed: pip install tensorboard, or use 'none'."
        ) from None
    return TensorBoardCallback(SummaryWriter(str(folder)))


def guard(vocab_size: int) -> "TrainerCallback":
    """Stop a training whose loss, gradient or weights say that it is broken; before it saves them."""
    from transformers import TrainerCallback

    even_guess = math.log(vocab_size)

    class Guard(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            loss, grad_norm = logs.get("loss", 1.0), logs.get("grad_norm", 1.0)
            if loss == 0:
                raise TrainingBrokenError(
                    f"The loss is exactly 0 at step {state.global_step}: no label is left to learn from. "
                    "Decode a training row and look at its labels; an empty tokenizer does this too."
                )
            # with fp16 a gradient that overflows belongs to the search for a scale, and its step is left out
            if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not args.fp16):
                self.stop(f"The loss is {loss} and the gradient's length {grad_norm}", args, state)
            if not math.isfinite(val_loss := logs.get("eval_loss", 1.0)):
                self.stop(f"The validation loss is {val_loss}", args, state)
            if _learns_nothing(state.log_history, even_guess):
                raise TrainingBrokenError(
                    f"The loss stays at {loss:.2f}, an even guess among {vocab_size:,} tokens, up to step "
                    f"{state.global_step}: nothing is learnt. Look at a training row, decoded; then raise "
                    f"learning_rate (it was {args.learning_rate})."
                )

        def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
            is_kept = control.should_save or control.should_training_stop or state.global_step >= state.max_steps
            if is_kept and not all(parameter.isfinite().all() for parameter in model.parameters()):
                self.stop("A weight is not finite", args, state)

        def stop(self, sign: str, args: Any, state: Any) -> None:
            raise TrainingBrokenError(
                f"{sign} at step {state.global_step}: the weights are spoilt. Lower learning_rate (it was "
                f"{args.learning_rate}), keep max_grad_norm near 1, and prefer bf16 to fp16."
            )

    return Guard()


def _learns_nothing(log_history: list[dict[str, float]], even_guess: float, *, rows: int = 20) -> bool:
    """Tell whether the last `rows` losses, after at least 200 steps, all lie within 1 % of an even guess."""
    last = [row for row in log_history if "loss" in row][-rows:]
    is_long = len(last) == rows and last[-1]["step"] >= 200
    return is_long and all(abs(row["loss"] / even_guess - 1) < 0.01 for row in last)


def space(model: "GPT2LMHeadModel") -> "TrainerCallback":
    """Stop before a checkpoint, or a finished model, that the disk could not hold; the last whole one stays."""
    from transformers import TrainerCallback

    n_parameters = sum(p.numel() for p in model.parameters())

    class Space(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            is_last = control.should_training_stop or state.global_step >= state.max_steps
            # a checkpoint: float32 weights, AdamW's two averages, and a little; after the last step the model too
            needed = n_parameters * (13 * control.should_save + 5 * is_last)
            if not needed:
                return
            free = shutil.disk_usage(Path(args.output_dir).parent).free
            if free < needed:
                raise TrainingBrokenError(
                    f"The disk of {args.output_dir} has {free / 1e9:.1f} GB left and what is to be kept takes "
                    f"{needed / 1e9:.1f} GB: free some space or lower save_total_limit, and start the same run again. "
                    "It goes on from its last checkpoint."
                )

    return Space()
