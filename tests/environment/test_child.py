"""Child processes that misbehave in every way; each is a real process."""

import os
import re
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from helpers.environment import child
from helpers.environment.child import Answer, ask

PATIENT = 20.0  # seconds; a machine under load starts a Python slowly
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and process groups")


def run_child(source, timeout_seconds=PATIENT):
    return ask(textwrap.dedent(source), timeout_seconds=timeout_seconds)


def is_alive(pid):
    """Return whether a process still runs; one that ended but is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends_soon(pid):
    """Wait for a process to end after a signal; return whether it did."""
    end = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


def test_the_reports_of_a_child_are_merged():
    assert run_child("report(a=1)\nreport(b=[2, None], a=3)") == Answer("ok", {"a": 3, "b": [2, None]}, "")


def test_a_child_gets_the_current_environment_variables(monkeypatch):
    source = "import os\nreport(seen=os.environ.get('DOCTOR_TEST'))"
    assert run_child(source).value == {"seen": None}
    monkeypatch.setenv("DOCTOR_TEST", "given")
    assert run_child(source).value == {"seen": "given"}


def test_warnings_and_other_output_are_ignored():
    answer = run_child(
        """
        import sys, warnings
        warnings.warn("old, old, old")
        print("library: loading ...")
        print('{"a": 0}')
        sys.stdout.write("no line end yet ")
        report(a=1)
        """
    )
    assert answer == Answer("ok", {"a": 1})


def test_ten_megabytes_of_other_output_do_not_block():
    source = "import sys\nsys.stderr.write('x' * 10_000_000)\nsys.stdout.write('y' * 10_000_000 + '\\n')\nreport(a=1)"
    assert run_child(source) == Answer("ok", {"a": 1})


@posix
def test_a_hanging_child_is_killed_at_the_time_limit_and_its_report_is_kept():
    start = time.monotonic()
    answer = run_child("import os, time\nreport(pid=os.getpid(), driver='580.1')\ntime.sleep(600)", timeout_seconds=1.5)
    assert (answer.state, answer.value["driver"]) == ("hung", "580.1")
    assert answer.cause == "no answer within 1.5 s"
    assert time.monotonic() - start < 60  # not the 600 s that it sleeps
    assert not is_alive(answer.value["pid"])


@posix
def test_a_child_that_ignores_signals_is_killed_with_its_own_children():
    answer = run_child(
        """
        import os, signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        report(pids=[os.getpid(), child.pid])
        time.sleep(600)
        """,
        timeout_seconds=1.5,
    )
    assert answer.state == "hung"
    assert all(ends_soon(pid) for pid in answer.value["pids"])


@posix
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_a_crash_is_named_and_the_report_before_it_is_kept(name):
    answer = run_child(f"import os, signal\nreport(a=1)\nos.kill(os.getpid(), signal.{name})")
    assert answer == Answer("crashed", {"a": 1}, f"ended by {name}")


def test_an_exception_is_reported_by_its_last_line_only():
    assert run_child("report(a=1)\nraise OSError('c10.dll is\\n missing')") == Answer(
        "crashed", {"a": 1}, "exit code 1 ( missing)"
    )
    assert run_child("raise SystemExit(3)") == Answer("crashed", {}, "exit code 3")


def test_a_crash_on_windows_is_reported_with_its_code():
    assert child._describe_exit(0xC0000005, b"") == "exit code 0xc0000005"


def test_a_signal_without_a_name_is_reported_by_its_number():
    assert child._describe_exit(-250, b"") == "ended by 250"


@pytest.mark.parametrize(
    "source",
    ["pass", "print('banana')", "print('@@doctor [1, 2]')", "print('@@doctor banana')", "print('@@doctor')"],
)
def test_invalid_output_is_nonsense(source):
    answer = run_child(source)
    assert (answer.state, answer.value) == ("nonsense", {})
    assert "cannot be read" in answer.cause


def test_incomplete_lines_and_invalid_bytes_are_skipped():
    answer = run_child(
        r"""
        import sys
        report(a=1)
        sys.stdout.buffer.write(b"@@doctor {\"a\": \xff\xfe\n@@doctor {\"b\": 2, \"c")
        """
    )
    assert answer == Answer("ok", {"a": 1})


def test_a_python_that_cannot_start_still_gives_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    answer = ask("pass", timeout_seconds=PATIENT)
    assert answer.state == "crashed"
    assert answer.cause.startswith("no child process could be started")


@posix
def test_ctrl_c_ends_the_child_too(tmp_path, request):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background test run ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    pid = tmp_path / "pid"
    source = (
        f"import os, pathlib, time\np = pathlib.Path({str(pid)!r})\n(p.parent / 'new').write_text(str(os.getpid()))\n"
        "(p.parent / 'new').rename(p)\ntime.sleep(600)"
    )

    def press():
        while not pid.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ask(source, timeout_seconds=PATIENT)
    assert ends_soon(int(pid.read_text()))


def test_the_time_limit_is_shown_in_seconds():
    assert re.fullmatch(
        r"no answer within 0\.2 s", run_child("import time\ntime.sleep(600)", timeout_seconds=0.2).cause
    )
