"""What a known failure is: its name, how it shows, its cause, and what mends it on this platform."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from helpers.environment.facts import Machine
from helpers.troubleshooting.reading import Reading

OWN_WORDS, LOG, HINT = 3, 2, 1  # how much a clue says: the error itself; a line or a number; the code around it
_LONGEST_QUOTE = 200


@dataclass(frozen=True)
class Evidence:
    """What was seen: a quotation or a measured sentence, and how much it says."""

    quote: str
    weight: int
    is_last_error: bool = False


@dataclass(frozen=True)
class Sign:
    """One row of the table of failures.

    Attributes:
        id: E for the environment, D for libraries that moved on, T for training, notebook and runner.
        title: what it is, in a few words.
        cause: why it happens, in a sentence.
        fix: what to do; a function where it depends on the machine.
        error: regular expressions over an error written as `Type: message`.
        log: regular expressions over each line.
        code: regular expressions over each line, for what is suspicious but no proof.
        numbers: says in a sentence what the numbers show, or None.
        unless: where this is found in the text, the sign is not given.
        refines: the id of a broader failure that this one, where it is seen, explains better.
        is_harmless: it stops nothing: it is no answer to an error, and only noted beside one.
        source: where it is described.
    """

    id: str
    title: str
    cause: str
    fix: "str | Callable[[Machine], str]"
    error: Sequence[str] = ()
    log: Sequence[str] = ()
    code: Sequence[str] = ()
    numbers: "Callable[[Reading], str | None] | None" = None
    unless: str = ""
    refines: str = ""
    is_harmless: bool = False
    source: str = ""

    @cached_property
    def _patterns(self) -> "list[tuple[int, re.Pattern[str]]]":
        kinds = ((OWN_WORDS, self.error), (LOG, self.log), (HINT, self.code))
        return [(weight, re.compile(text, re.IGNORECASE)) for weight, texts in kinds for text in texts]

    def fix_on(self, machine: Machine) -> str:
        """Return what to do on a machine."""
        return self.fix if isinstance(self.fix, str) else self.fix(machine)

    def evidence(self, reading: Reading) -> list[Evidence]:
        """Return what speaks for this failure, strongest first; nothing where nothing does."""
        if self.unless and re.search(self.unless, reading.text, re.IGNORECASE):
            return []
        found = [seen for weight, pattern in self._patterns if (seen := _seen(pattern, weight, reading))]
        if self.numbers and (sentence := self.numbers(reading)):
            found.append(Evidence(sentence, LOG))
        return sorted(found, key=lambda seen: (seen.is_last_error, seen.weight), reverse=True)


def _seen(pattern: "re.Pattern[str]", weight: int, reading: Reading) -> Evidence | None:
    if weight == OWN_WORDS:
        for error in reversed(reading.errors):
            if found := pattern.search(error):
                return Evidence(_quote(error, found), weight, error is reading.errors[-1])
        return None
    for line in reading.lines:
        if found := pattern.search(line):
            return Evidence(_quote(line, found), weight)
    return None


def _quote(text: str, found: "re.Match[str]") -> str:
    """Return the words around a match on one line, cut to what a table can show."""
    begin = max(0, found.start() - _LONGEST_QUOTE // 3)
    words = " ".join(text[begin : begin + _LONGEST_QUOTE].split())
    return ("…" if begin else "") + words + ("…" if begin + _LONGEST_QUOTE < len(text) else "")
