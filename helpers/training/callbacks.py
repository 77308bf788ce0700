"""Trainer callbacks for history, time and progress; those that end a training run are in `guards` and `stopping`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from helpers.data.sources.chat import as_question
from helpers.display import MIB
from helpers.files import make_weights_readable
from helpers.settings import TrainingSettings
from helpers.training.devices import peak_bytes
from helpers.training.guards import DiskSpaceGuard, Guard
from helpers.training.memory import SAMPLE_TOKENS
from helpers.training.processes import n_processes
from helpers.training.pruning import pruning_callback
from helpers.training.run_files import HistoryFile, history_rows

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Progress:
    """The progress of a run; `tokens_per_second` and `seconds_left` are None before this process's first step."""

    step: int
    max_steps: int
    tokens_per_second: float | None
    seconds_left: float | None
    memory_bytes: int

    def __str__(self) -> str:
        """Return the progress as one line."""
        rate = "" if self.tokens_per_second is None else f", {self.tokens_per_second:,.0f} tokens/s"
        left = "" if self.seconds_left is None else f", {self.seconds_left:,.0f} s left"
        return f"step {self.step} of {self.max_steps}{rate}{left}, {self.memory_bytes / MIB:,.0f} MiB"


Watch = Callable[[list[dict[str, Any]], Progress], None]


def training_callbacks(
    settings: TrainingSettings, folder: Path, *, model: "GPT2LMHeadModel", tokenizer: Any
) -> list[TrainerCallback]:
    """Return the callbacks for a run, except those that need more than its settings."""
    from transformers import EarlyStoppingCallback

    callbacks = [_History(folder, tokenizer, settings.sample_prompt), Guard(model.config.vocab_size)]
    callbacks += [DiskSpaceGuard(model.config, settings), Clock(), _ResumeOverrides()]
    if (pruning := pruning_callback(settings.run)) is not None:
        callbacks.append(pruning)
    if settings.report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        # `TrainingArguments(report_to="tensorboard")` would take the folder from an environment variable
        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
    if settings.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    return callbacks


class _History(TrainerCallback):
    """Write history.jsonl from the Trainer's own log, and a sample after each validation.

    The log is part of every checkpoint, so after a resume the history has no gaps and no repeated rows. Other users may
    read a checkpoint where they may read other new files.
    """

    def __init__(self, folder: Path, tokenizer: Any, sample_prompt: str) -> None:
        self.file, self.tokenizer, self.sample_prompt = HistoryFile(folder), tokenizer, sample_prompt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:  # a checkpoint omits the losses since the last row, so they would be lost
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            make_weights_readable(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.file.write(state.log_history)

    def on_evaluate(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        import torch

        if state.is_world_process_zero and self.sample_prompt:
            half = torch.bfloat16 if args.bf16 else torch.float16  # with an adapter, the frozen weights may be halves
            with torch.autocast(model.device.type, half, enabled=args.bf16 or args.fp16):
                text = _greedy_sample(model, self.tokenizer, as_question(self.sample_prompt, self.tokenizer))
            state.log_history.append({"step": state.global_step, "sample": text})
            self.file.write(state.log_history)


def _greedy_sample(model: "GPT2LMHeadModel", tokenizer: Any, prompt: str) -> str:
    """Return `prompt` with its most probable continuation; greedy, so it does not use the random state.

    If the prompt is too long for the model's positions, only its end is continued.
    """
    import torch

    prompt_ids, n_positions = tokenizer.encode(prompt, verbose=False), model.config.n_positions
    n_new = min(SAMPLE_TOKENS, n_positions - 1)
    ids = torch.tensor([prompt_ids[-(n_positions - n_new) :]], device=model.device)  # (1, T)
    was_training = model.training
    with torch.no_grad():
        out = model.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False, use_cache=True,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    model.train(was_training)
    return tokenizer.decode([*prompt_ids, *out[0, ids.shape[1] :].tolist()], skip_special_tokens=True)


class Clock(TrainerCallback, ExportableState):
    """Count the seconds of a run, including those before a resume, because checkpoints store them.

    Time that a killed process spent after its last checkpoint is not counted, because that work is done again. The
    class name is the key in the checkpoints of all existing runs: do not rename it.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.before, self.start = seconds, None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.before if self.start is None else self.before + time.perf_counter() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock."""
        self.before, self.start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"args": {"seconds": self.seconds}, "attributes": {}}


class _ResumeOverrides(TrainerCallback):
    """Make a resumed run use the settings and the folder of this call.

    From a checkpoint the Trainer restores the number of steps between two rows, and the path of the best checkpoint,
    which is wrong if the run was moved.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class StepTimer(TrainerCallback):
    """Measure the seconds of each optimizer step, without what happens between steps.

    A card computes asynchronously. Over many steps the times average out, unless something waits for the card after
    each step, as logging a row does; `is_exact` waits in every step.
    """

    def __init__(self, *, is_exact: bool = False) -> None:
        self.is_exact, self.seconds = is_exact, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the start time."""
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the duration."""
        if (self.is_exact or control.should_log) and args.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)


class RunDisplay(TrainerCallback):
    """Measure the speed of this process, and show it: as a progress bar, and to `watch` after each row of the history.

    transformers' `ProgressCallback` prints a line for each row, draws a second bar for each validation, and starts a
    resumed run's bar at 0, which makes its estimate of the time left wrong.
    """

    loss, bar = "", None  # no bar before the training begins

    def __init__(self, settings: TrainingSettings, *, has_bar: bool, watch: Watch | None) -> None:
        self.tokens_per_step = settings.effective_batch_size * settings.block_size * n_processes()
        self.has_bar, self.watch, self.history, self.n_logs = has_bar, watch, [], 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and the bar."""
        from tqdm.auto import tqdm

        self.start, self.first_step = time.perf_counter(), state.global_step
        if self.has_bar and state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            progress = self._progress(state)
            text = f"{self.loss}{progress.tokens_per_second:,.0f} tokens/s, {progress.memory_bytes / MIB:,.0f} MiB"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Remember the loss for the bar, and call `watch`."""
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}, "
        if self.watch is not None and state.is_world_process_zero:
            self.history += history_rows(state.log_history[self.n_logs :])
            self.n_logs = len(state.log_history)
            self.watch(self.history, self._progress(state))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also after an error, so that the message begins on its own line."""
        if self.bar is not None:
            self.bar.close()

    def _progress(self, state: Any) -> Progress:
        steps, seconds = state.global_step - self.first_step, time.perf_counter() - self.start
        rate = steps / seconds if steps else None
        return Progress(
            step=state.global_step,
            max_steps=state.max_steps,
            tokens_per_second=rate and rate * self.tokens_per_step,
            seconds_left=rate and (state.max_steps - state.global_step) / rate,
            memory_bytes=peak_bytes(),
        )
