"""Which model the experiments of notebook 03 train."""

from pathlib import Path

import pytest

from helpers.settings import TrainingSettings
from helpers.training import FineTuned, choose_lesson

GPT2 = {"model_name_or_path": "openai-community/gpt2", "source": "Salesforce/wikitext", "learning_rate": 1e-4}


def choose(*, seconds_per_step, **values):
    settings = TrainingSettings(run="mine", **values)
    trained = FineTuned("mine", Path("mine"), [], {"seconds": 100 * seconds_per_step, "steps": 100})
    return settings, *choose_lesson(settings, trained)


@pytest.mark.parametrize(
    "values",
    [{}, GPT2, {"from_scratch": True, "n_layer": 12}],
    ids=["the pocket model", "GPT-2 on a card", "a model from scratch"],
)
def test_a_model_that_is_fast_is_the_one_that_is_trained(values):
    settings, lesson, why = choose(seconds_per_step=0.5, **values)
    assert lesson == settings
    assert why == "The experiments below train your model on your text."


@pytest.mark.parametrize(
    "values",
    [GPT2, GPT2 | {"streaming": True, "max_tokens": 10**9}, {"from_scratch": True, "n_layer": 12}],
    ids=["GPT-2 on a processor", "the same from a stream", "a model from scratch"],
)
def test_where_experiments_would_take_long_the_pocket_model_stands_in_on_the_readers_text(values):
    settings, lesson, why = choose(seconds_per_step=60, seed=7, text_column="body", **values)
    assert why.startswith("At the speed of your run the experiments below would take 1 h 04 min: ")
    assert why.endswith("the pocket model is trained instead, on the beginning of your text.")
    assert (lesson.source, lesson.text_column, lesson.seed) == (settings.source, "body", 7)
    assert (lesson.run, lesson.max_tokens) == ("mine-lesson", 200_000)


def test_the_lesson_of_a_run_with_the_longest_name_has_a_name_too():
    settings = TrainingSettings(run="r" * 64, lora_r=8)
    lesson, _ = choose_lesson(settings, FineTuned(settings.run, Path("r"), [], {"seconds": 1, "steps": 1}))
    assert lesson.run == "r" * 57 + "-lesson"
    defaults = TrainingSettings()
    for name in ("model_name_or_path", "learning_rate", "block_size", "from_scratch", "streaming"):
        assert getattr(lesson, name) == getattr(defaults, name)


@pytest.mark.parametrize("values", [{"lora_r": 8}, {"optim": "adafactor"}, {"lora_r": 8, "block_size": 64}])
def test_what_needs_another_loop_is_not_taught_with_this_one(values):
    settings, lesson, why = choose(seconds_per_step=0.1, **values)
    assert why.startswith("Adapters and other optimizers need another loop: ")
    assert (lesson.lora_r, lesson.optim) == (0, "adamw_torch_fused")
    assert lesson.block_size == settings.block_size


def test_a_slow_machine_still_trains_the_pocket_model_itself():
    settings, lesson, _ = choose(seconds_per_step=60)
    assert lesson == settings


def test_of_a_stream_the_beginning_is_read_from_the_disk():
    _, lesson, why = choose(seconds_per_step=0.1, **GPT2, streaming=True, max_tokens=10**9)
    assert (lesson.run, lesson.streaming, lesson.max_tokens) == ("mine-lesson", False, 2_000_000)
    assert lesson.model_name_or_path == GPT2["model_name_or_path"]
    assert why.endswith("train your model on the beginning of your text.")
