import copy
import dataclasses
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from helpers.data.preparation import prepare
from helpers.evaluation.scoring import (
    Score,
    batch_windows,
    describe_revision,
    encode,
    score,
    slide_windows,
)
from helpers.model import load_model, quiet
from helpers.paths import NOTEBOOKS
from helpers.settings import SettingsError
from helpers.training.fine_tuning import as_batch

ODD_TEXT = "A\n\n  b \n c\u00a0d\u2003e  \tf'll  don't\u3000g 12 345\r\n\r\nh <|endoftext|> i\x1cj  \n"
DOCUMENTS = ["A fox ran home over the hill.", "No.", "The owl slept " * 40, "", "caf\u00e9 at the well"]


def plain_nats(model, tokenizer, documents, stride, context):
    """Score token by token, each with the context its window gives it: a slow, independent reference."""
    stream, owner = [tokenizer.eos_token_id], []
    for number, text in enumerate(documents):
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        stream += ids
        owner += [number] * len(ids)
    nats = np.zeros(len(documents))
    for target in range(1, len(stream)):
        n_moves = max(0, math.ceil((target - context) / stride))  # until the window's last prediction is this token
        begin = n_moves * stride
        with torch.no_grad():
            logits = model(torch.tensor([stream[begin:target]])).logits[0, -1]
        nats[owner[target - 1]] -= logits.log_softmax(-1)[stream[target]].item()
    return nats


@pytest.mark.parametrize(("stride", "context"), [(16, 64), (64, 64), (1, 8), (5, 16)])
def test_a_score_equals_a_plain_loop_over_tokens(tiny, stride, context):
    result = score(*tiny, DOCUMENTS, stride=stride, context=context, per_device_eval_batch_size=3)
    expected = plain_nats(*tiny, DOCUMENTS, stride, context)
    assert result.document_nats == pytest.approx(expected, rel=1e-4)
    assert result.document_tokens.tolist() == [len(tiny[1].encode(text)) + 1 for text in DOCUMENTS]
    assert result.document_bytes.tolist() == [len(text.encode()) for text in DOCUMENTS]
    assert result.n_words == len(" ".join(DOCUMENTS).split())


def test_passages_are_scored_as_one_text_but_counted_separately(tiny):
    text = "The fox went to the well.\nIt looked for the moon in it, and went home again before the sun rose."
    whole = score(*tiny, [text], stride=4, context=8, protocol="passages")
    parts = score(*tiny, [text[:25], text[25:]], stride=4, context=8, protocol="passages")
    assert parts.nats == pytest.approx(whole.nats)
    assert (parts.n_documents, parts.n_tokens) == (2, whole.n_tokens)
    assert whole.n_tokens == score(*tiny, [text], stride=4, context=8).n_tokens - 1, "no end-of-text"


@pytest.mark.parametrize("stride", [64, 32, 7])
def test_the_published_protocol_matches_the_transformers_documentation(tiny, stride):
    model, tokenizer = tiny
    rows = ["", " = A heading = \n", "The fox went home. " * 30, "", "Nobody knew why."]
    ids = tokenizer("\n\n".join(rows), return_tensors="pt", verbose=False).input_ids
    nats, n_scored, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + 64, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : before - end if before else 0] = -100
        kept = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += model(ids[:, begin:end], labels=labels).loss.item() * kept
        n_scored, before = n_scored + kept, end
        if end == ids.shape[1]:
            break
    result = score(*tiny, rows, stride=stride, protocol="transformers")
    assert result.n_tokens == n_scored
    assert result.perplexity == pytest.approx(math.exp(nats / n_scored), rel=1e-5)
    assert "protocol transformers" in result.protocol


@pytest.mark.network
def test_gpt2_on_wikitext_has_the_published_perplexities():
    source = (
        "from datasets import load_dataset\n"
        "from helpers.model import hub_answers, load_model, load_tokenizer\n"
        "from helpers.evaluation.scoring import score\n"
        "if not hub_answers(): raise SystemExit('The Hub does not answer.')\n"
        "rows = load_dataset('Salesforce/wikitext', 'wikitext-2-raw-v1', split='test')['text']\n"
        "gpt2 = [load('openai-community/gpt2') for load in (load_model, load_tokenizer)]\n"
        "for stride in (1024, 512):\n"
        "    print('perplexity', score(*gpt2, rows, stride=stride, protocol='transformers').perplexity)"
    )
    online = os.environ | {"HF_HUB_OFFLINE": "0"}
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=online, cwd=NOTEBOOKS.parent
    )
    if "The Hub does not answer." in child.stderr:
        pytest.skip("needs the Hugging Face Hub: run this test where there is a network")
    assert child.returncode == 0, child.stderr
    measured = [float(line.split()[1]) for line in child.stdout.splitlines() if line.startswith("perplexity ")]
    assert measured == pytest.approx([29.94, 25.19], abs=0.05)


