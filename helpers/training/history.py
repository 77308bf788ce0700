"""The history of a run: one row a logging or validation step, in `history.jsonl`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.files import write_atomically

_KEPT = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch", "sample")


def history_rows(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Trainer's log that a history keeps."""
    return [
        {"step": log["step"]} | {name: log[name] for name in _KEPT if name in log}
        for log in log_history
        if {"loss", "eval_loss", "sample"} & set(log)
    ]


def write_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the history of the run in a folder."""
    write_atomically(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the run in a folder, oldest first; empty when it has not begun."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def kept_eval_loss(rows: Sequence[dict[str, Any]], *, early_stopping_patience: int) -> float | None:
    """Return the validation loss of the model that is kept, nats a token; None before the first that is a number.

    It is the last one, or the least where a training may stop early, because that one is kept then.

    >>> rows = [{"step": 1, "eval_loss": 2.5}, {"step": 2, "eval_loss": 3.0}]
    >>> kept_eval_loss(rows, early_stopping_patience=0), kept_eval_loss(rows, early_stopping_patience=1)
    (3.0, 2.5)
    """
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    kept = min(losses) if early_stopping_patience and losses else (losses or [math.nan])[-1]
    return kept if math.isfinite(kept) else None
