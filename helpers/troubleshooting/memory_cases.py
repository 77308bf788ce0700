"""Failures of memory: too little of it, and memory that is not given back; what each mend saves and costs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helpers.troubleshooting.child import run_in_child
from helpers.troubleshooting.explanation import explain
from helpers.troubleshooting.reproduced import Reproduced, Rows, run_cells

if TYPE_CHECKING:
    from helpers.training.memory import Engine

_LOAD = 'from helpers.model import load_model; model = load_model("pocket")'
_STEP = """
ids = torch.randint(4096, ({batch}, 256))
for _ in range({passes}):
    (model(input_ids=ids, labels=ids).loss / {passes}).backward()
print("passed")
"""
_CUDA_WORDS = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of 11.99 GiB "
    "of which 512.00 MiB is free. Including non-PyTorch memory, this process has 11.10 GiB memory in use. Of the "
    "allocated memory 10.80 GiB is allocated by PyTorch, and 96.00 MiB is reserved by PyTorch but unallocated."
)


def out_of_memory() -> Reproduced:
    """5. A step in a process that may take only so much more memory, and the same step in smaller passes.

    Real where a process can be given a limit (not on Windows). Of a card's message the words alone are injected.
    """
    batch, fits, extra_bytes = 16, 4, 400 * 1024**2
    big = run_in_child(_STEP.format(batch=batch, passes=1), setup=_LOAD, extra_bytes=extra_bytes)
    small = run_in_child(_STEP.format(batch=fits, passes=batch // fits), setup=_LOAD, extra_bytes=extra_bytes)
    return Reproduced(
        "Out of memory",
        big.last_line,
        {
            "passes x rows": f"1 x {batch}",
            "rows a step": batch,
            "result": big.last_line,
            "a card's words (injected)": explain(_CUDA_WORDS).verdict,
        },
        {"passes x rows": f"{batch // fits} x {fits}", "rows a step": batch, "result": small.last_line},
        "T1",
    )


def kept_by_display() -> Reproduced:
    """6. A model that a cell showed stays alive after `del`; `%xdel` lets it go."""
    alive = "gone.alive"
    make = "import gc, weakref\nclass Model: pass\nmodel = Model(); gone = weakref.finalize(model, print, end='')"
    after = {
        end: run_cells([make, "model", f"{end}\nimport gc; gc.collect();", alive])[-1]
        for end in ("del model", "del model\n%reset -f out", "%xdel model")
    }
    return Reproduced(
        "Kept by the output history",
        "the model was deleted, and its memory is still taken",
        {"alive after del": after["del model"], "alive after %reset -f out": after["del model\n%reset -f out"]},
        {"alive after %xdel": after["%xdel model"]},
        "T4",
    )


def kept_by_traceback() -> Reproduced:
    """7. What a failed cell held stays alive in its traceback; a caught error kept as text lets it go."""
    make = "import gc, sys, weakref\nclass Tensor: pass\nkept = []"
    use = "def step():\n    big = Tensor(); kept.append(weakref.ref(big)); raise MemoryError('no room')\n"
    caught = f"{use}try:\n    step()\nexcept MemoryError as error:\n    told = str(error)"
    look, cut = "gc.collect(); kept[0]() is not None", "sys.last_traceback.tb_next = None"
    failed = run_cells([make, f"{use}step()", "1 + 1", look, cut, look])
    return Reproduced(
        "Kept by a traceback",
        failed[1],
        {"alive after the failed cell": failed[3]},
        {
            "alive after the failed cell": run_cells([make, caught, look])[-1],
            "alive once the traceback is cut": failed[5],
        },
        "T5",
    )


_MEASURE = """
import json, tempfile, time
from pathlib import Path
from torch.profiler import ProfilerActivity, profile
from helpers.training.engine import use_chunked_loss
from helpers.model import load_model

def peak_bytes(run):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    with tempfile.TemporaryDirectory() as folder:
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")

def step(batch, length, passes=1, bf16=False, checkpointing=False, chunked=False):
    model = load_model("pocket").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    if chunked:
        use_chunked_loss(model, chunk_tokens=256)
    ids = torch.randint(4096, (batch, length))
    def run():
        for _ in range(passes):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                (model(input_ids=ids, labels=ids).loss / passes).backward()
    run()  # the gradients are there from now on, as in every step but the first
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return {"peak_bytes": peak_bytes(run), "seconds": min(seconds)}

print(json.dumps({name: step(**options) for name, options in json.loads(OPTIONS).items()}))
"""


def memory_savers(*, batch: int = 4, length: int = 128) -> Rows:
    """Measure what each advice saves, and what it costs in time, on the pocket model.

    Returns:
        Rows of `advice`, `peak_mib` (memory taken beyond weights and gradients, as PyTorch's allocator counts it) and
        `seconds` for a step of `batch` x `length` tokens; `same` says whether it is the same training.
    """
    options = {
        "as it is": {},
        "batch 2, more passes": {"batch": 2, "passes": batch // 2},
        "batch 1, more passes": {"batch": 1, "passes": batch},
        "half the length, 2 passes": {"length": length // 2, "passes": 2},
        "checkpointing": {"checkpointing": True},
        "bf16": {"bf16": True},
        "chunked loss": {"chunked": True},
    }
    asked = {name: {"batch": batch, "length": length} | values for name, values in options.items()}
    child = run_in_child(f"OPTIONS = {json.dumps(json.dumps(asked))}\n{_MEASURE}", timeout_seconds=120)
    found = json.loads(next(line for line in child.output.splitlines() if line.startswith("{")))
    return Rows(
        {
            "advice": name,
            "peak_mib": round(row["peak_bytes"] / 1024**2, 1),
            "seconds": round(row["seconds"], 3),
            "same": "length" not in name and name != "bf16",
        }
        for name, row in found.items()
    )


def plan_for(cards_gib: Sequence[float] = (8, 12, 16)) -> Rows:
    """Return, for each card, the largest batch of GPT-2 Small's longest rows that is predicted to fit, with what help.

    The plan predicts, as it does for a run: 1 GiB of a card is left to its driver and a desktop. 0 means that not one
    row fits.
    """
    from helpers.settings import TrainingSettings
    from helpers.training.cards import GIB, GraphicsCard
    from helpers.training.plan import plan_run

    ways: dict[str, tuple[Engine, dict[str, Any]]] = {
        "float32": ("stock", {"mixed_precision": "no"}),
        "bf16": ("stock", {"mixed_precision": "bf16"}),
        "bf16, chunked loss": ("course", {"mixed_precision": "bf16"}),
        "bf16, chunked loss, checkpointing": ("course", {"mixed_precision": "bf16", "gradient_checkpointing": True}),
    }
    cards = [GraphicsCard(f"{gib:g} GB", int(gib * GIB), half_tflops=0, float32_tflops=0) for gib in cards_gib]
    rows = Rows()
    for way, (engine, changes) in ways.items():
        settings = TrainingSettings(model_name_or_path="openai-community/gpt2", block_size=1024, **changes)
        plans = [plan_run(settings, card=card, train_tokens=0, engine=engine) for card in cards]
        rows.append({"way": way} | {plan.card.name: plan.largest_batch for plan in plans})
    return rows
