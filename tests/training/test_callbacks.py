"""What is checked and shown during a training, and a training that is stopped and continues as if it had not been."""

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from helpers.settings import NOTEBOOKS, TrainingSettings
from helpers.training.callbacks import (
    Progress,
    TrainingBrokenError,
    TrainingStoppedError,
    _Guard,
    _Successor,
    interrupt_event,
)
from helpers.training.fine_tuning import fine_tune, training_arguments
from helpers.training.run_files import last_complete_checkpoint, read_history, step_of


def test_progress_is_one_line():
    assert str(Progress(4, 10, 1234.4, 9.6, 2**30)) == "step 4 of 10, 1,234 tokens/s, 10 s left, 1,024 MiB"
    assert str(Progress(1, 10, None, None, 2**20)) == "step 1 of 10, 1 MiB"


@pytest.mark.parametrize(("loss", "words"), [(0.0, "exactly 0"), (math.nan, "Lower learning_rate"), (math.inf, "inf")])
def test_a_loss_of_a_broken_training_stops_it(tmp_path, loss, words):
    guard = _Guard(4096)
    arguments = training_arguments(TrainingSettings(), tmp_path)
    with pytest.raises(TrainingBrokenError, match=words):
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": loss})
    guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0})


@pytest.mark.parametrize(("fp16", "stops"), [(False, True), (True, False)])
def test_a_gradient_that_is_not_finite_stops_the_run_except_during_loss_scaling(tmp_path, fp16, stops):
    guard, arguments = _Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    arguments.fp16 = fp16
    with pytest.raises(TrainingBrokenError, match="inf") if stops else nullcontext():
        guard.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 1.0, "grad_norm": math.inf})


def test_a_loss_that_stays_at_an_even_guess_stops_the_run(tmp_path):
    guard, arguments = _Guard(4096), training_arguments(TrainingSettings(), tmp_path)
    flat = [{"loss": math.log(4096) + 0.01, "step": step} for step in range(0, 400, 10)]
    with pytest.raises(TrainingBrokenError, match="an even guess among 4,096 tokens"):
        guard.on_log(arguments, TrainerState(log_history=flat), TrainerControl(), logs=flat[-1])
    falling = [row | {"loss": row["loss"] - row["step"] / 1000} for row in flat]
    guard.on_log(arguments, TrainerState(log_history=falling), TrainerControl(), logs=falling[-1])


@pytest.fixture
def settings(tiny_settings):
    """Return the settings of a training that saves by itself only at its end."""
    changes = {"num_train_epochs": 20.0, "save_steps": 1000, "logging_steps": 2, "eval_steps": 20, "sample_prompt": ""}
    return tiny_settings.model_copy(update=changes)


