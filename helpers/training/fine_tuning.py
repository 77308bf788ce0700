"""fine_tune(): the transformers Trainer, set up for GPT-2 on packed blocks; what is done is kept, what broke resumes.

A run's folder holds all that is needed to repeat it. Under `accelerate launch` or `torchrun` the same call trains on
many processes; nothing here schedules them.
"""

import json
import math
import platform
import threading
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.preparation import PreparedData, prepare
from helpers.environment.precision import has_bf16
from helpers.files import atomic_folder, write_atomically
from helpers.model import check_fit, load_model, load_tokenizer, quiet, set_attention_dropout
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder, runs_folder
from helpers.training import callbacks, history, model_card
from helpers.training.callbacks import TrainingBrokenError, Watch
from helpers.training.checkpoints import has_ended, last_whole_checkpoint
from helpers.training.engine import equal_results_less_work
from helpers.training.forecast import forecast
from helpers.training.hardware import device_name, peak_bytes, reset_peak
from helpers.training.processes import agreed, alone_in, n_processes, together
from helpers.training.stopping import stoppable
from helpers.training.trial import reporting

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

_PASSES_WORTH_COMPILING = 3000  # a guess, from published step times; not measured on a card of this course


@dataclass(frozen=True)
class FineTuned:
    """A finished run.

    Attributes:
        run: its name.
        folder: where all of it lies.
        history: one row a logging or validation step: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm` or
            `eval_loss`, in nats a token.
        facts: precision, device, tokens, seconds, peak memory as measured, and the batch that memory held;
            `predicted`: what `helpers.training.forecast` had said of them.
    """

    run: str
    folder: Path
    history: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def model_folder(self) -> Path:
        """The folder any GPT-2 program can load."""
        return self.folder / "model"

    @property
    def eval_loss(self) -> float:
        """The validation loss of the model that was kept, nats a token."""
        patience = read_run_settings(self.run).early_stopping_patience
        return history.kept_eval_loss(self.history, early_stopping_patience=patience)

    @property
    def predicted_and_measured(self) -> list[dict[str, Any]]:
        """One row for time, one for memory: `what`, `predicted` (None where nothing was), `measured`."""
        predicted = self.facts["predicted"]
        return [
            {"what": "seconds", "predicted": predicted["seconds"], "measured": self.facts["seconds"]},
            {"what": "peak bytes", "predicted": predicted["peak_bytes"], "measured": self.facts["peak_bytes"]},
        ]

    def __str__(self) -> str:
        """Return the run in one line."""
        return (
            f"run {self.run}: {self.facts['steps']} steps, {self.facts['tokens']:,} tokens in "
            f"{self.facts['seconds']:.0f} s ({self.facts['precision']} on {self.facts['device']}), "
            f"validation loss {self.eval_loss:.3f} nats a token (perplexity {math.exp(self.eval_loss):.1f})"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def fine_tune(
    settings: TrainingSettings,
    *,
    progress: bool = False,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
) -> FineTuned:
    """Train a run to its end and save its model; return it as it is when it is finished already.

    A run that was interrupted goes on from its last whole checkpoint, on the same data in the same order. In a single
    process, Ctrl-C and the interrupt of a kernel end the step, write a checkpoint and then raise `KeyboardInterrupt`;
    a second one does not wait.

    Args:
        settings: all of them; `settings.run` names the folder.
        progress: show a progress bar.
        watch: called after each row with the history so far and a `Progress`, such as `plots.LivePlot()`.
        stop: once it is set, by another thread, the step is ended and a checkpoint written.

    Raises:
        SettingsError: the settings do not fit the model or the data, or the run was started with other settings.
        TrainingBrokenError: the loss is exactly 0 or not finite.
        TrainingStoppedError: `stop` was set before the last step.
    """
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        _claim(settings, folder)
        if not agreed((folder / "training.json").exists()):
            _train(settings, folder, progress=progress, watch=watch, stop=stop)
    return open_run(settings.run)


def open_run(run: str) -> FineTuned:
    """Return a finished run; raise `SettingsError` when there is none of that name."""
    folder = run_folder(run)
    if not (folder / "training.json").exists():
        raise SettingsError(f"There is no finished run {run!r} in {runs_folder()}: train it in notebook 03 first.")
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return FineTuned(run, folder, read_history(run), facts)


def open_or_train(run: str) -> FineTuned:
    """Return a finished run, or make it first: with the settings it was started with, else with the defaults.

    So that any notebook can be the first one that is run.
    """
    started = (run_folder(run) / "settings.json").exists()
    return fine_tune(read_run_settings(run) if started else TrainingSettings(run=run))


def read_history(run: str) -> list[dict[str, Any]]:
    """Return the rows of a run's history, oldest first; empty when it has not begun."""
    return history.read_history(run_folder(run))


def training_arguments(settings: TrainingSettings, folder: Path, *, n_blocks: int = 0) -> "TrainingArguments":
    """Translate the settings into `TrainingArguments`, with what this course always sets.

    Args:
        settings: of the run.
        folder: the run's.
        n_blocks: blocks to train on; they decide whether compiling is worth its time.
    """
    import torch
    from transformers import TrainingArguments

    same_names = (
        "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
        "weight_decay", "adam_beta2", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "logging_steps",
        "eval_steps", "save_total_limit", "seed",
    )  # fmt: skip
    precision = chosen_precision(settings)
    is_renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # in transformers 5.23
    checkpointing = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{name: getattr(settings, name) for name in same_names},
        **{checkpointing: settings.gradient_checkpointing},
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        # the best checkpoint can only be kept where there is one for each validation
        save_steps=settings.eval_steps if settings.early_stopping_patience else settings.save_steps,
        restore_callback_states_from_checkpoint=True,  # the seconds so far, and the patience of early stopping
        load_best_model_at_end=bool(settings.early_stopping_patience),
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        torch_compile=compiles(settings, n_blocks),
        prediction_loss_only=True,  # else every logit of the validation text is kept
        logging_nan_inf_filter=False,  # the default hides a loss that is not a number behind 0.0
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,  # the bar is `callbacks.progress_bar`
        ddp_find_unused_parameters=False,  # all are used, and looking for others takes time
        tf32=_has_tf32() or None,  # in what is left in float32
    )


