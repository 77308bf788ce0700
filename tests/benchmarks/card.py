"""Train a GPT-2 of random weights for some steps on a GPU, with each change of the engine on or off.

The same functions run on a CPU with a very small model, so that they can be tested without a GPU.
"""

import gc
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.display import MIB
from helpers.settings import TrainingSettings, preset_names
from helpers.training import autograd_functions, engine, measuring
from helpers.training.arguments import chosen_precision
from helpers.training.devices import this_device
from helpers.training.memory import predict
from helpers.training.plan import planned_shape
from helpers.training.shape import GPT2Shape, operations_per_token
from tests.benchmarks import training_step

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ROOM_FOR_STOCK = 40 * 2**30  # the stock Trainer takes 14.5 GiB for passes of 8 blocks of 1,024 tokens
NANOGPT = Path(os.environ.get("NANOGPT", "../shared/nanoGPT"))  # a clone of karpathy/nanoGPT, left out without one
MEMORY = (  # batch, block, precision, checkpointing, accumulation: runs that fit a GPU with 12 GB
    (1, 256, "bf16", False, 1), (4, 512, "bf16", False, 1), (8, 512, "bf16", False, 1), (4, 1024, "bf16", False, 1),
    (8, 1024, "bf16", False, 1), (16, 512, "bf16", False, 1), (2, 1024, "bf16", False, 4), (8, 512, "bf16", True, 1),
    (16, 1024, "bf16", True, 1), (4, 512, "no", False, 1), (4, 1024, "no", False, 1), (4, 1024, "no", True, 1),
    (4, 512, "fp16", False, 1),
)  # fmt: skip


class Scale(NamedTuple):
    """Where to train, and how much: `shape` of the model, blocks of `block` tokens, `batch` of them in a pass."""

    device: str
    shape: GPT2Shape
    block: int
    batch: int
    steps: int
    batches: tuple[int, ...]  # among these the fastest is chosen


CARD = Scale("cuda", GPT2Shape(12, 768, 12), 1024, 8, 12, (4, 8, 16, 32, 64))
DRY = Scale("cpu", GPT2Shape(1, 32, 2, vocab_size=4099, n_positions=64), 32, 2, 3, (1, 2))

# What each row changes in the engine with everything on.
LEVERS: dict[str, dict[str, Any]] = {
    "everything on": {},
    "transformers' attention": {"causal_attention": False},
    "transformers' GELU": {"fused_gelu": False},
    "all logits at once": {"chunked_loss": False},
    "loss without Triton": {"fused_softmax": False},
    "vocabulary not padded": {"rows": 1},
    "chunks of 512 tokens": {"chunk_tokens": 512},
    "chunks of 1024 tokens": {"chunk_tokens": 1024},
    "chunks of 4096 tokens": {"chunk_tokens": 4096},
    "blocking copies": {"non_blocking": False},
    "optimizer not fused": {"fused": False},
    "checkpointing": {"checkpointing": True},
    "compiled": {"compile_mode": "default"},
    "compiled, CUDA graphs": {"compile_mode": "reduce-overhead"},
}


def train(
    scale: Scale,
    settings: TrainingSettings,
    *,
    causal_attention: bool = True,
    fused_gelu: bool = True,
    chunked_loss: bool = True,
    chunk_tokens: int | None = None,
    rows: int = 64,
    fused_softmax: bool = True,
    non_blocking: bool = True,
    fused: bool = True,
    checkpointing: bool = False,
    compile_mode: str | None = None,
) -> dict[str, float]:
    """Return median seconds of a step, tokens and model FLOPs per second, and the peak bytes after the first step."""
    is_card = scale.device == "cuda"
    torch.manual_seed(0)
    with torch.device(scale.device):  # a GPU draws the weights faster
        model = GPT2LMHeadModel(config_of(scale.shape)).train()
    model.loss_type = "ForCausalLM"
    if causal_attention:
        engine.use_causal_attention(model)
    if fused_gelu:
        engine.use_fused_gelu(model)
    if chunked_loss:
        engine.use_chunked_loss(model, chunk_tokens=chunk_tokens)
    if checkpointing or settings.gradient_checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.23
    backend = "inductor" if is_card else "aot_eager"
    run = torch.compile(model, backend=backend, mode=compile_mode if is_card else None) if compile_mode else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    with ExitStack() as stack:
        stack.enter_context(patch.object(autograd_functions, "_ROWS", rows))
        if not fused_softmax:
            stack.enter_context(patch.object(autograd_functions.fused_softmax, "works_on", lambda device: False))
        return _time_steps(
            scale, settings, lambda ids: run(input_ids=ids, labels=ids, use_cache=False).loss, optimizer,
            non_blocking=non_blocking,
        )  # fmt: skip


