"""`explain` on errors that really happen, on messages from other machines, and on text without a known failure."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.environment import read_machine
from helpers.environment.facts import Platform
from helpers.troubleshooting import explain, explanation
from helpers.troubleshooting.known_failures import read_failures
from tests.troubleshooting import explain_cases

WINDOWS = sys.platform == "win32"


@pytest.fixture(scope="module")
def machine():
    return read_machine(quick=True)


def answer(thing):
    """Return the id of the most likely cause, or None."""
    causes = explain(thing).causes
    return causes[0].id if causes else None


def wrong_answers(pairs):
    """Return the wrongly explained rows of a table; one test of a whole table is faster than a test per row."""
    return [(row, got, text[:200]) for row, text in pairs if (got := answer(text)) != row]


def test_messages_of_several_versions_and_systems_are_recognised():
    assert wrong_answers(explain_cases.WRITTEN) == []


def test_another_small_process_is_not_blamed_for_a_full_card():
    assert answer(explain_cases.oom(other="Process 4711 has 256.00 MiB memory in use. ", own=11.2)) == "T1"
    text = explain_cases.oom(tried=9000, other="Process 4711 has 3.00 GiB memory in use. ", own=8.9)
    assert "E13" not in [one.id for one in explain(text).causes]


def test_removing_the_driver_is_not_suggested_outside_wsl2(machine):
    for failure in read_failures().values():
        for kind in ("Linux", "Windows", "macOS"):
            assert "purge" not in failure.fix_on(replace(machine, platform=Platform(kind)))


def test_healthy_logs_have_no_cause():
    assert wrong_answers((None, text) for text in explain_cases.HEALTHY) == []


def answers(makers, tmp_path):
    """Yield the error that each function really causes, and the answer to it."""
    for number, make in enumerate(makers):
        (folder := tmp_path / str(number)).mkdir()
        thing = explain_cases.raised(make, folder)
        yield thing, answer(thing)


@pytest.mark.skipif(WINDOWS, reason="some of them need POSIX limits on a process")
def test_errors_that_really_happen_are_explained_correctly(tmp_path):
    """Print and check the counts for errors that really happen here."""
    rows = [row for row, _ in explain_cases.REAL]
    result = list(zip(rows, answers([make for _, make in explain_cases.REAL], tmp_path), strict=True))
    pairs = [(row, got) for row, (_, got) in result]
    count = {
        "right": sum(got == row for row, got in pairs),
        "wrong": sum(got not in (row, None) for row, got in pairs),
        "abstained": sum(got is None for _, got in pairs),
    }
    print(f"\nknown failures: {count}, {len(rows)} of them made to happen")
    assert [(row, got, thing) for row, (thing, got) in result if got != row] == []
    assert (count["wrong"], count["abstained"]) == (0, 0)
    assert count["right"] >= 60


def test_ordinary_errors_raise_no_false_alarm(tmp_path):
    result = list(answers(explain_cases.ORDINARY, tmp_path))
    alarms = [(repr(thing), got) for thing, got in result if got]
    n_healthy = len(explain_cases.HEALTHY)
    print(f"\nordinary errors: {len(result)}, healthy logs and texts: {n_healthy}, false alarms: {len(alarms)}")
    assert all(isinstance(thing, BaseException) for thing, _ in result)
    assert alarms == []
    assert len(result) + n_healthy >= 40


def test_the_evidence_is_quoted_from_the_input():
    explanation = explain("Traceback (most recent call last):\nRuntimeError: The loss is nan at step 7")
    cause = explanation.causes[0]
    assert cause.evidence == ("RuntimeError: The loss is nan at step 7",)
    assert cause.certainty == "the error says so"
    assert "\nseen: RuntimeError: The loss is nan at step 7\n" in str(explanation)
    assert f"\nwhat to do: {cause.fix}" in str(explanation)


def test_a_line_matched_by_two_patterns_is_quoted_once_and_completely():
    refused = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    text = f"RuntimeError: {refused} allocate 67108864 bytes. Error code 12 (Cannot allocate memory)"
    assert explain(text).causes[0].evidence == (text,)


def test_the_cause_of_a_chained_exception_is_read(tmp_path):
    with pytest.raises(ValueError, match="not read") as caught:
        raise ValueError("the corpus was not read") from explain_cases.raised(explain_cases.NO_TOKENIZER, tmp_path)
    assert answer(caught.value) == "D1"


def test_suspicious_code_next_to_another_error_is_not_blamed():
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n'
        "    tokenizer.pad_token = tokenizer.eos_token\n"
        "NameError: name 'tokenizer' is not defined"
    )
    assert explain(text).causes == ()


def test_a_harmless_warning_next_to_an_error_is_only_noted():
    text = "`trust_remote_code` is not supported anymore.\nTraceback (most recent call last):\nKeyError: 'text'"
    explanation = explain(text)
    assert explanation.causes == ()
    assert [one.id for one in explanation.noticed] == ["D4"]
    assert "Also noticed: D4" in str(explanation)


TRACEBACK = (
    'Traceback (most recent call last):\n  File "run.py", line 99, in <module>\n    import mine\n'
    '  File "mine.py", line 7, in <module>\n    f()\n'
    f'  File "{explain_cases.HOME}/torch/x.py", line 2, in f\n    raise KeyError\nKeyError: 3\n'
)


def test_an_unknown_error_gives_its_kind_your_own_line_and_two_next_steps():
    explanation = explain(TRACEBACK)
    assert (explanation.kind, explanation.where) == ("a Python traceback", "mine.py, line 7")
    assert explain("ValueError:  two  spaces").decisive == "", "it is the headline"
    assert len(explanation.next_steps) == 2
    assert "Your own line: mine.py, line 7" in str(explanation)
    assert "Next, paste: The whole traceback" in str(explanation)


def test_an_unknown_error_rules_nothing_out():
    for text in (TRACEBACK, "ERROR: something of CUDA failed", "RuntimeError: new words about memory"):
        assert explain(text).ruled_out == ()


KINDS = [
    ("message of this course", "Traceback (most recent call last):\nhelpers.schema.SettingsError: n_layer = 96 is"),
    ("launcher", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\ntrain.py FAILED"),
    ("pip", "Collecting foo\n  Downloading foo.whl\nERROR: Package 'foo' requires a different Python"),
    ("package manager", "Reading package lists... Done\nE: Unable to locate package foo"),
    ("system's own log", "Nov 1 10:00:00 host kernel: usb 1-1: device descriptor read/64, error -71"),
    ("nvidia-smi", "| NVIDIA-SMI 580.95    Driver Version: 580.95    CUDA Version: 13.0 |"),
    ("graphics card", "RuntimeError: CUDA error: some new code"),
    ("without its traceback", "KeyError: 'bert'"),
    ("program code", "import torch\nmodel = torch.nn.Linear(2, 2)"),
    ("prose", "I tried it twice.\nNobody knows what my card is."),
]


def test_each_kind_of_text_is_recognised():
    assert [(word, kind) for word, text in KINDS if word not in (kind := explain(text).kind)] == []
    assert "without its traceback" in explain("Error: A run is being trained in this kernel: wait for its end.").kind
    assert "package manager" not in explain("E       assert 1 == 2\nE        +  where 1 = f()").kind


def test_the_decisive_line_is_quoted_if_there_is_no_error():
    explanation = explain("starting\nworker 3 could not reach the scheduler\nbye")
    assert explanation.decisive == "worker 3 could not reach the scheduler"
    assert explanation.verdict.startswith("None of the known failures.")
    assert 'The decisive line: "worker 3 could not reach the scheduler"' in str(explanation)
    assert explain("starting\nall is well").verdict == "There is nothing to judge: no error, no log rows."


def test_causes_are_ruled_out_only_by_enough_log_rows():
    long, short = (
        explain(explain_cases.rows_of(losses)) for losses in (explain_cases.FALLING, explain_cases.FALLING[:3])
    )
    assert (len(long.ruled_out), len(short.ruled_out)) == (4, 0)
    assert f"Looked for and not found: {long.ruled_out[0]}; " in str(long)
    assert "a log in which nothing stands out" in long.verdict
    assert "a log too short to judge" in short.verdict
    assert long.headline == f"A log of {len(explain_cases.FALLING)} rows, without an error."
    assert explain("").verdict == "There is nothing to judge: no error, no log rows."


def test_the_fix_matches_the_platform_of_the_machine(machine):
    on = {
        kind: explain("RuntimeError: No CUDA GPUs are available", machine=replace(machine, platform=Platform(kind)))
        for kind in ("Linux", "Windows")
    }
    assert "unset CUDA_VISIBLE_DEVICES" in on["Linux"].causes[0].fix
    assert "Remove-Item Env:CUDA_VISIBLE_DEVICES" in on["Windows"].causes[0].fix


@pytest.mark.parametrize(("installed", "noticed"), [("2.13.0", []), ("2.14.0", ["E21"])])
def test_a_torch_version_with_a_cuda_suffix_is_not_taken_for_an_upgrade(monkeypatch, installed, noticed):
    access = SimpleNamespace(
        version_of={"torch": installed}.get, modules={"torch": SimpleNamespace(__version__="2.13.0+cu130")}
    )
    monkeypatch.setattr(explanation, "Access", lambda: access)
    assert [one.id for one in explain(KeyError(3)).noticed] == noticed


def test_html_is_escaped():
    text = "Traceback (most recent call last):\nRuntimeError: The loss is nan <script>alert(1)</script>"
    shown = explain(text)._repr_html_()
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 2, "in the headline and in the table's quote"


def test_text_contains_no_control_characters():
    shown = str(explain("\x1b[31mRuntimeError\x1b[0m: The loss is nan \x07\x1b]0;title\x07\rdone"))
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "T6" in shown


def test_a_wrong_argument_is_refused_with_advice():
    with pytest.raises(TypeError, match="was given int: give it an exception"):
        explain(3)


def test_explain_works_without_torch_and_does_not_import_pydantic():
    source = (
        "import sys; sys.modules['torch'] = None\n"
        "from helpers.troubleshooting import explain\n"
        "print(explain('AssertionError: Torch not compiled with CUDA enabled').causes[0].id, 'pydantic' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert child.stdout == "E1 False\n"
