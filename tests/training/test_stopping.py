"""A stopped run resumes as if it had never been stopped."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.model import load_model
from helpers.paths import NOTEBOOKS
from helpers.training import engine, guards
from helpers.training.fine_tuning import fine_tune
from helpers.training.finished_run import open_run
from helpers.training.run_files import last_complete_checkpoint, read_history, step_of
from helpers.training.stopping import TrainingStoppedError, interrupt_event
from tests.training.saved_weights import same_weights, weights


@pytest.fixture(scope="module")
def settings(tiny_settings):
    """Return settings that save a checkpoint only at the end of training."""
    changes = {"num_train_epochs": 20.0, "save_steps": 1000, "logging_steps": 2, "eval_steps": 20, "sample_prompt": ""}
    return tiny_settings.model_copy(update=changes)


@pytest.fixture(scope="module")
def unbroken_folder(settings, tmp_path_factory):
    """Return the folder of an uninterrupted run with these settings."""
    runs = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(runs))
        return fine_tune(settings.model_copy(update={"run": "unbroken"})).folder


def ends_as_if_never_stopped(settings, unbroken_folder):
    """Finish a stopped run and return whether its weights and validation losses match an uninterrupted run."""
    resumed = fine_tune(settings)
    shutil.copytree(unbroken_folder, resumed.folder.with_name("unbroken"))
    unbroken = open_run("unbroken")
    validations = [[row for row in run.history if "eval_loss" in row] for run in (resumed, unbroken)]
    one, other = (weights(run.model_folder) for run in (resumed, unbroken))
    return same_weights(one, other) and validations[0] == validations[1]


def stopped_at(settings, runs):
    return step_of(last_complete_checkpoint(runs / settings.run / "checkpoints"))


class StopAtStep:
    """A watcher that requests a stop once training has reached a step."""

    def __init__(self, step):
        self.step, self.stop = step, threading.Event()

    def __call__(self, history, progress):
        if progress.step >= self.step:
            self.stop.set()


def test_a_stop_saves_at_the_next_step_and_the_same_call_resumes_to_the_same_weights(settings, unbroken_folder, runs):
    for step in (5, 9):
        watcher = StopAtStep(step)
        with pytest.raises(TrainingStoppedError, match=rf"Stopped after step {step + 2} of \d+; a checkpoint is kept"):
            fine_tune(settings, watch=watcher, stop=watcher.stop)
        assert stopped_at(settings, runs) == step + 2, "rows are written at even steps, and the stop is one later"
    assert read_history(runs / "tiny")[-1]["step"] == 11, "the losses since the last row are logged"
    assert ends_as_if_never_stopped(settings, unbroken_folder)


def test_a_stop_at_the_last_step_changes_nothing(tiny_settings):
    watcher = StopAtStep(10**9)
    last = fine_tune(tiny_settings.model_copy(update={"run": "unbroken"})).facts["steps"]
    watcher.step = last
    assert fine_tune(tiny_settings, watch=watcher, stop=watcher.stop).facts["steps"] == last


def test_a_stop_needs_space_for_a_checkpoint_but_not_for_a_model(tiny_settings, tiny_model, monkeypatch):
    n_bytes = 13 * load_model(str(tiny_model)).num_parameters()
    monkeypatch.setattr(guards, "free_bytes", lambda folder: n_bytes)
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainingStoppedError, match="Stopped after step 1 of"):
        fine_tune(tiny_settings, stop=stop)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), KeyboardInterrupt),
        (guards.TrainingBrokenError("The loss is nan"), guards.TrainingBrokenError),
    ],
    ids=["out of memory", "broken"],
)
def test_an_interrupt_survives_running_out_of_memory_and_does_not_hide_a_broken_run(
    tiny_settings, monkeypatch, error, raised
):
    def fail(*_, **__):
        signal.raise_signal(signal.SIGINT)
        raise error

    monkeypatch.setattr(engine, "chunked_loss", fail)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    try:
        with pytest.raises(raised):
            fine_tune(tiny_settings)
    finally:
        signal.signal(signal.SIGINT, before)


def train_in_a_process(settings, runs):
    values = [part for name, value in settings.model_dump().items() for part in ("-p", name, str(value))]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "helpers", "train", *values],
        cwd=NOTEBOOKS.parent,
        env={**os.environ, "COURSE_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background process ignores it
    )


def wait_for_history(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_saves_with_a_message_and_the_same_command_continues(settings, unbroken_folder, runs):
    child = train_in_a_process(settings, runs)
    wait_for_history(runs / "tiny/history.jsonl")
    child.send_signal(signal.SIGINT)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Interrupted: completed work is kept; repeat the command to continue." in message
    assert "Traceback" not in message
    assert 0 < stopped_at(settings, runs) < 20 * 6
    assert ends_as_if_never_stopped(settings, unbroken_folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_interrupting_the_kernel_saves_and_the_same_cell_continues(settings, unbroken_folder, runs):
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
    assert ends_as_if_never_stopped(settings, unbroken_folder)


def error_of(client):
    """Return the name of the error that ends the running cell."""
    while True:
        try:
            message = client.get_iopub_msg(timeout=60)
        except queue.Empty:
            return None
        if message["msg_type"] == "error":
            return message["content"]["ename"]


def test_a_second_interrupt_stops_at_once():
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupt_event() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_thread_leaves_interrupts_to_the_main_thread():
    seen = []

    def look():
        with interrupt_event() as interrupted:
            seen.append((interrupted.is_set(), signal.getsignal(signal.SIGINT)))

    previous = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, previous)]


class SigtermError(Exception):
    pass


@pytest.fixture
def sigterm_raises():
    """Make SIGTERM raise an exception instead of ending this process."""

    def raise_error(*_):
        raise SigtermError

    previous = signal.signal(signal.SIGTERM, raise_error)
    yield
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_saves_before_it_ends_the_process(sigterm_raises, settings, runs):
    def send(history, progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SigtermError):
        fine_tune(settings, watch=send)
    assert stopped_at(settings, runs) == 5


def test_a_second_sigterm_stops_at_once(sigterm_raises):
    with interrupt_event() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.number == signal.SIGTERM
        with pytest.raises(SigtermError):
            signal.raise_signal(signal.SIGTERM)