def train_nanogpt(scale: Scale, settings: TrainingSettings, folder: Path, *, compiled: bool) -> dict[str, float]:
    """Return the same metrics for nanoGPT's model and optimizer, from a clone of its repository."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    shape = scale.shape
    torch.manual_seed(0)
    config = module.GPTConfig(
        block_size=shape.n_positions, vocab_size=-(-shape.vocab_size // 64) * 64, n_layer=shape.n_layer,
        n_head=shape.n_head, n_embd=shape.n_embd, dropout=shape.resid_pdrop, bias=True,
    )  # fmt: skip
    model = module.GPT(config).to(scale.device)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), scale.device)
    run = torch.compile(model) if compiled else model
    return _time_steps(scale, settings, lambda ids: run(ids, ids.roll(-1, dims=1))[1], optimizer)


def _time_steps(
    scale: Scale,
    settings: TrainingSettings,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    non_blocking: bool = True,
) -> dict[str, float]:
    half, is_card = HALF.get(settings.mixed_precision), scale.device == "cuda"
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    ids = torch.randint(
        scale.shape.vocab_size, (settings.per_device_train_batch_size, settings.block_size), pin_memory=is_card
    )
    marks, processor_seconds = [training_step.mark(is_card)], []
    with engine.keep_freed_memory() if not is_card else nullcontext():
        for step in range(scale.steps):
            if step == 1:  # the optimizer has its states
                _reset_peak(is_card)
            begin = time.process_time()
            for _ in range(settings.gradient_accumulation_steps):
                here = ids.to(scale.device, non_blocking=non_blocking)
                with torch.autocast(scale.device, half, enabled=half is not None):
                    loss = loss_of(here)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            marks.append(training_step.mark(is_card))
            processor_seconds.append(time.process_time() - begin)
    seconds = training_step.seconds_between(marks)
    peak = torch.cuda.max_memory_allocated() if is_card else 0
    torch.compiler.reset()
    tokens = settings.effective_batch_size * settings.block_size
    step_seconds = median(seconds[len(seconds) // 3 :])
    return {
        "step_seconds": step_seconds,
        "processor_seconds": median(processor_seconds[len(seconds) // 3 :]),
        "tokens_per_second": tokens / step_seconds,
        "flops": tokens * operations_per_token(scale.shape, settings.block_size) / step_seconds,
        "peak_bytes": peak,
        "loss": loss.item(),
    }


def _reset_peak(is_card: bool) -> None:
    if is_card:
        gc.collect()  # a model whose `forward` was replaced refers to itself
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def config_of(shape: GPT2Shape) -> GPT2Config:
    return GPT2Config(**shape._asdict(), attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)


def settings_of(scale: Scale, **changes: Any) -> TrainingSettings:
    values = {"block_size": scale.block, "per_device_train_batch_size": scale.batch, "mixed_precision": "bf16"}
    return TrainingSettings(**values | changes)


def measure_levers(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield a row for each change, with its speed relative to everything on."""
    reference = None
    for name, change in LEVERS.items():
        row = train(scale, settings_of(scale), **change)
        reference = reference or row["tokens_per_second"]
        yield {"what": name, "relative_speed": row["tokens_per_second"] / reference} | row


