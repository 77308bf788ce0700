"""The text to paste into an issue says what is needed and nothing personal."""

from helpers.environment import read_machine
from helpers.troubleshooting import write_issue_report
from helpers.troubleshooting.issue_report import without_personal_data

LINUX, MAC = (f"/{folder}/ada" for folder in ("home", "Users"))
ERROR = f'Traceback (most recent call last):\n  File "{LINUX}/x.py", line 3\nRuntimeError: CUDA out of memory'


def test_it_has_the_error_the_answer_the_versions_and_the_machine():
    report = write_issue_report(ERROR, machine=read_machine(quick=True))
    headings = [line for line in report.split("\n") if line.startswith("### ")]
    assert headings == ["### Error", "### Explained as", "### Versions", "### Machine"]
    assert 'File "~/x.py", line 3' in report
    assert "- T1 out of memory (the error says so)" in report
    assert "torch 2." in report


def test_an_error_that_is_not_known_is_reported_too():
    assert "- Not one of the known failures." in write_issue_report("KeyError: 3", machine=read_machine(quick=True))


def test_nothing_personal_is_left():
    text = (
        f"C:\\Users\\Ada Lovelace\\run.py {LINUX}/a {MAC}/b /mnt/c{MAC}/c\nhf_AbCdEfGhIjKlMn ada@example.org\n"
        "postgresql://ada:geheim@10.1.2.3:5432/x api_key=abcdefgh 127.0.0.1:8888 torch 2.13.0"
    )
    clean = without_personal_data(text)
    personal = ("/ada", "Lovelace", "hf_Ab", "geheim", "10.1.2.3", "abcdefgh", "example.org")
    assert [word for word in personal if word in clean] == []
    assert "127.0.0.1:8888 torch 2.13.0" in clean