def same_weights(one, other):
    one, other = (load_file(run.model_folder / "model.safetensors") for run in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


def ends_as_if_never_stopped(settings):
    """Finish a stopped run; tell whether a run that was not stopped has the same weights and validation losses."""
    resumed, unbroken = fine_tune(settings), fine_tune(settings.model_copy(update={"run": "unbroken"}))
    validations = [[row for row in run.history if "eval_loss" in row] for run in (resumed, unbroken)]
    return same_weights(resumed, unbroken) and validations[0] == validations[1]


def stopped_at(settings, runs):
    return step_of(last_complete_checkpoint(runs / settings.run / "checkpoints"))


class StopAtStep:
    """A watcher that asks for a stop when the training has reached a step."""

    def __init__(self, step):
        self.step, self.stop = step, threading.Event()

    def __call__(self, history, progress):
        if progress.step >= self.step:
            self.stop.set()


def test_a_stop_saves_at_the_next_step_and_the_same_call_ends_with_the_same_weights(settings, runs):
    for step in (5, 9):
        watcher = StopAtStep(step)
        with pytest.raises(TrainingStoppedError, match=rf"Stopped after step {step + 2} of \d+; a checkpoint is kept"):
            fine_tune(settings, watch=watcher, stop=watcher.stop)
        assert stopped_at(settings, runs) == step + 2, "a row is written at an even step, and the stop is one later"
    assert read_history(runs / "tiny")[-1]["step"] == 11, "the losses since the last row are logged"
    assert ends_as_if_never_stopped(settings)


def test_a_stop_at_the_last_step_changes_nothing(tiny_settings):
    watcher = StopAtStep(10**9)
    last = fine_tune(tiny_settings.model_copy(update={"run": "unbroken"})).facts["steps"]
    watcher.step = last
    assert fine_tune(tiny_settings, watch=watcher, stop=watcher.stop).facts["steps"] == last


def train_in_a_process(settings, runs):
    values = [part for name, value in settings.model_dump().items() for part in ("-p", name, str(value))]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "helpers", "train", *values],
        cwd=NOTEBOOKS.parent,
        env={**os.environ, "COURSE_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )


def wait_for_history(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, "the training did not begin"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="sends an interrupt as Linux does")
def test_ctrl_c_saves_and_says_so_and_the_same_command_continues(settings, runs):
    child = train_in_a_process(settings, runs)
    wait_for_history(runs / "tiny/history.jsonl")
    child.send_signal(signal.SIGINT)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Interrupted: what was done is kept, and the same command goes on." in message
    assert "Traceback" not in message
    assert 0 < stopped_at(settings, runs) < 20 * 6
    assert ends_as_if_never_stopped(settings)


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts a kernel as Linux does")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_interrupt_of_a_kernel_saves_and_the_same_cell_continues(settings, runs):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(NOTEBOOKS.parent))
    try:
        lines = (
            "import warnings; warnings.simplefilter('ignore')",
            "from helpers.settings import TrainingSettings",
            "from helpers.training import fine_tune",
            f"fine_tune(TrainingSettings(**{settings.model_dump()!r}))",
        )
        client.execute("\n".join(lines))
        wait_for_history(runs / "tiny/history.jsonl")
        manager.interrupt_kernel()
        assert error_of(client) == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert 0 < stopped_at(settings, runs) < 20 * 6
    assert ends_as_if_never_stopped(settings)


def error_of(client):
    """Return the name of the error that the running cell ends with."""
    while True:
        try:
            message = client.get_iopub_msg(timeout=60)
        except queue.Empty:
            return None
        if message["msg_type"] == "error":
            return message["content"]["ename"]


def test_the_second_interrupt_does_not_wait():
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupt_event() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_thread_leaves_interrupts_to_the_main_one():
    seen = []

    def look():
        with interrupt_event() as interrupted:
            seen.append((interrupted.is_set(), signal.getsignal(signal.SIGINT)))

    usual = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, usual)]


class AskedToEndError(Exception):
    pass


@pytest.fixture
def asked_to_end():
    """Let SIGTERM raise an exception where it would end this process."""

    def raise_error(*_):
        raise AskedToEndError

    usual = signal.signal(signal.SIGTERM, raise_error)
    yield
    signal.signal(signal.SIGTERM, usual)


def test_sigterm_saves_before_it_ends_the_process(asked_to_end, settings, runs):
    def send(history, progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(AskedToEndError):
        fine_tune(settings, watch=send)
    assert stopped_at(settings, runs) == 5


def test_a_second_sigterm_does_not_wait(asked_to_end):
    with interrupt_event() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.number == signal.SIGTERM
        with pytest.raises(AskedToEndError):
            signal.raise_signal(signal.SIGTERM)


def test_a_resumed_training_follows_its_own_settings_and_folder(tmp_path):
    (tmp_path / "checkpoints/checkpoint-3").mkdir(parents=True)
    arguments = training_arguments(TrainingSettings(logging_steps=7), tmp_path)
    state = TrainerState(max_steps=9, logging_steps=2, best_global_step=3, best_model_checkpoint="/old/checkpoint-3")
    _Successor().on_train_begin(arguments, state, TrainerControl())
    assert state.logging_steps == 7
    assert state.best_model_checkpoint == str(tmp_path / "checkpoints/checkpoint-3")
