"""What a run will need, drawn: the plan's verdict, its colour, and the schedule of the learning rate."""

import pytest

from helpers import plots
from helpers.settings import TrainingSettings
from helpers.training import find_card, plan_run
from helpers.widgets.gauge import gauge_html, learning_rate_at, memory_bar


def test_the_bar_turns_from_green_to_red():
    settings = TrainingSettings.from_preset("rtx-4070-ti")
    colours = []
    for batch in (4, 20, 64):
        settings = settings.model_copy(update={"per_device_train_batch_size": batch})
        picture = memory_bar(plan_run(settings, card=find_card("RTX 4070 Ti")))
        colours.append(next(c for c in (plots.GREEN, plots.ORANGE, plots.RED) if c in picture))
    assert colours == [plots.GREEN, plots.ORANGE, plots.RED]


def test_time_and_largest_batch_are_shown():
    shown = gauge_html(plan_run(TrainingSettings()))
    assert all(name in shown for name in ("an epoch", "largest batch", "effective batch"))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 0.1, 7])
def test_the_learning_rate_is_that_of_transformers(kind, warmup):
    import torch
    from transformers import TrainingArguments, get_scheduler

    settings, steps = TrainingSettings(lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=0.1), 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    arguments = TrainingArguments(output_dir="unused", warmup_steps=warmup, use_cpu=True)
    scheduler = get_scheduler(kind, optimizer, arguments.get_warmup_steps(steps), steps)
    for step in range(steps):
        assert learning_rate_at(settings, step, steps) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
