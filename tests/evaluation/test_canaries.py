import copy
import math

import pytest
import torch

from helpers.data.preparation import prepare
from helpers.data.run_data import open_prepared
from helpers.evaluation.canaries import N_CANDIDATES, Canary, measure_exposure, plant_canaries, rank_secret
from helpers.settings import SettingsError, TrainingSettings, read_run_settings

TEXTS = [f"Story {number}." for number in range(30)]


def test_each_canary_is_planted_the_requested_number_of_times_in_a_copy():
    planted, canaries = plant_canaries(TEXTS, seed=1, repeats=(0, 1, 5))
    assert [canary.repeats for canary in canaries] == [0, 1, 5]
    assert [sum(c.sentence() in text for text in planted) for c in canaries] == [0, 1, 5]
    assert sum(after != before for after, before in zip(planted, TEXTS, strict=True)) == 6, "at most one per document"
    assert all(after.startswith(before) for after, before in zip(planted, TEXTS, strict=True))
    assert plant_canaries(TEXTS, seed=1, repeats=(0, 1, 5)) == (planted, canaries)
    assert plant_canaries(TEXTS, seed=2, repeats=(0, 1, 5)) != (planted, canaries)


@pytest.mark.parametrize("repeats", [(31,), (1,) * 9])
def test_too_many_canaries_are_refused(repeats):
    with pytest.raises(SettingsError, match="plant fewer, or use more text"):
        plant_canaries(TEXTS, seed=1, repeats=repeats)


def test_rank_matches_scoring_every_candidate_one_by_one(tiny):
    model, tokenizer = tiny
    canary = Canary("owl", 7, repeats=1)

    def nats(number):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(f"\n\n{canary.sentence(number)}")]])
        with torch.no_grad():
            return -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).double().sum().item()

    secret = nats(7)
    assert rank_secret(model, tokenizer, canary) == 1 + sum(nats(n) < secret - 1e-5 for n in range(N_CANDIDATES))


def test_a_memorized_secret_ranks_first_and_an_unknown_one_does_not(tiny):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    known, unknown = Canary("miller", 271, repeats=9), Canary("miller", 828, repeats=0)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(f"\n\n{known.sentence()}")]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert rank_secret(model, tokenizer, known) == 1
    assert rank_secret(model, tokenizer, unknown) >= 4, "an exposure below 8 bits"


def test_the_experiment_is_a_separate_run_that_counts_canaries_in_its_training_split(tiny_settings, fake_card):
    before = prepare(tiny_settings).facts
    rows = measure_exposure(tiny_settings, repeats=(0, 8))
    assert open_prepared("tiny").facts == before
    training = open_prepared("tiny-canaries").documents["train"]["text"][:]
    assert rows[0]["repeats"] == 0
    assert rows[1]["repeats"] == sum(rows[1]["sentence"] in text for text in training) > 0
    for row in rows:
        assert row["exposure_bits"] == pytest.approx(math.log2(N_CANDIDATES / row["rank"]))
        assert 0 <= row["exposure_bits"] <= row["highest_bits"] == math.log2(N_CANDIDATES)
    assert measure_exposure(tiny_settings, repeats=(0, 8)) == rows, "a finished run is opened, not trained again"
    assert (fake_card.n_visits, fake_card.most, fake_card.present) == (2, 1, set())


def test_source_settings_of_the_run_are_not_applied_to_the_canary_run(tiny_settings, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("train", "extra"):
        stories = (f"The {name} story {number} went to the well and found it empty." for number in range(60))
        (tmp_path / "texts" / f"{name}.txt").write_text("\n\n".join(stories), encoding="utf-16")
    changes = {
        "source": str(tmp_path / "texts"), "source_split": "extra", "encoding": "utf-16", "max_tokens": 900,
        "source_config": "plain", "source_revision": "main", "near_duplicates": "keep",
    }  # fmt: skip
    settings = TrainingSettings(**tiny_settings.model_dump() | changes)
    prepare(settings)
    rows = measure_exposure(settings, repeats=(0, 4))
    assert [row["repeats"] > 0 for row in rows] == [False, True]
    copy_of_run = read_run_settings("tiny-canaries")
    assert (copy_of_run.source_split, copy_of_run.max_tokens, copy_of_run.source_revision) == ("", 0, "")
    assert copy_of_run.learning_rate == settings.learning_rate


def test_a_run_without_data_is_an_error(tiny_settings):
    with pytest.raises(SettingsError, match="holds no data yet"):
        measure_exposure(tiny_settings)
