"""The file of known failures: complete, unambiguous, and each entry recognised by its own example."""

import re
import time
from dataclasses import replace
from importlib import import_module

import pytest

from helpers.environment import read_machine
from helpers.environment.facts import Platform
from helpers.troubleshooting import explain, known_failures, log_numbers
from helpers.troubleshooting.known_failures import looked_for
from tests.troubleshooting import explain_cases

FAILURES = list(known_failures.read_failures().values())
by_id = pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.id)


def test_every_row_of_the_reference_is_in_the_file():
    ids = {f"E{n}" for n in range(1, 25)} | {f"D{n}" for n in range(1, 30)} | {f"T{n}" for n in range(1, 27)}
    assert ids <= {failure.id for failure in FAILURES}


def test_an_id_that_occurs_twice_is_refused(monkeypatch):
    content = {"failures": [{"id": "E1", "title": "a", "cause": "b", "fix": "c"}] * 2}
    monkeypatch.setattr(known_failures, "_content", lambda: content)
    with pytest.raises(ValueError, match="an id occurs twice"):
        known_failures.read_failures.__wrapped__()


@by_id
def test_the_example_is_recognised_first(failure):
    assert explain(failure.example).causes[0].id == failure.id


@by_id
def test_every_entry_has_a_sentence_for_each_field_and_somewhere_to_look(failure):
    assert failure.title
    assert failure.cause.endswith(".")
    assert failure.source
    assert failure.error or failure.log or failure.code or failure.numbers
    for pattern in (*failure.error, *failure.log, *failure.code, failure.unless):
        re.compile(pattern)


@pytest.fixture(scope="module")
def machine():
    return read_machine(quick=True)


@by_id
def test_the_fix_can_be_written_for_every_platform(failure, machine):
    for kind in ("Linux", "Windows", "WSL2", "WSL1", "macOS"):
        text = failure.fix_on(replace(machine, platform=Platform(kind)))
        assert text.strip()
        assert not re.search(r"\{\w+\.", text), "a name that was not filled in"


@by_id
def test_what_a_fix_names_of_the_package_can_be_imported(failure):
    texts = failure.fix.values() if isinstance(failure.fix, dict) else [failure.fix]
    for room, name in re.findall(r"helpers\.(\w+)\.(\w+)", " ".join(texts)):
        assert hasattr(import_module(f"helpers.{room}"), name)


def test_ids_that_are_referred_to_exist():
    ids = {failure.id for failure in FAILURES}
    referred = {failure.refines for failure in FAILURES if failure.refines}
    for where in ("errors", "rows"):
        referred |= {id_ for members in looked_for(where).values() for id_ in members}
    assert referred <= ids


def test_every_number_check_is_used_by_an_entry():
    annotations = {name: getattr(value, "__annotations__", {}) for name, value in vars(log_numbers).items()}
    checks = {name for name, types in annotations.items() if types.get("return") == str | None}
    assert checks == {failure.numbers.__name__ for failure in FAILURES if failure.numbers}


def test_most_failures_are_made_to_happen_or_quoted_in_more_than_their_example():
    tried = {row for row, _ in explain_cases.REAL} | {row for row, _ in explain_cases.WRITTEN}
    assert tried <= {failure.id for failure in FAILURES}
    assert len(tried) >= 60


LONG = 20_000
HOSTILE = ["a", " ", "'", "1", "x ", "/a", "((", "_", "nan ", "tok.", "out of memory ", "huggingface.co "]


def seconds_to_search(pattern, line):
    """Return the processor time of a search, the best of three: other work on the machine is not the pattern's."""
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        pattern.search(line)
        best = min(best, time.process_time() - begin)
        if best < 0.02:
            break
    return best


@by_id
def test_no_pattern_takes_long_on_a_hostile_line(failure):
    """Each pattern is also tried on its own words, again and again: there a `.*` between two words goes back most."""
    texts = [*failure.error, *failure.log, *failure.code, failure.unless, failure.only_with]
    for text in filter(None, texts):
        pattern = re.compile(text, re.IGNORECASE)
        words = re.findall(r"[A-Za-z][\w ]{2,}", re.sub(r"\\.", " ", text))
        for word in (*HOSTILE, *words, *(f"{word} " for word in words)):
            line = (word * (LONG // len(word) + 1))[:LONG]
            assert seconds_to_search(pattern, line) < 0.2, (text, word)
            assert seconds_to_search(pattern, f"{words[0] if words else ''}{line}") < 0.2, (text, word)
