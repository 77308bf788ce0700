"""Which of a run's checkpoints are whole: a crash or a full disk may have cut the last one short."""

import json
import re
import warnings
import zipfile
from pathlib import Path

_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole; warn of those that are passed over, by name."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        broken = _broken_file(checkpoint)
        if broken is None:
            return checkpoint
        warnings.warn(f"{checkpoint} is passed over: its {broken} is missing or cut short.", stacklevel=2)
    return None


def _broken_file(checkpoint: Path) -> str | None:
    """Return the name of the first file of a checkpoint that a crash or a full disk has spoilt."""
    from safetensors import SafetensorError, safe_open

    random_states = {path.name for path in checkpoint.glob("rng_state*.pth")} or {"rng_state.pth"}
    scaler = {path.name for path in checkpoint.glob("scaler.pt")}  # fp16 alone has one
    for name in (*_FILES, *sorted(random_states | scaler)):
        path = checkpoint / name
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix == ".json":
                dict(json.loads(path.read_text(encoding="utf-8")))
            else:
                with zipfile.ZipFile(path) as file:  # what torch.save writes
                    if file.testzip() is not None:  # a sum of each part that does not hold
                        return name
        except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError):
            return name
    return None


def has_ended(checkpoint: Path, *, early_stopping_patience: int) -> bool:
    """Tell whether a checkpoint is that of a training's last step: no step is left, or early stopping ended it."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopper = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("attributes", {})
    is_out_of_patience = 0 < early_stopping_patience <= stopper.get("early_stopping_patience_counter", 0)
    return state["global_step"] >= state["max_steps"] or is_out_of_patience


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step that a checkpoint's folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])