def _has_tf32() -> bool:
    """Tell whether the GPU multiplies float32 in TF32: NVIDIA's from Ampere, compute capability 8.0, on."""
    import torch

    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)


def compiles(settings: TrainingSettings, n_blocks: int) -> bool:
    """Tell whether `torch_compile` comes to yes: 'auto' says so for a long run on a GPU under Linux.

    Compiling takes a minute or more, and Triton, which it needs on a GPU, is made for Linux.
    """
    import torch

    if settings.torch_compile != "auto":
        return settings.torch_compile == "always"
    passes = settings.num_train_epochs * n_blocks / settings.per_device_train_batch_size
    return torch.cuda.is_available() and platform.system() == "Linux" and passes >= _PASSES_WORTH_COMPILING


def chosen_precision(settings: TrainingSettings) -> str:
    """Return what `mixed_precision` comes to on this machine: 'bf16', 'fp16' or 'no' (float32).

    Raises:
        SettingsError: fp16 was asked for without a GPU; its loss scaling needs one.
    """
    import torch

    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise SettingsError("mixed_precision = 'fp16' needs an NVIDIA GPU: use 'auto', 'bf16' or 'no' on a CPU.")
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if has_bf16():
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "no"


def as_batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack blocks: `input_ids` and `labels` (B, T) are the same tokens; the model shifts the labels itself."""
    import torch

    input_ids = torch.stack([row["input_ids"] for row in rows])  # (B, T)
    return {"input_ids": input_ids, "labels": input_ids}


def _claim(settings: TrainingSettings, folder: Path) -> None:
    """Make sure that the settings.json that is there, if any, says the same."""
    path = folder / "settings.json"
    if path.exists():
        before, now = read_run_settings(settings.run).model_dump(), settings.model_dump()
        before["processes"] = json.loads(path.read_text(encoding="utf-8")).get("processes", 1)
        now["processes"] = n_processes()
        changed = [f"{name} = {before[name]!r}, not {now[name]!r}" for name in now if before[name] != now[name]]
        if changed:
            raise SettingsError(
                f"Run {settings.run!r} was started with {'; '.join(changed)}: choose another run name to keep both, "
                f"or delete the folder {folder} to start afresh."
            )


def _train(settings: TrainingSettings, folder: Path, **how: Any) -> None:
    """Train to the end; a batch that memory does not hold is halved, at the same effective batch and order."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    while True:
        try:
            return _train_as_set(settings, folder, **how)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if settings.per_device_train_batch_size == 1:
                raise TrainingBrokenError(
                    f"Out of memory, and not even one block of {settings.block_size} tokens fits: lower block_size, "
                    "set gradient_checkpointing, or free memory that other programs hold."
                ) from None
            if n_processes() > 1:
                raise TrainingBrokenError(
                    f"A batch of {settings.per_device_train_batch_size} does not fit into the memory of every card: "
                    "lower per_device_train_batch_size and raise gradient_accumulation_steps as much."
                ) from None
        settings = _halved(settings)
        clear_device_cache(garbage_collection=True)


