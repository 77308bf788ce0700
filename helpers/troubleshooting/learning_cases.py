"""Failures of learning: the loss that lies, the model that never stops, the text learnt by heart."""

import math
import tempfile
from typing import Any

from helpers.troubleshooting.log_numbers import overfits
from helpers.troubleshooting.reading import Reading
from helpers.troubleshooting.reproduced import Reproduced, tiny_model, train_briefly

_SENTENCES = tuple(f"The {animal} went home." for animal in ("fox", "owl", "hen", "ram", "cat", "dog"))


def empty_tokenizer() -> Reproduced:
    """1. A tokenizer made of an empty folder, the padding of 2023, and a perfect-looking loss of 0."""
    from transformers import DataCollatorForLanguageModeling, GPT2Tokenizer

    from helpers.model import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        empty = GPT2Tokenizer.from_pretrained(folder)

    def history(tokenizer: Any) -> list[dict[str, Any]]:
        tokenizer.pad_token = tokenizer.eos_token
        rows = [dict(tokenizer(s, padding="max_length", max_length=16, truncation=True)) for s in _SENTENCES]
        return train_briefly(
            tiny_model(), rows, collate=DataCollatorForLanguageModeling(tokenizer, mlm=False), max_steps=3
        )

    real = load_tokenizer("pocket")
    broken, mended = history(empty), history(real)
    return Reproduced(
        "The empty tokenizer",
        str(broken[-1]),
        {"tokens in the vocabulary": len(empty), "losses": [row["loss"] for row in broken]},
        {"tokens in the vocabulary": len(real), "losses": [row["loss"] for row in mended]},
        "D1",
    )


def hidden_nan() -> Reproduced:
    """2. One weight that is no number, hidden by the Trainer's filter; then a learning rate that makes such weights."""
    import torch

    def history(**arguments: Any) -> list[dict[str, Any]]:
        model = tiny_model()
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight[0, 0] = math.nan
        return train_briefly(model, _random_rows(8, 32), max_steps=3, **arguments)

    filtered, shown = history(), history(logging_nan_inf_filter=False)
    wild = train_briefly(
        tiny_model(),
        _random_rows(8, 32),
        max_steps=4,
        learning_rate=1e6,
        logging_nan_inf_filter=False,
        lr_scheduler_type="constant",
    )
    sane = train_briefly(tiny_model(), _random_rows(8, 32), max_steps=4, learning_rate=1e-3)
    return Reproduced(
        "A loss that is no number, hidden",
        f"loss {filtered[-1]['loss']}, grad_norm {filtered[-1]['grad_norm']}",
        {"logged loss": [row["loss"] for row in filtered], "learning rate 1e6": [row["loss"] for row in wild]},
        {"logged loss": [row["loss"] for row in shown], "learning rate 1e6": [row["loss"] for row in sane]},
        "T6",
    )


def pure_half() -> Reproduced:
    """3. Weights in half precision under AdamW against float32 weights under bf16 autocast."""
    half, full = _half_precision_losses(in_half=True), _half_precision_losses(in_half=False)
    first_bad = next((n for n, loss in enumerate(half, 1) if not math.isfinite(loss)), None)
    return Reproduced(
        "Weights in half precision",
        f"the loss is {half[-1]} from step {first_bad} on",
        {"losses": half, "first step without a number": first_bad},
        {"losses": full, "first step without a number": None},
        "T6",
    )


def _half_precision_losses(*, in_half: bool, n_steps: int = 8) -> list[float]:
    import torch

    model = tiny_model()
    model = model.half() if in_half else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    ids = torch.stack([row["input_ids"] for row in _random_rows(4, 32)])  # (B, T)
    losses = []
    for _ in range(n_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=not in_half):
            loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def _random_rows(n_rows: int, length: int) -> list[dict[str, Any]]:
    import torch

    tokens = torch.randint(4096, (n_rows, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row} for row in tokens]


def never_stops(*, n_steps: int = 60) -> Reproduced:
    """4. The end-of-text as padding: two trainings that differ in the labels of the end alone."""
    with_pad_as_end, with_own_pad = (_share_that_stop(own_pad, n_steps) for own_pad in (False, True))
    return Reproduced(
        "The model never stops",
        f"{with_pad_as_end[1]!r}",
        {"texts that end": f"{with_pad_as_end[0]} of {len(_SENTENCES)}"},
        {"texts that end": f"{with_own_pad[0]} of {len(_SENTENCES)}"},
        "T11",
    )


