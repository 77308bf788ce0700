"""evaluation.json: the figures of a run, a section for each question, written whole or not at all.

    {"version": 1, "run": ...,
     "test": {"source", "text_sha256", "base": SCORE, "tuned": SCORE, "difference", "documents": [...]},
     "forgetting": the same on general text,
     "copying": {"rows": [samples, held-out text], "longest_copy"},
     "speech": {"prompts", "settings", "decodings": [{"decoding", measures, "sample"}, ...]}}

A section is null until it has been measured. SCORE is what `scoring.Score.to_dict` gives, with the intervals
`perplexity_interval` and `bits_per_byte_interval` as [low, high]. `difference` is `base_and_tuned.Comparison`'s:
`bits_per_byte` saved (above 0: the tuned model is better) with its `interval`, `perplexity_ratio` (below 1: better)
with its own, `confidence` and `resamples`. `documents` has, in the order of the text, `sha256`, `bytes`, `tokens`,
`base_nats` and `tuned_nats` of each. An interval is null where there is one document; a figure is null where it is
beyond all numbers. Figures of two runs compare only where their `text_sha256` is the same.
"""

import json
from typing import Any

from helpers.files import write_atomically
from helpers.settings import SettingsError, run_folder
from helpers.training.model_card import write_model_card

VERSION = 1
SECTIONS = ("test", "forgetting", "copying", "speech")


def read(run: str) -> dict[str, Any]:
    """Return the figures of a run.

    Raises:
        SettingsError: the run has not been evaluated, or by another version of this course.
    """
    path = run_folder(run) / "evaluation.json"
    if not path.exists():
        raise SettingsError(f"Run {run!r} has not been evaluated: run notebook 04 for it first.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except (ValueError, TypeError, KeyError):
        raise SettingsError(f"{path} cannot be read: run notebook 04 for run {run!r} again.") from None
    if version != VERSION:
        raise SettingsError(
            f"{path} is of version {version}, and this course reads version {VERSION}: run notebook 04 for run {run!r} "
            "again."
        )
    return found


def keep(run: str, section: str, value: dict[str, Any]) -> None:
    """Write one section of a run's figures, leave the others as they are, and bring the model card up to date."""
    folder = run_folder(run)
    try:
        before = read(run)
    except SettingsError:  # none yet, or of a version that nothing here reads
        before = {}
    found = {"version": VERSION, "run": run} | {name: before.get(name) for name in SECTIONS} | {section: value}
    write_atomically(folder / "evaluation.json", json.dumps(found, indent=2, allow_nan=False))
    write_model_card(run)
