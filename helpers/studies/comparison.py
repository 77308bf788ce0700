"""compare(): many runs in one table, ranked only where they were measured on the same text; and the best promoted.

Everything is read from the runs' own folders, so that runs of a sweep, of a shell loop and of notebooks compare alike.
"""

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from helpers.settings import SettingsError, run_folder, runs_folder
from helpers.training.model_card import write_model_card
from helpers.training.run_files import kept_eval_loss, read_history

Figure = Literal["eval_loss", "bits_per_byte", "perplexity"]
_MOST_ERRORS = 5  # that are told below a table
_FILES = ("settings.json", "trial.json", "training.json", "evaluation.json", "history.jsonl")
FIGURES = ("perplexity", "bits_per_byte", "eval_loss")


@dataclass(frozen=True)
class ComparedRun:
    """One run as its folder tells it; what is not there is None.

    Attributes:
        name: the run's, with its study's before it: 'pocket' or 'rates/trial-003'.
        folder: where it lies.
        settings: all that is known to have been set.
        eval_loss: validation loss of the final model, nats a token.
        perplexity, bits_per_byte: of the final model on the test text.
        perplexity_interval, bits_per_byte_interval: (low, high) where they were measured.
        tokens, seconds, peak_bytes: what the training took, measured.
        text_sha256, validation_sha256: of the texts of the figures; runs with another are never ranked together.
        windows: (context, stride) of the test figures.
        state: 'done', 'pruned', 'failed', 'not finished' or 'damaged'.
        error: why it failed or what is damaged; else empty.
        optimise: the figure its study makes small; None outside a study.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    eval_loss: float | None
    perplexity: float | None
    bits_per_byte: float | None
    perplexity_interval: tuple[float, float] | None
    bits_per_byte_interval: tuple[float, float] | None
    tokens: int | None
    seconds: float | None
    peak_bytes: int | None
    text_sha256: str
    validation_sha256: str
    windows: tuple[int, int] | None
    state: str
    error: str
    optimise: str | None

    def ranked(self, by: str) -> float | None:
        """Return the figure it is ranked by; None where it has none or did not finish."""
        return getattr(self, by) if self.state == "done" else None

    def text(self, by: str) -> str:
        """Return the hash of the text that a figure was measured on; empty before there was one."""
        return self.validation_sha256 if by == "eval_loss" else self.text_sha256


def read_run(folder: Path, *, name: str = "") -> ComparedRun:
    """Read what a run's folder tells, finished or not, measured or not."""
    files, damaged = _read_files(folder)
    record, trial, facts, evaluation, rows = (files[file] for file in _FILES)
    test = evaluation.get("test") or {}
    tuned = test.get("tuned") or {}
    settings = {**record.get("settings", {}), **trial.get("parameters", {})}
    texts = record.get("data_sha256", {})
    return ComparedRun(
        name=name or folder.name,
        folder=folder,
        settings={key: value for key, value in settings.items() if key != "run"},
        eval_loss=kept_eval_loss(rows, early_stopping_patience=settings.get("early_stopping_patience", 0)),
        perplexity=tuned.get("perplexity"),
        bits_per_byte=tuned.get("bits_per_byte"),
        perplexity_interval=_pair(tuned.get("perplexity_interval")),
        bits_per_byte_interval=_pair(tuned.get("bits_per_byte_interval")),
        tokens=facts.get("tokens"),
        seconds=facts.get("seconds"),
        peak_bytes=facts.get("peak_bytes"),
        text_sha256=test.get("text_sha256") or texts.get("test", ""),
        validation_sha256=texts.get("validation", ""),
        windows=(tuned["context"], tuned["stride"]) if {"context", "stride"} <= set(tuned) else None,
        state="damaged" if damaged else trial.get("state") or ("done" if facts else "not finished"),
        error=damaged or trial.get("error", ""),
        optimise=trial.get("optimise"),
    )


