"""The text to paste into an issue contains what is needed and nothing personal."""

from dataclasses import replace

import pytest

from helpers.environment import read_machine
from helpers.environment.facts import Unread
from helpers.troubleshooting import write_issue_report
from helpers.troubleshooting.issue_report import remove_personal_data
from tests.troubleshooting import explain_cases

LINUX, MAC = (f"/{folder}/ada" for folder in ("home", "Users"))
ERROR = f'Traceback (most recent call last):\n  File "{LINUX}/x.py", line 3\nRuntimeError: CUDA out of memory'


def test_it_contains_error_explanation_versions_and_machine():
    report = write_issue_report(ERROR, machine=read_machine(quick=True))
    headings = [line for line in report.split("\n") if line.startswith("### ")]
    assert headings == ["### Error", "### Explained as", "### Versions", "### Machine"]
    assert 'File "~/x.py", line 3' in report
    assert "- T1 out of memory (the error says so)" in report
    assert "torch 2." in report


def test_the_last_error_of_a_session_is_reported_with_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.last_exc", explain_cases.raised("{}['text']", None), raising=False)
    report = write_issue_report(machine=read_machine(quick=True))
    assert "```text\nTraceback (most recent call last):\n" in report
    assert "KeyError: 'text'\n```" in report


def test_log_rows_without_text_are_summarised():
    rows = explain_cases.rows_of(explain_cases.FALLING)
    report = write_issue_report(rows, machine=read_machine(quick=True))
    assert "```text\nA log of 10 rows, without an error.\n```" in report


def test_an_unknown_error_is_reported_too():
    assert "- None of the known failures." in write_issue_report("KeyError: 3", machine=read_machine(quick=True))


def test_unreadable_facts_about_the_machine_are_listed():
    machine = replace(read_machine(quick=True), packages=Unread("OSError: stuck"), memory=Unread("OSError: no /proc"))
    report = write_issue_report("KeyError: 3", machine=machine)
    assert "- not read: OSError: stuck" in report
    assert report.endswith("- not read: OSError: no /proc")


def test_a_user_unknown_to_the_system_can_report_too(monkeypatch):
    def unknown(number):
        raise KeyError(f"uid not found: {number}")

    pytest.importorskip("pwd")
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert remove_personal_data("no home ~ here") == "no home ~ here"


def test_personal_data_is_removed():
    text = (
        f"C:\\Users\\Ada Lovelace\\run.py {LINUX}/a {MAC}/b /mnt/c{MAC}/c\nhf_AbCdEfGhIjKlMn ada@example.org\n"
        "postgresql://ada:geheim@10.1.2.3:5432/x api_key=abcdefgh 127.0.0.1:8888 torch 2.13.0"
    )
    clean = remove_personal_data(text)
    personal = ("/ada", "Lovelace", "hf_Ab", "geheim", "10.1.2.3", "abcdefgh", "example.org")
    assert [word for word in personal if word in clean] == []
    assert "127.0.0.1:8888 torch 2.13.0" in clean


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer eyJhbGciOi.x",
        "{'Authorization': 'Basic eyJhbGciOi=='}",
        '"authorization": "token eyJhbGciOi"',
        "git clone with github_pat_eyJhbGciOi and gho_eyJhbGciOi",
    ],
)
def test_secrets_in_web_requests_are_replaced(text):
    assert "eyJ" not in remove_personal_data(text)


def test_a_code_fence_in_a_log_does_not_end_its_block():
    report = write_issue_report("RuntimeError: x\n```\n# A heading ![](http://x)", machine=read_machine(quick=True))
    assert "````text\nRuntimeError: x\n```\n# A heading ![](http://x)\n````\n" in report


@pytest.mark.parametrize(
    "text",
    [
        "export WANDB_API_KEY=eyJhbGciOi",
        "HF_TOKEN: eyJhbGciOi",
        "aws_secret_access_key = eyJhbGciOi",
        "x-api-key: eyJhbGciOi",
        "password: 'my eyJhbGciOi'",
        "{'token': 'eyJhbGciOi'}",
        "tool --token eyJhbGciOi --password eyJhbGciOi",
        "postgresql://me:p@eyJhbGciOi@h/db and redis://:eyJhbGciOi@h",
        "postgresql://h/db?user=me&password=eyJhbGciOi",
    ],
)
def test_secrets_in_variables_options_and_addresses_are_replaced(text):
    assert "eyJ" not in remove_personal_data(text)


@pytest.mark.parametrize(
    "line",
    [
        "tokenizer = load_tokenizer(name)",
        "tokens = TokenStream(settings)",
        "tokens: 5_000",
        "eos_token_id=50256, pad_token='<|endoftext|>'",
        "max_new_tokens: 160, num_input_tokens_seen: 12345",
        "KeyError: 'loss_function'",
    ],
)
def test_tokenizers_and_token_counts_are_not_secrets(line):
    assert remove_personal_data(line) == line
