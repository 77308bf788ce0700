"""Turns an exception, a traceback, a training log or its rows into one `Reading`: lines, errors, rows of numbers."""

import ast
import json
import math
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RANK = re.compile(r"^\[(?:rank)?\d+\]: ?", re.MULTILINE)  # torchrun puts the process before each line
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_MOST_CHARACTERS = 2_000_000  # of a log the end counts, and a table of 80 signs is laid against every line
_LONGEST_LINE = 4_000
_ERROR = re.compile(
    r"^(?:E  +)?(?P<kind>(?:[A-Za-z_][\w.]*\.)?_?"
    r"[A-Z]\w*(?:Error|Exception|Interrupt|Timeout|NoSuchKernel|Exit|Iteration))(?:: ?(?P<message>.*))?$"
)
_AFTER_TRACEBACK = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: ?(?P<message>.*))?$")  # there, any name is an error's
_END_OF_MESSAGE = re.compile(r"^(?:Traceback |During handling|The above exception|\s*$)")
_ROW = re.compile(r"\{[^{}]*\}")
_SPECIAL = re.compile(r"\b(nan|inf|-inf|NaN|Infinity)\b")


@dataclass(frozen=True)
class Reading:
    """What there is to judge.

    Attributes:
        text: all of it, without control characters.
        lines: its lines.
        errors: each error as `Type: message`, in the order they were raised or printed.
        rows: the numbers a training logged, one dictionary a step, whatever wrote them.
    """

    text: str
    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    rows: "tuple[dict[str, float], ...]" = ()


def read(thing: Any) -> Reading:
    """Read an exception, a text, a file (as a `Path`) or the rows of a log.

    Raises:
        TypeError: it is nothing of these.
    """
    if isinstance(thing, BaseException):
        return _read_exception(thing)
    if isinstance(thing, Path):
        return read_text(thing.read_text(encoding="utf-8", errors="replace"))
    if isinstance(thing, str):
        return read_text(thing)
    if isinstance(thing, Iterable):
        rows = list(thing)
        if all(isinstance(row, Mapping) for row in rows):
            return Reading("", rows=tuple(_numbers(row) for row in rows))
    raise TypeError(
        f"explain() was given {type(thing).__name__}: give it an exception, a text, a Path to a log, or rows of a log."
    )


def read_text(text: str) -> Reading:
    """Read a traceback or a log; progress bars that draw over a line become lines of their own."""
    text = _RANK.sub("", clean(text[-_MOST_CHARACTERS:]))
    lines = tuple(line[:_LONGEST_LINE] for line in text.split("\n"))
    return Reading(text, lines, _errors(lines), _rows(text, lines))


def clean(text: str) -> str:
    r"""Take out what a terminal would obey: colours, bells, carriage returns.

    >>> clean("a\x1b[31mb\x07\rc")
    'ab \nc'
    """
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def _read_exception(error: BaseException) -> Reading:
    """Read an exception and those it came from; nothing of it is kept but text."""
    lines = tuple(clean("".join(traceback.format_exception(error))).split("\n"))
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    errors = tuple(f"{_kind(one)}: {clean(str(one))}" for one in reversed(chain))
    return Reading("\n".join(lines), lines, errors)


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _errors(lines: tuple[str, ...]) -> tuple[str, ...]:
    found, in_traceback = [], False
    for number, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif not line.startswith((" ", "\t")) and line.strip():
            match = (_AFTER_TRACEBACK if in_traceback else _ERROR).match(line) or _ERROR.match(line)
            in_traceback = False
            if match:
                found.append(f"{match['kind']}: {_message(match['message'], lines[number + 1 : number + 40])}")
    return tuple(found)


def _message(first: str | None, following: tuple[str, ...]) -> str:
    """Return the message of an error that may go on over some lines."""
    message = [first or ""]
    for line in following:
        if _END_OF_MESSAGE.match(line) or _ERROR.match(line):
            break
        message.append(line)
    return "\n".join(message)


def _rows(text: str, lines: tuple[str, ...]) -> "tuple[dict[str, float], ...]":
    """Return the rows of numbers in a log: dictionaries as the Trainer prints them, JSON lines, or its state file."""
    if text.lstrip().startswith(("{", "[")):
        try:
            whole = json.loads(text)
        except ValueError:
            pass
        else:
            rows = whole.get("log_history", [whole]) if isinstance(whole, dict) else whole
            return tuple(_numbers(row) for row in rows if isinstance(row, dict))
    rows = (_row(found.group()) for line in lines for found in _ROW.finditer(line) if "loss" in found.group())
    return tuple(row for row in rows if row)


def _row(text: str) -> "dict[str, float]":
    try:
        row = json.loads(text)
    except ValueError:
        try:
            row = ast.literal_eval(_SPECIAL.sub(r"'\1'", text.replace("'nan'", "nan").replace("'inf'", "inf")))
        except (ValueError, SyntaxError):
            return {}
    return _numbers(row) if isinstance(row, dict) else {}


def _numbers(row: Mapping[str, Any]) -> "dict[str, float]":
    """Keep what is a number; transformers 5 prints its numbers as text."""
    kept = {}
    for name, value in row.items():
        try:
            kept[str(name)] = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            continue
    return kept
