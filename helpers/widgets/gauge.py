"""What a training will take and do, before it runs: memory against the card's line, time, steps and schedule."""

import html
import math
from dataclasses import replace

from helpers.display import size_text
from helpers.settings import DataSettings, TrainingSettings
from helpers.training import GraphicsCard, MemoryPlan, plan_run, training_tokens
from helpers.widgets.drawing import GREEN, ORANGE, RED, Series, line_chart, stacked_bar

NO_CARD = (
    "This machine: no NVIDIA card answers. A training here runs on the processor, whose memory and speed are not "
    "predicted; choose a card to see what one would take."
)


class Gauge:
    """Plans runs for a panel; what a text holds is looked up once."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[int, str]] = {}

    def plan(self, settings: TrainingSettings, card: GraphicsCard | None) -> MemoryPlan:
        """Return the plan for a card; without one its memory and time mean nothing, its steps do."""
        key = settings.part(DataSettings).model_dump_json(exclude={"block_size"})
        if key not in self._tokens:
            self._tokens[key] = training_tokens(settings)
        tokens, tokens_are = self._tokens[key]
        return replace(plan_run(settings, card=card, train_tokens=tokens), tokens_are=tokens_are)

    def draw(self, settings: TrainingSettings, card: GraphicsCard | None) -> str:
        """Return the gauge as HTML."""
        plan = self.plan(settings, card)
        memory = f"<p>{NO_CARD}</p>" if card is None else memory_bar(plan)
        return (
            f"{memory}<div style='display:flex;flex-wrap:wrap;gap:0 2em;align-items:center'>"
            f"<div style='flex:1 1 20em'>{_facts(plan, has_card=card is not None)}</div>"
            f"<div style='flex:1 1 20em'>{schedule(settings, plan.steps)}</div></div>"
        )


def memory_bar(plan: MemoryPlan) -> str:
    """Draw the predicted peak by part against what the card has to give; green, orange or red, and said in words."""
    used = plan.memory.total_bytes / max(1, plan.card.usable_bytes)
    colour = GREEN if used <= 0.8 else ORANGE if used <= 1 else RED
    sign = "&#10004;" if plan.fits else "&#10008;"
    parts = [(name.replace("_", " "), size, size_text(size)) for name, size in plan.memory.parts.items()]
    limit = f"{plan.card.name}: {size_text(plan.card.usable_bytes)} usable"
    bar = stacked_bar(parts, limit=plan.card.usable_bytes, limit_text=limit, colour=colour)
    return (
        f"<div class='course-verdict'><span style='color:{colour};font-weight:bold'>{sign}</span> "
        f"<b>{html.escape(plan.verdict)}</b></div>{bar}"
    )


def _facts(plan: MemoryPlan, *, has_card: bool) -> str:
    told = dict(plan.rows())
    settings = plan.settings
    rows = [
        ("effective batch", f"{settings.effective_batch_size:,} blocks, {plan.tokens_per_step:,} tokens in a step"),
        ("steps", f"{plan.steps:,} in {settings.num_train_epochs:g} epochs"),
        ("training text", told["training text"]),
    ]
    if has_card:
        rows[2:2] = [("an epoch", told["an epoch"]), ("largest batch", told["largest batch"])]
    cells = "".join(
        "<tr><td style='text-align:left;padding-right:1em;vertical-align:top;white-space:nowrap'>"
        f"{html.escape(name)}</td>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return (
        f"<table style='border-collapse:collapse'><caption style='text-align:left'>Predicted</caption>{cells}</table>"
    )


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of one step of a run, as transformers' schedules give it.

    >>> learning_rate_at(TrainingSettings(learning_rate=0.1, warmup_steps=4), 2, 40)
    0.05
    """
    warmup = settings.warmup_steps
    warmup = math.ceil(warmup * steps) if warmup < 1 else warmup
    if step < warmup:
        return settings.learning_rate * step / max(1, warmup)
    if settings.lr_scheduler_type == "constant_with_warmup":
        return settings.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    falls = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.learning_rate * max(0.0, falls[settings.lr_scheduler_type])


def schedule(settings: TrainingSettings, steps: int) -> str:
    """Draw the learning rate over the steps of a run."""
    at = sorted({round(steps * part / 100) for part in range(101)} | {min(steps, math.ceil(settings.warmup_steps))})
    points = [(step, learning_rate_at(settings, step, steps)) for step in at]
    title = f"Learning rate: {settings.lr_scheduler_type}, peak {settings.learning_rate:.2g}"
    return line_chart([Series("learning rate", points, GREEN)], title=title, xlabel="step", ylabel="learning rate")