def _share_that_stop(own_pad: bool, n_steps: int) -> tuple[int, str]:
    """Train on sentences that end, and count those that the model ends; return the count and one text."""
    import torch
    from transformers import DataCollatorForLanguageModeling

    from helpers.model import load_tokenizer

    tokenizer, model = load_tokenizer("pocket"), tiny_model(positions=32)
    end = tokenizer.eos_token_id
    if own_pad:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    else:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": [*tokenizer.encode(sentence), end]} for sentence in _SENTENCES]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    train_briefly(model, rows, collate=collate, max_steps=n_steps, learning_rate=3e-3, per_device_train_batch_size=6)
    model.eval()
    texts = []
    for sentence in _SENTENCES:
        prompt = torch.tensor([tokenizer.encode(sentence)[:3]])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=20,
                do_sample=False,
                pad_token_id=end,
                eos_token_id=end,
            )
        texts.append(ids[0].tolist())
    return sum(end in text for text in texts), tokenizer.decode(texts[0])


def by_heart(*, n_steps: int = 60) -> Reproduced:
    """14a. Four rows, many steps: training loss falls, held-out loss rises; stopping at its lowest is the mend."""
    import torch

    model, train, held_out = tiny_model(), *_fables(n_train=12, n_held_out=12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = []
    for step in range(1, n_steps + 1):
        loss = model(input_ids=train, labels=train).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            with torch.no_grad():
                rows.append({"loss": loss.item(), "eval_loss": model(input_ids=held_out, labels=held_out).loss.item()})
    best = min(rows, key=lambda row: row["eval_loss"])
    return Reproduced(
        "Learnt by heart",
        overfits(Reading("", rows=tuple(rows))) or "",
        {"held-out loss": rows[-1]["eval_loss"], "training loss": rows[-1]["loss"]},
        {"held-out loss": best["eval_loss"], "training loss": best["loss"]},
        "T9",
    )


def _fables(*, n_train: int, n_held_out: int) -> Any:
    """Return two stacks of token rows (B, T) of the fables."""
    import torch

    from helpers.data.preparation import load_documents
    from helpers.model import load_tokenizer
    from helpers.settings import DataSettings

    tokenizer = load_tokenizer("pocket")
    texts = load_documents(DataSettings())["train"]["text"][: n_train + n_held_out]
    rows = torch.tensor([ids[:64] for ids in tokenizer(texts, verbose=False)["input_ids"]])  # (B, T)
    return rows[:n_train], rows[n_train:]


def repetition(*, n_new_tokens: int = 80) -> Reproduced:
    """14b. Greedy decoding goes in circles; sampling does not."""
    import torch

    from helpers.model import load_model, load_tokenizer

    model, tokenizer = load_model("pocket").eval(), load_tokenizer("pocket")
    prompt = torch.tensor([tokenizer.encode("Returns the number of")])

    def generate(**options: Any) -> list[int]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=n_new_tokens,
                max_new_tokens=n_new_tokens,
                pad_token_id=tokenizer.eos_token_id,
                **options,
            )
        return ids[0].tolist()

    greedy, sampled = generate(do_sample=False), generate(do_sample=True, top_p=0.95)
    return Reproduced(
        "The text repeats itself",
        tokenizer.decode(greedy)[-120:],
        {"share of repeated 3-grams": repeated_share(greedy)},
        {"share of repeated 3-grams": repeated_share(sampled)},
        "T10",
    )


def repeated_share(tokens: list[int]) -> float:
    """Return the share of runs of three tokens that have been there before.

    >>> repeated_share([1, 2, 3, 1, 2, 3])
    0.25
    """
    runs = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(runs)) / len(runs)


def shifted_twice(*, n_steps: int = 40) -> Reproduced:
    """14c. Labels shifted by hand, and by the model once more: it learns the token after the next."""
    import torch

    period = torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:8]  # a cycle of eight tokens
    ids = period.repeat(5)[None]  # (1, T)

    def accuracies(labels: Any) -> dict[str, float]:
        model = tiny_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(n_steps):
            optimizer.zero_grad()
            model(input_ids=ids[:, : labels.shape[1]], labels=labels).loss.backward()
            optimizer.step()
        with torch.no_grad():
            guess = model(input_ids=ids).logits[0].argmax(-1)  # (T,)
        return {
            f"right about the token {ahead} ahead": (guess[:-ahead] == ids[0, ahead:]).float().mean().item()
            for ahead in (1, 2)
        }

    return Reproduced(
        "Labels shifted twice",
        "the loss falls, the text is wrong",
        accuracies(ids[:, 1:]),
        accuracies(ids),
        "T8",
    )
