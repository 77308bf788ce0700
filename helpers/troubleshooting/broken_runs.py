"""Three broken training runs for the exercises: their logs and rows show the symptoms, the fault stays hidden."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.display import PlainTextMixin, html_table
from helpers.troubleshooting.lab import tiny_model, train_briefly


@dataclass(frozen=True)
class BrokenRun(PlainTextMixin):
    """The log and one training row of a broken run.

    Attributes:
        name: 'a', 'b' or 'c'.
        history: rows of `step`, `loss`, `learning_rate`, `grad_norm`, and `eval_loss` if it was measured.
        input_ids: (T,) tokens of one training row.
        labels: (T,) its labels.
    """

    name: str
    history: list[dict[str, float]]
    input_ids: list[int]
    labels: list[int]

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        every = max(1, len(self.history) // 6)
        rows = ([row.get(name) for name in names] for row in self.history[::every])
        table = html_table(names, rows, caption=f"run_{self.name}: its log, and a training row with its labels")
        return f"{table}<p>{self.input_ids[:8]} input_ids<br>{self.labels[:8]} labels</p>"


def broken_run(name: str) -> BrokenRun:
    """Train for a few seconds with the fault 'a', 'b' or 'c', and return the broken run."""
    return _RUNS[name]()


def _rows(n_rows: int = 8) -> Any:
    import torch

    return torch.randint(4096, (n_rows, 32), generator=torch.Generator().manual_seed(1))  # (B, T)


def _run_a() -> BrokenRun:
    import torch

    ids = _rows()
    wrong_optimizer = torch.optim.AdamW(tiny_model(seed=1).parameters(), lr=1e-3)
    rows = [{"input_ids": row} for row in ids]
    log = train_briefly(tiny_model(), rows, optimizer=wrong_optimizer, max_steps=10)
    return BrokenRun("a", _plain(log), ids[0].tolist(), ids[0].tolist())


def _run_b() -> BrokenRun:
    import torch

    ids, held_out, model = _rows(4), _rows(16)[8:], tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for step in range(1, 37):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 4 == 0:
            with torch.no_grad():
                held_out_loss = model(input_ids=held_out, labels=held_out).loss.item()
            row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": 3e-3}
            history.append(row | {"eval_loss": held_out_loss})
    return BrokenRun("b", history, ids[0].tolist(), ids[0].tolist())


def _run_c() -> BrokenRun:
    import torch

    ids = _rows(2).repeat(4, 1)
    rows = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.stack([row[name] for row in batch]) for name in ("input_ids", "labels")}

    log = train_briefly(tiny_model(), rows, collate=collate, max_steps=24, learning_rate=3e-3)
    return BrokenRun("c", _plain(log), rows[0]["input_ids"].tolist(), rows[0]["labels"].tolist())


def _plain(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    names = ("step", "loss", "grad_norm", "learning_rate")
    return [{name: float(row[name]) for name in names if name in row} for row in log]


_RUNS: dict[str, Callable[[], BrokenRun]] = {"a": _run_a, "b": _run_b, "c": _run_c}
