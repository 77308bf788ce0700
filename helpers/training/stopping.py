"""A stop that saves: a training ends at a step's end, with a checkpoint, and the same call goes on from there."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


class TrainingStoppedError(RuntimeError):
    """A training that was asked to stop: it has written a checkpoint, and the same call goes on from there."""


@contextmanager
def stoppable(trainer: "Trainer", stop: threading.Event | None) -> Iterator[None]:
    """Let `stop`, and an interrupt where one process trains, end the training with a checkpoint, and raise after it."""
    is_alone = trainer.args.world_size == 1  # many processes would have to stop at the same step
    with interrupts_ask() if is_alone else nullcontext(threading.Event()) as interrupted:
        callback = stopping(lambda: interrupted.is_set() or (stop is not None and stop.is_set()))
        trainer.callback_handler.callbacks.insert(0, callback)  # before what looks for room for its checkpoint
        yield
    if interrupted.is_set():
        raise KeyboardInterrupt
    if callback.stopped:
        state = trainer.state
        raise TrainingStoppedError(
            f"Stopped after step {state.global_step} of {state.max_steps}; a checkpoint is kept, and the same settings "
            "go on from there."
        )


@contextmanager
def interrupts_ask() -> Iterator[threading.Event]:
    """Let Ctrl-C, or the interrupt of a kernel, set the event that is given; a second one raises as it always does.

    Only a process's main thread hears of interrupts, and one that ignores them goes on ignoring them.
    """
    asked, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            usual(number, frame)
        asked.set()

    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield asked
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)


def stopping(is_asked: Callable[[], bool]) -> "TrainerCallback":
    """End the training, with a checkpoint, at the first step's end at which `is_asked()`; `stopped` tells that it did.

    The losses since the last row are logged first: a checkpoint does not carry them.
    """
    from transformers import TrainerCallback

    class Stopping(TrainerCallback):
        stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step < state.max_steps and is_asked():
                self.stopped = control.should_log = control.should_save = control.should_training_stop = True

    return Stopping()
