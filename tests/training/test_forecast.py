import pytest
import torch

from helpers.model import load_model
from helpers.settings import TrainingSettings
from helpers.training.cards import find_card
from helpers.training.forecast import forecast, this_processor
from helpers.training.plan import plan_run


def test_on_a_processor_time_is_predicted_from_its_own_speed_and_memory_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = forecast(TrainingSettings(num_train_epochs=2), load_model("pocket").config, train_tokens=100_000)
    assert found["on"] == "this processor"
    assert found["peak_bytes"] is None
    shortest, longest = found["seconds"]
    assert 0 < shortest < longest
    card = this_processor()
    operations = 2 * 100_000 * 17e6  # two epochs; about 17 MFLOP a token, forward and backward
    peak = 1e12 * max(card.half_tflops, card.float32_tflops)
    assert longest > operations / peak, "no faster than the products of matrices alone"


def test_on_a_card_it_is_the_plans_prediction(monkeypatch):
    card = find_card("RTX 4070 Ti")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("helpers.training.forecast.card_of_this_machine", lambda: card)
    settings = TrainingSettings(num_train_epochs=3)
    found = forecast(settings, load_model("pocket").config, train_tokens=100_000)
    plan = plan_run(settings, card=card, train_tokens=100_000)
    assert found["peak_bytes"] == plan.memory.total_bytes
    assert found["seconds"] == pytest.approx([3 * seconds for seconds in plan.epoch_seconds])
