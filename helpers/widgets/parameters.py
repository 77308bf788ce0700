"""A panel's values as a papermill parameter file, and the commands that run it."""

import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from helpers.files import write_atomically
from helpers.settings import NOTEBOOKS, SettingsError, TrainingSettings, run_folder

_NAMES = 100  # parameter files that one run may have


class SavedParameters(NamedTuple):
    """A parameter file and the command lines that do with it what the panel says."""

    path: Path
    papermill: str
    run: str


def save_parameters(settings: TrainingSettings) -> SavedParameters:
    """Write settings to `runs/<run>/parameters.yaml` for `papermill -f`; a file that says otherwise is kept.

    Numbers are written so that YAML reads them as numbers: `5.0e-05`, where `5e-05` would be text.
    """
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)
    path = _free(folder, text)
    write_atomically(path, text)
    return SavedParameters(path, papermill_command(path), run_command(settings))


def _free(folder: Path, text: str) -> Path:
    """Return the first of parameters.yaml, parameters-2.yaml, ... that is not there or holds this text already."""
    for number in range(1, _NAMES + 1):
        path = folder / ("parameters.yaml" if number == 1 else f"parameters-{number}.yaml")
        if not path.exists() or path.read_text(encoding="utf-8") == text:
            return path
    raise SettingsError(f"{folder} holds {_NAMES} parameter files already: delete some, or choose another run name.")


def papermill_command(path: Path) -> str:
    """Return the command that runs notebook 3 with a parameter file, from any folder."""
    parts = ["papermill", NOTEBOOKS / "03_fine_tuning.ipynb", path.with_suffix(".ipynb"), "-f", path]
    return _joined(map(str, parts))


def run_command(settings: TrainingSettings) -> str:
    """Return the command that runs all five notebooks with the same values; what is the default is left out."""
    values = settings.model_dump()
    changed = [name for name, field in TrainingSettings.model_fields.items() if values[name] != field.default]
    options = [part for name in changed if name != "run" for part in ("-p", name, _plain(values[name]))]
    return _joined(["python", "-m", "helpers", "run", "--run", settings.run, *options])


def _joined(parts: Iterable[str]) -> str:
    """Return a command line as this system's shell reads it: Windows' knows no single quotes."""
    return subprocess.list2cmdline(parts) if sys.platform == "win32" else shlex.join(parts)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
