"""Fine-tune GPT-2 on packed blocks with the Trainer: finished runs are reused, interrupted ones resume.

A run's folder holds all that is needed to repeat it. Under `accelerate launch` or `torchrun` the same call trains in
many processes; nothing here schedules them.
"""

import math
import platform
import statistics
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.preparation import load_run_tokenizer, prepare
from helpers.environment.precision import has_bf16
from helpers.files import atomic_folder
from helpers.model import check_fit, load_model, load_start, quiet, set_attention_dropout
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder, runs_folder
from helpers.training import processes, run_files
from helpers.training.calibration import Measurement, add_measurements
from helpers.training.callbacks import Clock, TrainingBrokenError, Watch, stoppable, training_callbacks
from helpers.training.engine import equal_results_less_work
from helpers.training.lora import add_adapter, merge_adapter, restore_adapter
from helpers.training.memory import GPT2Shape
from helpers.training.model_card import card_text
from helpers.training.plan import describe_long_warmup, predict_on_this_machine, this_device
from helpers.training.slowness import SlownessWatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

_PASSES_WORTH_COMPILING = 3000  # a guess, from published step times; not measured on a card of this course


@dataclass(frozen=True)
class FineTuned:
    """A finished run.

    Attributes:
        run: its name.
        folder: the folder with all of its files.
        history: one row per logging or validation step: `step`, `epoch`, and `loss`, `learning_rate`, `grad_norm` or
            `eval_loss`; losses are in nats per token.
        facts: the measured steps, tokens, seconds and peak memory, precision and device, the batch that fitted into
            memory, and in `predicted` what `predict_on_this_machine` returned before the training.
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
    def eval_loss(self) -> float:
        """The validation loss of the model that was kept, in nats per token."""
        patience = read_run_settings(self.run).early_stopping_patience
        return run_files.kept_eval_loss(self.history, early_stopping_patience=patience)

    @property
    def predicted_and_measured(self) -> list[dict[str, Any]]:
        """One row for time and one for memory: `what`, `predicted` (None where nothing was predicted), `measured`."""
        predicted = self.facts["predicted"]
        return [
            {"what": "seconds", "predicted": predicted["seconds"], "measured": self.facts["seconds"]},
            {"what": "peak bytes", "predicted": predicted["peak_bytes"], "measured": self.facts["peak_bytes"]},
        ]

    def __str__(self) -> str:
        """Return the run as one line."""
        n_trained = self.facts.get("trained_tokens")
        trained = f" ({n_trained:,} of them learned, the others prompts)" if n_trained is not None else ""
        return (
            f"run {self.run}: {self.facts['steps']} steps, {self.facts['tokens']:,} tokens{trained} in "
            f"{self.facts['seconds']:.0f} s ({self.facts['precision']} on {self.facts['device']}), "
            f"validation loss {self.eval_loss:.3f} nats per token (perplexity {math.exp(self.eval_loss):.1f})"
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
    """Train a run to its end and save its model; only open it when it is finished already.

    A run that was interrupted continues from its last complete checkpoint, on the same data in the same order, also
    where its folder or its text was moved. In a single process, Ctrl-C and the interrupt of a kernel finish the step,
    write a checkpoint and then raise `KeyboardInterrupt`; a second one raises at once. SIGTERM saves in the same way.

    Args:
        settings: all settings of the run; `settings.run` is the name of its folder.
        progress: whether to show a progress bar.
        watch: called with the history so far and a `Progress` after each row, such as `plots.LivePlot()`.
        stop: set it in another thread to end the training after the present step, with a checkpoint.

    Raises:
        SettingsError: the settings do not fit the model or the data, or the run was started with other settings.
        TrainingBrokenError: the training cannot succeed: the loss is exactly 0, not finite or never falls, not even
            one block fits into memory, or the disk is full.
        TrainingStoppedError: `stop` was set before the last step.
    """
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    with processes.run_lock(folder):
        run_files.check_same_settings(settings)
        if not processes.broadcast_from_first((folder / "training.json").exists()):
            if processes.is_first_process():
                run_files.store_changes(settings)
            _train(settings, folder, progress=progress, watch=watch, stop=stop)
    return open_run(settings.run)


def open_run(run: str) -> FineTuned:
    """Open a finished run.

    Raises:
        SettingsError: there is no finished run of that name.
    """
    folder = run_folder(run)
    if not (folder / "training.json").exists():
        raise SettingsError(f"There is no finished run {run!r} in {runs_folder()}: train it in notebook 03 first.")
    return FineTuned(run, folder, run_files.read_history(folder), run_files.read_json(folder / "training.json"))


def open_or_train(run: str) -> FineTuned:
    """Open a finished run, or train it first: with the settings it was started with, else with the defaults.

    This is why any notebook can be the first one that is run.
    """
    started = (run_folder(run) / "settings.json").exists()
    return fine_tune(read_run_settings(run) if started else TrainingSettings(run=run))


def training_arguments(settings: TrainingSettings, folder: Path, *, n_blocks: int = 0) -> "TrainingArguments":
    """Return the settings as `TrainingArguments`, with what this course always sets.

    Args:
        settings: the settings of the run.
        folder: the folder of the run.
        n_blocks: number of blocks to train on, which decides whether compiling is worth its time.
    """
    import torch
    from transformers import TrainingArguments

    same_names = (
        "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
        "weight_decay", "adam_beta2", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "logging_steps",
        "eval_steps", "save_total_limit", "seed",
    )  # fmt: skip
    precision = chosen_precision(settings)
    is_renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # since transformers 5.23
    checkpointing = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{name: getattr(settings, name) for name in same_names},
        **{checkpointing: settings.gradient_checkpointing},
        optim="adamw_torch_fused" if settings.optim == "muon" else settings.optim,  # Muon is handed in
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        # the best model can only be kept if there is a checkpoint for each validation
        save_steps=settings.eval_steps if settings.early_stopping_patience else settings.save_steps,
        restore_callback_states_from_checkpoint=True,  # of Clock, and of early stopping, whose patience is in it
        load_best_model_at_end=bool(settings.early_stopping_patience),
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        torch_compile=compiles(settings, n_blocks),
        prediction_loss_only=True,  # otherwise every logit of the validation text is kept in memory
        logging_nan_inf_filter=False,  # the default would log a loss that is not finite as 0.0
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,  # the bar is in `callbacks`
        ddp_find_unused_parameters=False,  # every parameter is used, and searching for unused ones takes time
        tf32=_has_tf32() or None,  # for the products that stay in float32
    )


def _has_tf32() -> bool:
    """Tell whether the GPU can multiply float32 as TF32: NVIDIA's can from Ampere, compute capability 8.0, on."""
    import torch

    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)


