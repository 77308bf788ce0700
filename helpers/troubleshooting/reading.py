"""Read an exception, a traceback, a training log or its rows into a `Reading`: lines, errors, rows of numbers."""

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
# only the end of a long log is read, and the beginning of a long line: some 150 patterns are tried on every line
_MAX_CHARACTERS, _MAX_LINE = 2_000_000, 4_000
_ERROR = re.compile(
    r"^(?:E  +)?(?P<kind>(?:[A-Za-z_][\w.]*\.)?_?"
    r"[A-Z]\w*(?:Error|Exception|Interrupt|Timeout|NoSuchKernel|Exit|Iteration))(?:: ?(?P<message>.*))?$"
)
# after a traceback any name is that of an error, also one that does not end in Error
_AFTER_TRACEBACK = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: ?(?P<message>.*))?$")
_END_OF_MESSAGE = re.compile(r"^(?:Traceback |During handling|The above exception|\s*$)")
_ROW = re.compile(r"\{[^{}]*\}")
_NANOGPT = re.compile(r"step (?P<step>\d+): train loss (?P<loss>[\w.]+), val loss (?P<eval_loss>[\w.]+)")
_MEGATRON = re.compile(r"\b(lm loss|grad norm|learning rate): ([-+\w.]+)")
_MEGATRON_NAMES = {"lm loss": "loss", "grad norm": "grad_norm", "learning rate": "learning_rate"}
_TABLE_NAMES = {"Training Loss": "loss", "Validation Loss": "eval_loss", "Epoch": "epoch", "Step": "step"}
_SPECIAL = re.compile(r"\b(nan|inf|-inf|NaN|Infinity)\b")


@dataclass(frozen=True)
class Reading:
    """What `explain` judges.

    Attributes:
        text: all of it, without control characters.
        lines: its lines.
        errors: each error as `Type: message`, in the order they were raised or printed.
        rows: the numbers that a training logged, one dictionary per step, whatever program wrote them.
    """

    text: str
    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    rows: "tuple[dict[str, float], ...]" = ()


def read(thing: Any) -> Reading:
    """Read an exception, a text, a file (as a `Path`) or the rows of a log.

    Raises:
        TypeError: it is none of these.
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
            warnings = tuple(clean(str(row["warning"])) for row in rows if "warning" in row)
            return Reading("\n".join(warnings), warnings, rows=tuple(_numbers(row) for row in rows))
    raise TypeError(
        f"explain() was given {type(thing).__name__}: give it an exception, a text, a Path to a log, or rows of a log."
    )


def read_text(text: str) -> Reading:
    """Read a traceback or a log; each state of a progress bar becomes a separate line."""
    text = _RANK.sub("", clean(text[-_MAX_CHARACTERS:]))
    lines = tuple(line[:_MAX_LINE] for line in text.split("\n"))
    return Reading(text, lines, _errors(lines), _rows(text, lines))


def clean(text: str) -> str:
    r"""Remove what a terminal would act on: colours, bells, carriage returns.

    >>> clean("a\x1b[31mb\x07\rc")
    'ab \nc'
    """
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def _read_exception(error: BaseException) -> Reading:
    """Read an exception and those that caused it; only text is kept, so that the traceback holds no memory."""
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
    errors, in_traceback = [], False
    for number, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif not line.startswith((" ", "\t")) and line.strip():
            match = (_AFTER_TRACEBACK if in_traceback else _ERROR).match(line) or _ERROR.match(line)
            in_traceback = False
            if match:
                errors.append(f"{match['kind']}: {_message(match['message'], lines[number + 1 : number + 40])}")
    return tuple(errors)


def _message(first: str | None, following: tuple[str, ...]) -> str:
    """Return the message of an error, which may continue on the lines that follow."""
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
            content = json.loads(text)
        except ValueError:
            pass
        else:
            rows = content.get("log_history", [content]) if isinstance(content, dict) else content
            return tuple(_numbers(row) for row in rows if isinstance(row, dict))
    rows = (_row(match.group()) for line in lines for match in _ROW.finditer(line) if "loss" in match.group())
    return tuple(row for row in rows if row) or _other_rows(lines)


def _other_rows(lines: tuple[str, ...]) -> "tuple[dict[str, float], ...]":
    """Return the rows of other programs: nanoGPT's and Megatron's lines, or the table a notebook shows."""
    rows, columns = [], []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("| ").split("\t" if "\t" in line else "|")]
        if "Training Loss" in cells:
            columns = [_TABLE_NAMES.get(cell, cell) for cell in cells]
        elif columns and len(cells) == len(columns):
            rows.append(_numbers(dict(zip(columns, cells, strict=True))))
        elif match := _NANOGPT.search(line):
            rows.append(_numbers(match.groupdict()))
        elif "iteration" in line:
            values = {_MEGATRON_NAMES[name]: value for name, value in _MEGATRON.findall(line)}
            rows.append(_numbers(values))
    return tuple(row for row in rows if row)


def _row(text: str) -> "dict[str, float]":
    try:
        row = json.loads(text)
    except ValueError:
        try:
            # a printed dictionary has bare `nan` and `inf`, which are no Python literals, or quotes around them
            row = ast.literal_eval(_SPECIAL.sub(r"'\1'", text.replace("'nan'", "nan").replace("'inf'", "inf")))
        except (ValueError, SyntaxError):
            return {}
    return _numbers(row) if isinstance(row, dict) else {}


def _numbers(row: Mapping[str, Any]) -> "dict[str, float]":
    """Keep the values that are numbers, or numbers written as text: transformers 5 prints its log in this way."""
    numbers = {}
    for name, value in row.items():
        try:
            numbers[str(name)] = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            continue
    return numbers
