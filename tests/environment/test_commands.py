"""`python -m helpers doctor` and `monitor`: exit codes, the shape of the JSON, colours, what a terminal shows."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from helpers.display import GIB
from helpers.environment import commands
from helpers.environment.diagnosis import RULES
from helpers.environment.facts import GpuReading, Holder
from helpers.environment.live import Sample
from helpers.paths import COMMAND, ROOT
from tests.command_line import call
from tests.environment.baselines import EVIL

needs_terminal = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pseudo-terminal")


def run(*arguments, **env):
    command, env = [sys.executable, "-m", "helpers", *arguments], {"PYTHONIOENCODING": "utf-8", **env}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, timeout=100, check=False)
    done.stdout, done.stderr = (out.decode(env["PYTHONIOENCODING"]) for out in (done.stdout, done.stderr))
    return done


def in_terminal(*arguments, readings=0, **env):
    """Run in a pseudo-terminal, with Ctrl-C after so many readings, if any; return the exit code and the output."""
    import pty

    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "helpers", *arguments],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **env},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background test run ignores it
    )
    os.close(theirs)
    given, ends = b"", time.monotonic() + 120
    try:
        while select.select([ours], [], [], max(0, ends - time.monotonic()))[0]:
            chunk = os.read(ours, 65536)
            if not chunk:
                break
            given += chunk
            if readings and given.count(b"memory") >= readings:
                child.send_signal(signal.SIGINT)
                readings = 0
    except OSError:  # how Linux reports that the other end is closed
        pass
    finally:
        os.close(ours)
        if time.monotonic() > ends:
            child.kill()
    return child.wait(timeout=30), given.decode("utf-8")


class TestDoctor:
    @pytest.mark.parametrize(("name", "exit_code"), [("plain", 0), ("broken", 1)])
    def test_the_exit_code_comes_from_the_diagnosis(self, diagnoses, monkeypatch, name, exit_code):
        monkeypatch.setattr("helpers.environment.__main__.diagnose", lambda **_: diagnoses[name])
        for arguments in (["doctor"], ["doctor", "--json"], ["doctor", "--quick"]):
            result = call(*arguments)
            assert result.exit_code == diagnoses[name].exit_code == exit_code
            assert diagnoses[name].verdict in result.output

    def test_it_accepts_the_options_of_the_bare_doctor(self):
        help_text = call("doctor", "--help").output
        assert f"{COMMAND} doctor" in help_text
        assert "--wheel" in help_text
        assert json.loads(call("doctor", "--wheel", "--json").output)["pip_args"].startswith("torch")
        assert call("doctor", "--banana").exit_code == 2

    def test_control_characters_in_a_process_name_do_not_reach_the_terminal(self, diagnoses, monkeypatch):
        monkeypatch.setattr("helpers.environment.__main__.diagnose", lambda **_: diagnoses["card"])
        shown = call("doctor").output
        assert "good" in shown
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[\d;]*m", "", shown))

    def test_output_to_a_pipe_has_no_colours(self):
        result = run("doctor", "--quick")
        assert (result.returncode, result.stderr) == (int("Not ready" in result.stdout), "")
        assert "\x1b" not in result.stdout
        assert len(re.findall(r"^[✓!✗?] (?:ok|warn|fail|unknown) ", result.stdout, re.MULTILINE)) == len(RULES)

    def test_json_output_contains_every_check(self):
        result = call("doctor", "--json", "--quick")
        document = json.loads(result.output)
        assert document["quick"] is True
        assert len(document["checks"]) == len(RULES)
        assert result.exit_code == document["exit_code"]

    @needs_terminal
    def test_a_terminal_gets_colours(self):
        exit_code, shown = in_terminal("doctor", "--quick", NO_COLOR="")  # empty counts as not set
        assert exit_code in (0, 1)
        assert "\x1b[34m✓ ok" in shown


class TestMonitor:
    @pytest.fixture
    def evil(self, monkeypatch):
        gpu = GpuReading(0, "card" + EVIL, "", 2 * GIB, GIB, holders=(Holder(17, EVIL),))
        sampled = Sample(0.0, "gpu", gpu)
        monkeypatch.setattr(commands, "sample", lambda **_: sampled)

    @pytest.mark.parametrize("arguments", [["--once"], []])
    def test_without_a_terminal_it_reads_once(self, evil, arguments):
        result = call("monitor", *arguments)
        assert result.exit_code == 0
        assert result.output.count("memory") == 1

    def test_control_characters_in_a_process_name_do_not_reach_the_terminal(self, evil):
        shown = call("monitor", "--once", color=True).output
        assert "good" in shown
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)

    def test_once_works_in_an_encoding_without_the_bar_characters(self):
        result = run("monitor", "--once", PYTHONIOENCODING="cp1252")
        assert (result.returncode, result.stderr) == (0, "")
        assert "GiB" in result.stdout

    @needs_terminal
    def test_in_a_terminal_it_runs_until_ctrl_c_without_a_traceback(self):
        exit_code, shown = in_terminal("monitor", readings=3)
        assert (exit_code, shown.count("memory") >= 3) == (0, True)
        assert "Traceback" not in shown