def test_batch_size_does_not_change_the_score(tiny):
    one, many = (score(*tiny, DOCUMENTS, stride=8, per_device_eval_batch_size=size) for size in (1, 16))
    assert one.document_nats == pytest.approx(many.document_nats, rel=1e-5)


def test_adjacent_windows_give_the_trainers_loss(tiny, tiny_settings, tmp_path):
    """The protocols coincide when the windows are the blocks and the first token of each is not scored."""
    blocks = prepare(tiny_settings).blocks["validation"]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model=tiny[0], args=arguments, eval_dataset=blocks, data_collator=as_batch)
    by_trainer = trainer.evaluate()["eval_loss"]
    stream = [token for row in blocks["input_ids"] for token in row.tolist()]
    text = tiny[1].decode(stream)
    assert tiny[1].encode(text) == stream, "the same tokens for both"
    result = score(*tiny, [text], stride=32, context=32, protocol="transformers")
    assert result.n_tokens == 31 * len(blocks)
    assert result.loss_nats == pytest.approx(by_trainer, abs=1e-4)
    stock = GPT2LMHeadModel.from_pretrained(tiny[0].config._name_or_path)  # without the `loss_type` of our loader
    trainer = Trainer(model=stock, args=arguments, eval_dataset=blocks, data_collator=as_batch)
    with quiet():  # it warns that it guesses the loss
        by_stock = trainer.evaluate()["eval_loss"]
    assert by_trainer == pytest.approx(by_stock * 32 / 31, rel=1e-5), "it divides by the first label of each block too"


def some_score(nats, tokens, n_bytes, n_words=5):
    return Score(np.array(nats), np.array(tokens), np.array(n_bytes), n_words, "ab" * 32, "m", "weights 12", 8, 16)


def test_the_metrics_of_a_score_follow_from_its_sums():
    result = some_score([math.log(2) * 30, math.log(2) * 10], [15, 5], [7, 3])
    assert result.perplexity == pytest.approx(4)
    assert result.bits_per_byte == pytest.approx(4)
    assert result.word_perplexity == pytest.approx(2**8)
    assert result.loss_nats == pytest.approx(2 * math.log(2))
    assert result.to_dict()["protocol"] == (
        "m (weights 12), text abababababab: 2 documents, 20 tokens, 10 bytes, context 16, stride 8, protocol documents"
    )


def test_a_perplexity_too_large_for_a_float_is_none_in_json():
    assert some_score([8000.0], [20], [10]).to_dict()["word_perplexity"] is None


def test_text_hash_equals_that_of_the_prepared_data(tiny, tiny_settings):
    data = prepare(tiny_settings)
    result = score(*tiny, data.documents["test"]["text"], stride=32)
    assert result.text_sha256 == data.facts["splits"]["test"]["sha256"]


def test_scoring_leaves_the_model_unchanged(tiny):
    model = tiny[0]
    attention, activation = model.config._attn_implementation, model.transformer.h[0].mlp.act
    score(*tiny, DOCUMENTS, stride=64)
    assert model.config._attn_implementation == attention
    assert model.transformer.h[0].mlp.act is activation


def test_a_revision_identifies_the_weights_and_the_commit(tiny):
    changed = copy.deepcopy(tiny[0])
    assert describe_revision(changed) == describe_revision(tiny[0])
    with torch.no_grad():
        changed.transformer.wte.weight[7, 3] += 1e-3
    assert describe_revision(changed) != describe_revision(tiny[0])
    changed.config._commit_hash = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    assert re.fullmatch(r"commit 607a30d783df, weights [0-9a-f]{12}", describe_revision(changed))


def test_the_model_is_named_as_given_or_after_its_folder(tiny, tiny_model):
    assert score(*tiny, ["A fox."], stride=8).model == tiny_model.name
    assert score(*tiny, ["A fox."], stride=8, name="run some-run").model == "run some-run"