def compiles(settings: TrainingSettings, n_blocks: int) -> bool:
    """Tell whether the model is compiled: with `torch_compile='auto'` for a long run on a GPU under Linux.

    Compiling takes a minute or more, and Triton, which it needs on a GPU, is made for Linux.
    """
    import torch

    if settings.torch_compile != "auto":
        return settings.torch_compile == "always"
    passes = settings.num_train_epochs * n_blocks / settings.per_device_train_batch_size
    return torch.cuda.is_available() and platform.system() == "Linux" and passes >= _PASSES_WORTH_COMPILING


def chosen_precision(settings: TrainingSettings) -> str:
    """Return what `mixed_precision` means on this machine: 'bf16', 'fp16' or 'no' (float32).

    Raises:
        SettingsError: fp16 without a GPU: its loss scaling needs one.
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
    """Stack blocks into a batch: `input_ids` and `labels`, both (B, T); the model shifts the labels.

    They are the same, unless the blocks have labels of their own, in which prompts are -100.
    """
    import torch

    input_ids = torch.stack([row["input_ids"] for row in rows])  # (B, T)
    if "labels" in rows[0]:
        return {"input_ids": input_ids, "labels": torch.stack([row["labels"] for row in rows])}
    return {"input_ids": input_ids, "labels": input_ids}


def _train(settings: TrainingSettings, folder: Path, **how: Any) -> None:
    """Train to the end; halve a batch that does not fit into memory, at the same effective batch and order."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    while True:
        try:
            return _train_once(settings, folder, **how)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU the message alone says so
            if not should_reduce_batch_size(error):
                raise
            if settings.per_device_train_batch_size == 1:
                raise TrainingBrokenError(
                    f"Out of memory, and not even one block of {settings.block_size} tokens fits: lower block_size, "
                    "set gradient_checkpointing, or free memory that other programs hold."
                ) from None
            if processes.n_processes() > 1:
                raise TrainingBrokenError(
                    f"A batch of {settings.per_device_train_batch_size} does not fit into the memory of every card: "
                    "lower per_device_train_batch_size and raise gradient_accumulation_steps as much."
                ) from None
        settings = _halved(settings)
        clear_device_cache(garbage_collection=True)


