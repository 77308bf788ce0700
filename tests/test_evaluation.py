import json
import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers.data import prepare
from helpers.evaluation import Score, compare, generate, load_tuned, score
from helpers.model import load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError
from helpers.training import as_batch

DOCUMENTS = ["A fox ran home over the hill.", "No.", "The owl slept " * 40, "caf\u00e9 at the well"]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))


def plain_nats(model, tokenizer, documents, stride, context):
    """Score token by token, each with the context its window gives it: slow, and written another way."""
    stream = [tokenizer.eos_token_id]
    owner = []
    for number, text in enumerate(documents):
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        stream += ids
        owner += [number] * len(ids)
    nats = np.zeros(len(documents))
    end, scored_to = min(context, len(stream) - 1), 0
    while scored_to < len(stream) - 1:
        begin = max(0, end - context)
        for position in range(scored_to, end):
            with torch.no_grad():
                logits = model(torch.tensor([stream[begin : position + 1]])).logits[0, -1]
            nats[owner[position]] -= logits.log_softmax(-1)[stream[position + 1]].item()
        scored_to, end = end, min(end + stride, len(stream) - 1)
    return nats


@pytest.mark.parametrize(("stride", "context"), [(16, 64), (64, 64), (1, 8), (5, 16)])
def test_a_score_equals_a_plain_loop_over_tokens(tiny, stride, context):
    result = score(*tiny, DOCUMENTS, stride=stride, context=context, per_device_eval_batch_size=3)
    expected = plain_nats(*tiny, DOCUMENTS, stride, context)
    assert result.document_nats == pytest.approx(expected, rel=1e-4)
    assert result.n_tokens == sum(len(tiny[1].encode(text)) + 1 for text in DOCUMENTS)
    assert result.n_bytes == sum(len(text.encode()) for text in DOCUMENTS)


def test_the_batch_size_changes_nothing(tiny):
    one, many = (score(*tiny, DOCUMENTS, stride=8, per_device_eval_batch_size=size) for size in (1, 16))
    assert one.document_nats == pytest.approx(many.document_nats, rel=1e-5)


def test_the_trainers_validation_loss_is_the_mean_over_all_predicted_tokens(tiny, tiny_settings, tmp_path):
    model, _ = tiny
    blocks = prepare(tiny_settings).blocks["validation"]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, eval_dataset=blocks, data_collator=as_batch)
    by_trainer = trainer.evaluate()["eval_loss"]
    by_hand = np.mean(
        [
            -model(row[None]).logits[0, :-1].log_softmax(-1)[range(31), row[1:]].detach().numpy()
            for row in blocks["input_ids"]
        ]
    )
    assert by_trainer == pytest.approx(float(by_hand), abs=1e-4)


def test_the_figures_of_a_score_follow_from_its_sums():
    result = Score(np.array([math.log(2) * 30, math.log(2) * 10]), n_tokens=20, n_bytes=10, stride=8, context=16)
    assert result.perplexity == pytest.approx(4)
    assert result.bits_per_byte == pytest.approx(4)
    assert result.loss_nats == pytest.approx(2 * math.log(2))
    assert result.to_dict()["protocol"] == "2 documents, 20 tokens, 10 bytes, context 16, stride 8"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stride": 65}, "must be 1 to 64"),
        ({"stride": 0}, "must be 1 to 64"),
        ({"stride": 8, "context": 65}, "has 64 positions"),
        ({"stride": 8, "documents": []}, "no documents"),
    ],
)
def test_a_window_that_would_leave_tokens_out_is_refused(tiny, changes, words):
    documents = changes.pop("documents", DOCUMENTS)
    with pytest.raises(SettingsError, match=words):
        score(*tiny, documents, **changes)


def test_both_models_read_the_same_tokens_and_the_file_keeps_the_protocol(tiny_run):
    comparison = compare(EvaluationSettings(run="tiny", stride=16))
    assert comparison.base.n_tokens == comparison.tuned.n_tokens
    assert comparison.tuned.perplexity < comparison.base.perplexity
    stored = json.loads((tiny_run.folder / "evaluation.json").read_text())["test"]
    assert [row["model"] for row in stored] == ["base", "tuned"]
    assert all(row["stride"] == 16 and row["context"] == 32 for row in stored)
    assert "context 32, stride 16" in comparison._repr_html_()


def test_a_run_without_a_model_is_said_so():
    with pytest.raises(SettingsError, match="no final model yet"):
        load_tuned("mine")


GREEDY = {"do_sample": False, "num_return_sequences": 1, "temperature": None, "top_p": None, "top_k": None}


def test_a_batch_of_prompts_gives_what_single_prompts_give(tiny):
    settings = EvaluationSettings(max_new_tokens=12)
    prompts = ["The fox", "An old owl came down from the", "No"]
    together = generate(*tiny, prompts, settings, **GREEDY)
    assert together == [generate(*tiny, [prompt], settings, **GREEDY)[0] for prompt in prompts]
    assert all(texts[0].startswith(prompt) for texts, prompt in zip(together, prompts, strict=True))


def test_the_seed_decides_the_samples_and_leaves_the_global_state_alone(tiny):
    settings = EvaluationSettings(max_new_tokens=12, num_return_sequences=3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same = (generate(*tiny, ["The fox"], settings) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    other = generate(*tiny, ["The fox"], settings.model_copy(update={"seed": 1}))
    assert one == same != other
    assert len(one[0]) == 3


def test_a_prompt_and_a_length_beyond_the_positions_are_refused(tiny):
    with pytest.raises(SettingsError, match="together at most 64"):
        generate(*tiny, ["The fox"], EvaluationSettings(max_new_tokens=64))
