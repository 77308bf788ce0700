"""The files in a run's folder: settings.json, training.json, history.jsonl and checkpoints; and their size on disk."""

import json
import math
import platform
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from helpers.data.run_data import is_same_model, is_same_text
from helpers.files import read_json, read_json_lines, write_atomically, write_json
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder
from helpers.training.arguments import checkpoints_kept
from helpers.training.calibration import processor_name
from helpers.training.devices import device_name
from helpers.training.memory import optimizer_bytes
from helpers.training.processes import n_processes
from helpers.training.shape import adapter_parameters, parameters, trained_parameters

_PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers")
_HISTORY_NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch", "sample", "warning")
# Settings that may change when a run continues, because the result stays the same. `eval_steps` may not: each
# validation draws a number from the random state that dropout uses.
CHANGEABLE = ("logging_steps", "save_steps", "save_total_limit", "sample_prompt", "report_to")
_WEIGHTS_FILES, _ADAPTER_FILES = ("model.safetensors",), ("adapter_model.safetensors", "adapter_config.json")
_CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
_MODEL_FILES = ("model.safetensors", "config.json")


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder has finished training and its model is complete."""
    return (folder / "training.json").exists() and _first_damaged(folder / "model", _MODEL_FILES) is None


def check_same_settings(settings: TrainingSettings) -> None:
    """Check that settings give the same result, with the same number of processes, as those the run was started with.

    The folder's name, the path of the same text, and the settings in `CHANGEABLE` may differ.

    Raises:
        SettingsError: something else differs, or settings.json, which is written before the first checkpoint, was lost;
            continuing would mix two runs in one folder.
    """
    path = run_folder(settings.run) / "settings.json"
    if not path.exists():
        if any(path.parent.glob("trial-*")):
            raise SettingsError(f"{path.parent} is the folder of a study: choose another run name.")
        if any((path.parent / "checkpoints").glob("checkpoint-*")) or (path.parent / "training.json").exists():
            raise SettingsError(
                f"{path} is missing, so the settings of this run are unknown: copy the file again, delete the folder "
                "to start from the beginning, or choose another run name."
            )
        return
    before, now = read_run_settings(settings.run).model_dump(), settings.model_dump()
    before["processes"] = read_json(path).get("processes", 1)
    # a finished run is only opened, by any number of processes
    now["processes"] = before["processes"] if is_finished(path.parent) else n_processes()
    changed = [name for name in now if before[name] != now[name] and name not in CHANGEABLE]
    models = [values["model_name_or_path"] for values in (before, now)]
    if "model_name_or_path" in changed and is_same_model(settings.run, *models):
        changed.remove("model_name_or_path")
    if "source" in changed and is_same_text(settings):
        changed.remove("source")
    if changed:
        differences = "; ".join(f"{name} = {before[name]!r}, not {now[name]!r}" for name in changed)
        raise SettingsError(
            f"Run {settings.run!r} was started with {differences}: choose another run name to keep both, "
            f"or delete the folder {path.parent} to start afresh."
        )


def check_same_values(run: str, values: Mapping[str, Any]) -> None:
    """Check as `check_same_settings` those values of a run that are known before a notebook starts."""
    is_started = (run_folder(run) / "settings.json").exists()
    before = read_run_settings(run) if is_started else TrainingSettings(run=run)
    own = {name: values[name] for name in TrainingSettings.model_fields.keys() & values.keys()}
    check_same_settings(before.model_copy(update=own | {"run": run}))


def store_changes(settings: TrainingSettings) -> None:
    """Update a run's settings.json, if it exists, with settings that changed since the run was started."""
    path = run_folder(settings.run) / "settings.json"
    if path.exists() and (record := read_json(path))["settings"] != settings.model_dump():
        write_json(path, record | {"settings": settings.model_dump()})


