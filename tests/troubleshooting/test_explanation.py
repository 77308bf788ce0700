"""`explain` on errors that really happen, on messages of other machines, and on what is no known failure."""

import io
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from IPython.core.interactiveshell import InteractiveShell

from helpers.__main__ import main
from helpers.environment import read_machine
from helpers.environment.facts import Platform
from helpers.troubleshooting import Explanation, explain
from helpers.troubleshooting.explanation import SIGNS
from tests.troubleshooting import explain_cases

WINDOWS = sys.platform == "win32"


def answer(thing):
    """Return the id of the likeliest cause, or None."""
    causes = explain(thing).causes
    return causes[0].id if causes else None


def the_rows_of_the_reference():
    return {f"E{n}" for n in range(1, 25)} | {f"D{n}" for n in range(1, 30)} | {f"T{n}" for n in range(1, 27)}


def test_every_row_of_the_reference_is_known_and_tried():
    assert {sign.id for sign in SIGNS} == the_rows_of_the_reference()
    assert len(SIGNS) == len(the_rows_of_the_reference())
    tried = {row for row, _ in explain_cases.REAL} | {row for row, _ in explain_cases.WRITTEN}
    assert the_rows_of_the_reference() - tried == {"E15"}  # it only ever stands beside an out-of-memory


@pytest.mark.parametrize(("row", "text"), explain_cases.WRITTEN, ids=lambda value: value[:30].strip())
def test_a_message_of_another_machine_is_recognised(row, text):
    assert answer(text) == row


@pytest.mark.parametrize("text", explain_cases.HEALTHY, ids=lambda text: text[:30].strip())
def test_what_is_healthy_has_no_cause(text):
    assert explain(text).causes == ()


def answers(makers, tmp_path):
    """Yield what each function really made happen, and the answer to it."""
    for number, make in enumerate(makers):
        (folder := tmp_path / str(number)).mkdir()
        thing = explain_cases.raised(make, folder)
        yield thing, answer(thing)


@pytest.mark.skipif(WINDOWS, reason="some of them need Linux' limits on a process")
def test_the_count_of_right_wrong_and_abstained(tmp_path):
    """Print and assert the count: what really happens here, and what is printed elsewhere."""
    rows = [row for row, _ in explain_cases.REAL]
    found = list(zip(rows, answers([make for _, make in explain_cases.REAL], tmp_path), strict=True))
    pairs = [(row, got) for row, (_, got) in found] + [(row, answer(text)) for row, text in explain_cases.WRITTEN]
    count = {
        "right": sum(got == row for row, got in pairs),
        "wrong": sum(got not in (row, None) for row, got in pairs),
        "abstained": sum(got is None for _, got in pairs),
    }
    print(f"\nknown failures: {count}, {len(rows)} of them made to happen")
    assert [(row, got, thing) for row, (thing, got) in found if got != row] == []
    assert (count["wrong"], count["abstained"]) == (0, 0)
    assert count["right"] >= 60


def test_no_ordinary_error_is_diagnosed_as_what_it_is_not(tmp_path):
    found = list(answers(explain_cases.ORDINARY, tmp_path))
    alarms = [(repr(thing), got) for thing, got in found if got]
    n_healthy = len(explain_cases.HEALTHY)
    print(f"\nordinary errors: {len(found)}, healthy logs and texts: {n_healthy}, false alarms: {len(alarms)}")
    assert all(isinstance(thing, BaseException) for thing, _ in found)
    assert alarms == []
    assert len(found) + n_healthy >= 40


def test_the_evidence_is_quoted_from_what_was_given():
    cause = explain("Traceback (most recent call last):\nRuntimeError: The loss is nan at step 7").causes[0]
    assert cause.evidence == ("RuntimeError: The loss is nan at step 7",)
    assert cause.certainty == "the error says so"


def test_numbers_are_evidence_too():
    rows = [{"loss": 0.0, "grad_norm": math.nan, "step": n} for n in range(3)]
    assert explain(rows).causes[0].evidence == ("grad_norm is nan in row 1, beside a logged loss of 0",)


def test_an_out_of_memory_is_read_to_the_byte():
    ids = [cause.id for cause in explain(explain_cases.oom(total=7.99, mine=3.0)).causes]
    assert ids == ["E12", "T1", "E15"]
    told = explain(explain_cases.oom(total=7.99, mine=3.0)).causes
    assert told[0].evidence == ("other programs hold 5.0 of 8.0 GiB",)
    assert "8.0 GiB" in told[2].evidence[0]


def test_in_a_container_pytorch_names_itself_and_no_other_is_blamed():
    text = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 496.00 MiB. GPU 0 has a total capacty of "
        "14.75 GiB of which 235.06 MiB is free. Process 20398 has 14.52 GiB memory in use. Of the allocated "
        "memory 14.06 GiB is allocated by PyTorch, and 330.42 MiB is reserved by PyTorch but unallocated."
    )
    assert [cause.id for cause in explain(text).causes] == ["T1"]


def test_the_older_message_tells_fragmentation_as_well():
    text = (
        "RuntimeError: CUDA out of memory. Tried to allocate 1.65 GiB (GPU 1; 15.79 GiB total capacity; 3.53 GiB "
        "already allocated; 1.40 GiB free; 12.28 GiB reserved in total by PyTorch)"
    )
    assert [cause.id for cause in explain(text).causes] == ["T2", "T1"]


