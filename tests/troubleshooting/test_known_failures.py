"""The file of known failures: complete, unambiguous, and each entry recognised by its own example."""

import re
import time
from dataclasses import replace
from importlib import import_module

import pytest

from helpers import display
from helpers.environment import read_machine
from helpers.environment.facts import Platform
from helpers.troubleshooting import (
    explain,
    explanation,
    issue_report,
    known_failures,
    log_checks,
    log_rows,
    reading,
)
from tests.troubleshooting import explain_cases

FAILURES = list(known_failures.read_failures().values())


def test_every_row_of_the_reference_is_in_the_file():
    ids = {f"E{n}" for n in range(1, 25)} | {f"D{n}" for n in range(1, 30)} | {f"T{n}" for n in range(1, 27)}
    assert ids <= {failure.id for failure in FAILURES}


def test_a_duplicate_id_is_refused(monkeypatch):
    content = {"failures": [{"id": "E1", "title": "a", "cause": "b", "fix": "c"}] * 2}
    monkeypatch.setattr(known_failures, "_content", lambda: content)
    with pytest.raises(ValueError, match="an id occurs twice"):
        known_failures.read_failures.__wrapped__()


def test_each_example_is_recognised_as_its_own_failure():
    answers = [(one.id, [cause.id for cause in explain(one.example).causes][:1]) for one in FAILURES]
    assert [(id_, got) for id_, got in answers if got != [id_]] == []


def test_every_entry_has_all_fields_and_a_pattern_or_number_check():
    complete = [one for one in FAILURES if one.title and one.cause.endswith(".") and one.source and one.example]
    assert [one.id for one in FAILURES if one not in complete] == []
    assert [one.id for one in FAILURES if not (one.patterns or one.numbers)] == []


@pytest.fixture(scope="module")
def machine():
    return read_machine(quick=True)


@pytest.mark.parametrize("kind", ["Linux", "Windows", "WSL2", "WSL1", "macOS"])
def test_every_fix_can_be_written_for_every_platform(kind, machine):
    there = replace(machine, platform=Platform(kind))
    fixes = {failure.id: failure.fix_on(there) for failure in FAILURES}
    odd = r"\{\w+\.|(?<!\.)\.\.(?!\.)|[^.]\. \("  # a name that was not filled in, or a full stop too many
    assert [id_ for id_, text in fixes.items() if not text.strip() or re.search(odd, text)] == []
    assert [id_ for id_, text in fixes.items() if "$env:" in text and "PowerShell" not in text] == []


# words that one of the shells does not know
POWERSHELL = re.compile(r"\$env:|Remove-Item|Stop-Process|winget|Scripts\\\\|Set-ItemProperty")
POSIX = re.compile(r"(?<!-)\b(?:export|unset|sudo|rm|kill|ulimit|source(?= \.)) |&&|LD_LIBRARY_PATH")


@pytest.mark.parametrize(
    ("kind", "foreign", "named"),
    [
        ("Windows", POSIX, "Linux|WSL2|container|the Mac"),
        ("Linux", POWERSHELL, "Windows|PowerShell"),
        ("WSL2", POWERSHELL, "Windows|PowerShell"),
    ],
)
def test_a_command_for_another_shell_names_its_system(kind, foreign, named, machine):
    there = replace(machine, platform=Platform(kind))
    fixes = {failure.id: failure.fix_on(there) for failure in FAILURES}
    assert {id_: text for id_, text in fixes.items() if foreign.search(text) and not re.search(named, text)} == {}


def test_no_fix_makes_a_machine_less_secure(machine):
    unsafe = r"(?<!Never )--break-system-packages|(?<!never )sudo pip|(?<!-m )pip (?:un)?install|ExecutionPolicy"
    unsafe += r"|(?<!Delete )trust_remote_code=|verify=False|DISABLE_SSL|trusted-host|allow_pickle|Secure Boot off"
    unsafe += r"|rm -rf (?!\.venv)|chmod 777"
    for kind in ("Linux", "Windows", "WSL2", "macOS"):
        there = replace(machine, platform=Platform(kind))
        assert [one.id for one in FAILURES if re.search(unsafe, one.fix_on(there))] == []


