"""Scoring against `Trainer.evaluate`, and generation in a batch against one call after another: ratios of one run."""

import statistics
import time

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from helpers.data.in_memory import load_documents
from helpers.evaluation.generation import generate
from helpers.evaluation.scoring import score
from helpers.model import load_model, load_tokenizer, quiet
from helpers.settings import DataSettings, EvaluationSettings
from helpers.training.fine_tuning import as_batch

BLOCK = 256
ROUNDS = 3


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket").eval(), load_tokenizer("pocket")


def seconds(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def test_scoring_is_at_least_as_fast_as_the_trainers_evaluation(pocket, tmp_path):
    model, tokenizer = pocket
    texts = load_documents(DataSettings())["train"]["text"][:60]
    ids = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
    ids = ids[: len(ids) // BLOCK * BLOCK]
    text = tokenizer.decode(ids)
    blocks = Dataset.from_dict({"input_ids": [ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK)]})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=8, use_cpu=not torch.cuda.is_available(),
        prediction_loss_only=True, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, eval_dataset=blocks.with_format("torch"), data_collator=as_batch
    )  # fmt: skip
    ours, theirs = [], []
    for _ in range(1 + ROUNDS):
        with quiet():
            theirs.append(seconds(lambda: trainer.evaluate()["eval_loss"]))
        ours.append(seconds(lambda: score(model, tokenizer, [text], stride=BLOCK, protocol="transformers").loss_nats))
    assert ours[0][1] == pytest.approx(theirs[0][1], abs=1e-4), "the same tokens"
    our_time, their_time = (statistics.median(took for took, _ in rounds[1:]) for rounds in (ours, theirs))
    print(f"\n{len(ids):,} tokens: Trainer.evaluate {their_time:.2f} s, score {our_time:.2f} s, tokenising included")
    print(f"score is {their_time / our_time:.2f} times as fast")
    assert our_time <= their_time


def test_a_batch_of_prompts_is_three_times_as_fast_as_one_by_one(pocket):
    settings = EvaluationSettings(max_new_tokens=64, num_return_sequences=1)
    prompts = [f"The {animal}" for animal in ("fox", "owl", "hen", "ram", "cat", "dog", "bee", "eel")] * 4
    generate(*pocket, prompts[:2], settings)
    together, results = seconds(lambda: generate(*pocket, prompts, settings))
    one_by_one, _ = seconds(lambda: [generate(*pocket, [prompt], settings) for prompt in prompts])
    assert len(results) == len(prompts)
    print(f"\n{len(prompts)} prompts: one by one {one_by_one:.1f} s, together {together:.1f} s")
    print(f"together is {one_by_one / together:.1f} times as fast")
    assert one_by_one >= 3 * together
