"""Explain an error, a traceback or a log: the likely causes, with the evidence and the fix."""

import re
import sys
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from helpers.display import Html, PlainTextMixin, html_table
from helpers.environment import Machine
from helpers.environment.access import Access
from helpers.environment.requirements import find_stale_imports, read_loaded
from helpers.troubleshooting.known_failures import (
    IN_CODE,
    IN_ERROR,
    IN_LOG,
    Evidence,
    KnownFailure,
    fill,
    kind_of,
    read_failures,
    ruled_out,
)
from helpers.troubleshooting.reading import Reading, read

_MAX_CAUSES, _MAX_QUOTES = 4, 2
_CERTAINTY = {IN_ERROR: "the error says so", IN_LOG: "seen in the log", IN_CODE: "possible"}
_LONGEST_LINE = 300
_FAILURE_WORDS = re.compile(
    r"\b(?:error|fail(?:ed|ure|s)?|cannot|can't|could not|couldn't|unable|not (?:found|supported|permitted|allowed)|"
    r"denied|refused|invalid|missing|killed|aborted|crash(?:ed)?|timed out)\b",
    re.IGNORECASE,
)

_Matches = dict[str, tuple[KnownFailure, list[Evidence]]]  # id -> the failure and its evidence, strongest first


@dataclass(frozen=True)
class Cause:
    """One likely cause: `certainty` is 'the error says so', 'seen in the log' or 'possible'."""

    id: str
    title: str
    cause: str
    fix: str
    evidence: tuple[str, ...]
    certainty: str


@dataclass(frozen=True)
class Explanation(PlainTextMixin):
    """What most likely causes an error, or what is wrong in a log.

    Attributes:
        headline: what was read, in one line.
        causes: the likely causes, likeliest first; empty if nothing known was recognised.
        noticed: harmless failures that were also seen.
        ruled_out: without a cause, the failures that a log is long enough to exclude.
        where: without a cause, the last file and line of the traceback outside the libraries, if there is one.
        kind: without a cause, the kind of text; empty if there was nothing to judge.
        decisive: without a cause, the line that matters most, if one stands out.
        next_steps: without a cause, what to run and what to paste next.
    """

    headline: str
    causes: tuple[Cause, ...] = ()
    noticed: tuple[Cause, ...] = ()
    ruled_out: tuple[str, ...] = ()
    where: str = ""
    kind: str = ""
    decisive: str = ""
    next_steps: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        if self.causes:
            return f"{self.causes[0].id}: {self.causes[0].title}."
        if not self.kind:
            return "There is nothing to judge: no error, no log rows."
        return f"None of the known failures. It looks like {self.kind}."

    def _notes(self) -> list[str]:
        notes = [f"Also noticed: {cause.id} {cause.title}. {cause.fix}" for cause in self.noticed]
        notes += [f"Looked for and not found: {'; '.join(self.ruled_out)}."] if self.ruled_out else []
        notes += [f"Your own line: {self.where}"] if self.where else []
        notes += [f'The decisive line: "{self.decisive}"'] if self.decisive else []
        return notes + [f"Next, {verb}: {step}" for verb, step in zip(("run", "paste"), self.next_steps, strict=False)]

    def _repr_html_(self) -> str:
        """Return the explanation as HTML for a notebook, with everything escaped."""
        rows = [
            (
                Html(f"<b>{escape(cause.id)}</b> {escape(cause.title)} ({escape(cause.certainty)})"),
                Html("<br>".join(f"<q>{escape(quote)}</q>" for quote in cause.evidence)),
                cause.cause,
                Html(f"<code>{escape(cause.fix)}</code>"),
            )
            for cause in self.causes
        ]
        table = html_table(("cause", "seen", "why", "what to do"), rows) if rows else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return f"<p><code>{escape(self.headline)}</code><br><b>{escape(self.verdict)}</b></p>{table}{notes}"


def explain(thing: Any = None, *, machine: Machine | None = None) -> Explanation:
    """Explain the likely causes of an error or a bad log, with the evidence and what to do.

    Args:
        thing: an exception; a traceback or a log as text; a `Path` to one; a run's history (rows with `loss`); None
            for the last error of this session.
        machine: the machine that the fix is for; None: this one, examined without importing torch.

    Raises:
        TypeError: `thing` is something else.

    >>> explain("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB").causes[0].id
    'T1'
    """
    if thing is None and (thing := last_error()) is None:
        return Explanation("No error has happened in this session yet.")
    reading = read(thing)
    if isinstance(thing, BaseException):
        reading = replace(reading, lines=(*reading.lines, *_session_lines()))
    matches = {id_: (entry, seen) for id_, entry in read_failures().items() if (seen := entry.evidence(reading))}
    causes, noticed = _sort(matches, reading)
    explanation = Explanation(
        _headline(reading),
        tuple(_cause(*matches[id_], machine) for id_ in causes[:_MAX_CAUSES]),
        tuple(_cause(*matches[id_], machine) for id_ in noticed),
    )
    return explanation if causes else _add_next_steps(explanation, reading, set(matches), machine)


