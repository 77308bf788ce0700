"""Stop with a checkpoint: `stop`, Ctrl-C or SIGTERM end training after the current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from helpers.training.guards import TrainingBrokenError

if TYPE_CHECKING:
    from transformers import Trainer


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop: it wrote a checkpoint, and the same call continues from there."""


class _Stopper(TrainerCallback):
    """End training, with a checkpoint, after the first step at which `should_stop()` is true."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop, self.has_stopped = should_stop, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Log too, because a checkpoint does not include the losses since the last row.
        if state.global_step < state.max_steps and self.should_stop():
            self.has_stopped = control.should_log = control.should_save = control.should_training_stop = True


@contextmanager
def stoppable(trainer: "Trainer", stop: threading.Event | None) -> Iterator[None]:
    """Let `stop`, Ctrl-C or SIGTERM end the training inside this context with a checkpoint; raise on leaving it.

    Signals are handled only if a single process trains: several would have to stop at the same step.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the interrupt of a kernel, ended training. (SIGTERM instead ends the process.)
        TrainingStoppedError: `stop` ended it.
    """
    is_alone = trainer.args.world_size == 1
    try:
        with interrupt_event() if is_alone else nullcontext(Interrupt()) as interrupt:
            stopper = _Stopper(lambda: interrupt.is_set() or (stop is not None and stop.is_set()))
            # First in the list: `DiskSpaceGuard` has to see that a checkpoint is about to be written.
            trainer.callback_handler.callbacks.insert(0, stopper)
            yield
    except RuntimeError as error:
        if interrupt.is_set() and not isinstance(error, TrainingBrokenError):
            signal.raise_signal(interrupt.number)  # otherwise a retry with a smaller batch would ignore it
        raise
    if interrupt.number == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # now with its usual effect: it ends the process
    if interrupt.is_set() or stopper.has_stopped:
        state = trainer.state
        raise (KeyboardInterrupt if interrupt.is_set() else TrainingStoppedError)(
            f"Stopped after step {state.global_step} of {state.max_steps}; a checkpoint is kept, and the same settings "
            "continue from there."
        )


class Interrupt(threading.Event):
    """Set by a signal; `number` is that signal's number, or 0 before one arrives."""

    number = 0


@contextmanager
def interrupt_event() -> Iterator[Interrupt]:
    """Make Ctrl-C, the interrupt of a kernel, or SIGTERM set an event; a second one acts as usual.

    Python runs signal handlers only in the main thread, and a process that ignores a signal keeps ignoring it: in both
    cases the event is never set.
    """
    interrupt = Interrupt()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]

    def handle(number: int, frame: Any) -> None:
        if interrupt.is_set():
            signal.signal(number, previous[number])
            signal.raise_signal(number)
        interrupt.number = number
        interrupt.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    for number in handled:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        for number in handled:
            signal.signal(number, previous[number])