def measure_batches(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield a row for each batch that fits, to see which one is the fastest."""
    for batch in scale.batches:
        settings = settings_of(scale, per_device_train_batch_size=batch)
        if scale.device == "cpu" or predict(scale.shape, settings).total_bytes < this_device().usable_bytes:
            yield {"what": f"batch {batch}"} | train(scale, settings)


def measure_memory(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield a row for each of 13 training runs: the predicted peak and the measured one."""
    for batch, block, precision, checkpointing, accumulation in MEMORY:
        settings = settings_of(
            scale, per_device_train_batch_size=batch, block_size=min(block, scale.block), mixed_precision=precision,
            gradient_checkpointing=checkpointing, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        row = train(scale._replace(steps=3), settings)
        predicted = predict(scale.shape, settings).total_bytes
        name = f"{accumulation} x {batch} x {block} {precision}{', checkpointing' * checkpointing}"
        yield {
            "what": name,
            "predicted_bytes": predicted,
            "predicted_share": predicted / (row["peak_bytes"] or 1),
        } | row


def measure_presets(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield a row for each preset that fits: the predicted peak and the measured one."""
    for name in preset_names():
        settings = TrainingSettings.from_preset(name)
        changes = {"gradient_accumulation_steps": min(2, settings.gradient_accumulation_steps)}  # more need no more
        shape = planned_shape(settings) if scale.device == "cuda" else scale.shape
        if scale.device == "cpu":
            changes |= {"block_size": scale.block, "mixed_precision": "no", "per_device_train_batch_size": 1}
        settings = settings.model_copy(update=changes)
        predicted = predict(shape, settings, precision=chosen_precision(settings)).total_bytes
        if predicted < this_device().usable_bytes:
            row = measuring.measure(shape, settings)
            share = predicted / row.peak_bytes
            yield {"what": name, "predicted_bytes": predicted, "predicted_share": share, "peak_bytes": row.peak_bytes}


def measure_against(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield a row for each other way to train on the same text, and for ours: useful tokens per second of the Trainer.

    Packed rows are also measured in passes of 16 full blocks, if the GPU has room for the stock Trainer's: the
    smaller passes leave a large GPU waiting for the CPU, which then limits the speed.
    """
    is_card = scale.device == "cuda"
    config = config_of(scale.shape._replace(resid_pdrop=0.0, embd_pdrop=0.0))
    how = {"config": config, "steps": scale.steps, "on_card": is_card}
    rows = [(name, values | {"block": scale.block // 2}) for name, values in training_step.ROWS.items()]
    if not is_card or this_device().usable_bytes > _ROOM_FOR_STOCK:
        full = {"block": scale.block, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
        rows += [(name, values | full) for name, values in rows if "text" not in values]
    for name, values in rows:
        if is_card or "torch_compile" not in values:
            passes = f"{values['per_device_train_batch_size']} x {values['block']}"
            _reset_peak(is_card)
            yield {"what": name, "passes": passes} | training_step.measure(**values, **how)
            torch.compiler.reset()


def measure_against_nanogpt(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield rows at an equal batch without dropout: nanoGPT's and ours, uncompiled and compiled."""
    scale = scale._replace(shape=scale.shape._replace(resid_pdrop=0.0, embd_pdrop=0.0))
    for compiled in (False, True) if scale.device == "cuda" else (False,):
        name = ", compiled" * compiled
        if NANOGPT.is_dir():
            yield {"what": f"nanoGPT{name}"} | train_nanogpt(scale, settings_of(scale), NANOGPT, compiled=compiled)
        ours = train(scale, settings_of(scale), compile_mode="default" if compiled else None)
        yield {"what": f"ours{name}"} | ours


def measure_calibration(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield the measurements of `calibrate`, from which a plan for such a GPU is made."""
    measured = measuring.calibrate(budget_seconds=60 if scale.device == "cuda" else 0)
    for row in measured.measurements:
        yield {"what": "calibration"} | row.model_dump()


PARTS = {  # the ones that matter most first
    "memory": measure_memory,
    "presets": measure_presets,
    "against": measure_against,
    "calibration": measure_calibration,
    "levers": measure_levers,
    "batches": measure_batches,
    "nanogpt": measure_against_nanogpt,
}


def measure(part: str, scale: Scale, path: Path) -> list[dict[str, Any]]:
    """Measure a part, print each row, and keep the rows so far in a file, also when one fails."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = record[part] = []
    record["machine"] = machine()
    try:
        for row in PARTS[part](scale):
            rows.append(row)
            print(" ".join(f"{name}={_short(value)}" for name, value in row.items()), flush=True)
    finally:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) if not isinstance(value, list) else "..."


def machine() -> dict[str, str]:
    """Return the GPU and the versions, without which a measurement means nothing."""
    card = this_device()
    return {
        "card": card.name, "driver": card.driver, "torch": torch.__version__, "cuda": str(torch.version.cuda),
        "transformers": transformers.__version__, "python": platform.python_version(), "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def readme_table(record: dict[str, Any]) -> str:
    """Return the README's table of a record: speed of the Trainer in each way, and its peak.

    python -m tests.benchmarks.card card.json
    """
    ours = {row["passes"]: row["tokens_per_second"] for row in record["against"] if row["what"] == "ours"}
    lines = ["| | passes | useful tokens/s | speed-up of ours | peak memory, MiB |", "| --- " * 5 + "|"]
    for row in record["against"]:
        speed = row["tokens_per_second"]
        ratio = ours.get(row["passes"], next(iter(ours.values()))) / speed  # the guide's passes are its own
        lines.append(
            f"| {row['what']} | {row['passes']} | {speed:,.0f} | {ratio:.2g} | {row['peak_bytes'] / MIB:,.0f} |"
        )
    here = record["machine"]
    lines += ["", f"{here['card']}, driver {here['driver']}, PyTorch {here['torch']}, {here['date']}."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(readme_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
