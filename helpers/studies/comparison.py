"""Many runs in one table, ranked only if measured on the same text; and promotion of the best one."""

import html
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.display import MIB, PlainTextMixin, did_you_mean, duration_text, html_table, quoted
from helpers.evaluation.intervals import CONFIDENCE, bootstrap_intervals
from helpers.files import atomic_folder, read_json, read_json_or_empty, write_json
from helpers.paths import runs_folder
from helpers.settings import SettingsError, run_folder
from helpers.studies.comparability import METRICS, Metric
from helpers.studies.compared_run import ComparedRun, read_run
from helpers.training.model_card import write_model_card

if TYPE_CHECKING:
    from pandas import DataFrame

_RUN_FILES = ("settings.json", "training.json")  # one of them, where the other was lost
_MAX_ERRORS = 5  # below a table
_MAX_NAMED = 4  # settings of the best run; if more differ, only the table has them
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet treats text that starts so as a formula
_MAX_TEXT = 24  # characters shown of a setting's value
_INTERVAL = f"{CONFIDENCE:.0%} interval"
_COLUMNS: list[tuple[str, str, Callable[[Any], str]]] = [  # heading, attribute of a run, its text
    ("perplexity", "perplexity", "{:.2f}".format),
    (_INTERVAL, "perplexity_interval", lambda ends: "{:.2f} to {:.2f}".format(*ends)),
    ("bits per byte", "bits_per_byte", "{:.4f}".format),
    (_INTERVAL, "bits_per_byte_interval", lambda ends: "{:.4f} to {:.4f}".format(*ends)),
    ("validation loss", "eval_loss", "{:.4f}".format),
    ("time", "seconds", duration_text),
    ("peak memory", "peak_bytes", lambda size: f"{size / MIB:,.0f} MiB"),  # runs differ by less than 0.1 GiB
    ("tokens", "tokens", "{:,}".format),
    ("state", "state", str),
]


