"""evaluation.json: the metrics of a run, with one section per question.

    {"version": 1, "run": ...,
     "test": {"source", "verdict", "text_sha256", "base": SCORE, "tuned": SCORE, "difference", "documents": [...]},
     "forgetting": the same on general text,
     "published_protocol": [{"protocol", "stride", "base", "tuned", "published"}, ...],
     "copying": {"rows": [samples, held-out text], "longest_copy"},
     "speech": {"prompts", "settings", "before", "decodings": [{"decoding", measures, "sample"}, ...]}}

A section is null until it has been measured. SCORE is the result of `scoring.Score.to_dict`, with the intervals
`perplexity_interval` and `bits_per_byte_interval` as [low, high]. `difference` is that of `base_and_tuned.Comparison`:
`bits_per_byte` saved (above 0: the tuned model is better) with its `interval`, `perplexity_ratio` (below 1: better)
with its own, `confidence` and `resamples`. `documents` has `sha256`, `bytes`, `tokens`, `base_nats` and `tuned_nats`
of each document, in the order of the text. An interval is null with fewer than six documents; how it
is drawn is in `intervals`. A perplexity is null if it is too large for a float. Compare the metrics of two runs only if
their `text_sha256` is the same.
"""

import json
from typing import Any

from filelock import FileLock

from helpers.files import read_json, write_atomically
from helpers.settings import SettingsError, run_folder
from helpers.training.model_card import write_model_card

VERSION = 1
SECTIONS = ("test", "forgetting", "published_protocol", "copying", "speech")


def read(run: str) -> dict[str, Any]:
    """Return the metrics of a run.

    Raises:
        SettingsError: the run was not evaluated, or by another version of this course, or the file is damaged.
    """
    path = run_folder(run) / "evaluation.json"
    if not path.exists():
        raise SettingsError(f"Run {run!r} has not been evaluated: run notebook 4 for it first.")
    return read_json(path)


def read_section(run: str, section: str) -> Any:
    """Return one section of a run's metrics; None if it was not measured or cannot be read."""
    try:
        return read(run).get(section)
    except SettingsError:
        return None


def write_section(run: str, section: str, value: Any) -> None:
    """Write one section of a run's metrics, keep the others, and update the model card."""
    with FileLock(run_folder(run) / ".evaluation.lock"):  # a second notebook may measure another section
        try:
            before = read(run)
        except SettingsError:  # not evaluated yet, or unreadable: nothing to keep
            before = {}
        content = {"version": VERSION, "run": run} | {name: before.get(name) for name in SECTIONS} | {section: value}
        # NaN is not JSON: better an error here, with the old file intact, than a file that others cannot read.
        write_atomically(run_folder(run) / "evaluation.json", json.dumps(content, indent=2, allow_nan=False))
        write_model_card(run)
