"""Fine-tune GPT-2 on packed blocks with the Trainer: finished runs are reused, interrupted ones resume.

A batch that does not fit into memory is halved, keeping the effective batch.

A run's folder holds everything needed to repeat it. Under `accelerate launch` or `torchrun` the same call trains in
many processes; nothing here schedules them.
"""

import math
import threading
import warnings
from contextlib import closing
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from helpers.data.preparation import prepare
from helpers.data.run_data import load_run_tokenizer
from helpers.data.streaming import open_training_blocks
from helpers.files import atomic_folder, folder_removed_on_error, write_json
from helpers.model import check_sound, device, load_model, load_start, quiet, set_attention_dropout
from helpers.settings import (
    SettingsError,
    TrainingSettings,
    describe_new_run,
    describe_without_effect,
    read_run_settings,
    run_folder,
)
from helpers.training import processes, run_files
from helpers.training.arguments import autocast_dtype, describe_long_warmup, float32_products, training_arguments
from helpers.training.callbacks import RunDisplay, Watch, training_callbacks
from helpers.training.devices import reset_peak
from helpers.training.engine import optimised_model
from helpers.training.finished_run import (
    FinishedRun,
    collect_measurements,
    count_blocks_read,
    extend_calibration,
    find_clock,
    open_run,
)
from helpers.training.guards import FolderGuard, TrainingBrokenError, folder_lost_error
from helpers.training.lora import add_adapter, merge_adapter
from helpers.training.model_card import card_text
from helpers.training.plan import predict_on_this_machine
from helpers.training.slowness import SlownessWatch
from helpers.training.stopping import stoppable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GPT2LMHeadModel, Trainer

# Out-of-memory messages that accelerate does not recognise: those of Windows, the CUDA driver, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("DefaultCPUAllocator: not enough memory", "CUDA error: out of memory", "_ALLOC_FAILED")


def fine_tune(
    settings: TrainingSettings,
    *,
    progress: bool = False,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
) -> FinishedRun:
    """Train a run to its end and save its model; if it is already finished, only open it.

    An interrupted run continues from its last complete checkpoint, on the same data in the same order, even if its
    folder or its text was moved. In a single process, Ctrl-C and the interrupt of a kernel finish the step, write a
    checkpoint and then raise `KeyboardInterrupt`; a second one raises at once. SIGTERM saves too.

    Args:
        settings: all settings of the run; `settings.run` is the name of its folder.
        progress: whether to show a progress bar.
        watch: called after each row with the history so far, a growing list, and a `Progress`; for example
            `plots.LivePlot()`.
        stop: set it from another thread to end training after the current step, with a checkpoint.

    Raises:
        SettingsError: the settings do not fit the model or the data, or the run was started with other settings.
        TrainingBrokenError: training cannot succeed: the loss is exactly 0, not finite or never falls, not even one
            block fits into memory, or the disk is full.
        TrainingStoppedError: `stop` was set before the last step.
    """
    TrainingSettings.check_type(settings)
    settings = TrainingSettings(**dict(settings))  # `model_copy` does not check the values
    folder = run_folder(settings.run)
    run_files.check_same_settings(settings)  # before waiting: another process may train this run for hours
    if processes.n_processes() == 1 and run_files.is_finished(folder):
        return open_run(settings.run)  # without the lock, because the folder may belong to another user
    with folder_removed_on_error(folder), processes.run_lock(folder):
        run_files.check_same_settings(settings)
        if not processes.broadcast_from_first(run_files.is_finished(folder)):
            if processes.is_first_process():
                if (folder / "training.json").exists():
                    warnings.warn(f"The model of run {settings.run!r} is missing or damaged: made again.", stacklevel=2)
                run_files.store_changes(settings)
            with processes.one_training_at_a_time():
                _train(settings, folder, progress=progress, watch=watch, stop=stop)
    return open_run(settings.run)


def open_or_train(run: str) -> FinishedRun:
    """Open a finished run, or train it first, with the settings it was started with or else the defaults.

    This is why any notebook can be run first.
    """
    if (run_folder(run) / "settings.json").exists():
        return fine_tune(read_run_settings(run))
    if note := describe_new_run(run):
        warnings.warn(note, stacklevel=2)
    return fine_tune(TrainingSettings(run=run))