def test_the_cause_of_a_cause_is_read(tmp_path):
    with pytest.raises(ValueError, match="not read") as caught:
        try:
            explain_cases.d1_auto(tmp_path)
        except ValueError as error:
            raise ValueError("the corpus was not read") from error
    assert answer(caught.value) == "D1"


def test_suspicious_code_beside_another_error_is_not_blamed():
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n'
        "    tokenizer.pad_token = tokenizer.eos_token\n"
        "NameError: name 'tokenizer' is not defined"
    )
    assert explain(text).causes == ()


def test_a_harmless_warning_beside_an_error_is_only_noted():
    text = "`trust_remote_code` is not supported anymore.\nTraceback (most recent call last):\nKeyError: 'text'"
    explanation = explain(text)
    assert explanation.causes == ()
    assert [one.id for one in explanation.noticed] == ["D4"]


def test_an_unknown_error_is_answered_with_what_was_ruled_out_and_your_own_line():
    text = (
        f'Traceback (most recent call last):\n  File "mine.py", line 7, in <module>\n    f()\n'
        f'  File "{explain_cases.HOME}/torch/x.py", line 2, in f\n    raise KeyError\nKeyError: 3\n'
    )
    explanation = explain(text)
    assert explanation.where == "mine.py, line 7"
    assert len(explanation.ruled_out) == 7
    assert "Your own line: mine.py, line 7" in str(explanation)


def test_healthy_rows_are_told_what_they_do_not_show():
    assert len(explain(explain_cases.rows_of(explain_cases.FALLING)).ruled_out) == 5
    assert explain("").verdict == "There is nothing to judge: no error, no log rows."


def test_the_fix_is_the_one_for_the_machine():
    machine = read_machine(quick=True)
    on = {
        kind: explain("RuntimeError: No CUDA GPUs are available", machine=replace(machine, platform=Platform(kind)))
        for kind in ("Linux", "Windows")
    }
    assert "unset CUDA_VISIBLE_DEVICES" in on["Linux"].causes[0].fix
    assert "Remove-Item Env:CUDA_VISIBLE_DEVICES" in on["Windows"].causes[0].fix


def test_every_fix_can_be_written_for_every_platform():
    machine = read_machine(quick=True)
    for kind in ("Linux", "Windows", "WSL2", "WSL1", "macOS"):
        for sign in SIGNS:
            assert sign.fix_on(replace(machine, platform=Platform(kind))).strip(), sign.id


def test_html_is_escaped():
    text = "Traceback (most recent call last):\nRuntimeError: The loss is nan <script>alert(1)</script>"
    shown = explain(text)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_terminal_is_given_no_control_characters():
    shown = str(explain("\x1b[31mRuntimeError\x1b[0m: The loss is nan \x07\x1b]0;title\x07\rdone"))
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "T6" in shown


def test_a_wrong_argument_is_one_sentence():
    with pytest.raises(TypeError, match="was given int: give it an exception"):
        explain(3)


def test_loading_it_imports_no_torch_and_a_broken_torch_does_not_hinder_it():
    source = (
        "import sys; sys.modules['torch'] = None\n"
        "from helpers.troubleshooting import explain\n"
        "print(explain('AssertionError: Torch not compiled with CUDA enabled').causes[0].id, 'pydantic' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert child.stdout == "E1 False\n"


def test_the_command_reads_a_file_and_standard_input(tmp_path):
    log = tmp_path / "train.log"
    log.write_bytes(b"step 3: loss nan \xff\n")
    known = CliRunner().invoke(main, ["explain", str(log)])
    assert (known.exit_code, "T6" in known.output) == (0, True)
    piped = CliRunner().invoke(main, ["explain", "-"], input="all is well")
    assert (piped.exit_code, "nothing to judge" in piped.output) == (1, True)
    assert CliRunner().invoke(main, ["explain", "none.log"]).exit_code == 2


def test_a_log_of_a_hundred_thousand_lines_is_read():
    bar = "\r".join(f" {n}/100000 [00:01<00:01, 900.00it/s]" for n in range(100_000))
    assert explain(bar + "\nstep: loss nan").causes[0].id == "T6"


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

    def test_it_explains_a_name(self, shell):
        shell.run_cell("try:\n    import torch; torch.zeros(1).cuda()\nexcept AssertionError as e:\n    kept = e")
        assert shell.run_cell("%explain kept").result.causes[0].id == "E1"

    def test_a_cell_of_pasted_text_is_explained(self, shell):
        assert shell.run_cell("%%explain\niter 3010: loss nan, time 1019.95ms").result.causes[0].id == "T6"

    def test_without_an_error_it_says_so(self, shell):
        assert shell.run_cell("%explain").result.headline == "No error has happened in this session yet."

    def test_a_model_that_the_output_history_keeps_is_named(self, shell, monkeypatch):
        import torch

        monkeypatch.setattr(sys.modules["__main__"], "Out", {3: torch.nn.Linear(1, 1)}, raising=False)
        found = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        assert [cause.id for cause in found.causes] == ["T1", "T4"]
        assert found.causes[1].evidence == ("keeps alive: Out[3], a Linear",)
