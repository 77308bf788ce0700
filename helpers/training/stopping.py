"""A stop that saves: `stop`, Ctrl-C or SIGTERM end a training after its step, with a checkpoint."""

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
    """A training that was asked to stop: it has written a checkpoint, and the same call continues from there."""


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
    try:
        with interrupt_event() if is_alone else nullcontext(Interrupt()) as interrupt:
            stopper = _Stopper(lambda: interrupt.is_set() or (stop is not None and stop.is_set()))
            # First in the list: `DiskSpaceGuard` has to see that a checkpoint is about to be written.
            trainer.callback_handler.callbacks.insert(0, stopper)
            yield
    except RuntimeError as error:
        if interrupt.is_set() and not isinstance(error, TrainingBrokenError):
            signal.raise_signal(interrupt.number)  # or it would be forgotten where a smaller batch is tried next
        raise
    if interrupt.number == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # now as usual: it ends the process
    if interrupt.is_set() or stopper.has_stopped:
        state = trainer.state
        raise (KeyboardInterrupt if interrupt.is_set() else TrainingStoppedError)(
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
