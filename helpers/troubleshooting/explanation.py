"""explain(): an error, a traceback or a log goes in; the likely causes come out, with evidence and the fix."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from helpers.environment import read_machine
from helpers.environment.facts import Machine
from helpers.troubleshooting.log_numbers import last_run
from helpers.troubleshooting.reading import Reading, clean, read
from helpers.troubleshooting.sign import HINT, OWN_WORDS, Evidence, Sign
from helpers.troubleshooting.signs_environment import ENVIRONMENT
from helpers.troubleshooting.signs_library import LIBRARY
from helpers.troubleshooting.signs_training import TRAINING

SIGNS = (*ENVIRONMENT, *LIBRARY, *TRAINING)
_MOST_CAUSES, _MOST_QUOTES = 4, 2
_CERTAINTY = {OWN_WORDS: "the error says so", 2: "seen in the log", HINT: "possible"}
_WATCHED = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
# what an error that is not in the table was compared with
_OF_ERRORS = {
    "the card, its driver and its wheel": tuple(f"E{n}" for n in (1, 2, 4, 5, 6, 7, 14)),
    "memory": ("T1", "T2", "T3", "E10", "E12", "E13"),
    "an argument or a class that was renamed or removed": tuple(f"D{n}" for n in (5, 7, 8, 12, 13, 18, 19)),
    "token, position and label numbers": ("T12", "T14", "T15"),
    "the Hub and data sets": ("D2", "D3", "D25"),
    "the disk and checkpoints": ("T17", "D15", "D16", "D17"),
    "the notebook's runner, kernel and workers": ("T18", "T20", "T23", "T25"),
}
_OF_ROWS = {
    "a loss that is exactly 0": ("D1",),
    "a loss or a gradient that is no number, or runs away": ("T6",),
    "a loss that never moves": ("T7",),
    "a held-out loss that rises": ("T9",),
    "a learning rate that jumps": ("T16",),
}


@dataclass(frozen=True)
class Cause:
    """One likely cause: `certainty` is 'the error says so', 'seen in the log' or 'possible'."""

    id: str
    title: str
    cause: str
    fix: str
    evidence: tuple[str, ...]
    certainty: str
    source: str


@dataclass(frozen=True)
class Explanation:
    """What an error or a log most likely comes from.

    Attributes:
        headline: what was read, in one line.
        causes: the likely causes, likeliest first; empty where nothing known was seen.
        noticed: what stops nothing and was seen beside it.
        ruled_out: what was looked for and not found.
        where: the last line of the traceback that is in no library; empty without one.
    """

    headline: str
    causes: tuple[Cause, ...] = ()
    noticed: tuple[Cause, ...] = ()
    ruled_out: tuple[str, ...] = ()
    where: str = ""

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.causes:
            return f"{self.causes[0].id}: {self.causes[0].title}."
        if not self.ruled_out:
            return "There is nothing to judge: no error, no log rows."
        return "Not one of the known failures."

    def __str__(self) -> str:
        """Return it for a terminal: no colours, no control characters."""
        lines = [self.headline, "", self.verdict]
        for number, one in enumerate(self.causes, 1):
            lines += ["", f"{number}. {one.id} {one.title} ({one.certainty})", f"   {one.cause}"]
            lines += [f'   seen: "{quote}"' for quote in one.evidence] + [f"   do:   {one.fix}"]
        lines += [f"Also noticed: {one.id} {one.title}. {one.fix}" for one in self.noticed]
        if self.ruled_out:
            lines += ["", "Looked for and not found: " + "; ".join(self.ruled_out) + "."]
        if self.where:
            lines += [f"Your own line: {self.where}"]
        return clean("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return it for a notebook, every word of it escaped."""
        rows = "".join(_html_row(one) for one in self.causes)
        head = "".join(f"<th {_CELL}>{name}</th>" for name in ("cause", "seen", "why", "what to do"))
        table = f"<table style='color:inherit'><tr>{head}</tr>{rows}</table>" if rows else ""
        notes = [f"Also noticed: {one.id} {one.title}. {one.fix}" for one in self.noticed]
        notes += [f"Looked for and not found: {'; '.join(self.ruled_out)}."] if self.ruled_out else []
        notes += [f"Your own line: {self.where}"] if self.where else []
        return f"<p><code>{escape(self.headline)}</code><br><b>{escape(self.verdict)}</b></p>{table}" + "".join(
            f"<p>{escape(note)}</p>" for note in notes
        )


_CELL = "style='text-align:left;vertical-align:top;overflow-wrap:anywhere'"


def _html_row(one: Cause) -> str:
    quotes = "<br>".join(f"<q>{escape(quote)}</q>" for quote in one.evidence)
    cells = (
        f"<b>{escape(one.id)}</b> {escape(one.title)}<br><i>{escape(one.certainty)}</i>",
        quotes,
        escape(one.cause),
        f"<code style='white-space:pre-wrap'>{escape(one.fix)}</code>",
    )
    return "<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>"