def last_error() -> BaseException | None:
    """Return the last uncaught error of this session, or None."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def load_ipython_extension(shell: Any) -> None:
    """Add `%explain` to IPython; `%load_ext helpers.troubleshooting` calls this.

    `%explain` explains the last error, `%explain name` an exception or a text in a variable, and `%%explain` a
    traceback or a log that is pasted into the cell.
    """

    def magic(line: str, cell: str | None = None) -> Explanation:
        if cell is not None:
            return explain(cell)
        return explain(shell.ev(line) if line.strip() else None)

    shell.register_magic_function(magic, magic_kind="line_cell", magic_name="explain")


def _sort(matches: _Matches, reading: Reading) -> tuple[list[str], list[str]]:
    """Return the ids of the causes, likeliest first, and the ids of harmless failures."""
    causes, noticed = [], []
    for id_, (failure, evidence) in matches.items():
        in_error = evidence[0].weight == IN_ERROR
        if failure.harmless and not in_error and (reading.errors or reading.rows):
            noticed.append(id_)
        elif evidence[0].weight == IN_CODE and reading.errors and failure.refines not in matches:
            continue  # a traceback quotes code: suspicious code near another error is not its cause
        else:
            causes.append(id_)
    order = list(read_failures())
    return sorted(causes, key=lambda id_: _rank(id_, matches, order), reverse=True), noticed


def _rank(id_: str, matches: _Matches, order: list[str]) -> tuple[float, ...]:
    """Return a sort key: a match in the last error counts most, then the weight, then the number of different quotes.

    A failure that refines another one ranks above it, unless suspicious code is its only evidence.
    """
    failure, evidence = matches[id_]
    if failure.refines in matches and evidence[0].weight > IN_CODE:
        broader = _rank(failure.refines, matches, order)
        return (broader[0], broader[1] + 0.5, evidence[0].weight, order.index(id_))
    return (evidence[0].is_last_error, evidence[0].weight, len({item.quote for item in evidence}), -order.index(id_))


def _cause(failure: KnownFailure, evidence: list[Evidence], machine: Machine | None) -> Cause:
    quotes = dict.fromkeys(item.quote for item in evidence)
    # two patterns can match the same line, and one quote can lack its beginning
    full = tuple(quote for quote in quotes if not any(quote.lstrip("…") in other for other in quotes.keys() - {quote}))
    certainty = _CERTAINTY[evidence[0].weight]
    fix = failure.fix_on(machine)
    return Cause(failure.id, failure.title, failure.cause, fix, full[:_MAX_QUOTES], certainty)


def _headline(reading: Reading) -> str:
    if reading.errors:
        return reading.errors[-1].split("\n")[0][:_LONGEST_LINE]
    if reading.rows:
        n_rows = len(reading.rows)
        return f"A log of {n_rows} row{'s' if n_rows != 1 else ''}, without an error."
    if reading.is_prose:
        return "A text that a person wrote."
    return f"A text of {len(reading.lines)} line{'s' * (len(reading.lines) != 1)}."


def _add_next_steps(explanation: Explanation, reading: Reading, ids: set[str], machine: Machine | None) -> Explanation:
    """Add what helps if nothing is recognised: the kind of text, the decisive line, and the next two steps."""
    excluded = tuple(ruled_out(reading, ids))
    if reading.rows and not reading.errors:
        kind = "a log in which nothing stands out" if excluded else "a log too short to judge"
        run = "helpers.troubleshooting.examine looks at model, data and optimizer of a run that does not learn."
        return replace(
            explanation, ruled_out=excluded, kind=kind, next_steps=(run, "The whole log, not its last rows.")
        )
    kind, decisive = kind_of(reading), _decisive_line(reading)
    name = "prose, and not what a program printed" if reading.is_prose else kind["name"]
    return replace(
        explanation,
        ruled_out=excluded,
        where=_own_line(reading),
        kind=name if reading.errors or reading.is_prose or decisive or kind["pattern"] else "",
        decisive=decisive,
        next_steps=(fill(kind["run"], machine), fill(kind["paste"], machine)),
    )


def _decisive_line(reading: Reading) -> str:
    """Return the last line with a word such as "failed"; '' if there is none, or an error, which is the headline."""
    candidates = [] if reading.errors else [line for line in reading.lines if _FAILURE_WORDS.search(line)]
    return " ".join(candidates[-1].split())[:_LONGEST_LINE] if candidates else ""


def _own_line(reading: Reading) -> str:
    """Return the last file and line of a traceback that is not in an installed package or Python; '' if none."""
    places = re.findall(r'File "([^"]+)", line (\d+)', reading.text)
    own = [place for place in places if not re.search(r"site-packages|dist-packages|[\\/]lib[\\/]python3", place[0])]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def _session_lines() -> list[str]:
    """Return what this session shows: packages updated after import, and models kept alive by the output history."""
    access = Access()
    loaded = read_loaded(access)
    lines = find_stale_imports(loaded, {name: access.version_of(name) for name in loaded})
    outputs = getattr(sys.modules.get("__main__"), "Out", None)
    if isinstance(outputs, dict) and (torch := sys.modules.get("torch")):
        models = {number: value for number, value in outputs.items() if isinstance(value, torch.nn.Module)}
        lines += [f"keeps alive: Out[{number}], a {type(model).__name__}" for number, model in models.items()]
    return lines
