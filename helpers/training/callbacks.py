"""Trainer callbacks: history, time, progress, checks that stop a broken training, and a stop that saves."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from helpers.display import MIB
from helpers.files import free_bytes
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.processes import n_processes, peak_bytes
from helpers.training.pruning import pruning_callback
from helpers.training.run_files import history_rows, write_history

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, Trainer


class TrainingBrokenError(RuntimeError):
    """A training that cannot succeed: the message names what was seen and the usual cause."""


class TrainingStoppedError(RuntimeError):
    """A training that was asked to stop: it has written a checkpoint, and the same call continues from there."""


@dataclass(frozen=True)
class Progress:
    """How far a training is; `tokens_per_second` and `seconds_left` are None before this process's first step."""

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
    settings: TrainingSettings,
    folder: Path,
    *,
    model: "GPT2LMHeadModel",
    tokenizer: Any,
    progress: bool = False,
    watch: Watch | None = None,
) -> list[TrainerCallback]:
    """Return the callbacks for a training.

    Args:
        settings: the settings of the run.
        folder: the folder of the run.
        model: the model that is trained.
        tokenizer: its tokenizer.
        progress: whether to show a progress bar.
        watch: called with the history and the progress after each row.

    Raises:
        SettingsError: the package for `report_to` is not installed.
    """
    from transformers import EarlyStoppingCallback

    chosen = [_History(folder, tokenizer, settings.sample_prompt), _Guard(model.config.vocab_size)]
    chosen += [_DiskSpaceGuard(model), Clock(), _Successor()]
    if (pruning := pruning_callback(settings.run)) is not None:
        chosen.append(pruning)
    if settings.report_to == "tensorboard":
        chosen.append(_tensorboard(folder / "tensorboard"))
    if settings.early_stopping_patience:
        chosen.append(EarlyStoppingCallback(settings.early_stopping_patience))
    tokens_per_step = settings.effective_batch_size * settings.block_size * n_processes()
    if progress:
        chosen.append(_ProgressBar(tokens_per_step))
    if watch is not None:
        chosen.append(_Watcher(tokens_per_step, watch))
    return chosen


