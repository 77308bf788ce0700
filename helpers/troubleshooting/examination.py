"""Examine a run that does not learn: six checks, in the order that saves the most time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.display import PlainTextMixin, html_table, status_badge
from helpers.environment import Check
from helpers.troubleshooting.explanation import explain
from helpers.troubleshooting.reading import clean

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

    from helpers.settings import TrainingSettings

_MAX_ROWS, _MAX_TOKENS = 4, 64  # a batch that GPT-2 processes in seconds on a CPU
_MEMORISED = 0.6  # share of the first loss
_MAX_ROWS_SEARCHED = 200
_MAX_STEPS = 30  # GPT-2 takes a second per step on a CPU, and needs fewer steps


@dataclass(frozen=True)
class Examination(PlainTextMixin):
    """All checks of a run, in order."""

    run: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """The answer in one sentence: the first check that fails is the one to fix."""
        first = next((check for check in self.checks if check.status == "fail"), None)
        if first:
            return f"Begin here: {first.id}. {_advice(first)}"
        unknown = [check.id for check in self.checks if check.status == "unknown"]
        if unknown:
            return f"Nothing fails; not checked: {', '.join(unknown)}."
        return "No fault was found between text and optimizer: look at the settings next."

    def _repr_html_(self) -> str:
        rows = ((status_badge(c.status), c.id, clean(c.reading), _advice(c)) for c in self.checks)
        table = html_table(("status", "check", "reading", "what it means"), rows)
        return f"<p><b>{escape(self.verdict)}</b></p>{table}"


def _advice(check: Check) -> str:
    return f"{check.why} {check.fix}".strip()


def examine(run: str) -> Examination:
    """Examine a run that does not learn: its data, its labels, the model it starts from, and its history.

    The run may be unfinished, or not even started. Nothing in its folder is changed.

    Raises:
        SettingsError: there is no run of that name.
    """
    bench = _Bench(run)
    _ = bench.settings  # read first: if there is no such run, this error says what to do
    checks = {
        "a row, decoded back": bench.row_decoded,
        "an end among the labels": bench.end_among_labels,
        "one forward pass": bench.first_loss,
        "one step": bench.one_step,
        "overfit one batch": bench.overfit,
        "the history": bench.history,
    }
    return Examination(run, tuple(_check(name, judge) for name, judge in checks.items()))


_Finding = tuple[str, str, str]  # status, what was read, why it matters


def _check(name: str, judge: Callable[[], _Finding]) -> Check:
    try:
        return Check(name, *judge())
    except Exception as error:  # noqa: BLE001 (a broken run can break anywhere, and each error is an answer)
        reading = f"{type(error).__name__}: {error}"
        causes = explain(error).causes
        if not causes:
            return Check(name, "unknown", reading, "The checks below may still find the cause.")
        return Check(name, "fail", reading, f"{causes[0].id} {causes[0].title}:", causes[0].fix)


class _Bench:
    """What the checks share: the run's rows, its tokenizer and the model it starts from, each loaded once."""

    def __init__(self, run: str) -> None:
        self.run = run

    @cached_property
    def _data(self) -> Any:
        from helpers.data import open_prepared

        return open_prepared(self.run)

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from helpers.data import load_run_tokenizer

        return load_run_tokenizer(self.settings)

    def _rows(self, n_rows: int) -> Any:
        return self._data.blocks["train"][:n_rows]["input_ids"]  # (B, T)

    @cached_property
    def settings(self) -> "TrainingSettings":
        from helpers.settings import TrainingSettings, read_run_settings, run_folder

        if (run_folder(self.run) / "settings.json").exists():
            return read_run_settings(self.run)
        data = self._data.facts["settings"] | {"run": self.run}
        return TrainingSettings(**data, from_scratch=data.get("tokenizer") == "train")  # nothing else fits its tokens

    @cached_property
    def _model(self) -> "GPT2LMHeadModel":
        from helpers.model import load_start

        return load_start(self.settings, self._tokenizer)

    @cached_property
    def _losses(self) -> list[float]:
        """The losses on one batch, before each step and after the last; trains until the model knows the batch."""
        import torch

        optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3)
        ids, losses = self._batch(), []
        for _ in range(_MAX_STEPS + 1):
            loss = self._model(input_ids=ids, labels=ids).loss
            losses.append(loss.item())
            if loss < _MEMORISED * losses[0]:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
        return losses

    def _batch(self) -> Any:
        return self._rows(_MAX_ROWS)[:, :_MAX_TOKENS]

    def row_decoded(self) -> _Finding:
        row = self._rows(1)[0].tolist()
        text = self._tokenizer.decode(row)
        n_different = len(set(row))
        # a broken tokenizer or padding gives a row that repeats a few tokens
        status = "ok" if text.strip() and n_different > len(row) // 20 else "fail"
        reading = f"{len(row)} tokens, {n_different} different, of {len(self._tokenizer):,}: {text[:100]!r}"
        return status, reading, "It must read like your text."

    def end_among_labels(self) -> _Finding:
        blocks = self._data.blocks["train"]
        if "continues" in self._data.documents["train"].column_names:
            return "ok", "one continuous text, which has no end inside", ""
        name = "labels" if "labels" in blocks.column_names else "input_ids"  # in packed rows every token is a label
        rows = blocks[:_MAX_ROWS_SEARCHED][name]  # (B, T)
        n_ends, n_labels = int((rows == self._tokenizer.eos_token_id).sum()), int((rows >= 0).sum())
        reading = f"{n_ends:,} of {n_labels:,} labels are an end of text"
        return ("ok", reading, "") if n_ends else ("warn", reading, "Without an end among them the model never stops.")

    def first_loss(self) -> _Finding:
        import torch

        ids = self._batch()
        guess = math.log(self._model.config.vocab_size)
        with torch.no_grad():
            loss = self._model(input_ids=ids, labels=ids).loss.item()
        vocabulary = f"{self._model.config.vocab_size:,}"
        reading = f"loss {loss:.2f} nats per token; a uniform guess has ln({vocabulary}) = {guess:.2f}"
        if not math.isfinite(loss):
            return "fail", reading, "The weights are broken: load the model again from its source."
        if self.settings.from_scratch:
            is_guess = abs(loss - guess) < 0.1 * guess
            return "ok" if is_guess else "fail", reading, "A new model must start near a uniform guess."
        why = "A pretrained model beats a guess; if not, tokenizer and weights belong to two different models."
        return "ok" if loss < 0.95 * guess else "fail", reading, why

    def one_step(self) -> _Finding:
        first, second = self._losses[:2]
        reading = f"loss {first:.3f} before, {second:.3f} after a step on the same rows"
        why = "If it does not fall, the optimizer holds other weights, or the gradient does not arrive."
        return "ok" if second < first else "fail", reading, why

    def overfit(self) -> _Finding:
        first, last = self._losses[0], self._losses[-1]
        reading = f"loss {first:.3f} to {last:.3f} in {len(self._losses) - 1} steps on the same rows"
        why = "A model that cannot memorise one batch has a bug, not too little data."
        return "ok" if last < _MEMORISED * first else "fail", reading, why

    def history(self) -> _Finding:
        from helpers.settings import run_folder
        from helpers.training.run_files import read_history

        rows = read_history(run_folder(self.run))
        if not rows:
            return "unknown", "no step has been logged yet", "Train a few steps, then ask again."
        explanation = explain(rows)
        if not explanation.causes:
            losses = [row["loss"] for row in rows if "loss" in row]
            return "ok", f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} rows", ""
        cause = explanation.causes[0]
        return "fail", cause.evidence[0], f"{cause.id} {cause.title}: {cause.fix}"
