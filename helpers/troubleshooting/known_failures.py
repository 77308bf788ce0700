"""Read the known failures from `helpers/assets/failures.yaml`, look for their evidence, and write their fixes."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from typing import Any

from helpers.environment import fixes, read_machine, wheels
from helpers.environment.facts import Machine
from helpers.paths import ASSETS, COMMAND
from helpers.troubleshooting import log_checks
from helpers.troubleshooting.reading import Reading

# The weight of evidence: the error itself; a line or a number in a log; suspicious code around the error.
IN_ERROR, IN_LOG, IN_CODE = 3, 2, 1
_FILE = ASSETS / "failures.yaml"
_TEMPLATE = re.compile(r"\{(fixes|wheels|machine)\.([\w.]+)((?: \w+)*)\}")
_LONGEST_QUOTE = 200


@dataclass(frozen=True)
class Evidence:
    """A quote from the text, or a sentence about its numbers, and its weight."""

    quote: str
    weight: int
    is_last_error: bool = False


_Patterns = str | Sequence[str]  # one, or several


@dataclass(frozen=True)
class KnownFailure:
    """One entry of `failures.yaml`; the head of that file describes the fields."""

    id: str
    title: str
    cause: str
    fix: str | Mapping[str, str]
    error: _Patterns = ()
    keyword: _Patterns = ()
    log: _Patterns = ()
    anywhere: _Patterns = ()
    code: _Patterns = ()
    numbers: str = ""
    only_with: str = ""
    unless: str = ""
    refines: str = ""
    harmless: bool = False
    source: str = ""
    example: str = ""

    @cached_property
    def patterns(self) -> "list[tuple[int, re.Pattern[str]]]":
        """The patterns of the evidence as (weight, pattern)."""
        keywords = [f"unexpected keyword argument '{name}'" for name in _as_list(self.keyword)]
        anywhere = _as_list(self.anywhere)
        texts = {
            IN_ERROR: [*_as_list(self.error), *keywords, *anywhere],
            IN_LOG: [*_as_list(self.log), *anywhere],
            IN_CODE: _as_list(self.code),
        }
        return [(weight, re.compile(text, re.IGNORECASE)) for weight in texts for text in texts[weight]]

    def fix_on(self, machine: Machine | None = None) -> str:
        """Return the fix for a machine; None: this one, which is examined only if the fix depends on it."""
        if isinstance(self.fix, str):
            text = self.fix
        else:
            machine = machine or _this_machine()
            text = self.fix.get(machine.platform.kind, self.fix["else"])
        return fixes.with_shell(fill(text, machine))

    def evidence(self, reading: Reading) -> list[Evidence]:
        """Return the evidence for this failure, strongest first; empty if there is none."""
        if self.unless and re.search(self.unless, reading.text, re.IGNORECASE):
            return []
        if self.only_with and not re.search(self.only_with, reading.text, re.IGNORECASE):
            return []
        matches = (_first_match(pattern, weight, reading) for weight, pattern in self.patterns)
        evidence = [match for match in matches if match]
        if self.numbers and (sentence := getattr(log_checks, self.numbers)(reading)):
            evidence.append(Evidence(sentence, IN_LOG))
        return sorted(evidence, key=lambda one: (one.is_last_error, one.weight), reverse=True)


@cache
def read_failures() -> dict[str, KnownFailure]:
    """Return all known failures by their id, in the order of the file."""
    failures = {entry["id"]: KnownFailure(**entry) for entry in _content()["failures"]}
    if len(failures) < len(_content()["failures"]):
        raise ValueError(f"{_FILE}: an id occurs twice.")
    return failures


def kind_of(reading: Reading) -> dict[str, str]:
    """Return the first kind of text in `failures.yaml` whose pattern matches: its `name`, `pattern`, `run`, `paste`."""
    text = "\n".join(reading.lines or reading.errors)
    return next(kind for kind in _content()["kinds"] if re.search(kind["pattern"], text, re.MULTILINE))


def ruled_out(reading: Reading, ids: set[str]) -> list[str]:
    """Return the names of failures that the last run in a log is long enough to show, but does not."""
    return [
        group["name"]
        for group in _content()["looked_for"]
        if len(log_checks.series(reading, group["column"])) >= group["rows"] and not ids & set(group["ids"])
    ]


@cache
def _content() -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        command = f"{sys.executable} -m pip install pyyaml"
        raise ImportError(f"explain needs PyYAML to read the known failures: {command}") from None
    # libyaml's loader, if PyYAML was built with it, reads the file in a tenth of the time
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = _FILE.read_text(encoding="utf-8").replace("python3 -m helpers", COMMAND)
    return yaml.load(text, Loader=loader)  # noqa: S506 (both are safe loaders)


def fill(text: str, machine: Machine | None = None) -> str:
    """Replace `{fixes.name}` and the like in a text of the file by the text for a machine; None: this one."""
    return _TEMPLATE.sub(lambda match: _fill_match(match, machine or _this_machine()), text)


def _as_list(value: _Patterns) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _fill_match(match: "re.Match[str]", machine: Machine) -> str:
    """Return the text for one `{fixes.name ARGUMENTS}`."""
    owner, name, arguments = match.groups()
    value = attrgetter(name)({"fixes": fixes, "wheels": wheels, "machine": machine}[owner])
    text = value(machine, *arguments.split()) if callable(value) else str(value)
    starts_a_sentence = re.match(" [A-Z]", match.string[match.end() :])
    return f"{text}." if starts_a_sentence and not text.endswith(".") else text  # a command has no full stop


@cache
def _this_machine() -> Machine:
    return read_machine(quick=True)


def _first_match(pattern: "re.Pattern[str]", weight: int, reading: Reading) -> Evidence | None:
    words = _required_words(pattern.pattern)
    if weight == IN_ERROR and reading.errors:
        for error, lower in reading.lower_errors:
            if _contains_any(words, lower) and (match := pattern.search(error)):
                return Evidence(_quote(error, match), weight, error is reading.errors[-1])
        return None
    weight = min(weight, IN_LOG)  # a message may be pasted without the name of its exception
    if not _contains_any(words, reading.lower_text):
        return None
    for line, lower in reading.distinct_lines:
        if _contains_any(words, lower) and (match := pattern.search(line)):
            return Evidence(_quote(line, match), weight)
    return None


@cache
def _required_words(pattern: str) -> tuple[str, ...]:
    r"""Return words, at least one of which occurs in every match of a pattern; empty if there are none.

    Searching for these first makes `explain` ten times as fast: on 2 MB a second instead of ten.

    >>> _required_words(r"lib\w+ not found|no kernel image (?:is|was) available")
    (' not found', 'no kernel image ')
    """
    # \0 replaces what varies: classes, dots and anchors
    text = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\.|\^|\$", "\0", pattern)
    before = None
    while before != text:  # groups, innermost first
        before, text = text, re.sub(r"\([^()]*\)", "\0", text)
    text = re.sub(r".(?:[?*]|\{[\d,]*\})\??", "\0", text).replace("+", "\0")
    words = tuple(max(part.split("\0"), key=len).lower() for part in text.split("|"))
    return words if min(map(len, words)) > 3 else ()


def _contains_any(words: tuple[str, ...], lower: str) -> bool:
    return not words or any(word in lower for word in words)


def _quote(text: str, match: "re.Match[str]") -> str:
    """Return the words around a match on one line, cut to what a table can show."""
    begin = max(0, match.start() - _LONGEST_QUOTE // 3)
    words = " ".join(text[begin : begin + _LONGEST_QUOTE].split())
    return ("…" if begin else "") + words + ("…" if begin + _LONGEST_QUOTE < len(text) else "")
