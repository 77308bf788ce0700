"""The laboratory: child processes with limits, kernels that end, tables that escape what they show."""

import subprocess
import sys

import pytest

from helpers.troubleshooting import run_in_child, show_fix
from helpers.troubleshooting.lab import ChildResult, Table

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's memory or files")


SETUP = "x = torch.zeros(2**27)"  # half of one GiB, which the lower limit alone would not allow
SOURCE = "print(len(x))\ny = torch.zeros(2**28)\nprint('passed')\nraise ValueError('broken')"  # 1 GiB


def test_a_child_returns_what_it_printed_and_its_error_last():
    child = run_in_child(SOURCE, setup=SETUP, extra_bytes=2**31)
    assert child.output.startswith(f"{2**27}\npassed\n")
    assert (child.returncode, child.last_line) == (1, "ValueError: broken")


@pytest.mark.parametrize("ending", ["Killed", "RuntimeError: no such thing"])
def test_the_last_line_is_whatever_ended_the_child(ending):
    assert ChildResult(1, f"a line\n{ending}\n").last_line == ending
    assert ChildResult(1, "").last_line == ""


@needs_limits
def test_memory_really_runs_out_under_the_limit_which_counts_from_the_setup_on():
    limited = run_in_child(SOURCE, setup=SETUP, extra_bytes=2**28)
    assert limited.output.startswith(f"{2**27}\n")
    assert "can't allocate memory" in limited.last_line


def test_a_child_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("helpers.troubleshooting.lab._CHILD_SECONDS", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        run_in_child("import time; time.sleep(60)")


def test_cells_return_what_they_show_print_and_raise_without_the_grammar_that_takes_seconds():
    source = (
        "import sys; from helpers.troubleshooting import run_cells\n"
        """print(run_cells(["print('a')", "1 + 1", "1 / 0"]), 'rfc3987_syntax' in sys.modules)"""
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert child.stdout == "['a\\n', '2', 'ZeroDivisionError: division by zero'] False\n", child.stderr


def test_a_table_is_shown_escaped():
    shown = Table([{"<b>": "<i>"}])._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<i>" not in shown


def test_broken_and_fixed_values_are_shown_escaped_short_and_in_four_digits():
    shown = show_fix({"<b>x</b>": ("<script>", [0.123456, None]), "long": ("a" * 500, "\x1b[31mred")})._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "0.1235, " in shown
    assert "a" * 161 not in shown
    assert "\x1b" not in shown
