"""One run as recorded in its folder, so that runs from studies, shell loops and notebooks compare alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.files import read_json
from helpers.settings import SettingsError, TrainingSettings
from helpers.studies.comparability import Metric
from helpers.training.run_files import kept_eval_loss, read_history

_FILES = ("settings.json", "trial.json", "training.json", "evaluation.json", "data/data.json", "history.jsonl")


@dataclass(frozen=True)
class ComparedRun:
    """One run; values that its folder does not record are None."""

    name: str  # prefixed with its study's: 'pocket' or 'rates/trial-003'
    folder: Path
    settings: dict[str, Any]  # all recorded settings
    losses: tuple[tuple[float, float], ...]  # (step, loss in nats per token) of each validation
    eval_loss: float | None  # validation loss of the final model
    perplexity: float | None  # this and the next three: of the final model on the test text
    bits_per_byte: float | None
    perplexity_interval: tuple[float, float] | None  # low, high
    bits_per_byte_interval: tuple[float, float] | None
    tokens: int | None  # this and the next two: measured in training
    seconds: float | None
    peak_bytes: int | None
    text_sha256: str  # of the test text; runs of different texts are never ranked together
    validation_sha256: str
    is_completions: bool  # whether its metrics are of completions only
    windows: tuple[int, int] | None  # context and stride of the test metrics
    state: str  # 'done', 'pruned', 'failed', 'not finished' or 'damaged'
    error: str  # why it failed or what is damaged; otherwise empty
    optimise: str | None  # the metric that its study minimises; None if not in a study

    def ranked(self, by: Metric) -> float | None:
        """Return the metric to rank by; None if the run has none or did not finish."""
        return getattr(self, by) if self.state == "done" else None

    def text(self, by: Metric) -> str:
        """Return the hash of the text that a metric was measured on; empty if there was none yet.

        On the same text, a metric of completions is not comparable with a metric of all tokens.
        """
        sha256 = self.validation_sha256 if by == "eval_loss" else self.text_sha256
        return f"{sha256[:12]}, completions" if sha256 and self.is_completions else sha256[:12]


def read_run(folder: Path, *, name: str = "") -> ComparedRun:
    """Read a run's folder, even if it is not finished or evaluated; `name` defaults to the folder's name."""
    files, damage = _read_files(folder)
    record, trial, facts, evaluation, data, rows = (files[file] for file in _FILES)
    test = evaluation.get("test") or {}
    tuned = test.get("tuned") or {}
    settings = {**record.get("settings", {}), **trial.get("parameters", {})}
    if record.get("settings"):  # settings newer than the run had the effect of their defaults
        defaults = {name: field.default for name, field in TrainingSettings.model_fields.items()}
        settings |= {name: value for name, value in defaults.items() if name not in settings}
    texts = record.get("data_sha256", {})
    return ComparedRun(
        name=name or folder.name,
        folder=folder,
        settings={key: value for key, value in settings.items() if key != "run"},
        losses=tuple((row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row),
        eval_loss=kept_eval_loss(rows, early_stopping_patience=settings.get("early_stopping_patience", 0)),
        perplexity=tuned.get("perplexity"),
        bits_per_byte=tuned.get("bits_per_byte"),
        perplexity_interval=tuned.get("perplexity_interval"),
        bits_per_byte_interval=tuned.get("bits_per_byte_interval"),
        tokens=facts.get("tokens"),
        seconds=facts.get("seconds"),
        peak_bytes=facts.get("peak_bytes"),
        text_sha256=test.get("text_sha256") or texts.get("test", ""),
        validation_sha256=texts.get("validation", ""),
        # data of an earlier version do not say
        is_completions=data.get("documents", {}).get("train_on", settings.get("train_on")) == "completion",
        windows=(tuned["context"], tuned["stride"]) if {"context", "stride"} <= set(tuned) else None,
        state="damaged" if damage else trial.get("state") or ("done" if facts else "not finished"),
        error=damage or trial.get("error", ""),
        optimise=trial.get("optimise"),
    )


def _read_files(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content of each file of a run ({} if missing), and a sentence if one is damaged."""
    contents: dict[str, Any] = {}
    damage = ""
    for file in _FILES:
        contents[file] = {}
        try:
            contents[file] = read_history(folder) if file == "history.jsonl" else read_json(folder / file)
        except FileNotFoundError:
            continue
        except (SettingsError, OSError) as error:
            damage = str(error)
    if contents["training.json"] and not (damage or contents["settings.json"] or contents["trial.json"]):
        damage = f"{folder / 'settings.json'} is missing: copy the folder of the run again."
    return contents, damage