def as_batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack blocks into a batch of `input_ids` and `labels`, both (B, T); the model shifts the labels.

    Both are the same unless the blocks have their own labels, in which prompts are -100.
    """
    import torch

    input_ids = torch.stack([row["input_ids"] for row in rows])  # (B, T)
    if "labels" in rows[0]:
        return {"input_ids": input_ids, "labels": torch.stack([row["labels"] for row in rows])}
    return {"input_ids": input_ids, "labels": input_ids}


def _train(settings: TrainingSettings, folder: Path, **kwargs: Any) -> None:
    """Train to the end; halve a batch that does not fit into memory, keeping the effective batch and the order."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    while True:
        try:
            _train_once(settings, folder, **kwargs)
            if device().type == "cuda":  # a Trainer has reference cycles, so it would stay on the card
                clear_device_cache(garbage_collection=True)
            return
        except FileNotFoundError as error:
            if folder.exists():
                raise
            raise folder_lost_error(folder) from error
        except RuntimeError as error:  # includes torch.OutOfMemoryError; on a CPU only the message tells
            if not (should_reduce_batch_size(error) or any(words in str(error) for words in _OUT_OF_MEMORY)):
                raise
            if settings.per_device_train_batch_size == 1:
                raise TrainingBrokenError(
                    f"Out of memory, and not even one block of {settings.block_size} tokens fits: lower block_size, "
                    "set gradient_checkpointing, or free memory that other programs hold."
                ) from error
            if processes.n_processes() > 1:
                raise TrainingBrokenError(
                    f"A batch of {settings.per_device_train_batch_size} does not fit into the memory of every card: "
                    "lower per_device_train_batch_size and raise gradient_accumulation_steps by the same factor."
                ) from None
        settings = _halve_batch(settings)
        clear_device_cache(garbage_collection=True)


