"""What saves memory: measured on the pocket model, and predicted for GPT-2 on cards of several sizes."""

import json
from collections.abc import Sequence

from helpers.display import GIB, MIB
from helpers.troubleshooting.lab import Table, run_in_child

# Measured in a child: the profiler slows down whatever runs after it, and memory that this process has freed but kept
# would be reused without being counted.
_MEASURE = """
import json, tempfile, time
from pathlib import Path
from torch.profiler import ProfilerActivity, profile
from helpers.training.engine import use_chunked_loss
from helpers.model import load_model

def peak_bytes(run):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
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
    run()  # from now on the gradients exist, as in every step but the first
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return {"peak_bytes": peak_bytes(run), "seconds": min(seconds)}

print(json.dumps({name: step(**options) for name, options in json.loads(OPTIONS).items()}))
"""


def measure_savings(*, batch: int = 4, length: int = 128) -> Table:
    """Measure how much memory each advice saves, and how much time it costs, on the pocket model.

    Returns:
        Rows of `advice`, `peak_mib` (memory taken beyond weights and gradients, as PyTorch's allocator counts it) and
        `seconds` for a step of `batch` x `length` tokens; `same` says whether it is the same training.
    """
    changes = {
        "as it is": {},
        "batch 2, more passes": {"batch": 2, "passes": batch // 2},
        "batch 1, more passes": {"batch": 1, "passes": batch},
        "half the length, 2 passes": {"length": length // 2, "passes": 2},
        "checkpointing": {"checkpointing": True},
        "bf16": {"bf16": True},
        "chunked loss": {"chunked": True},
    }
    options = {name: {"batch": batch, "length": length} | change for name, change in changes.items()}
    child = run_in_child(f"OPTIONS = {json.dumps(json.dumps(options))}\n{_MEASURE}")
    measured = json.loads(next(line for line in child.output.splitlines() if line.startswith("{")))
    return Table(
        {
            "advice": name,
            "peak_mib": round(row["peak_bytes"] / MIB, 1),
            "seconds": round(row["seconds"], 3),
            "same": "length" not in name and name != "bf16",
        }
        for name, row in measured.items()
    )


def predict_batches(cards_gib: Sequence[float] = (8, 12, 16)) -> Table:
    """Predict the largest batch of GPT-2 Small's longest rows that fits on each card, with each advice.

    It is the plan that a run of the preset for 12 GB gets: 1 GiB of a card is left to its driver and a desktop. 0 means
    that not even one row fits.
    """
    from helpers.settings import TrainingSettings
    from helpers.training import GraphicsCard, plan_run

    advice = {
        "float32": ("stock", {"mixed_precision": "no"}),
        "bf16": ("stock", {"mixed_precision": "bf16"}),
        "bf16, chunked loss": ("course", {"mixed_precision": "bf16"}),
        "bf16, chunked loss, checkpointing": ("course", {"mixed_precision": "bf16", "gradient_checkpointing": True}),
    }
    # how fast the cards are does not matter here: only memory is read from the plan
    cards = [GraphicsCard(f"{gib:g} GB", int(gib * GIB), half_tflops=0, float32_tflops=0) for gib in cards_gib]
    rows = Table()
    for name, (engine, changes) in advice.items():
        settings = TrainingSettings.from_preset("rtx-4070-ti", **changes)
        plans = [plan_run(settings, card=card, train_tokens=0, engine=engine) for card in cards]
        rows.append({"with": name} | {plan.card.name: plan.largest_batch for plan in plans})
    return rows
