"""examine(): why does this run not learn? Six checks in the order in which they save most time."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.display import html_table
from helpers.troubleshooting.explanation import explain
from helpers.troubleshooting.reading import clean

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_MARKS = {"ok": "\u2713", "warn": "!", "fail": "\u2717", "unknown": "?"}
_MOST_ROWS, _MOST_TOKENS = 4, 128  # a batch that also a large model passes through in seconds
_MOST_ROWS_LOOKED_AT = 200


@dataclass(frozen=True)
class Step:
    """One check: `status` is 'ok', 'warn', 'fail' or 'unknown'; `reading` was seen; `meaning` says what it tells."""

    name: str
    status: str
    reading: str
    meaning: str = ""


@dataclass(frozen=True)
class Examination:
    """All checks of a run, in their order."""

    run: str
    steps: tuple[Step, ...]

    @property
    def verdict(self) -> str:
        """One sentence: the first check that fails is the one to mend."""
        first = next((step for step in self.steps if step.status == "fail"), None)
        if first:
            return f"Begin here: {first.name}. {first.meaning}"
        unknown = [step.name for step in self.steps if step.status == "unknown"]
        if unknown:
            return f"Nothing fails; not looked at: {', '.join(unknown)}."
        return "Everything between text and optimizer is connected: look at the settings next."

    def __str__(self) -> str:
        """Return it for a terminal."""
        lines = [f"{_MARKS[step.status]} {step.status:8}{step.name:32}{step.reading}" for step in self.steps]
        return clean("\n".join([*lines, "", self.verdict]))

    def _repr_html_(self) -> str:
        rows = (
            (f"{_MARKS[step.status]} {step.status}", step.name, clean(step.reading), step.meaning)
            for step in self.steps
        )
        return f"<p><b>{escape(self.verdict)}</b></p>{html_table((), rows)}"


def examine(run: str) -> Examination:
    """Examine a run that does not learn: its data, its labels, its start model, and its history.

    The run need not be finished, and need not have begun to train. Nothing in its folder is changed.

    Args:
        run: its name.

    Raises:
        SettingsError: there is no run of that name.
    """
    from helpers.settings import read_run_settings, run_folder

    settings = read_run_settings(run) if (run_folder(run) / "settings.json").exists() else None
    if settings is None:
        from helpers.data.preparation import open_prepared

        open_prepared(run)  # says what to do where there is nothing
    bench = _Bench(run)
    checks: tuple[tuple[str, Callable[[], Step]], ...] = (
        ("a row, decoded back", bench.row_decoded),
        ("an end among the labels", bench.end_among_labels),
        ("one forward pass", bench.first_loss),
        ("one step", bench.one_step),
        ("one batch by heart", bench.overfit),
        ("the history", bench.history),
    )
    return Examination(run, tuple(_made(name, check) for name, check in checks))


@contextmanager
def practice_run() -> Iterator[str]:
    """Give the name of a run to practise on, trained on the fables for a few steps; gone when the block ends.

    Until then the folder of all runs is a temporary one.
    """
    from helpers.settings import TrainingSettings
    from helpers.training.fine_tuning import fine_tune

    before = os.environ.get("COURSE_RUNS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COURSE_RUNS"] = folder
        try:
            fine_tune(
                TrainingSettings(
                    run="practice",
                    block_size=64,
                    num_train_epochs=0.05,
                    logging_steps=2,
                    eval_steps=1000,
                    save_steps=1000,
                    validation_share=0.02,
                )
            )
            yield "practice"
        finally:
            os.environ.pop("COURSE_RUNS")
            if before is not None:
                os.environ["COURSE_RUNS"] = before


def _made(name: str, check: Callable[[], Step]) -> Step:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (a broken run breaks in any way, and each is an answer)
        explanation = explain(error)
        known = explanation.causes[0] if explanation.causes else None
        meaning = f"{known.title}: {known.fix}" if known else "The checks below may still tell."
        return Step(name, "fail" if known else "unknown", f"{type(error).__name__}: {error}", meaning)


class _Bench:
    """What the checks share: the run's rows, its tokenizer, the model it starts from."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._model: GPT2LMHeadModel | None = None
        self._losses: list[float] = []

    def _name(self) -> str:
        from helpers.data.preparation import open_prepared

        return str(open_prepared(self.run).facts["settings"]["model_name_or_path"])

    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from helpers.model import load_tokenizer

        return load_tokenizer(self._name())

    def _rows(self, n_rows: int) -> Any:
        from helpers.data.preparation import open_prepared

        blocks = open_prepared(self.run).blocks["train"]
        return blocks[: min(n_rows, len(blocks))]["input_ids"]  # (B, T)

    def _is_from_scratch(self) -> bool:
        from helpers.settings import read_run_settings, run_folder

        has_begun = (run_folder(self.run) / "settings.json").exists()
        return bool(has_begun and read_run_settings(self.run).from_scratch)

    def _start_model(self) -> "GPT2LMHeadModel":
        from helpers.model import load_model

        if self._model is None:
            self._model = load_model(
                self._name(), from_scratch=self._is_from_scratch()
            ).eval()  # no dropout: repeatable
        return self._model

    def _batch(self) -> Any:
        return self._rows(_MOST_ROWS)[:, :_MOST_TOKENS]

    def row_decoded(self) -> Step:
        tokenizer, row = self._tokenizer(), self._rows(1)[0].tolist()
        text = tokenizer.decode(row)
        n_kinds = len(set(row))
        status = "ok" if text.strip() and n_kinds > len(row) // 20 else "fail"
        reading = f"{len(row)} tokens, {n_kinds} different, of {len(tokenizer)}: {text[:100]!r}"
        return Step("a row, decoded back", status, reading, "It must read as your text does.")

    def end_among_labels(self) -> Step:
        end, rows = self._tokenizer().eos_token_id, self._rows(_MOST_ROWS_LOOKED_AT)
        n_ends = int((rows == end).sum())  # in packed rows each token is a label
        reading = f"{n_ends} of {rows.numel()} labels are an end of text"
        meaning = "" if n_ends else "Without an end among them the model never stops."
        return Step("an end among the labels", "ok" if n_ends else "warn", reading, meaning)

    def first_loss(self) -> Step:
        import torch

        model, ids = self._start_model(), self._batch()
        guess = math.log(model.config.vocab_size)
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        reading = f"loss {loss:.2f} nats a token; an even guess has ln({model.config.vocab_size:,}) = {guess:.2f}"
        if not math.isfinite(loss):
            return Step("one forward pass", "fail", reading, "The weights are spoilt: take the model afresh.")
        if self._is_from_scratch():
            near = abs(loss - guess) < 0.1 * guess
            return Step("one forward pass", "ok" if near else "fail", reading, "From scratch it must be a guess.")
        is_better = loss < 0.95 * guess
        meaning = "A pretrained model beats a guess; if not, tokenizer and weights are not of one model."
        return Step("one forward pass", "ok" if is_better else "fail", reading, meaning)

    def one_step(self) -> Step:
        first, second = self._learn(30)[:2]
        reading = f"loss {first:.3f} before, {second:.3f} after a step on the same rows"
        meaning = "If it does not fall, the optimizer holds other weights, or the gradient does not arrive."
        return Step("one step", "ok" if second < first else "fail", reading, meaning)

    def overfit(self) -> Step:
        losses = self._learn(30)
        reading = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses) - 1} steps on the same rows"
        meaning = "A model that cannot learn one batch by heart has a bug, not too little data."
        return Step("one batch by heart", "ok" if losses[-1] < 0.6 * losses[0] else "fail", reading, meaning)

    def _learn(self, n_steps: int) -> list[float]:
        """Train a copy of the start model on one batch, once; return the loss before each step and after the last."""
        import torch

        if not self._losses:
            model, ids = self._start_model(), self._batch()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(n_steps + 1):
                loss = model(input_ids=ids, labels=ids).loss
                self._losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        return self._losses

    def history(self) -> Step:
        from helpers.settings import run_folder
        from helpers.training import read_history

        rows = read_history(run_folder(self.run))
        if not rows:
            return Step("the history", "unknown", "no step has been logged yet", "Train a few steps, then ask again.")
        explanation = explain(rows)
        if not explanation.causes:
            losses = [row["loss"] for row in rows if "loss" in row]
            return Step("the history", "ok", f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} rows")
        cause = explanation.causes[0]
        return Step("the history", "fail", cause.evidence[0], f"{cause.id} {cause.title}: {cause.fix}")
