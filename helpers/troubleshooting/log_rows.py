"""Find the numbers that a training run logged, whatever program wrote them: one dictionary per step.

It reads the Trainer's printed dictionaries, JSON lines and state file; the lines of nanoGPT, llm.c and Megatron; CSV
and notebook tables. All columns get the Trainer's names: `loss`, `eval_loss`, `grad_norm`, `learning_rate`.
"""

import ast
import functools
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

_ROW = re.compile(r"\{[^{}]*\}")
_NON_FINITE = re.compile(r"(?<![\w'\"])(nan|-?inf|NaN|Infinity)(?![\w'\"])")
_NUMBER = r"(?:nan|-?inf|-?\d[\d.]*(?:e[-+]?\d+)?)"
_PAIR = re.compile(
    rf"\b((?:train|training|val|validation|eval|lm)[ _]loss|loss|(?:grad[ _])?norm|lr|learning[ _]rate|"
    rf"step|iter|iteration|epoch)\b[ :=]{{0,6}}({_NUMBER})",
    re.IGNORECASE,
)
_STEP = re.compile(r"\b(?:step|iter|iteration|epoch)\b", re.IGNORECASE)
_NAMES = {
    "train loss": "loss",
    "training loss": "loss",
    "lm loss": "loss",
    "val loss": "eval_loss",
    "valid loss": "eval_loss",
    "validation loss": "eval_loss",
    "eval loss": "eval_loss",
    "norm": "grad_norm",
    "grad norm": "grad_norm",
    "lr": "learning_rate",
    "learning rate": "learning_rate",
    "iter": "step",
    "iteration": "step",
}


def read_rows(content: Any, lines: Sequence[str]) -> "tuple[dict[str, float], ...]":
    """Return the rows in `content`, the parsed text if all of it is one JSON value, or else in the lines of a log."""
    if content is not None:
        rows = content.get("log_history", [content]) if isinstance(content, dict) else content
        return tuple(keep_numbers(row) for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    rows = (_row(match.group()) for line in lines if "loss" in line for match in _ROW.finditer(line))
    return tuple(row for row in rows if _is_training_row(row)) or _other_rows(lines)


def keep_numbers(row: Mapping[str, Any]) -> "dict[str, float]":
    """Keep the values that are numbers, or numbers as text, which is how transformers 5 prints its log.

    >>> keep_numbers({"train/loss": "3.2", "eval/loss": 3.4, "note": "warm-up"})
    {'loss': 3.2, 'eval_loss': 3.4}
    """
    result = {}
    for name, value in row.items():
        try:
            result[_normalize_name(str(name))] = math.nan if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return result


@functools.lru_cache  # a log of 50 MB has millions of names, but few different ones
def _normalize_name(name: str) -> str:
    """Return the Trainer's name for a column; trackers write train/loss and eval/loss."""
    group, slash, rest = name.partition("/")
    if slash and group in ("train", "eval", "val", "valid", "validation"):
        name = rest if group == "train" else f"eval_{rest}"
    plain = name.strip().lower().replace("_", " ")
    if plain == "train loss" and "_" in name:
        return name  # the Trainer's mean over the whole run, in its last row
    return _NAMES.get(plain, name if "_" in name else plain.replace(" ", "_"))


def _is_training_row(row: "Mapping[str, float]") -> bool:
    return any("loss" in name or name == "grad_norm" for name in row)


def _other_rows(lines: Sequence[str]) -> "tuple[dict[str, float], ...]":
    rows, columns, separator = [], [], ""
    for line in lines:
        if "loss" in line.lower() and (header := _header(line)):
            separator, columns = header
            continue
        cells = _cells(line, separator) if columns else []
        if columns and len(cells) == len(columns):
            rows.append(keep_numbers(dict(zip(columns, cells, strict=True))))
        elif ("loss" in line or "norm" in line) and _STEP.search(line):
            rows.append(keep_numbers(dict(_PAIR.findall(line))))
    return tuple(row for row in rows if _is_training_row(row))


def _header(line: str) -> "tuple[str, list[str]] | None":
    """Return the separator and the columns if a line is the header of a table, else None."""
    for separator in ("\t", "|", ",", "  "):
        cells = _cells(line, separator)
        words = [cell.lower().replace("_", " ") for cell in cells]
        if len(cells) > 1 and not any(map(str.isdigit, "".join(words))) and {"loss", *_NAMES} & set(words):
            return separator, ["loss" if word == "train loss" else word.replace(" ", "_") for word in words]
    return None


def _cells(line: str, separator: str) -> "list[str]":
    text = line.strip("| ")
    return [cell.strip() for cell in (re.split(" {2,}", text) if separator == "  " else text.split(separator))]


def _row(text: str) -> "dict[str, float]":
    """Read one printed dictionary; its bare `nan` and `inf` are not literals, so they are quoted first."""
    quoted = _NON_FINITE.sub(r"'\1'", text)
    try:
        row = json.loads(quoted.replace("'", '"'))  # several times as fast as literal_eval
    except ValueError:
        try:
            with warnings.catch_warnings(action="ignore"):  # about the backslashes in a Windows path
                row = ast.literal_eval(quoted)
        except (ValueError, SyntaxError, TypeError):
            return {}
    return keep_numbers(row) if isinstance(row, dict) else {}