def explain(thing: Any = None, *, machine: Machine | None = None) -> Explanation:
    """Say what an error or a log most likely comes from, with the evidence and what to do here.

    Args:
        thing: an exception; a traceback or a log as text; a `Path` to one; a run's history (rows with `loss`); None
            for the last error of this session.
        machine: for which machine the fix is written; None: this one, read without importing torch.

    Raises:
        TypeError: it is given something else.

    >>> explain("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB").causes[0].id
    'T1'
    """
    if thing is None:
        thing = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if thing is None:
        return Explanation("No error has happened in this session yet.")
    reading = read(thing)
    if isinstance(thing, BaseException):
        reading = replace(reading, lines=(*reading.lines, *_live_facts()))
    found = {sign.id: (sign, seen) for sign in SIGNS if (seen := sign.evidence(reading))}
    causes, noticed = _sorted_out(found, reading)
    return Explanation(
        _headline(reading),
        tuple(_cause(*found[name], machine) for name in causes[:_MOST_CAUSES]),
        tuple(_cause(*found[name], machine) for name in noticed),
        tuple(_ruled_out(reading, set(found))) if not causes else (),
        "" if causes else _own_line(reading),
    )


def _sorted_out(found: "dict[str, tuple[Sign, list[Evidence]]]", reading: Reading) -> "tuple[list[str], list[str]]":
    """Return the ids of the causes, likeliest first, and of what is only noted."""
    causes, noticed = [], []
    for name, (sign, seen) in found.items():
        own_words = seen[0].weight == OWN_WORDS
        if sign.is_harmless and not own_words and (reading.errors or reading.rows):
            noticed.append(name)
        elif seen[0].weight == HINT and reading.errors and sign.refines not in found:
            continue  # suspicious code beside an error of another kind is no cause of it
        else:
            causes.append(name)
    return sorted(causes, key=lambda name: _rank(name, found), reverse=True), noticed


def _rank(name: str, found: "dict[str, tuple[Sign, list[Evidence]]]") -> "tuple[float, ...]":
    """Rank by the last error's own words, then by weight; what refines another, and is no mere hint, goes before it."""
    sign, seen = found[name]
    if sign.refines in found and seen[0].weight > HINT and sign.id != "E15":
        broader = _rank(sign.refines, found)
        return (broader[0], broader[1] + 0.5, seen[0].weight, SIGNS.index(sign))
    return (seen[0].is_last_error, seen[0].weight, len(seen), -SIGNS.index(sign))


def _cause(sign: Sign, seen: Sequence[Evidence], machine: Machine | None) -> Cause:
    quotes = tuple(dict.fromkeys(one.quote for one in seen))[:_MOST_QUOTES]
    fix = sign.fix_on(machine or _this_machine()) if callable(sign.fix) else sign.fix
    return Cause(sign.id, sign.title, sign.cause, fix, quotes, _CERTAINTY[seen[0].weight], sign.source)


@cache
def _this_machine() -> Machine:
    return read_machine(quick=True)


def _headline(reading: Reading) -> str:
    if reading.errors:
        return reading.errors[-1].split("\n")[0][:300]
    if reading.rows:
        n_rows = len(reading.rows)
        return f"A log of {n_rows} row{'s' if n_rows != 1 else ''}, without an error."
    return f"A text of {len(reading.lines)} line{'s' * (len(reading.lines) > 1)}."


def _ruled_out(reading: Reading, found: "set[str]") -> "list[str]":
    """Name what this error or these rows could have shown, and did not."""
    groups = _OF_ERRORS if reading.errors else {}
    names = [name for name, ids in groups.items() if not found & set(ids)]
    if any("loss" in row or "eval_loss" in row for row in last_run(reading)):
        names += [name for name, ids in _OF_ROWS.items() if not found & set(ids)]
    return names


def _own_line(reading: Reading) -> str:
    """Return the last place of the traceback that is in no installed package."""
    places = re.findall(r'File "([^"]+)", line (\d+)', reading.text)
    own = [place for place in places if not re.search(r"site-packages|dist-packages|[\\/]lib[\\/]python3", place[0])]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def _live_facts() -> "list[str]":
    """Return what this session itself shows: packages changed on the disk, models kept by the output history."""
    lines = []
    for name in _WATCHED:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        try:
            installed = version(name) if loaded else None
        except PackageNotFoundError:
            continue
        if installed and str(loaded) != installed:
            lines.append(f"loaded: {name} {loaded} installed: {installed}")
    shown = getattr(sys.modules.get("__main__"), "Out", None)
    if isinstance(shown, dict) and (torch := sys.modules.get("torch")):
        kept = [number for number, value in shown.items() if isinstance(value, torch.nn.Module)]
        lines += [f"keeps alive: Out[{number}], a {type(shown[number]).__name__}" for number in kept]
    return lines
