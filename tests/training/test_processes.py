import threading
import time

import pytest
from filelock import FileLock

from helpers.training.processes import agreed, alone_in, is_first, n_processes, part


def test_a_process_by_itself_is_the_first_and_agrees_with_itself():
    assert (n_processes(), is_first(), agreed(True), agreed(False)) == (1, True, True, False)
    part()


def test_who_finds_a_run_taken_says_so_and_waits(tmp_path):
    taken, is_over = threading.Event(), threading.Event()

    def work():
        with FileLock(tmp_path / ".train.lock"):
            taken.set()
            time.sleep(0.3)
            is_over.set()

    threading.Thread(target=work).start()
    taken.wait()
    with pytest.warns(UserWarning, match=f"works at run '{tmp_path.name}': waiting"), alone_in(tmp_path):
        assert is_over.is_set()


def test_further_processes_share_the_lock_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with FileLock(tmp_path / ".train.lock"), alone_in(tmp_path):
        assert not is_first()