def settings_record(settings: TrainingSettings, data_facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of settings.json, which is enough to repeat a run; `data_facts` is that of data.json."""
    return {
        "settings": settings.model_dump(),
        "processes": n_processes(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        # with its threads: another number of them adds up in another order, which changes the last bits
        "machine": {"system": platform.platform(), "device": device_name(), "processor": processor_name()},
        "data_sha256": {name: split["sha256"] for name, split in data_facts["splits"].items()},
    }


def history_rows(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Trainer's log that belong in a run's history: losses, samples, warnings."""
    return [
        {"step": log["step"]} | {name: log[name] for name in _HISTORY_NAMES if name in log}
        for log in log_history
        if {"loss", "eval_loss", "sample", "warning"} & set(log)
    ]


class HistoryFile:
    """A run's history.jsonl, one row of the Trainer's log per line; readers never see a partial row.

    The file is rewritten as a whole each time, and its content is cached as text: for 10,000 rows, formatting takes
    80 ms and writing 3.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._text, self._n_logs = folder / "history.jsonl", "", 0

    def write(self, log_history: Sequence[dict[str, Any]]) -> None:
        """Write the rows of a log, which must only have grown since the last call."""
        self._text += "".join(json.dumps(row) + "\n" for row in history_rows(log_history[self._n_logs :]))
        self._n_logs = len(log_history)
        write_atomically(self._path, self._text)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the history of the run in a folder, oldest row first; empty before training begins."""
    return read_json_lines(folder / "history.jsonl")


def kept_eval_loss(rows: Sequence[dict[str, Any]], *, early_stopping_patience: int) -> float | None:
    """Return the validation loss of the saved model, in nats per token; None if it is not finite or missing.

    It is the last loss; with early stopping the lowest, because then the best checkpoint is kept.

    >>> rows = [{"step": 1, "eval_loss": 2.5}, {"step": 2, "eval_loss": 3.0}]
    >>> kept_eval_loss(rows, early_stopping_patience=0), kept_eval_loss(rows, early_stopping_patience=1)
    (3.0, 2.5)
    """
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    kept = min(losses) if early_stopping_patience and losses else (losses or [math.nan])[-1]
    return kept if math.isfinite(kept) else None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder; warn about each incomplete one that is skipped.

    A crash or a full disk may have truncated the newest one: the Trainer does not write checkpoints atomically.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(checkpoints, key=step_of, reverse=True):
        damaged = _damaged_file(checkpoint)
        if damaged is None:
            return checkpoint
        warnings.warn(f"{checkpoint} is skipped: its {damaged} is missing or incomplete.", stacklevel=2)
    return None


def _damaged_file(checkpoint: Path) -> str | None:
    """Return the name of a checkpoint's first file that is missing or cannot be read completely."""
    weights = _ADAPTER_FILES if any(checkpoint.glob("adapter_*")) else _WEIGHTS_FILES
    random_states = {path.name for path in checkpoint.glob("rng_state*.pth")} or {"rng_state.pth"}
    scaler = {path.name for path in checkpoint.glob("scaler.pt")}  # only an fp16 run has one
    return _first_damaged(checkpoint, (*weights, *_CHECKPOINT_FILES, *sorted(random_states | scaler)))


def _first_damaged(folder: Path, names: Iterable[str]) -> str | None:
    from safetensors import SafetensorError, safe_open

    for name in names:
        path = folder / name
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np"):  # checks the file's length against its header; reads no weights
                    pass
            elif path.suffix == ".json":
                read_json(path)
            else:
                with zipfile.ZipFile(path) as file:  # the format of torch.save
                    if file.testzip() is not None:  # a part has a wrong checksum, e.g. after a power cut
                        return name
        except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError):
            return name
    return None


def has_ended(checkpoint: Path, *, early_stopping_patience: int) -> bool:
    """Return whether a checkpoint is from the last step of a run: no step is left, or early stopping ended it."""
    state = read_json(checkpoint / "trainer_state.json")
    stopper = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("attributes", {})
    is_out_of_patience = 0 < early_stopping_patience <= stopper.get("early_stopping_patience_counter", 0)
    return state["global_step"] >= state["max_steps"] or is_out_of_patience


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step in the name of a checkpoint's folder.

    >>> step_of(Path("checkpoints/checkpoint-300"))
    300
    """
    return int(checkpoint.name.rpartition("-")[2])


def model_bytes(config: Any, settings: TrainingSettings) -> int:
    """Return the disk space for a final model in float32, and its adapter if it has one."""
    return 4 * (parameters(config) + adapter_parameters(config, settings.lora_r))


def checkpoint_bytes(config: Any, settings: TrainingSettings) -> int:
    """Return the disk space for a checkpoint: the trained weights and their optimizer states."""
    return 4 * trained_parameters(config, settings) + optimizer_bytes(config, settings)


def disk_bytes(config: Any, settings: TrainingSettings) -> int:
    """Return the disk space for a run; while a checkpoint is written, there is one more than is kept."""
    return (checkpoints_kept(settings) + 1) * checkpoint_bytes(config, settings) + model_bytes(config, settings)
