"""One row of the training benchmark, in a process of its own so that its peak memory is its own.

    python training_step.py ROW

Prints JSON: useful tokens a second (median over steps), peak resident bytes, and the first step's loss.
"""

import json
import resource
import sys
import time

import torch
from transformers import AutoConfig, GPT2LMHeadModel

from helpers.data import load_documents
from helpers.engine import equal_results_less_work
from helpers.model import load_tokenizer
from helpers.settings import POCKET, DataSettings

BLOCK, STEPS, WARM_UP = 512, 7, 2
GUIDE_BATCH, BATCH = 4, 8  # the guide's own, and ours
ROWS = {
    "guide, documents": {"text": "documents", "padded": True},
    "guide, sentences": {"text": "sentences", "padded": True},
    "packed, float32": {},
    "packed, bf16": {"bf16": True},
    "ours": {"bf16": True, "engine": True},
    "ours, float32": {"engine": True},
    "ours, compiled": {"bf16": True, "engine": True, "compiled": True},
}


def texts(kind):
    """Return texts of about 140 tokens, or of one sentence each, as BookCorpus has them."""
    fables = load_documents(DataSettings())["train"]["text"]
    if kind == "documents":
        return [paragraph for fable in fables for paragraph in fable.split("\n\n") if len(paragraph) > 300]
    return [sentence for fable in fables for sentence in fable.replace("\n", " ").split(". ") if len(sentence) > 20]


def padded_batches(kind, tokenizer):
    """Yield (ids, mask, labels), (B, T) each: a text a row, filled up to the block as the guide does."""
    rows = [[*tokenizer.encode(text)[: BLOCK - 1], tokenizer.eos_token_id] for text in texts(kind)]
    for start in range(0, GUIDE_BATCH * STEPS, GUIDE_BATCH):
        part = rows[start : start + GUIDE_BATCH]
        ids = torch.tensor([row + [tokenizer.eos_token_id] * (BLOCK - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (BLOCK - len(row)) for row in part])
        yield ids, mask, ids.masked_fill(mask == 0, -100)


def packed_batches(tokenizer):
    """Yield (ids, None, labels), (B, T) each: rows without a gap."""
    stream = [token for text in texts("documents") for token in (*tokenizer.encode(text), tokenizer.eos_token_id)]
    while len(stream) < BATCH * BLOCK * STEPS:
        stream *= 2
    for ids in torch.tensor(stream[: BATCH * BLOCK * STEPS]).view(STEPS, BATCH, BLOCK):
        yield ids, None, ids


def fresh_model():
    """Return the pocket model's shape with 512 positions and no attention dropout, from random weights."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(POCKET)
    config.n_positions, config.attn_pdrop = BLOCK, 0.0
    config.resid_pdrop = config.embd_pdrop = 0.0  # equal on all sides; the first losses can then be compared
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"
    return model


def measure(batches, *, bf16=False, engine=False, compiled=False):
    """Return the figures of one row."""
    model = fresh_model()
    if engine:
        equal_results_less_work(model).__enter__()  # for the life of this process
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rates, losses = [], []
    for ids, mask, labels in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = call(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        rates.append((labels != -100).sum().item() / (time.perf_counter() - start))
    return {
        "tokens_per_second": sorted(rates[WARM_UP:])[len(rates[WARM_UP:]) // 2],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_loss": losses[0],
    }


if __name__ == "__main__":
    row = dict(ROWS[sys.argv[1]])
    tokenizer = load_tokenizer("pocket")
    kind, is_padded = row.pop("text", None), row.pop("padded", False)
    print(json.dumps(measure(padded_batches(kind, tokenizer) if is_padded else packed_batches(tokenizer), **row)))
