"""A finished run, and the measurements of its training in `training.json`."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.display import PlainTextMixin, perplexity_text, predicted_and_measured
from helpers.files import damaged, read_json
from helpers.paths import runs_folder
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder
from helpers.training import run_files
from helpers.training.arguments import chosen_precision
from helpers.training.calibration import Measurement, add_measurements
from helpers.training.callbacks import Clock
from helpers.training.devices import device_name, peak_bytes, this_device
from helpers.training.shape import GPT2Shape

if TYPE_CHECKING:
    from transformers import Trainer

_REQUIRED_FACTS = ("steps", "tokens", "seconds", "precision", "device", "peak_bytes")


@dataclass(frozen=True)
class FinishedRun(PlainTextMixin):
    """A finished run.

    Attributes:
        run: its name.
        folder: the folder with all of its files.
        history: one row per logging or validation step, with `step`, `epoch`, and `loss`, `learning_rate`, `grad_norm`
            or `eval_loss`; losses are in nats per token.
        facts: the contents of `training.json`, from `collect_measurements`.
    """

    run: str
    folder: Path
    history: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def model_folder(self) -> Path:
        """The folder of the final model, which any program for GPT-2 can load."""
        return self.folder / "model"

    @property
    def planned_steps(self) -> int:
        """The steps of all epochs, as planned by the schedule; after early stopping, more than were trained."""
        return self.facts.get("planned_steps", self.facts["steps"])  # earlier versions did not record it

    @property
    def eval_loss(self) -> float | None:
        """The validation loss of the saved model, in nats per token; None if none was recorded."""
        patience = read_run_settings(self.run).early_stopping_patience
        return run_files.kept_eval_loss(self.history, early_stopping_patience=patience)

    @property
    def predicted_and_measured(self) -> list[tuple[str, str, str]]:
        """Table rows for time and memory: (name, predicted, measured)."""
        return predicted_and_measured(self.facts)

    def __str__(self) -> str:
        """Return the run as one line."""
        n_trained = self.facts.get("trained_tokens")
        trained = f" ({n_trained:,} of them learned, the rest prompts)" if n_trained is not None else ""
        steps = f"{self.facts['steps']}"
        if self.planned_steps > self.facts["steps"]:
            steps += f" of {self.planned_steps:,}"
        validation = "no validation loss in history.jsonl"
        if (loss := self.eval_loss) is not None:
            validation = f"validation loss {loss:.3f} nats per token (perplexity {perplexity_text(loss)})"
        return (
            f"run {self.run}: {steps} steps, {self.facts['tokens']:,} tokens{trained} in "
            f"{self.facts['seconds']:.0f} s ({self.facts['precision']} on {self.facts['device']}), {validation}"
        )


def open_run(run: str) -> FinishedRun:
    """Open a finished run.

    Raises:
        SettingsError: there is no finished run with that name, or its files are damaged.
    """
    folder = run_folder(run)
    if not (folder / "training.json").exists():
        raise SettingsError(f"There is no finished run {run!r} in {runs_folder()}: train it in notebook 3 first.")
    facts = read_json(folder / "training.json")
    if missing := [name for name in _REQUIRED_FACTS if name not in facts]:
        raise damaged(folder / "training.json", f"it does not record {', '.join(missing)}")
    return FinishedRun(run, folder, run_files.read_history(folder), facts)


def collect_measurements(
    settings: TrainingSettings,
    trainer: "Trainer",
    *,
    n_blocks: int,
    counts: dict[str, Any],
    predicted: dict[str, Any],
    step_seconds: list[float],
) -> dict[str, Any]:
    """Return the measurements of a run; the peak memory is that of the process that finished it.

    Args:
        settings: the settings of the run; if a batch was halved, those in use at the end.
        trainer: the finished Trainer.
        n_blocks: number of blocks in the training part.
        counts: the counts of the training part, as in `data.json`.
        predicted: the result of `predict_on_this_machine`; its time is scaled to the steps before an early stop.
        step_seconds: the seconds of each step in this process.
    """
    steps, planned, precision = trainer.state.global_step, trainer.state.max_steps, chosen_precision(settings)
    seconds = predicted["seconds"]
    facts = {
        "steps": steps,
        "planned_steps": planned,
        "trained_parameters": trainer.get_num_trainable_parameters(),
        "tokens": settings.block_size * count_blocks_read(settings, n_blocks, steps, trainer.args.world_size),
        "seconds": find_clock(trainer).seconds,
        "precision": "float32" if precision == "no" else precision,
        "device": device_name(),
        "peak_bytes": peak_bytes(),
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "predicted": predicted | {"seconds": seconds and [each * steps / planned for each in seconds]},
    }
    if "labels" in counts:
        facts["trained_tokens"] = round(facts["tokens"] * counts["labels"] / (counts["blocks"] * settings.block_size))
    if step_seconds:
        facts["step_seconds"] = statistics.median(step_seconds)
    return facts


def count_blocks_read(settings: TrainingSettings, n_blocks: int, steps: int, processes: int) -> int:
    """Return how many blocks are read in `steps` steps; the last step of an epoch takes the rest.

    >>> count_blocks_read(TrainingSettings(per_device_train_batch_size=4), 10, 4, 1)  # 4 + 4 + 2, then 4
    14
    """
    blocks_per_step = settings.effective_batch_size * processes
    epochs, further_steps = divmod(steps, math.ceil(n_blocks / blocks_per_step))
    return epochs * n_blocks + further_steps * blocks_per_step


def find_clock(trainer: "Trainer") -> Clock:
    """Return the clock in use: resuming replaces the one that was passed in."""
    (clock,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
    return clock


def extend_calibration(settings: TrainingSettings, trainer: "Trainer", facts: dict[str, Any]) -> None:
    """Add a single-process run's measurement to the calibration that this machine's plans use."""
    if trainer.args.world_size > 1:
        return
    config = trainer.accelerator.unwrap_model(trainer.model).config
    measurement = Measurement.of(
        GPT2Shape(**{name: getattr(config, name) for name in GPT2Shape._fields}),
        settings,
        precision=chosen_precision(settings),
        compiled=trainer.args.torch_compile,
        step_seconds=facts["step_seconds"],
        peak_bytes=facts["peak_bytes"],
        process_bytes=facts["predicted"]["process_bytes"],
    )
    add_measurements(this_device(), [measurement])