def _halved(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with a smaller batch and more accumulation, and say so."""
    batch = settings.per_device_train_batch_size
    smaller = max(size for size in range(1, batch) if batch % size == 0)
    passes = settings.gradient_accumulation_steps * batch // smaller
    warnings.warn(
        f"Out of memory with per_device_train_batch_size = {batch}: going on with {smaller}, and "
        f"gradient_accumulation_steps = {passes}, which trains the same model.",
        stacklevel=2,
    )
    return settings.model_copy(update={"per_device_train_batch_size": smaller, "gradient_accumulation_steps": passes})


def _train_as_set(
    settings: TrainingSettings, folder: Path, *, progress: bool, watch: Watch | None, stop: threading.Event | None
) -> None:
    from transformers import PrinterCallback, Trainer, set_seed

    with together().local_main_process_first():
        data = prepare(settings)
    tokenizer = load_tokenizer(settings.model_name_or_path)
    model = load_model(settings.model_name_or_path, from_scratch=settings.from_scratch, seed=settings.seed)
    check_fit(model, tokenizer, settings.block_size)
    set_attention_dropout(model, settings.attn_pdrop)
    set_seed(settings.seed)
    reset_peak()
    with equal_results_less_work(model):
        trainer = Trainer(
            model=model,
            args=training_arguments(settings, folder, n_blocks=len(data.blocks["train"])),
            train_dataset=data.blocks["train"],
            eval_dataset=data.blocks["validation"],
            data_collator=as_batch,
            callbacks=_callbacks(settings, folder, model, tokenizer, progress=progress, watch=watch),
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.is_world_process_zero() and not (folder / "settings.json").exists():
            _write_json(folder / "settings.json", _settings_record(settings, data))
        checkpoint = last_whole_checkpoint(folder / "checkpoints")
        mine = data.facts["splits"]["train"]["tokens"] // trainer.args.world_size
        predicted = forecast(settings, model.config, train_tokens=mine)
        if checkpoint and has_ended(checkpoint, early_stopping_patience=settings.early_stopping_patience):
            _take_over(trainer, checkpoint)
        else:
            with quiet(), stoppable(trainer, stop):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        log = trainer.state.log_history
        if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in log):
            trainer.evaluate()
    if trainer.is_world_process_zero():
        save_model(model, tokenizer, settings, data.facts, folder / "model")
        facts = _facts(settings, trainer, n_blocks=len(data.blocks["train"])) | {"predicted": predicted}
        _write_json(folder / "training.json", facts)
    trainer.accelerator.wait_for_everyone()  # the other processes open what the first has written


def _take_over(trainer: "Trainer", checkpoint: Path) -> None:
    """Let a trainer stand where one that was killed after its last step stood; the Trainer would train a step more."""
    from safetensors.torch import load_model as load_weights
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    _clock(trainer).before = state.stateful_callbacks["Clock"]["args"]["seconds"]
    keeps_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    kept = checkpoint.with_name(Path(state.best_model_checkpoint).name) if keeps_best else checkpoint
    load_weights(trainer.model, kept / "model.safetensors")


def _clock(trainer: "Trainer") -> Any:
    (clock,) = (callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "seconds"))
    return clock


def _callbacks(
    settings: TrainingSettings,
    folder: Path,
    model: "GPT2LMHeadModel",
    tokenizer: Any,
    *,
    progress: bool,
    watch: Watch | None,
) -> "list[TrainerCallback]":
    from transformers import EarlyStoppingCallback

    found = [
        callbacks.history(folder, tokenizer, settings.sample_prompt),
        callbacks.guard(model.config.vocab_size),
        callbacks.space(model),
        callbacks.clock(),
    ]
    if (trial := reporting(settings.run)) is not None:
        found.append(trial)
    if settings.report_to == "tensorboard":
        found.append(callbacks.tensorboard(folder / "tensorboard"))
    if settings.early_stopping_patience:
        found.append(EarlyStoppingCallback(settings.early_stopping_patience))
    tokens = settings.effective_batch_size * settings.block_size * n_processes()
    if progress:
        found.append(callbacks.progress_bar(tokens_per_step=tokens, memory_bytes=peak_bytes))
    if watch is not None:
        found.append(callbacks.watching(watch, tokens_per_step=tokens, memory_bytes=peak_bytes))
    return found


def save_model(
    model: "GPT2LMHeadModel", tokenizer: Any, settings: TrainingSettings, data_facts: dict[str, Any], folder: Path
) -> None:
    """Write the model as any GPT-2 program expects it, with its tokenizer and a card; whole or not at all."""
    model.config.use_cache = True  # the Trainer switches the cache off; generation wants it
    with atomic_folder(folder) as new:
        with quiet():
            model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "README.md").write_text(model_card.card(settings, data_facts), encoding="utf-8")


def _settings_record(settings: TrainingSettings, data: PreparedData) -> dict[str, Any]:
    packages = ("torch", "transformers", "datasets", "accelerate", "tokenizers")
    return {
        "settings": settings.model_dump(),
        "processes": n_processes(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {"system": platform.platform(), "device": device_name()},
        "data_sha256": {name: split["sha256"] for name, split in data.facts["splits"].items()},
    }


def _facts(settings: TrainingSettings, trainer: "Trainer", *, n_blocks: int) -> dict[str, Any]:
    """Return what was measured; the peak of memory is that of the process that finished the run."""
    steps = trainer.state.global_step
    return {
        "steps": steps,
        "tokens": settings.block_size * _blocks_read(settings, n_blocks, steps, trainer.args.world_size),
        "seconds": _clock(trainer).seconds,
        "precision": {"no": "float32"}.get(chosen_precision(settings), chosen_precision(settings)),
        "device": device_name(),
        "peak_bytes": peak_bytes(),
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
    }


def _blocks_read(settings: TrainingSettings, n_blocks: int, steps: int, processes: int) -> int:
    """Return how many blocks so many steps read; the last step of an epoch takes what is left.

    >>> _blocks_read(TrainingSettings(per_device_train_batch_size=4), 10, 4, 1)  # 4 + 4 + 2, and 4 of the next epoch
    14
    """
    a_step = settings.effective_batch_size * processes
    epochs, further = divmod(steps, math.ceil(n_blocks / a_step))
    return epochs * n_blocks + further * a_step


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2))
