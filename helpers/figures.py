"""evaluation.json: the figures of a run, a section for each question, written whole or not at all.

    {"version": 1, "run": ..., "test": ..., "forgetting": ..., "copying": ..., "speech": ...}

A section is null until it has been measured. What it holds is what these give: `helpers.evaluation.Comparison.to_dict`
(`test` and `forgetting`), `helpers.copying.CopyReport.to_dict`, `helpers.generation.Speech.to_dict`.
"""

import json
from typing import Any

from helpers import model_card
from helpers.settings import SettingsError, run_folder

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
    new = folder / "evaluation.json.new"
    new.write_text(json.dumps(found, indent=2, allow_nan=False), encoding="utf-8")
    new.replace(folder / "evaluation.json")
    model_card.write(run)