def test_a_score_is_immutable(tiny):
    result = score(*tiny, ["A fox."], stride=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.stride = 4


def test_encode_adds_the_end_of_text_and_the_owner_of_each_token(tiny):
    tokenizer = tiny[1]
    ids, owners = encode(["A fox.", "", "An owl."], tokenizer, with_ends=True)
    end = tokenizer.eos_token_id
    first, last = tokenizer.encode("A fox."), tokenizer.encode("An owl.")
    assert ids.tolist() == [end, *first, end, end, *last, end]
    assert owners.tolist() == [0, *[0] * len(first), 0, 1, *[2] * len(last), 2]


def test_encode_matches_the_tokenizer_on_odd_text(tiny):
    ids, _ = encode([ODD_TEXT], tiny[1], with_ends=False, with_start=False)
    assert ids.tolist() == tiny[1].encode(ODD_TEXT)


@pytest.mark.parametrize(
    ("n", "stride", "width"), [(50, 4, 9), (50, 8, 9), (7, 3, 9), (9, 1, 9), (10, 8, 9), (2, 1, 9)]
)
def test_overlapping_windows_score_every_token_but_the_first_once(n, stride, width):
    windows = list(slide_windows(np.arange(n), np.arange(n), stride=stride, width=width))
    assert [token for _, scored in windows for token in scored.tolist()] == list(range(1, n))
    assert all(ids[-len(scored) :].tolist() == scored.tolist() for ids, scored in windows)
    assert all(len(ids) == width for ids, _ in windows[:-1])


def test_adjacent_windows_skip_the_first_token_of_each():
    windows = slide_windows(np.arange(9), np.arange(9), stride=4, width=4)
    assert [scored.tolist() for _, scored in windows] == [[1, 2, 3], [5, 6, 7]], "the ninth token has no context"


def test_batches_hold_windows_of_one_shape():
    windows = slide_windows(np.arange(23), np.arange(23), stride=4, width=9)
    shapes = [(ids.shape, owners.shape) for ids, owners in batch_windows(windows, 2)]
    assert shapes == [((1, 9), (1, 8)), ((2, 9), (2, 4)), ((1, 9), (1, 4)), ((1, 7), (1, 2))]


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"stride": 65}, "stride = 65 does not fit: it must be 1 to 64"),
            ({"stride": 17, "context": 16}, "must be 1 to 16"),
            ({"stride": 0}, "must be 1 to 64"),
            ({"stride": 8, "context": 65}, "it must be 2 to 64, the model's positions"),
            ({"stride": 8, "context": 1}, "context = 1 does not fit: it must be 2 to 64"),
            ({"stride": 8, "context": 0}, "context = 0 does not fit"),
            ({"stride": 8, "protocol": "gpt2"}, "protocol = 'gpt2' is unknown"),
        ],
    )
    def test_windows_that_leave_tokens_out_or_do_not_fit(self, tiny, changes, words):
        with pytest.raises(SettingsError, match=words):
            score(*tiny, DOCUMENTS, **changes)

    @pytest.mark.parametrize(
        ("documents", "words"),
        [
            ([], "no documents to score"),
            ([""], "the documents contain only white space"),
            (["", " \n"], "the documents contain only white space"),
            ("A fox.", r"put it in a list, \[text\]"),
            (["A fox.", None], "Document 1 is not a text but NoneType"),
        ],
    )
    def test_documents_that_are_not_texts(self, tiny, documents, words):
        with pytest.raises(SettingsError, match=words):
            score(*tiny, documents, stride=8)

    def test_a_text_of_one_token_is_scored_with_its_end(self, tiny):
        assert len(tiny[1].encode("A")) == 1
        assert score(*tiny, ["A"], stride=8).n_tokens == 2

    def test_a_text_of_one_token_has_nothing_to_score_in_the_published_protocol(self, tiny):
        with pytest.raises(SettingsError, match="the text has only one token, without context"):
            score(*tiny, ["A"], stride=8, protocol="transformers")

    def test_a_text_shorter_than_the_context_is_scored_completely(self, tiny):
        assert score(*tiny, ["A fox."], stride=64).n_tokens == len(tiny[1].encode("A fox.")) + 1

    @pytest.mark.parametrize("protocol", ["documents", "transformers"])
    def test_a_lone_surrogate_is_replaced(self, tiny, protocol):
        half, replaced = (
            score(*tiny, [f"A fox {mark} ran."], stride=8, protocol=protocol) for mark in ("\ud83d", "\ufffd")
        )
        assert half.to_dict() == replaced.to_dict()

    def test_another_models_tokenizer(self, tiny):
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
        small = GPT2LMHeadModel(GPT2Config(vocab_size=100, eos_token_id=99, **shape))
        with pytest.raises(SettingsError, match="has 4096 tokens and the model 100 embeddings"):
            score(small, tiny[1], DOCUMENTS, stride=8)
        large = GPT2LMHeadModel(GPT2Config(vocab_size=5000, eos_token_id=4999, **shape))
        with pytest.raises(SettingsError, match="with token 4999 and the tokenizer with 4095"):
            score(large, tiny[1], DOCUMENTS, stride=8)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_non_finite_weight(self, tiny, value):
        broken = copy.deepcopy(tiny[0])
        with torch.no_grad():
            broken.transformer.h[0].mlp.c_fc.weight[3, 3] = value
        with pytest.raises(SettingsError, match=r"weights transformer.h.0.mlp.c_fc.weight hold values that are not"):
            score(broken, tiny[1], DOCUMENTS, stride=8)

    def test_logits_that_overflow(self, tiny):
        broken = copy.deepcopy(tiny[0])
        with torch.no_grad():
            broken.transformer.ln_f.weight.fill_(1e30)
            broken.transformer.wte.weight.mul_(1e15)
        with pytest.raises(SettingsError, match="logits overflow"):
            score(broken, tiny[1], DOCUMENTS, stride=8)

    def test_weights_of_too_low_precision(self, tiny_model, tiny):
        with pytest.raises(SettingsError, match=r"weights are torch.bfloat16"):
            score(load_model(str(tiny_model)).bfloat16(), tiny[1], DOCUMENTS, stride=8)
