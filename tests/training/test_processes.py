import threading
import time

import pytest
from filelock import FileLock

from helpers.training.processes import (
    broadcast_from_first,
    is_first_process,
    leave_process_group,
    n_processes,
    run_lock,
)


def test_a_single_process_is_the_first_and_keeps_its_own_value():
    assert (n_processes(), is_first_process()) == (1, True)
    assert (broadcast_from_first(True), broadcast_from_first(False)) == (True, False)
    leave_process_group()


def test_a_second_process_that_trains_a_run_warns_and_waits(tmp_path):
    acquired, is_over = threading.Event(), threading.Event()

    def work():
        with FileLock(tmp_path / ".train.lock"):
            acquired.set()
            time.sleep(0.3)
            is_over.set()

    threading.Thread(target=work).start()
    acquired.wait()
    with pytest.warns(UserWarning, match=f"is working on run '{tmp_path.name}': waiting"), run_lock(tmp_path):
        assert is_over.is_set()


def test_a_cell_that_waits_for_the_panel_says_how_to_stop_it(tmp_path):
    acquired, is_over = threading.Event(), threading.Event()

    def train_in_panel():
        with run_lock(tmp_path):
            acquired.set()
            time.sleep(0.3)
            is_over.set()

    threading.Thread(target=train_in_panel).start()
    acquired.wait()
    with (
        pytest.warns(UserWarning, match=f"This kernel is working on run '{tmp_path.name}': .* press Stop"),
        run_lock(tmp_path),
    ):
        assert is_over.is_set()


def test_other_processes_share_the_lock_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with FileLock(tmp_path / ".train.lock"), run_lock(tmp_path):
        assert not is_first_process()