def _read_files(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what the files of a run hold, nothing where one is not there, and a sentence where one is damaged."""
    found: dict[str, Any] = {}
    damaged = ""
    for file in _FILES:
        found[file] = {}
        with contextlib.suppress(FileNotFoundError):
            try:
                text = (folder / file).read_text(encoding="utf-8")
                found[file] = read_history(folder) if file == "history.jsonl" else dict(json.loads(text))
            except (ValueError, TypeError) as error:
                damaged = f"{file} is damaged ({error}): delete it, and run again what makes it."
    return found, damaged


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return tuple(interval) if interval else None


@dataclass(frozen=True)
class RunTable:
    """Runs side by side: one group for each test text, in each the best first.

    Attributes:
        by: the figure that ranks them.
        groups: the runs of each test text.
        differing: the settings that are not the same in all runs.
    """

    by: str
    groups: tuple[tuple[ComparedRun, ...], ...]
    differing: tuple[str, ...]

    @property
    def runs(self) -> list[ComparedRun]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group]

    @property
    def best(self) -> list[ComparedRun]:
        """The best run of each test text that has one with a figure."""
        firsts = [group[0] for group in self.groups]
        return [run for run in firsts if run.ranked(self.by) is not None]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row a run, for a table, a CSV file or pandas; what is not known is None."""
        measured = (*FIGURES, "seconds", "peak_bytes", "tokens", "text_sha256", "state")
        return [
            {"text": number, "rank": place if run.ranked(self.by) is not None else None, "run": run.name}
            | {name: run.settings.get(name) for name in self.differing}
            | {name: getattr(run, name) for name in measured[:3]}
            | _ends("perplexity", run.perplexity_interval)
            | _ends("bits_per_byte", run.bits_per_byte_interval)
            | {name: getattr(run, name) for name in measured[3:]}
            for number, group in enumerate(self.groups, start=1)
            for place, run in enumerate(group, start=1)
        ]  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """What must be known to read the table right, one sentence each."""
        return [*_notes(self)]

    def to_csv(self) -> str:
        """Return the rows as a CSV text with a head line."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def __str__(self) -> str:
        """Return the table for a terminal."""
        from helpers.studies.comparison_page import text

        return text(self)

    def _repr_html_(self) -> str:
        from helpers.studies.comparison_page import table

        return table(self)


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _notes(table: RunTable) -> Any:
    if len(table.groups) > 1:
        yield (
            f"These runs were measured on {len(table.groups)} different texts: each has a table of its own, "
            "and no run is ranked against one of another text."
        )
    for number, group in enumerate(table.groups, start=1):
        of_text = f" of text {number}" if len(table.groups) > 1 else ""
        blocks = {run.settings.get("block_size") for run in group if run.eval_loss is not None}
        if table.by == "eval_loss" and len(blocks) > 1:
            yield f"The block sizes{of_text} differ: a longer block gives more context, which makes a text easier."
        windows = sorted({run.windows for run in group if run.windows})
        if len(windows) > 1:
            told = ", ".join(f"{context} tokens by {stride}" for context, stride in windows)
            yield f"The windows{of_text} differ ({told}): a longer context or a shorter stride makes a text easier."
        if len({run.settings.get("model_name_or_path") for run in group}) > 1 and table.by != "bits_per_byte":
            yield f"The runs{of_text} start from different models: across tokenizers, compare bits per byte only."
        if any(run.state == "done" and run.bits_per_byte is None and run.eval_loss is not None for run in group):
            yield f"Some runs{of_text} have no test figures: notebook 04 makes them. Their validation loss is shown."
        if any(run.seconds is None and run.state == "done" for run in group):
            yield f"Some runs{of_text} have no training record: time, memory and tokens are not known."
        wrong = [run for run in group if run.error]
        yield from (f"{run.name}, {run.state}: {run.error}" for run in wrong[:_MOST_ERRORS])


def compare(*names: str, by: Figure | None = None) -> RunTable:
    """Lay runs side by side.

    Args:
        names: runs ('pocket'), studies ('rates', all its trials) or trials ('rates/trial-003'); none: every run.
        by: the figure that ranks; left out: that of the study where all are of one, else bits per byte.

    Raises:
        SettingsError: there is no run or study of a name, or there are none at all.
    """
    runs = [run for name in names or _all_names() for run in _find(name.rstrip("/"))]
    runs = list({run.folder: run for run in runs}.values())
    if not runs:
        raise SettingsError(f"There are no runs in {runs_folder()} yet: train one, or start a sweep.")
    if by is None:
        wanted = {run.optimise for run in runs}
        by = wanted.pop() if len(wanted) == 1 and None not in wanted else "bits_per_byte"
    if by not in FIGURES:
        raise SettingsError(f"by = {by!r} is not allowed: it must be one of {', '.join(map(repr, FIGURES))}.")
    texts = dict.fromkeys(run.text(by) for run in runs if run.text(by))
    lone = [run for run in runs if not run.text(by)]  # ended before they had a text
    groups = [[run for run in runs if run.text(by) == text] for text in texts]
    if lone and len(groups) == 1:
        groups[0] += lone
    elif lone:
        groups.append(lone)
    ranked = tuple(tuple(sorted(group, key=lambda run: _order(run, by))) for group in groups)
    return RunTable(by, ranked, _differing(runs))


def _order(run: ComparedRun, by: str) -> tuple:
    """Order by the figure; then what lacks it, by its validation loss; then what did not finish."""
    figure = getattr(run, by)
    loss = run.eval_loss if run.eval_loss is not None else float("inf")
    return (run.state != "done", figure is None, figure if figure is not None else loss, run.name)


def _differing(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return tuple(name for name in names if len({repr(settings.get(name)) for settings in known}) > 1)


def _all_names() -> list[str]:
    """Return the names of all runs, then of all studies."""
    runs, trials = runs_folder().glob("*/settings.json"), runs_folder().glob("*/trial-*/trial.json")
    return [*sorted(path.parent.name for path in runs), *sorted({path.parent.parent.name for path in trials})]


def _find(name: str) -> list[ComparedRun]:
    """Return the run, or the trials of the study, that a name means."""
    study, _, trial = name.rpartition("/")
    folder = run_folder(study) / run_folder(trial).name if study else run_folder(name)
    if (folder / "settings.json").exists() or (folder / "trial.json").exists():
        return [read_run(folder, name=name)]
    trials = sorted(path for path in folder.glob("trial-*/") if re.fullmatch(r"trial-\d+", path.name))
    found = [read_run(path, name=f"{name}/{path.name}") for path in trials if not study]
    if found:
        return found
    raise SettingsError(
        f"There is no run or study {name!r} in {runs_folder()}; there are {', '.join(_all_names()) or 'none yet'}."
    )


def promote(best: ComparedRun, name: str) -> Path:
    """Make a trial a run of its own: copy its folder to `runs/<name>`, whole or not at all; return that folder.

    Raises:
        SettingsError: the name is no plain name or taken, or the trial is not finished.
    """
    target = run_folder(name)
    if target.exists():
        raise SettingsError(f"There is a folder {target} already: choose another name.")
    if not (best.folder / "training.json").exists():
        raise SettingsError(f"{best.name} has no finished training: only a finished trial can be promoted.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".promoting-") as beside:
        copied = shutil.copytree(best.folder, Path(beside) / name, ignore=shutil.ignore_patterns(".*", "trial.*"))
        _rename_within(copied, best.name, name)
        copied.replace(target)
    write_model_card(name)
    return target


def _rename_within(folder: Path, before: str, name: str) -> None:
    """Let a run's settings and figures name it right, and say which trial it was."""
    for path in (folder / "settings.json", folder / "evaluation.json"):
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8")) | {"promoted_from": before}
            record.get("settings", record)["run"] = name
            path.write_text(json.dumps(record, indent=2), encoding="utf-8")
