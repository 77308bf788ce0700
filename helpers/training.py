"""fine_tune(): the transformers Trainer, set up for GPT-2 on packed blocks; what is done is kept, what broke resumes.

A run's folder holds all that is needed to repeat it. Under `accelerate launch` or `torchrun` the same call trains on
many processes; nothing here schedules them.
"""

import json
import math
import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data import PreparedData, prepare
from helpers.model import check_fit, has_bf16, load_model, load_tokenizer, quiet, set_attention_dropout, use_fused_gelu
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder, runs_folder

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

_CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


class TrainingBrokenError(RuntimeError):
    """A training that cannot come to anything: the message names the sign that was seen and the usual cause."""


@dataclass(frozen=True)
class FineTuned:
    """A finished run.

    Attributes:
        run: its name.
        folder: where all of it lies.
        history: one row a logging or validation step: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm` or
            `eval_loss`, in nats a token.
        facts: precision, device, tokens, seconds and peak memory as measured.
    """

    run: str
    folder: Path
    history: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def model_folder(self) -> Path:
        """The folder any GPT-2 program can load."""
        return self.folder / "model"

    def __str__(self) -> str:
        """Return the run in one line."""
        val_loss = [row["eval_loss"] for row in self.history if "eval_loss" in row][-1]
        return (
            f"run {self.run}: {self.facts['steps']} steps, {self.facts['tokens']:,} tokens in "
            f"{self.facts['seconds']:.0f} s ({self.facts['precision']} on {self.facts['device']}), "
            f"validation loss {val_loss:.3f} nats a token (perplexity {math.exp(val_loss):.1f})"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def fine_tune(settings: TrainingSettings, *, progress: bool = False) -> FineTuned:
    """Train a run to its end and save its model; return it as it is when it is finished already.

    A run that was interrupted goes on from its last whole checkpoint, on the same data in the same order.

    Args:
        settings: all of them; `settings.run` names the folder.
        progress: show a progress bar.

    Raises:
        SettingsError: the settings do not fit the model or the data, or the run was started with other settings.
        TrainingBrokenError: the loss is exactly 0 or not finite.
    """
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        _claim(settings, folder)
        if not (folder / "training.json").exists():
            _train(settings, folder, progress=progress)
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
    path = run_folder(run) / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def training_arguments(settings: TrainingSettings, folder: Path, *, progress: bool = False) -> "TrainingArguments":
    """Translate the settings into `TrainingArguments`, with what this course always sets."""
    import torch
    from transformers import TrainingArguments

    same_names = (
        "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
        "weight_decay", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "logging_steps", "eval_steps",
        "save_steps", "save_total_limit", "seed",
    )  # fmt: skip
    precision = chosen_precision(settings)
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{name: getattr(settings, name) for name in same_names},
        # `gradient_checkpointing` is this setting's name in transformers up to 5.22
        **({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        prediction_loss_only=True,  # else every logit of the validation text is kept
        logging_nan_inf_filter=False,  # the default hides a loss that is not a number behind 0.0
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=not progress,
    )


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


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that has all its files; the Trainer writes `trainer_state.json` last."""
    from safetensors import SafetensorError, safe_open

    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if all((checkpoint / name).exists() for name in _CHECKPOINT_FILES):
            try:
                with safe_open(checkpoint / "model.safetensors", "pt"):
                    return checkpoint
            except SafetensorError:
                continue  # cut short by a crash or a full disk
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _alone_in(folder: Path) -> AbstractContextManager:
    """Keep a second kernel out of the same run; the processes of one distributed run share the first one's lock."""
    from filelock import FileLock

    return FileLock(folder / ".train.lock") if os.environ.get("RANK", "0") == "0" else nullcontext()


def _claim(settings: TrainingSettings, folder: Path) -> None:
    """Write settings.json, or make sure that the one there says the same."""
    path = folder / "settings.json"
    if path.exists():
        before, now = read_run_settings(settings.run).model_dump(), settings.model_dump()
        changed = [f"{name} = {before[name]!r}, not {now[name]!r}" for name in now if before[name] != now[name]]
        if changed:
            raise SettingsError(
                f"Run {settings.run!r} was started with {'; '.join(changed)}: choose another run name to keep both, "
                f"or delete the folder {folder} to start afresh."
            )


def _train(settings: TrainingSettings, folder: Path, *, progress: bool) -> None:
    from accelerate import PartialState
    from transformers import PrinterCallback, Trainer, set_seed

    with PartialState().local_main_process_first():
        data = prepare(settings)
    tokenizer = load_tokenizer(settings.model_name_or_path)
    model = load_model(settings.model_name_or_path, from_scratch=settings.from_scratch, seed=settings.seed)
    check_fit(model, tokenizer, settings.block_size)
    use_fused_gelu(model)
    set_attention_dropout(model, settings.attn_pdrop)
    set_seed(settings.seed)
    trainer = Trainer(
        model=model,
        args=training_arguments(settings, folder, progress=progress),
        train_dataset=data.blocks["train"],
        eval_dataset=data.blocks["validation"],
        data_collator=as_batch,
        callbacks=[_history_callback(settings, folder), _guard_callback()],
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        _write_json(folder / "settings.json", _settings_record(settings, data))
    checkpoint = last_whole_checkpoint(folder / "checkpoints")
    with nullcontext() if progress else quiet():
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in trainer.state.log_history):
        trainer.evaluate()
    if trainer.is_world_process_zero():
        save_model(model, tokenizer, settings, data.facts, folder / "model")
        _write_json(folder / "training.json", _facts(settings, trainer, outcome.metrics))
    trainer.accelerator.wait_for_everyone()  # the other processes open what the first has written


def save_model(
    model: "GPT2LMHeadModel", tokenizer: Any, settings: TrainingSettings, data_facts: dict[str, Any], folder: Path
) -> None:
    """Write the model as any GPT-2 program expects it, with its tokenizer and a card; whole or not at all."""
    model.config.use_cache = True  # the Trainer switches the cache off; generation wants it
    new = folder.with_name("model.new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet():
        model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "README.md").write_text(_card(settings, data_facts), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _card(settings: TrainingSettings, data_facts: dict[str, Any]) -> str:
    start = "random weights" if settings.from_scratch else f"`{settings.model_name_or_path}`"
    train = data_facts["splits"]["train"]
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in settings.model_dump().items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {settings.run}\n\n"
        f"A GPT-2 trained from {start} on `{settings.source}`: {train['documents']:,} documents, "
        f"{train['tokens']:,} tokens (SHA-256 of the text {train['sha256'][:16]}).\n\n"
        f"| setting | value |\n| --- | --- |\n{rows}\n"
    )


def _settings_record(settings: TrainingSettings, data: PreparedData) -> dict[str, Any]:
    packages = ("torch", "transformers", "datasets", "accelerate", "tokenizers")
    return {
        "settings": settings.model_dump(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {"system": platform.platform(), "device": _device_name()},
        "data_sha256": {name: split["sha256"] for name, split in data.facts["splits"].items()},
    }


def _facts(settings: TrainingSettings, trainer: "Trainer", metrics: dict[str, float]) -> dict[str, Any]:
    """Return what was measured; seconds and peak memory are those of the process that finished the run."""
    steps = trainer.state.global_step
    return {
        "steps": steps,
        "tokens": steps * trainer.args.world_size * settings.effective_batch_size * settings.block_size,
        "seconds": metrics["train_runtime"],
        "precision": {"no": "float32"}.get(chosen_precision(settings), chosen_precision(settings)),
        "device": _device_name(),
        "peak_bytes": _peak_bytes(),
    }


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_bytes() -> int:
    """Return the largest memory this process has held: on the GPU where there is one, else resident."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _write_json(path: Path, value: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=2), encoding="utf-8")
    new.replace(path)


def _history_callback(settings: TrainingSettings, folder: Path) -> "TrainerCallback":
    """Write history.jsonl from the Trainer's own log, which a checkpoint carries: no gaps or repeats after a resume."""
    from transformers import TrainerCallback

    kept = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch")

    class History(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            rows = [
                {"step": log["step"]} | {name: log[name] for name in kept if name in log}
                for log in state.log_history
                if "loss" in log or "eval_loss" in log
            ]
            new = folder / "history.new"
            new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            new.replace(folder / "history.jsonl")

    return History()


def _guard_callback() -> "TrainerCallback":
    """Stop a training whose loss says that it is broken."""
    from transformers import TrainerCallback

    class Guard(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            loss = logs.get("loss", 1.0)
            if loss == 0:
                raise TrainingBrokenError(
                    f"The loss is exactly 0 at step {state.global_step}: no label is left to learn from. "
                    "Decode a training row and look at its labels; an empty tokenizer does this too."
                )
            if not math.isfinite(loss):
                raise TrainingBrokenError(
                    f"The loss is {loss} at step {state.global_step}: the weights are spoilt. Lower learning_rate "
                    f"(it was {args.learning_rate}), keep max_grad_norm near 1, and prefer bf16 to fp16."
                )

    return Guard()