def _halve_batch(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with a smaller batch and correspondingly more accumulation, with a warning."""
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
    from transformers import set_seed

    from helpers.training.muon import MuonWithAdamW

    half = autocast_dtype(settings)  # rejects what this machine cannot do, before the text is read
    with processes.process_group().local_main_process_first():  # the other processes then find the data prepared
        data = prepare(settings)
    train = open_training_blocks(data, settings, n_processes=processes.n_processes())
    tokenizer = load_run_tokenizer(settings)
    model = load_start(settings, tokenizer)
    if settings.from_scratch:
        tokenizer.model_max_length = model.config.n_positions
    check_sound(model, tokenizer, block_size=settings.block_size)
    set_attention_dropout(model, settings.attn_pdrop)
    trained = add_adapter(model, settings, half=half) if settings.lora_r else model
    set_seed(settings.seed)
    callbacks = training_callbacks(settings, folder, model=trained, tokenizer=tokenizer)
    display, slowness = RunDisplay(settings, has_bar=progress, watch=watch), SlownessWatch()
    tokens_per_process = len(train) * settings.block_size // processes.n_processes()
    predicted = predict_on_this_machine(settings, model.config, train_tokens=tokens_per_process)
    reset_peak()
    with optimised_model(model), float32_products(), closing(display):
        trainer = new_trainer(
            data.facts["splits"]["validation"],
            model=trained,
            args=training_arguments(settings, folder, n_blocks=len(train) // processes.n_processes()),
            train_dataset=train,
            eval_dataset=data.blocks["validation"],
            data_collator=as_batch,
            callbacks=[FolderGuard(folder), *callbacks, display, slowness],
            optimizers=(MuonWithAdamW(model, settings) if settings.optim == "muon" else None, None),
        )
        # Keeps gradients only in the buffers that processes exchange, instead of a second copy beside them.
        trainer.accelerator.ddp_handler.gradient_as_bucket_view = True
        steps_per_epoch = math.ceil(len(train) / (settings.effective_batch_size * trainer.args.world_size))
        n_steps = math.ceil(steps_per_epoch * settings.num_train_epochs)
        for note in filter(None, (describe_long_warmup(settings, n_steps), describe_without_effect(settings))):
            warnings.warn(note, stacklevel=2)
        if trainer.is_world_process_zero() and not (folder / "settings.json").exists():
            write_json(folder / "settings.json", run_files.settings_record(settings, data.facts))
        was_trained = _train_or_resume(trainer, settings, folder, is_stream="stream" in data.facts, stop=stop)
    if trainer.is_world_process_zero():
        # Measure now: merging an adapter loads the base model again, which would raise the peak.
        facts = collect_measurements(
            settings, trainer, n_blocks=len(train), counts=data.facts["splits"]["train"], predicted=predicted,
            step_seconds=slowness.seconds[1:],  # the first one includes setup
        )  # fmt: skip
        if settings.lora_r:
            model = _save_adapter(trained, settings, folder / "adapter")
        save_model(model, tokenizer, settings, data.facts, folder / "model")
        if not (was_trained and (folder / "training.json").exists()):  # otherwise only the model was created again
            write_json(folder / "training.json", facts)
        # With less text, most steps are incomplete. Last, because a shared folder may refuse it: the run is finished.
        if "step_seconds" in facts and len(train) >= 2 * settings.effective_batch_size:
            try:
                extend_calibration(settings, trainer, facts)
            except OSError as error:
                warnings.warn(f"The measurements of this run are not kept for later plans ({error}).", stacklevel=2)
    trainer.accelerator.wait_for_everyone()  # the other processes open what the first one wrote


def new_trainer(validation: dict[str, Any], **kwargs: Any) -> "Trainer":
    """Return a silent Trainer whose `eval_loss` is the mean over all labels of the validation part.

    The stock Trainer averages batch means, which gives labels in batches with few labels more weight, and with several
    processes it double-counts the blocks that pad the last batch. `validation` has the counts of that part, as in
    `data.json`; the other arguments go to the Trainer.
    """
    from transformers import PrinterCallback, Trainer

    class LabelTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
            if model.training:
                return super().compute_loss(model, inputs, return_outputs, **options)
            batch, block_size = inputs["labels"].shape
            loader = self.accelerator.gradient_state
            if loader.end_of_dataloader and loader.remainder > 0:
                # The processes split the last blocks in the order of their ranks. The Trainer repeats their losses for
                # a full batch and keeps as many as there are blocks, which is one for each of our own blocks.
                n_own = loader.remainder - batch * self.accelerator.process_index
                inputs = {name: rows[: max(1, n_own)] for name, rows in inputs.items()}
            # The mean of "nats / (blocks x mean labels of a block)" over all blocks is all nats / all labels.
            per_block = validation["labels"] / validation["blocks"] if "labels" in validation else block_size - 1
            outputs = model(**inputs, num_items_in_batch=len(inputs["labels"]) * per_block)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # only for `total_flos`; the stock version counts all parameters in every pass

    trainer = LabelTrainer(**kwargs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train_or_resume(
    trainer: "Trainer", settings: TrainingSettings, folder: Path, *, is_stream: bool, stop: threading.Event | None
) -> bool:
    """Train to the end, from the last complete checkpoint if any; return whether that was already the last step."""
    checkpoint, blocks = run_files.last_complete_checkpoint(folder / "checkpoints"), trainer.train_dataset
    if checkpoint and is_stream:
        n_steps = run_files.step_of(checkpoint)
        blocks.resume_after(count_blocks_read(settings, len(blocks), n_steps, trainer.args.world_size))
    patience = settings.early_stopping_patience
    was_trained = checkpoint is not None and run_files.has_ended(checkpoint, early_stopping_patience=patience)
    if was_trained:
        _restore_finished(trainer, checkpoint)
    else:
        try:
            with quiet(), stoppable(trainer, stop):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UnpicklingError:  # its message advises `weights_only=False`, which would run the code in the file
            raise SettingsError(
                f"{checkpoint} is refused: a file in it holds something other than tensors, which can be code that "
                "runs when it is opened. Delete this folder; the run then continues from the checkpoint before it."
            ) from None
    log = trainer.state.log_history
    if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in log):
        trainer.evaluate()
    return was_trained


def _restore_finished(trainer: "Trainer", checkpoint: Path) -> None:
    """Restore the state and the weights of a run that was killed after its last step.

    `Trainer.train` would train one extra step if it resumed there.
    """
    from safetensors.torch import load_model as load_weights
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    if clock := state.stateful_callbacks.get("Clock"):  # missing from a run of the first version
        find_clock(trainer).before = clock["args"]["seconds"]
    keeps_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    best_or_last = checkpoint.with_name(Path(state.best_model_checkpoint).name) if keeps_best else checkpoint
    if (best_or_last / "adapter_config.json").exists():
        trainer.model.load_adapter(str(best_or_last), trainer.model.active_adapter)
    else:
        load_weights(trainer.model, best_or_last / "model.safetensors")


def _save_adapter(adapted: "PeftModel", settings: TrainingSettings, folder: Path) -> "GPT2LMHeadModel":
    """Save a run's adapter in peft's format, and return the base model with it merged in."""
    with atomic_folder(folder) as new:
        adapted.save_pretrained(new)
        return merge_adapter(load_model(settings.model_name_or_path), new)


def save_model(
    model: "GPT2LMHeadModel", tokenizer: Any, settings: TrainingSettings, data_facts: dict[str, Any], folder: Path
) -> None:
    """Save the model in the standard GPT-2 format, with its tokenizer and a card; completely or not at all."""
    model.config.use_cache = True  # the Trainer switches the cache off; generation needs it
    with atomic_folder(folder) as new:
        with quiet():
            model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "README.md").write_text(card_text(settings, data_facts), encoding="utf-8")