@dataclass(frozen=True)
class RunTable(PlainTextMixin):
    """Runs side by side, in one group per measured text, with the best run of a group first."""

    by: Metric  # the metric that ranks them
    groups: tuple[tuple[ComparedRun, ...], ...]
    differing: tuple[str, ...]  # settings that differ between runs

    @property
    def runs(self) -> list[ComparedRun]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group]

    @property
    def best(self) -> list[ComparedRun]:
        """The best run of each text, if any run has the metric."""
        firsts = [group[0] for group in self.groups]
        return [run for run in firsts if run.ranked(self.by) is not None]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row per run, for a CSV file or pandas; unknown values are None."""
        return [
            {"text": number, "rank": rank if run.ranked(self.by) is not None else None, "run": run.name}
            | {name: run.settings.get(name) for name in self.differing}
            | {name: getattr(run, name) for name in METRICS}
            | _bounds("perplexity", run.perplexity_interval)
            | _bounds("bits_per_byte", run.bits_per_byte_interval)
            | {name: getattr(run, name) for name in ("seconds", "peak_bytes", "tokens", "text_sha256", "state")}
            for number, group in enumerate(self.groups, start=1)
            for rank, run in enumerate(group, start=1)
        ]

    @property
    def notes(self) -> list[str]:
        """What readers must know about the table, one sentence each."""
        return [*self._notes()]

    def _notes(self) -> Iterator[str]:
        if len(self.groups) > 1:
            yield (
                f"These runs were measured on {len(self.groups)} different texts: each has its own table, "
                "and runs are ranked only within a text."
            )
        for group in self.groups:
            text = group[0].text(self.by)  # as in its table's title
            of_text = f" on text {text}" if len(self.groups) > 1 and text else ""
            blocks = {run.settings.get("block_size") for run in group if run.eval_loss is not None}
            if self.by == "eval_loss" and len(blocks) > 1:
                yield f"The block sizes{of_text} differ: a longer block gives more context, which makes a text easier."
            windows = sorted({run.windows for run in group if run.windows})
            if len(windows) > 1:
                listed = ", ".join(f"{context} tokens by {stride}" for context, stride in windows)
                easier = "a longer context or a shorter stride makes a text easier"
                yield f"The windows{of_text} differ ({listed}): {easier}."
            known = [run.settings for run in group if "model_name_or_path" in run.settings]
            models = {(s["model_name_or_path"], s.get("tokenizer") == "train" and s["vocab_size"]) for s in known}
            if len(models) > 1 and self.by != "bits_per_byte":
                yield f"The runs{of_text} start from different models: across tokenizers, compare bits per byte only."
            if any(run.state == "done" and run.bits_per_byte is None and run.eval_loss is not None for run in group):
                advice = "notebook 4 measures them. Their validation loss is shown"
                yield f"Some runs{of_text} have no test metrics: {advice}."
            if any(run.seconds is None and run.state == "done" for run in group):
                yield f"Some runs{of_text} have no training record: time, memory and tokens are not known."
            n_ranked = sum(run.ranked(self.by) is not None for run in group)
            if n_ranked > 1 and self.by != "eval_loss":
                yield f"The best of {n_ranked}{of_text} by a test metric looks too good: choose by eval_loss."
            broken = [run for run in group if run.error]
            yield from (f"{run.name}, {run.state}: {run.error}" for run in broken[:_MAX_ERRORS])

    @cached_property
    def verdicts(self) -> list[str]:
        """Per text: its best run, that run's values of the settings that differ, and its distance to the second."""
        sentences = []
        for group in self.groups:
            run = group[0]
            if run.ranked(self.by) is None:
                continue
            values = {name: run.settings[name] for name in _differing(group) if name in run.settings}
            settings = _format(values) if 0 < len(values) <= _MAX_NAMED else ""
            metric = f"{self.by.replace('_', ' ')} {getattr(run, self.by):.4g}"
            best = f"Best: {run.name}, {metric}{' with ' if settings else ''}{settings}."
            second = group[1] if len(group) > 1 and group[1].ranked(self.by) is not None else None
            sentences.append(f"{best} {_difference(run, second)}".rstrip() if second else best)
        return sentences

    def to_csv(self) -> str:
        """Return the rows as CSV text with a header line."""
        import pandas as pd

        # objects, because pandas would turn integers into floats if one is missing
        frame = pd.DataFrame(self.rows, dtype=object)
        return frame.map(_csv_cell).to_csv(index=False, lineterminator="\n")

    def __str__(self) -> str:
        """Return the tables, the notes and the best runs for a terminal."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # lines in files may be long
        tables = [f"{title}\n{frame.to_string(line_width=width)}" for title, frame in self._frames()]
        return "\n\n".join([*tables, "\n".join([*self.notes, *self.verdicts])]).rstrip()

    def _repr_html_(self) -> str:
        # DataFrame.to_html has no caption; html_table escapes all text
        tables = [
            html_table(["", *frame.columns], frame.itertuples(name=None), caption=title)
            for title, frame in self._frames()
        ]
        return "".join([*tables, *(f"<p>{html.escape(sentence)}</p>" for sentence in [*self.notes, *self.verdicts])])

    def _frames(self) -> "Iterator[tuple[str, DataFrame]]":
        """Yield the title and the table of each group, as text, without columns that are empty in the group."""
        import pandas as pd

        part = "validation" if self.by == "eval_loss" else "test"
        for group in self.groups:
            text = group[0].text(self.by)
            measured = f"{part} text {text}" if text else f"no {part} text"
            ranks = [str(rank) if run.ranked(self.by) is not None else "-" for rank, run in enumerate(group, start=1)]
            relevant = {*_differing(group), "source"}  # settings that differ only in other groups say nothing here
            shown = [name for name in self.differing if name in relevant]
            cells = [
                [run.name]
                + [_shorten(run.settings[name]) if name in run.settings else None for name in shown]
                + [None if (value := getattr(run, name)) is None else text(value) for _, name, text in _COLUMNS]
                for run in group
            ]
            # two headings are equal, so a dict per run would lose an interval
            headings = ["run", *shown, *(heading for heading, _, _ in _COLUMNS)]
            frame = pd.DataFrame(cells, index=ranks, columns=headings, dtype=object)
            known = frame.dropna(axis=1, how="all").fillna("-")
            yield f"By {self.by.replace('_', ' ')}, best first ({measured})", known


def _difference(best: ComparedRun, second: ComparedRun) -> str:
    """Return whether two runs differ by more than the choice of test documents; empty if that is not known."""
    columns = ["sha256", "bytes", "tokens", "tuned_nats"]
    sections = [read_json_or_empty(run.folder / "evaluation.json").get("test") or {} for run in (best, second)]
    documents = [section.get("documents") for section in sections]
    if best.windows != second.windows or not all(documents):
        return ""
    (texts, n_bytes, n_tokens, best_nats), (texts_of_second, *_, second_nats) = (
        [np.array([row[name] for row in rows]) for name in columns] for rows in documents
    )
    if not np.array_equal(texts, texts_of_second):
        return ""
    interval = bootstrap_intervals(
        second_nats, best_nats, n_tokens, n_bytes, seed=0,
        is_continuous=sections[0]["tuned"].get("protocol", "").endswith("passages"),
    )["bits_per_byte"]  # fmt: skip
    if interval is None:
        return f"Whether it is really better than {second.name}, so few test documents cannot tell."
    low, high = interval
    saved = (second_nats - best_nats).sum() / math.log(2) / n_bytes.sum()
    needs = f"{abs(saved):.4f} bits per byte {'fewer' if saved > 0 else 'more'} than {second.name}"
    sentence = f"On the test text it needs {needs} ({_INTERVAL} of the gain {low:.4f} to {high:.4f})"
    if low <= 0 <= high:
        return f"{sentence}: the interval includes 0, so this may be due to the choice of the test text."
    return f"{sentence}."


def _format(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shorten(value) or repr('')}" for name, value in settings.items())


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _shorten(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_TEXT else "…" + text[1 - _MAX_TEXT :]  # the end of a path says more than its start


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"  # in other people's settings, such as a prompt: a spreadsheet would run it
    return value


def compare(*names: str, by: Metric | None = None) -> RunTable:
    """Show runs side by side, the best first.

    Args:
        names: runs ('pocket'), studies ('rates': all its trials) or trials ('rates/trial-003'); none: every run.
        by: the metric to rank by; default: the study's if all runs are from one, else bits per byte.

    Raises:
        SettingsError: a run or study does not exist, or there are no runs at all.
    """
    for name in names:
        if not isinstance(name, str):
            raise SettingsError(f"{quoted(name)} is not the name of a run: give names, as in compare('mine', 'rates').")
    selected = [name.rstrip("/") for name in names] or _all_names()
    runs = list({run.folder: run for name in selected for run in _runs_of(name)}.values())
    if not runs:
        raise SettingsError(f"There are no runs in {runs_folder()} yet: train one, or start a sweep.")
    if by is None:
        optimised = {run.optimise for run in runs}
        by = optimised.pop() if len(optimised) == 1 and None not in optimised else "bits_per_byte"
    if by not in METRICS:
        raise SettingsError(f"by = {by!r} is not allowed: it must be one of {', '.join(map(repr, METRICS))}.")
    groups: dict[str, list[ComparedRun]] = {run.text(by): [] for run in runs if run.text(by)}
    # a run that ended before it had a text joins the group if there is only one, else gets its own table
    only_text = next(iter(groups)) if len(groups) == 1 else ""
    for run in runs:
        groups.setdefault(run.text(by) or only_text, []).append(run)
    ranked = tuple(tuple(sorted(group, key=lambda run: _sort_key(run, by))) for group in groups.values())
    return RunTable(by, ranked, _differing(runs))


def _sort_key(run: ComparedRun, by: Metric) -> tuple:
    """Sort by the metric; then runs without it, by validation loss; then unfinished runs."""
    metric = getattr(run, by)
    loss = run.eval_loss if run.eval_loss is not None else float("inf")
    return (run.state != "done", metric is None, metric if metric is not None else loss, run.name)


def _differing(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    # a trial that failed early records only its parameters: of the other settings it says nothing
    values = {name: {repr(settings[name]) for settings in known if name in settings} for name in names}
    return tuple(name for name in names if len(values[name]) > 1)


def _all_names() -> list[str]:
    """Return the names of all runs, then of all studies, including copied folders such as `pocket (copy)`."""
    runs = (path for file in _RUN_FILES for path in runs_folder().glob(f"[!.]*/{file}"))
    trials = runs_folder().glob("[!.]*/trial-*/trial.json")
    return [*sorted({path.parent.name for path in runs}), *sorted({path.parent.parent.name for path in trials})]


def _runs_of(name: str) -> list[ComparedRun]:
    """Return the run with this name, or the trials of the study with this name."""
    if name not in _all_names():
        for part in name.split("/"):
            run_folder(part)  # rejects invalid names
    folder = runs_folder() / name
    if any((folder / file).exists() for file in (*_RUN_FILES, "trial.json")):
        return [read_run(folder, name=name)]
    # a trial's notebooks leave experiments beside it, such as trial-003-rate-1, which are not trials
    trials = sorted(path for path in folder.glob("trial-*/") if re.fullmatch(r"trial-\d+", path.name))
    if trials:
        return [read_run(path, name=f"{name}/{path.name}") for path in trials]
    if folder.exists():
        raise SettingsError(f"The folder {folder} holds no settings.json, because no training has begun in it.")
    raise SettingsError(f"There is no run or study {name!r} in {runs_folder()}{did_you_mean(name, _all_names())}")


def promote(best: ComparedRun, name: str) -> Path:
    """Copy a trial to a run `runs/<name>` of its own, completely or not at all; return the new folder.

    Raises:
        SettingsError: the name is invalid or taken, or the trial is not finished.
    """
    target = run_folder(name)
    if target.exists():
        raise SettingsError(f"The folder {target} already exists: choose another name.")
    if not (best.folder / "training.json").exists():
        raise SettingsError(f"{best.name} has no finished training: only a finished trial can be promoted.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as new:
        # links stay links, which `share` refuses: a trial made by somebody else may link to a private file
        left_out = shutil.ignore_patterns(".*", "trial.*")
        shutil.copytree(best.folder, new, symlinks=True, ignore=left_out, dirs_exist_ok=True)
        for path in filter(Path.exists, (new / "settings.json", new / "evaluation.json")):
            record = read_json(path) | {"promoted_from": best.name}
            record.get("settings", record)["run"] = name
            write_json(path, record)
    write_model_card(name)
    return target
