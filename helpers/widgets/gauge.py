"""What a training will need and do, drawn before it runs: memory against the card's, time, steps and learning rate."""

import html
import math

from helpers.display import GREEN, ORANGE, RED, html_table, size_text
from helpers.settings import TrainingSettings
from helpers.training import MemoryPlan
from helpers.widgets.drawing import Series, line_chart, stacked_bar


def gauge_html(plan: MemoryPlan) -> str:
    """Draw a plan."""
    return (
        f"{memory_bar(plan)}<div style='display:flex;flex-wrap:wrap;gap:0 2em;align-items:center'>"
        f"<div style='flex:1 1 20em'>{_facts_table(plan)}</div>"
        f"<div style='flex:1 1 20em'>{schedule_chart(plan.settings, plan.steps)}</div></div>"
    )


def memory_bar(plan: MemoryPlan) -> str:
    """Draw the parts of the predicted peak against the card's memory: green, orange or red, with a verdict in words."""
    used = plan.memory.total_bytes / max(1, plan.card.usable_bytes)
    colour = GREEN if used <= 0.8 else ORANGE if used <= 1 else RED
    mark = "&#10004;" if plan.fits else "&#10008;"
    parts = [(name.replace("_", " "), size, size_text(size)) for name, size in plan.memory.parts.items()]
    limit = f"{plan.card.name}: {size_text(plan.card.usable_bytes)} usable"
    bar = stacked_bar(parts, limit=plan.card.usable_bytes, limit_text=limit, colour=colour)
    return (
        f"<div class='course-verdict'><span style='color:{colour};font-weight:bold'>{mark}</span> "
        f"<b>{html.escape(plan.verdict)}</b></div>{bar}"
    )


def _facts_table(plan: MemoryPlan) -> str:
    texts, settings = dict(plan.rows()), plan.settings
    rows = [
        ("effective batch", f"{settings.effective_batch_size:,} blocks, {plan.tokens_per_step:,} tokens per step"),
        ("steps", f"{plan.steps:,}, for num_train_epochs = {settings.num_train_epochs:g}"),
        *((name, texts[name]) for name in ("an epoch", "largest batch", "training text", "warm-up") if name in texts),
    ]
    return html_table([], rows, caption="Predicted")


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of one step of a run, as the schedules of transformers set it.

    >>> learning_rate_at(TrainingSettings(learning_rate=0.1, warmup_steps=4), 2, 40)
    0.05
    """
    # By hand, since transformers computes a rate only for an optimizer, and a panel must not import torch to be shown.
    warmup = settings.warmup_steps
    warmup = math.ceil(warmup * steps) if warmup < 1 else warmup  # below 1 it is a share of the steps
    if step < warmup:
        return settings.learning_rate * step / max(1, warmup)
    if settings.lr_scheduler_type == "constant_with_warmup":
        return settings.learning_rate
    progress = (step - warmup) / max(1, steps - warmup)
    factors = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.learning_rate * max(0.0, factors[settings.lr_scheduler_type])


def schedule_chart(settings: TrainingSettings, steps: int) -> str:
    """Draw the learning rate over the steps of a run."""
    shown = {round(steps * percent / 100) for percent in range(101)} | {min(steps, math.ceil(settings.warmup_steps))}
    points = [(step, learning_rate_at(settings, step, steps)) for step in sorted(shown)]
    title = f"Learning rate: {settings.lr_scheduler_type}, peak {settings.learning_rate:.2g}"
    return line_chart([Series("learning rate", points, GREEN)], title=title, xlabel="step", ylabel="learning rate")
