import subprocess
import sys

import pytest

from helpers.troubleshooting import run_in_child


def test_a_child_tells_what_it_printed():
    child = run_in_child("print(torch.ones(2).sum().item())")
    assert (child.returncode, child.last_line) == (0, "2.0")


def test_a_childs_error_is_its_last_line():
    child = run_in_child("raise ValueError('broken')")
    assert (child.returncode, child.last_line) == (1, "ValueError: broken")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a process's address space to set")
def test_memory_really_runs_out_under_the_cap_and_not_without():
    source = "x = torch.zeros(2**28)\nprint('passed')"  # 1 GiB
    assert "can't allocate memory" in run_in_child(source, extra_bytes=2**28).last_line
    assert run_in_child(source, extra_bytes=2**31).last_line == "passed"


def test_setup_runs_before_the_cap():
    child = run_in_child("print(len(x))", setup="x = torch.zeros(2**27)", extra_bytes=2**26)
    assert child.last_line == str(2**27)


def test_a_child_that_hangs_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        run_in_child("import time; time.sleep(60)", timeout_seconds=5)
