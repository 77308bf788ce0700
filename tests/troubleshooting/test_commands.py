"""`explain` in a terminal and in a notebook."""

import io
import sys
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers.troubleshooting import Explanation, commands, explain
from tests.command_line import call


def test_the_command_reads_a_file_and_standard_input(tmp_path):
    log = tmp_path / "train.log"
    log.write_bytes(b"step 3: loss nan \xff\n")
    known = call("explain", str(log))
    assert (known.exit_code, "T6" in known.output) == (0, True)
    piped = call("explain", "-", input="all is well")
    assert (piped.exit_code, "nothing to judge" in piped.output) == (1, True)
    missing = call("explain", "KeyError: 'text'")
    assert (missing.exit_code, "to paste an error instead, leave out LOG" in missing.output) == (2, True)
    mistyped = call("explain", str(log).replace("train", "trian"))
    assert (mistyped.exit_code, f"did you mean '{log.as_posix()}'?" in " ".join(mistyped.output.split())) == (2, True)
    report = call("explain", "--report", str(log))
    assert (report.exit_code, "### Versions" in report.output) == (0, True)


def test_in_a_terminal_it_says_that_it_waits_for_input(monkeypatch):
    monkeypatch.setattr(commands, "sys", SimpleNamespace(stdin=Terminal(b"loss nan at step 3"), exit=sys.exit))
    result = call("explain")
    assert "Paste the error, then press Enter and Ctrl-D" in result.stderr
    assert "T6" in result.stdout


class Terminal:
    def __init__(self, typed):
        self.buffer = io.BytesIO(typed)

    def isatty(self):
        return True


class TestMagic:
    @pytest.fixture
    def shell(self, monkeypatch):
        for name in ("last_exc", "last_value"):
            monkeypatch.delattr(sys, name, raising=False)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        shell = InteractiveShell()
        shell.run_cell("%load_ext helpers.troubleshooting")
        return shell

    def test_it_explains_the_last_error(self, shell):
        shell.run_cell("import torch; torch.nn.Embedding(2, 2)(torch.tensor([5]))")
        result = shell.run_cell("%explain").result
        assert isinstance(result, Explanation)
        assert result.causes[0].id == "T12"

    def test_it_explains_a_named_exception(self, shell):
        shell.run_cell("try:\n    import torch; torch.zeros(1).cuda()\nexcept Exception as e:\n    kept = e")
        assert shell.run_cell("%explain kept").result.causes[0].id in ("E1", "E27")  # a CPU or a CUDA wheel

    def test_it_explains_text_pasted_into_a_cell(self, shell):
        assert shell.run_cell("%%explain\niter 3010: loss nan, time 1019.95ms").result.causes[0].id == "T6"

    def test_without_an_error_it_says_so(self, shell):
        assert shell.run_cell("%explain").result.headline == "No error has happened in this session yet."

    def test_a_model_kept_alive_by_the_output_history_is_named(self, shell, monkeypatch):
        import torch

        monkeypatch.setattr(sys.modules["__main__"], "Out", {3: torch.nn.Linear(1, 1)}, raising=False)
        results = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        assert [cause.id for cause in results.causes] == ["T1", "T4"]
        assert results.causes[1].evidence == ("keeps alive: Out[3], a Linear",)