def _halved(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with a smaller batch and as much more accumulation; warn about it."""
    batch = settings.per_device_train_batch_size
    smaller = max(size for size in range(1, batch) if batch % size == 0)
    passes = settings.gradient_accumulation_steps * batch // smaller
    warnings.warn(
        f"Out of memory with per_device_train_batch_size = {batch}: continuing with {smaller} and "
        f"gradient_accumulation_steps = {passes}, which trains the same model.",
        stacklevel=2,
    )
    return settings.model_copy(update={"per_device_train_batch_size": smaller, "gradient_accumulation_steps": passes})


def _train_once(
    settings: TrainingSettings, folder: Path, *, progress: bool, watch: Watch | None, stop: threading.Event | None
) -> None:
    import torch
    from transformers import PrinterCallback, set_seed

    from helpers.training.muon import MuonWithAdamW

    with processes.process_group().local_main_process_first():  # the others then find the data prepared
        data = prepare(settings)
    tokenizer = load_run_tokenizer(settings)
    model = load_start(settings, tokenizer)
    if settings.from_scratch:
        tokenizer.model_max_length = model.config.n_positions
    check_fit(model, tokenizer, settings.block_size)
    set_attention_dropout(model, settings.attn_pdrop)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen_precision(settings))
    trained = add_adapter(model, settings, half=half) if settings.lora_r else model
    set_seed(settings.seed)
    callbacks = training_callbacks(settings, folder, model=trained, tokenizer=tokenizer, progress=progress, watch=watch)
    steps = SlownessWatch(folder)
    processes.reset_peak()
    with equal_results_less_work(model):
        trainer = _new_trainer(
            data.facts["splits"]["validation"],
            model=trained,
            args=training_arguments(settings, folder, n_blocks=len(data.blocks["train"])),
            train_dataset=data.blocks["train"],
            eval_dataset=data.blocks["validation"],
            data_collator=as_batch,
            callbacks=[*callbacks, steps],
            optimizers=(MuonWithAdamW(model, settings) if settings.optim == "muon" else None, None),
        )
        trainer.remove_callback(PrinterCallback)
        _warn_of_long_warmup(settings, len(data.blocks["train"]), trainer.args.world_size)
        if trainer.is_world_process_zero() and not (folder / "settings.json").exists():
            run_files.write_json(folder / "settings.json", run_files.settings_record(settings, data.facts))
        checkpoint = run_files.last_complete_checkpoint(folder / "checkpoints")
        tokens_per_process = data.facts["splits"]["train"]["tokens"] // trainer.args.world_size
        predicted = predict_on_this_machine(settings, model.config, train_tokens=tokens_per_process)
        if checkpoint and run_files.has_ended(checkpoint, early_stopping_patience=settings.early_stopping_patience):
            _restore_finished(trainer, checkpoint)
        else:
            with quiet(), stoppable(trainer, stop):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        log = trainer.state.log_history
        if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in log):
            trainer.evaluate()
    if trainer.is_world_process_zero():
        if settings.lora_r:
            model = _save_adapter(trained, settings, folder / "adapter")
        save_model(model, tokenizer, settings, data.facts, folder / "model")
        facts = _measurements(settings, trainer, n_blocks=len(data.blocks["train"])) | {"predicted": predicted}
        if "labels" in (train := data.facts["splits"]["train"]):
            facts["trained_tokens"] = round(facts["tokens"] * train["labels"] / (train["blocks"] * settings.block_size))
        if steps.seconds[1:]:  # the first one sets up
            facts["step_seconds"] = statistics.median(steps.seconds[1:])
            _learn(settings, trainer, facts, predicted)
        run_files.write_json(folder / "training.json", facts)
    trainer.accelerator.wait_for_everyone()  # the other processes open what the first one has written


def _new_trainer(validation: dict[str, Any], **how: Any) -> "Trainer":
    """Return a Trainer; where blocks differ in their number of labels, its `eval_loss` is the mean over labels.

    The stock Trainer averages the means of batches, in which a label counts the more, the fewer there are beside it.

    Args:
        validation: the counts of the validation part, as in `data.json`.
        **how: what a Trainer takes.
    """
    from transformers import Trainer

    class LabelTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            if model.training:
                return super().compute_loss(model, inputs, return_outputs, **more)
            # The mean of "nats / (blocks x mean labels of a block)" over all blocks is all nats / all labels.
            n_labels = len(inputs["labels"]) * validation["labels"] / validation["blocks"]
            outputs = model(**inputs, num_items_in_batch=n_labels)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    return (LabelTrainer if "labels" in validation else Trainer)(**how)


def _warn_of_long_warmup(settings: TrainingSettings, n_blocks: int, processes: int) -> None:
    per_epoch = math.ceil(n_blocks / (settings.effective_batch_size * processes))
    if note := describe_long_warmup(settings, math.ceil(per_epoch * settings.num_train_epochs)):
        warnings.warn(note, stacklevel=2)


def _learn(settings: TrainingSettings, trainer: "Trainer", facts: dict[str, Any], predicted: dict[str, Any]) -> None:
    """Add what one process has measured to what the plans of this machine are made from."""
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
        process_bytes=predicted["process_bytes"],
    )
    add_measurements(this_device(), [measurement])


def _restore_finished(trainer: "Trainer", checkpoint: Path) -> None:
    """Give a trainer the state and the weights of a training that was killed after its last step.

    `Trainer.train` would train one step more when it resumes there.
    """
    from safetensors.torch import load_model as load_weights
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    _clock(trainer).before = state.stateful_callbacks["Clock"]["args"]["seconds"]
    keeps_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    best_or_last = checkpoint.with_name(Path(state.best_model_checkpoint).name) if keeps_best else checkpoint
    if (best_or_last / "adapter_config.json").exists():
        restore_adapter(trainer.model, best_or_last)
    else:
        load_weights(trainer.model, best_or_last / "model.safetensors")


def _clock(trainer: "Trainer") -> Clock:
    """Return the clock in use: a resume puts a new one into the place of the one that was handed in."""
    (clock,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
    return clock


def _save_adapter(adapted: "PeftModel", settings: TrainingSettings, folder: Path) -> "GPT2LMHeadModel":
    """Save a run's adapter as peft does, and return the base model with it merged in."""
    with atomic_folder(folder) as new:
        adapted.save_pretrained(new)
        return merge_adapter(load_model(settings.model_name_or_path), new)


def save_model(
    model: "GPT2LMHeadModel", tokenizer: Any, settings: TrainingSettings, data_facts: dict[str, Any], folder: Path
) -> None:
    """Save the model as any program for GPT-2 expects it, with its tokenizer and a card; completely or not at all."""
    model.config.use_cache = True  # the Trainer switches the cache off; generation needs it
    with atomic_folder(folder) as new:
        with quiet():
            model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "README.md").write_text(card_text(settings, data_facts), encoding="utf-8")


def _measurements(settings: TrainingSettings, trainer: "Trainer", *, n_blocks: int) -> dict[str, Any]:
    """Return the measurements of a run; the peak of memory is that of the process that finished it."""
    steps, precision = trainer.state.global_step, chosen_precision(settings)
    return {
        "steps": steps,
        "trained_parameters": trainer.get_num_trainable_parameters(),
        "tokens": settings.block_size * _blocks_read(settings, n_blocks, steps, trainer.args.world_size),
        "seconds": _clock(trainer).seconds,
        "precision": "float32" if precision == "no" else precision,
        "device": processes.device_name(),
        "peak_bytes": processes.peak_bytes(),
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
    }


def _blocks_read(settings: TrainingSettings, n_blocks: int, steps: int, processes: int) -> int:
    """Return how many blocks a number of steps reads; the last step of an epoch takes what is left.

    >>> _blocks_read(TrainingSettings(per_device_train_batch_size=4), 10, 4, 1)  # 4 + 4 + 2, and 4 of the next epoch
    14
    """
    blocks_per_step = settings.effective_batch_size * processes
    epochs, further_steps = divmod(steps, math.ceil(n_blocks / blocks_per_step))
    return epochs * n_blocks + further_steps * blocks_per_step
