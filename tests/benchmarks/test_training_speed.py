"""How much faster packed rows and bf16 train here: ratios from one run, printed with `make bench`."""

import time

import torch
from datasets import Dataset

from helpers.data import load_documents, token_blocks
from helpers.engine import use_fused_gelu
from helpers.model import has_bf16, load_model, load_tokenizer
from helpers.settings import DataSettings

WIDTH, BATCH, STEPS = 256, 8, 6


def median_seconds(model, batches, *, bf16):
    """Return the median time of a training step on (input_ids, attention_mask, labels), after one to warm up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for ids, mask, labels in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[len(seconds[1:]) // 2]


def test_packed_rows_against_padded_ones():
    tokenizer = load_tokenizer("pocket")
    fables = load_documents(DataSettings())["train"]["text"]
    paragraphs = [paragraph for fable in fables for paragraph in fable.split("\n\n")][: BATCH * STEPS]
    rows = [[*tokenizer.encode(text)[: WIDTH - 1], tokenizer.eos_token_id] for text in paragraphs]
    ids = torch.tensor([row + [tokenizer.eos_token_id] * (WIDTH - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (WIDTH - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    padded = list(zip(ids.split(BATCH), mask.split(BATCH), labels.split(BATCH), strict=True))
    blocks = token_blocks(Dataset.from_dict({"text": list(fables)}), tokenizer, WIDTH)[0]["input_ids"][: BATCH * STEPS]
    packed = [(part, None, part) for part in blocks.split(BATCH)]

    stock, ours = load_model("pocket").train(), load_model("pocket").train()
    use_fused_gelu(ours)
    stock_seconds = median_seconds(stock, padded, bf16=False)
    our_seconds = median_seconds(ours, packed, bf16=has_bf16())
    useful = mask.sum().item() / STEPS
    ratio = (BATCH * WIDTH / our_seconds) / (useful / stock_seconds)
    print(
        f"\nuseful tokens/s: padded float32 stock {useful / stock_seconds:,.0f}, "
        f"packed {'bf16' if has_bf16() else 'float32'} {BATCH * WIDTH / our_seconds:,.0f}, ratio {ratio:.1f}"
    )
    assert ratio > 1