def test_the_next_steps_have_no_unfilled_placeholder(machine):
    steps = [step for kind in known_failures._content()["kinds"] for step in (kind["run"], kind["paste"])]
    assert [step for step in steps if "{" in known_failures.fill(step, machine)] == []


def test_a_command_in_a_fix_ends_with_a_full_stop_before_the_next_sentence(machine):
    on_linux = replace(machine, platform=Platform("Linux"))
    fixes = known_failures.read_failures()
    assert "sudo reboot. If that does not help, switch" in fixes["E32"].fix_on(on_linux)
    assert "-m helpers install. As a stopgap" in fixes["E41"].fix_on(on_linux)


def test_package_names_in_fixes_can_be_imported():
    texts = " ".join(str(failure.fix) for failure in FAILURES)
    for room, name in re.findall(r"helpers\.(\w+)\.(\w+)", texts):
        assert hasattr(import_module(f"helpers.{room}"), name)


def test_referenced_ids_exist():
    ids = {failure.id for failure in FAILURES}
    referred = {failure.refines for failure in FAILURES if failure.refines}
    referred |= {id_ for group in known_failures._content()["looked_for"] for id_ in group["ids"]}
    assert referred <= ids


def test_every_number_check_is_used_by_an_entry():
    annotations = {name: getattr(value, "__annotations__", {}) for name, value in vars(log_checks).items()}
    checks = {name for name, types in annotations.items() if types.get("return") == str | None}
    assert checks == {failure.numbers for failure in FAILURES if failure.numbers}


def test_the_required_words_occur_in_every_match_of_their_pattern():
    texts = [text for _, text in explain_cases.WRITTEN] + [one.example for one in FAILURES]
    for failure in FAILURES:
        for _, pattern in failure.patterns:
            words = known_failures._required_words(pattern.pattern)
            for text in texts if words else ():
                for match in pattern.finditer(text):
                    assert any(word in match.group().lower() for word in words), (pattern.pattern, match.group())


LONGEST = 4_000  # characters of a line that are read
HOSTILE = ["a", " ", "\n", "'", "1", "x ", "/a", "((", "_", "nan ", "tok.", "out of memory ", "huggingface.co "]
BOUND_SECONDS = 0.1


def hostile_lines(pattern):
    """Yield lines that repeat a few characters or the pattern's own words, where `.*` backtracks most."""
    words = re.findall(r"[A-Za-z][\w ]{2,}", re.sub(r"\\.", " ", pattern))
    for word in dict.fromkeys((*HOSTILE, *words, *(f"{word} " for word in words))):
        line = (word * (LONGEST // len(word) + 1))[:LONGEST]
        yield line
        yield f"{words[0] if words else ''}{line}"


def test_the_courses_own_command_is_written_for_this_system(monkeypatch):
    monkeypatch.setattr(known_failures, "COMMAND", "py -m helpers")
    content = str(known_failures._content.__wrapped__())
    assert content.count("py -m helpers") > 5
    assert "python3 -m helpers" not in content


def seconds_to_search(pattern, line):
    """Return the processor time of a search, the best of three if it is slow, as other work can slow it down."""
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        pattern.search(line)
        best = min(best, time.process_time() - begin)
        if best < BOUND_SECONDS:
            break
    return best


def patterns():
    """Return every pattern of the file and of the modules that read text, without duplicates."""
    compiled = list({pattern for one in FAILURES for _, pattern in one.patterns})
    texts = {text for one in FAILURES for text in (one.unless, one.only_with) if text}
    compiled += [re.compile(text, re.IGNORECASE) for text in texts]
    compiled += [re.compile(kind["pattern"], re.MULTILINE) for kind in known_failures._content()["kinds"]]
    modules = (display, reading, log_rows, log_checks, explanation)
    compiled += [value for module in modules for value in vars(module).values() if isinstance(value, re.Pattern)]
    return compiled + [pattern for pattern, _ in issue_report._PERSONAL]


def test_no_pattern_is_slow_on_a_hostile_line():
    slow = {}
    for pattern in patterns():
        for line in hostile_lines(pattern.pattern):
            if (seconds := seconds_to_search(pattern, line)) > BOUND_SECONDS:
                slow[pattern.pattern] = (round(seconds, 2), line[:40])
                break
    assert slow == {}