class _History(TrainerCallback):
    """Write history.jsonl from the Trainer's own log, and a sample after each validation.

    The log is part of every checkpoint, so after a resume the history has no gaps and no repeated rows.
    """

    def __init__(self, folder: Path, tokenizer: Any, sample_prompt: str) -> None:
        self.folder, self.tokenizer, self.sample_prompt = folder, tokenizer, sample_prompt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:  # the losses since the last row are not part of a checkpoint and would be lost
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            write_history(self.folder, history_rows(state.log_history))

    def on_evaluate(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        import torch

        if state.is_world_process_zero and self.sample_prompt:
            half = torch.bfloat16 if args.bf16 else torch.float16  # beside an adapter the frozen weights may be halves
            with torch.autocast(model.device.type, half, enabled=args.bf16 or args.fp16):
                text = _greedy_sample(model, self.tokenizer, self.sample_prompt)
            state.log_history.append({"step": state.global_step, "sample": text})
            write_history(self.folder, history_rows(state.log_history))


def _greedy_sample(model: "GPT2LMHeadModel", tokenizer: Any, prompt: str, *, max_new_tokens: int = 40) -> str:
    """Return `prompt` with the most probable continuation; greedy, so that no random state changes.

    Of a prompt that is too long for the model's positions, only the end is continued.
    """
    import torch

    prompt_ids, n_positions = tokenizer.encode(prompt, verbose=False), model.config.n_positions
    n_new = min(max_new_tokens, n_positions - 1)
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
    """Count the seconds of a run, those before a resume included, because a checkpoint keeps them.

    What a killed process did after its last checkpoint is not counted, because it is done again. The name of the
    class is the key in the checkpoints of every run so far: do not rename it.
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
        """Return what a checkpoint keeps."""
        return {"args": {"seconds": self.seconds}, "attributes": {}}


class _Successor(TrainerCallback):
    """Let a resumed training follow the settings and the folder of this call.

    The Trainer takes the steps between two rows from the checkpoint, and the path of the best one, which is wrong in a
    run that was moved.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class StepTimer(TrainerCallback):
    """Measure the seconds of each optimizer step, without what happens between two steps.

    A card works behind the processor. Over many steps the times even out; `is_exact` waits for the card in each.
    """

    def __init__(self, *, is_exact: bool = False) -> None:
        self.is_exact, self.seconds = is_exact, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the duration."""
        if self.is_exact and args.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)


class _Speedometer(TrainerCallback):
    """Measure the speed of this process; the base of the callbacks that show it."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start, self.first_step = time.perf_counter(), state.global_step

    def progress(self, state: Any) -> Progress:
        steps, seconds = state.global_step - self.first_step, time.perf_counter() - self.start
        rate = steps / seconds if steps else None
        return Progress(
            step=state.global_step,
            max_steps=state.max_steps,
            tokens_per_second=rate and rate * self.tokens_per_step,
            seconds_left=rate and (state.max_steps - state.global_step) / rate,
            memory_bytes=peak_bytes(),
        )


class _Watcher(_Speedometer):
    """Call `watch` with the history and the progress after each row."""

    def __init__(self, tokens_per_step: int, watch: Watch) -> None:
        super().__init__(tokens_per_step)
        self.watch = watch

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.watch(history_rows(state.log_history), self.progress(state))


class _ProgressBar(_Speedometer):
    """Show a bar of the steps with the time left, loss, tokens per second and memory.

    transformers' `ProgressCallback` prints a line for each row, draws a second bar for each validation, and starts a
    resumed run's bar at 0, which spoils its estimate of the time left.
    """

    loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from tqdm.auto import tqdm

        super().on_train_begin(args, state, control)
        is_hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=is_hidden)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        progress = self.progress(state)
        text = f"{self.loss}{progress.tokens_per_second:,.0f} tokens/s, {progress.memory_bytes / MIB:,.0f} MiB"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}, "

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _tensorboard(folder: Path) -> TrainerCallback:
    """Return a callback that writes the Trainer's log for TensorBoard: `tensorboard --logdir runs` shows it.

    `TrainingArguments(report_to="tensorboard")` would take the folder from an environment variable, and say of a
    missing package only that it is missing.

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


class _Guard(TrainerCallback):
    """Stop a training whose loss, gradient or weights show that it is broken, before the weights are saved."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        loss, grad_norm = logs.get("loss", 1.0), logs.get("grad_norm", 1.0)
        if loss == 0:
            raise TrainingBrokenError(
                f"The loss is exactly 0 at step {state.global_step}: no label is left to learn from. "
                "Decode a training row and look at its labels; an empty tokenizer does this too."
            )
        # With fp16 a gradient may overflow while the GradScaler searches for its scale: that step is left out.
        if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not args.fp16):
            self._stop(f"The loss is {loss} and the gradient's length {grad_norm}", args, state)
        if not math.isfinite(val_loss := logs.get("eval_loss", 1.0)):
            self._stop(f"The validation loss is {val_loss}", args, state)
        if _learns_nothing(state.log_history, math.log(self.vocab_size)):
            raise TrainingBrokenError(
                f"The loss stays at {loss:.2f}, an even guess among {self.vocab_size:,} tokens, up to step "
                f"{state.global_step}: nothing is learned. Look at a training row, decoded; then raise "
                f"learning_rate (it was {args.learning_rate})."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        # Only before weights are saved, because reading all of them takes time.
        is_kept = control.should_save or control.should_training_stop or state.global_step >= state.max_steps
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        if is_kept and not all(parameter.isfinite().all() for parameter in trained):
            self._stop("A weight is not finite", args, state)

    def _stop(self, observation: str, args: Any, state: Any) -> None:
        raise TrainingBrokenError(
            f"{observation} at step {state.global_step}: the weights are broken. Lower learning_rate (it was "
            f"{args.learning_rate}), keep max_grad_norm near 1, and prefer bf16 to fp16."
        )


def _learns_nothing(log_history: list[dict[str, float]], even_guess: float, *, rows: int = 20) -> bool:
    """Tell whether the last `rows` losses, after at least 200 steps, all lie within 1 % of an even guess."""
    last = [row for row in log_history if "loss" in row][-rows:]
    is_long = len(last) == rows and last[-1]["step"] >= 200
    return is_long and all(abs(row["loss"] / even_guess - 1) < 0.01 for row in last)


class _DiskSpaceGuard(TrainerCallback):
    """Stop before a checkpoint or a final model that the disk cannot hold; the last complete checkpoint stays."""

    def __init__(self, model: "GPT2LMHeadModel") -> None:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        self.n_parameters, self.n_trained = (sum(size for size, _ in sizes), sum(size * is_on for size, is_on in sizes))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        # A checkpoint is float32 weights and AdamW's two averages, 12 bytes per trained parameter, and a little more;
        # after the last step the model is written too.
        needed = 13 * self.n_trained * control.should_save + 5 * self.n_parameters * is_last
        if needed and (free := free_bytes(Path(args.output_dir).parent)) < needed:
            raise TrainingBrokenError(
                f"The disk of {args.output_dir} has {free / 1e9:.1f} GB left and {needed / 1e9:.1f} GB are needed: "
                "free some space or lower save_total_limit, and start the same run again. It continues from its last "
                "checkpoint."
            )


class _Stopper(TrainerCallback):
    """End the training, with a checkpoint, after the first step at which `is_asked()` is true."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self.is_asked, self.has_stopped = is_asked, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Log too, because a checkpoint does not carry the losses since the last row.
        if state.global_step < state.max_steps and self.is_asked():
            self.has_stopped = control.should_log = control.should_save = control.should_training_stop = True


@contextmanager
def stoppable(trainer: "Trainer", stop: threading.Event | None) -> Iterator[None]:
    """Let `stop`, Ctrl-C or SIGTERM end the training inside the block with a checkpoint; raise when the block ends.

    Signals count only where one process trains: several would have to stop at the same step.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the interrupt of a kernel, ended the training. SIGTERM ends the process then.
        TrainingStoppedError: `stop` ended it.
    """
    is_alone = trainer.args.world_size == 1
    with interrupt_event() if is_alone else nullcontext(Interrupt()) as interrupt:
        stopper = _Stopper(lambda: interrupt.is_set() or (stop is not None and stop.is_set()))
        # First in the list: _DiskSpaceGuard has to see that a checkpoint is about to be written.
        trainer.callback_handler.callbacks.insert(0, stopper)
        yield
    if interrupt.is_set():
        if interrupt.number == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # now as usual: it ends the process
        raise KeyboardInterrupt
    if stopper.has_stopped:
        state = trainer.state
        raise TrainingStoppedError(
            f"Stopped after step {state.global_step} of {state.max_steps}; a checkpoint is kept, and the same settings "
            "continue from there."
        )


class Interrupt(threading.Event):
    """Set by a signal; `number` is the signal's, 0 before it."""

    number = 0


@contextmanager
def interrupt_event() -> Iterator[Interrupt]:
    """Let Ctrl-C, the interrupt of a kernel, or SIGTERM set an event; a second one acts as usual.

    Python calls signal handlers in the main thread only, and a process that ignores a signal goes on ignoring it: in
    both cases the event is never set.
    """
    interrupt = Interrupt()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in usual.items() if handler not in (signal.SIG_IGN, None)]

    def handle(number: int, frame: Any) -> None:
        if interrupt.is_set():
            signal.signal(number, usual[number])
            signal.raise_signal(number)
        interrupt.number = number
        interrupt.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    for number in taken:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        for number in taken:
            signal.signal(number, usual[number])
