"""One row of the training benchmark, in a separate process to measure its own peak memory.

    python training_step.py ROW

Prints JSON: useful tokens per second (median over steps), tokens per row, peak resident bytes, the loss of each step.
Every row is the `Trainer`, ours with what `fine_tune` adds, on the pocket model's shape from the same random weights
with 512 positions and no dropout, in steps of 16 rows of 512. On a GPU `card.py` calls `measure` for GPT-2's shape.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    DataCollatorForLanguageModeling,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from helpers.data.in_memory import load_documents
from helpers.model import load_tokenizer, quiet
from helpers.paths import POCKET
from helpers.settings import DataSettings, TrainingSettings
from helpers.training.arguments import float32_products, training_arguments
from helpers.training.devices import peak_bytes, reset_peak
from helpers.training.engine import optimised_model
from helpers.training.fine_tuning import as_batch, new_trainer

BLOCK, STEPS, WARM_UP = 512, 7, 2
GUIDE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
OURS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
ROWS = {
    "guide, documents": {"text": "documents", **GUIDE},
    "guide, sentences": {"text": "sentences", **GUIDE},
    "packed, float32": OURS,
    "packed, bf16": {"bf16": True, **OURS},
    "ours": {"mixed_precision": "bf16", "engine": True, **OURS},
    "ours, float32": {"mixed_precision": "no", "engine": True, **OURS},
    "ours, compiled": {"mixed_precision": "bf16", "torch_compile": "always", "engine": True, **OURS},
}


def texts(kind):
    """Return paragraphs of about 140 tokens, or short sentences: BookCorpus has one of about 16 tokens per row."""
    fables = load_documents(DataSettings())["train"]["text"]
    if kind == "documents":
        return [paragraph for fable in fables for paragraph in fable.split("\n\n") if len(paragraph) > 360]
    sentences = [sentence for fable in fables for sentence in re.split(r"(?<=[.!?])\s+", fable)]
    return [sentence for sentence in sentences if 0 < len(sentence.split()) <= 16]


def padded_rows(kind, tokenizer, block, steps):
    """Return one text per row, padded and truncated to the block, as in the guide."""
    tokenizer.pad_token = tokenizer.eos_token
    rows = (texts(kind) * steps * 16)[: steps * 16]
    return Dataset.from_dict(
        dict(tokenizer(rows, truncation=True, padding="max_length", max_length=block))
    ).with_format("torch")


def packed_rows(tokenizer, block, steps):
    """Return packed rows."""
    stream = [token for text in texts("documents") for token in (*tokenizer.encode(text), tokenizer.eos_token_id)]
    n_tokens = block * steps * 16
    stream = (stream * (n_tokens // len(stream) + 1))[:n_tokens]
    return Dataset.from_dict({"input_ids": torch.tensor(stream).view(-1, block).tolist()}).with_format("torch")


def fresh_model(config):
    """Return a model without dropout, from random weights."""
    torch.manual_seed(0)
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0  # equal on all sides
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def mark(on_card):
    """Return a time stamp; a GPU records it when it gets there, while Python goes on."""
    if not on_card:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(marks):
    """Return the seconds from each time stamp to the next."""
    if isinstance(marks[0], float):
        return [end - begin for begin, end in pairwise(marks)]
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in pairwise(marks)]


@contextmanager
def ours(model):
    """Train as `fine_tune` does inside the block."""
    with optimised_model(model), float32_products():
        yield


class Clock(TrainerCallback):
    """Marks the end of each step."""

    def __init__(self, on_card):
        self.on_card, self.marks = on_card, []

    def on_step_end(self, args, state, control, **kwargs):
        """Record a time stamp."""
        self.marks.append(mark(self.on_card))


def pocket():
    """Return the pocket model's configuration with 512 positions."""
    config = AutoConfig.from_pretrained(POCKET)
    config.n_positions = BLOCK
    return config


def measure(text=None, engine=False, *, config=None, block=BLOCK, steps=STEPS, on_card=False, **arguments):
    """Return the metrics of one row."""
    tokenizer, model, clock = load_tokenizer("pocket"), fresh_model(config or pocket()), Clock(on_card)
    rows = padded_rows(text, tokenizer, block, steps) if text else packed_rows(tokenizer, block, steps)
    lengths = [min(len(ids), block) for ids in tokenizer(texts(text))["input_ids"]] if text else [block]
    n_useful = statistics.mean(lengths)
    folder, both = Path(tempfile.gettempdir()), {"learning_rate": 5e-5, "weight_decay": 0.01, **arguments}
    if engine:
        stock = {"adam_beta2": 0.999, "warmup_steps": 0, "lr_scheduler_type": "linear"}
        args = training_arguments(TrainingSettings(**stock, **both), folder)
    else:
        args = TrainingArguments(
            folder, report_to="none", disable_tqdm=True, use_cpu=not on_card, dataloader_pin_memory=on_card, **both
        )
    args.max_steps, args.eval_strategy, args.save_strategy = steps, "no", "no"
    args.logging_steps = 10 if on_card else 1  # reading the loss waits for the GPU
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False) if text else as_batch
    reset_peak()
    with ours(model) if engine else nullcontext(), quiet():
        how = {"args": args, "data_collator": collator, "train_dataset": rows, "callbacks": [clock]}
        trainer = new_trainer({}, model=model, **how) if engine else Trainer(model, **how)
        trainer.train()
    seconds = seconds_between(clock.marks[WARM_UP - 1 :])
    return {
        "tokens_per_second": 16 * n_useful / statistics.median(seconds),
        "tokens_per_row": n_useful,
        "peak_bytes": peak_bytes(),
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }


if __name__ == "__main__":
    print(json.dumps(measure(**ROWS[sys.argv[1]])))
