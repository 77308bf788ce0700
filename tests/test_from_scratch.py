"""A new model with its own tokenizer: the same run folder, resume, plan, evaluation and examination."""

import math

import pytest

from helpers.data import load_run_tokenizer, open_prepared, prepare
from helpers.evaluation.base_and_tuned import compare_with_base
from helpers.model import load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError, TrainingSettings
from helpers.training import fine_tune, plan_run, planned_shape
from helpers.training.stopping import TrainingStoppedError
from helpers.troubleshooting import examine
from helpers.widgets.data_panel import read_beginning
from tests.training.saved_weights import same_weights, weights

SHAPE = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


@pytest.fixture
def settings(text_file):
    return TrainingSettings(
        run="new", from_scratch=True, tokenizer="train", vocab_size=300, **SHAPE, source=str(text_file), block_size=32,
        learning_rate=1e-2, num_train_epochs=2, logging_steps=1, eval_steps=50, save_steps=3, mixed_precision="no",
    )  # fmt: skip


def test_a_run_has_its_own_tokenizer_and_shape_from_the_plan_to_the_evaluation(settings):
    planned = planned_shape(settings)
    run = fine_tune(settings)
    model, tokenizer = load_model(str(run.model_folder)), load_tokenizer(str(run.model_folder))
    assert {name: getattr(model.config, name) for name in SHAPE} == SHAPE
    assert len(tokenizer) == model.config.vocab_size == planned.vocab_size == 300
    assert tokenizer.model_max_length == 32
    assert plan_run(settings).shape == planned
    assert planned_shape(settings.model_copy(update={"tokenizer": "pretrained"})).vocab_size == 4096
    assert "a new model of" in plan_run(settings).title
    assert run.history[0]["loss"] == pytest.approx(math.log(300), rel=0.01)
    comparison = compare_with_base(EvaluationSettings(run="new", stride=16))
    assert comparison.base.model == "random weights"
    assert comparison.base.perplexity == pytest.approx(300, rel=0.05)
    assert comparison.tuned.perplexity < comparison.base.perplexity / 2
    statuses = {check.id: check.status for check in examine("new").checks}
    assert statuses["a row, decoded back"] == statuses["one forward pass"] == "ok"
    assert "from random weights" in (run.model_folder / "README.md").read_text(encoding="utf-8")


def test_it_resumes_with_the_weights_of_an_uninterrupted_run(settings):
    def stop_at_4(history, progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    uninterrupted = fine_tune(settings)
    cut = settings.model_copy(update={"run": "cut"})
    with pytest.raises((KeyboardInterrupt, TrainingStoppedError)):
        fine_tune(cut, watch=stop_at_4)
    assert same_weights(weights(uninterrupted.model_folder), weights(fine_tune(cut).model_folder))
    with pytest.raises(SettingsError, match=r"started with .*n_layer"):
        fine_tune(settings.model_copy(update={"n_layer": 2}))


def test_the_tokenizer_is_trained_on_the_training_split_only_and_again_for_another_size(settings, tmp_path):
    path = tmp_path / "parts"
    path.mkdir()
    (path / "train.txt").write_text("The fox went home.\n\n" + "\n\n".join(f"Day {n} was long." for n in range(60)))
    (path / "validation.txt").write_text("\n\n".join(f"zzzzqqqq {n} zzzzqqqq zzzzqqqq" for n in range(20)))
    (path / "test.txt").write_text("\n\n".join(f"xxxxqqqq {n} xxxxqqqq" for n in range(20)))
    settings = settings.model_copy(update={"source": str(path)})
    data = prepare(settings)
    tokenizer = load_run_tokenizer(settings)
    assert not [token for token in tokenizer.get_vocab() if "zz" in token or "qq" in token]
    text = data.documents["validation"][0]["text"]
    assert data.documents["validation"][0]["n_tokens"] == len(tokenizer.encode(text)) + 1
    ids = data.blocks["train"][0]["input_ids"].tolist()
    assert tokenizer.decode(ids).startswith(data.documents["train"][0]["text"])
    prepare(settings.model_copy(update={"vocab_size": 270}))
    assert len(load_run_tokenizer(settings)) == 270
    assert open_prepared("new").facts["settings"]["vocab_size"] == 270


def test_chat_keeps_its_completion_labels_with_a_new_tokenizer(settings, tmp_path):
    path = tmp_path / "chat.jsonl"
    row = '{{"prompt": "What is {0} and {0}?", "completion": "It is {1}, my friend."}}'
    path.write_text("\n".join(row.format(n, 2 * n) for n in range(60)))
    settings = settings.model_copy(update={"source": str(path), "train_on": "completion"})
    block = prepare(settings).blocks["train"][0]
    learned = block["input_ids"][block["labels"] >= 0].tolist()
    text = load_run_tokenizer(settings).decode(learned)
    assert "my friend" in text
    assert "What" not in text


def test_the_data_panel_counts_tokens_with_a_tokenizer_trained_on_its_text(settings):
    small, large = (read_beginning(settings.model_copy(update={"vocab_size": size})).tokens for size in (257, 400))
    assert sum(large) < sum(small) / 2


@pytest.mark.parametrize("change", [{"tokenizer": "train"}, {"n_layer": 2}, {"n_positions": 64}, {"resid_pdrop": 0.0}])
def test_settings_for_a_new_model_are_refused_for_a_pretrained_one(change):
    with pytest.raises(SettingsError, match=f"{next(iter(change))} = .* set from_scratch = True, or leave"):
        TrainingSettings(**change)


# The losses of nanoGPT's own `GPT` (karpathy/nanoGPT, commit 3adf61e) on the blocks of this run in the same order: the
# same initial weights, its `configure_optimizers(0.1, 1e-2, (0.9, 0.95), "cpu")`, gradients clipped to 1, and `GPT`
# called with block[:, :-1] and block[:, 1:]. Its GELU is the exact one; GPT-2's is an approximation with tanh.
NANOGPT = (8.3459, 7.98406, 7.60353, 7.09472, 6.66277, 6.10768, 5.57229, 4.98318, 4.50885, 4.11378, 4.02022, 3.51699)


def test_training_losses_match_nanogpt(text_file):
    settings = TrainingSettings(
        source=str(text_file), from_scratch=True, n_layer=2, n_embd=32, n_head=2, n_positions=32, resid_pdrop=0.0,
        block_size=32, learning_rate=1e-2, num_train_epochs=2, logging_steps=1, weight_decay=0.1, adam_beta2=0.95,
        warmup_steps=0, lr_scheduler_type="constant_with_warmup", mixed_precision="no",
    )  # fmt: skip
    losses = [row["loss"] for row in fine_tune(settings).history if "loss" in row]
    assert losses == pytest.approx(NANOGPT, abs=1e-3)
