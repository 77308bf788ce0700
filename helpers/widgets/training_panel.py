"""The training panel of notebook 03: all settings, what they need, buttons to train, and the values as a file."""

import html
import math
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as w
import yaml

from helpers.data import count_tokens, refuse_missing
from helpers.display import GREEN, ORANGE, RED, html_table, size_text
from helpers.files import write_atomically
from helpers.paths import NOTEBOOKS, ROOT
from helpers.settings import DataSettings, SettingsError, TrainingSettings, preset_names, run_folder
from helpers.training import (
    CARDS,
    DEFAULT_CARD,
    GraphicsCard,
    RunPlan,
    card_of_this_machine,
    find_card,
    plan_run,
    this_processor,
)
from helpers.training.arguments import count_warmup_steps
from helpers.widgets.drawing import Series, line_chart, stacked_bar
from helpers.widgets.panel import Panel, make_button
from helpers.widgets.run_controls import RunControls, refuse_during_training

THIS_MACHINE = "this machine"
_SHOWN_ROWS = ("time", "largest batch", "training text", "warm-up", "without effect")  # of a plan's rows
_FROM_CELL, _BY_HAND = "the parameters cell", "moved by hand"


class TrainingPanel(Panel):
    """A control for each training setting, a gauge that follows the controls, and the buttons for a run."""

    def __init__(self, settings: TrainingSettings) -> None:
        TrainingSettings.check_type(settings)
        super().__init__(settings)
        self._own_card = card_of_this_machine()
        self._tokens: dict[tuple[str, tuple[int, ...]], tuple[int, str]] = {}
        layout = {"style": {"description_width": "auto"}, "layout": {"width": "auto"}}
        self.preset = w.Dropdown(
            options=[_FROM_CELL, *preset_names(), _BY_HAND],
            description="preset",
            tooltip="sets all controls: to a preset's values, or back to those of the parameters cell",
            **layout,
        )
        self.card = w.Dropdown(
            options=[*(known.name for known in CARDS), THIS_MACHINE],
            value=THIS_MACHINE if self._own_card else DEFAULT_CARD,
            description="graphics card",
            tooltip="the card that memory and time are predicted for",
            **layout,
        )
        self._command = w.HTML()
        self.run = RunControls(self)
        self.preset.observe(self._choose_preset, "value")
        self.card.observe(lambda _: self.refresh(), "value")
        suggest = make_button(
            "Suggest", self.suggest, tooltip="take the largest batch that fits, at the same effective batch"
        )
        save = make_button(
            "Save as parameters", self.save, tooltip="write a papermill file and show the command that runs it"
        )
        measure = make_button(
            "Measure", self.measure, tooltip="measure short training runs here for a minute, and predict from them"
        )
        head = [self.preset, self.card, suggest, measure, save]
        self._other_widgets, self._stop_button = [*head, self.run.start], self.run.stop
        row = w.Box(head).add_class("course-row")
        above = (row, self.gauge, self._message, self._command)
        self.widget = self.frame(*above, self.common_controls(), self.run.widget, self.other_controls())
        self.refresh()

    @property
    def chosen_card(self) -> GraphicsCard:
        """The card to plan for; the CPU if this machine is chosen and has no card."""
        if self.card.value != THIS_MACHINE:
            return find_card(self.card.value)
        return self._own_card or this_processor()  # not earlier: measuring its speed imports torch

    def plan(self, settings: TrainingSettings) -> RunPlan:
        """Return the plan for the chosen card."""
        # Counting tokens reads files, which is too slow for each step of a slider. Most settings do not change the
        # count, but preparing the text does.
        prepared = tuple(facts.stat().st_mtime_ns for facts in run_folder(settings.run).glob("data/data.json"))
        key = settings.part(DataSettings).model_dump_json(exclude={"block_size"}), prepared
        if key not in self._tokens:
            refuse_missing(settings.model_dump())
            self._tokens[key] = count_tokens(settings)
        train, validation, tokens_are = self._tokens[key]
        plan = plan_run(settings, card=self.chosen_card, train_tokens=train, validation_tokens=validation)
        return replace(plan, tokens_are=tokens_are)

    def suggest(self) -> None:
        """Set the largest batch that fits the card at the same effective batch, and show a message."""
        with self.show_errors():
            plan = self.plan(self.settings)
            name = plan.card.name if plan.card.is_processor else f"the {plan.card.name}"
            if not plan.suggested:
                raise SettingsError(plan.verdict)
            self.preset.value = _BY_HAND
            self.fill(plan.suggested)
            chosen = self.settings
            self.say(
                f"Batch {chosen.per_device_train_batch_size} with accumulation {chosen.gradient_accumulation_steps} is "
                f"the largest pass that fits {name}, at the effective batch of {chosen.effective_batch_size}."
            )

    def measure(self) -> None:
        """Measure this machine in the background, and predict from the measurement."""
        if self.is_locked:
            return
        with self.show_errors():
            refuse_during_training()  # it would slow the measured runs
            self.card.value = THIS_MACHINE
            self.say("measuring short training runs, for about a minute")
            self.run_in_background(_measure)
            self.run.stop.disabled = True  # it cannot stop a measurement

    def save(self) -> None:
        """Write the values for papermill and show the command that runs them, or show why that is not possible."""
        with self.show_errors():
            path = save_parameters(self.settings)
            command = f"<div><code>{html.escape(papermill_command(path))}</code></div>"
            self._command.value = f"<div class='course-note'>Written: {html.escape(str(path))}{command}</div>"

    def _choose_preset(self, change: Any) -> None:
        if change.new == _BY_HAND:
            return
        if self.is_locked:  # chosen too late, as in `_refuse_late_change`
            self.preset.value = _BY_HAND
            self._say_late("preset", f"preset = {change.new!r} arrived after the start, which used the values below.")
        elif change.new == _FROM_CELL:
            self.fill(self._start.model_dump())
        else:
            self.fill(TrainingSettings.from_preset(change.new).model_dump())

    def _on_user_change(self, name: str) -> None:
        self.preset.value = _BY_HAND

    def _show(self, settings: TrainingSettings) -> None:
        self._command.value = ""  # it runs the previous values
        self.run.show_state(settings)
        self.gauge.value = gauge_html(self.plan(settings))

    def _summary(self) -> str:
        return self.gauge.value


def gauge_html(plan: RunPlan) -> str:
    """Return a plan as HTML: memory bar, table and learning-rate schedule."""
    return (
        f"{memory_bar(plan)}<div style='display:flex;flex-wrap:wrap;gap:0 2em;align-items:center'>"
        f"<div style='flex:1 1 20em'>{_facts_table(plan)}</div>"
        f"<div style='flex:1 1 20em'>{schedule_chart(plan.settings, plan.steps)}</div></div>"
    )


def memory_bar(plan: RunPlan) -> str:
    """Draw the parts of the predicted peak against the card's memory, in green, orange or red, with the verdict."""
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


def _facts_table(plan: RunPlan) -> str:
    texts, settings = dict(plan.rows()), plan.settings
    rows = [
        ("effective batch", f"{settings.effective_batch_size:,} blocks, {plan.tokens_per_step:,} tokens per step"),
        ("steps", f"{plan.steps:,}, for num_train_epochs = {settings.num_train_epochs:g}"),
        *((name, texts[name]) for name in _SHOWN_ROWS if name in texts),
    ]
    return html_table([], rows, caption=f"Predicted for {plan.card.name}")


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of one step of a run, as transformers' schedules set it.

    >>> learning_rate_at(TrainingSettings(learning_rate=0.1, warmup_steps=4), 2, 40)
    0.05
    """
    # By hand: transformers computes rates only for an optimizer, and showing a panel must not import torch.
    warmup = count_warmup_steps(settings, steps)
    if step < warmup:
        return settings.learning_rate * step / warmup
    if settings.lr_scheduler_type == "constant_with_warmup":
        return settings.learning_rate
    progress = (step - warmup) / max(1, steps - warmup)
    factors = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.learning_rate * max(0.0, factors[settings.lr_scheduler_type])


def schedule_chart(settings: TrainingSettings, steps: int) -> str:
    """Draw the learning rate over the steps of a run."""
    shown = {round(steps * percent / 100) for percent in range(101)} | {min(steps, count_warmup_steps(settings, steps))}
    points = [(step, learning_rate_at(settings, step, steps)) for step in sorted(shown)]
    title = f"Learning rate: {settings.lr_scheduler_type}, peak {settings.learning_rate:.2g}"
    return line_chart([Series("learning rate", points, GREEN)], title=title, xlabel="step", ylabel="learning rate")


def _measure() -> str:
    """Run `calibrate` in a separate process: it must not use this one's memory or change its random state."""
    child = subprocess.run([sys.executable, "-m", "helpers", "calibrate"], capture_output=True, text=True, check=False)
    if child.returncode:
        last_line = child.stderr.strip().rpartition("\n")[2]
        raise SettingsError(f"The measurement failed: {last_line}")
    return f"Measured on this machine: {len(child.stdout.splitlines()) - 1} training runs."


def save_parameters(settings: TrainingSettings) -> Path:
    """Write settings to `runs/<run>/parameters.yaml` for `papermill -f`, and return its path.

    If the file exists with other values, it is kept, and `parameters-2.yaml` is written instead.
    """
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    # Not by hand: YAML reads `5e-05` as text, so PyYAML writes `5.0e-05`.
    text = yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)
    path = _free_path(folder, text)
    write_atomically(path, text)
    return path


def _free_path(folder: Path, text: str) -> Path:
    """Return the first of parameters.yaml, parameters-2.yaml, ... that does not exist or already holds this text."""
    names = ("parameters.yaml" if number == 1 else f"parameters-{number}.yaml" for number in count(1))
    paths = (folder / name for name in names)
    return next(path for path in paths if not path.exists() or path.read_text(encoding="utf-8") == text)


def papermill_command(path: Path) -> str:
    """Return the command that runs notebook 03 with a parameter file, as a person types it in the clone's folder."""
    scripts = Path(sysconfig.get_path("scripts"))
    # Relative, because PowerShell reads a quoted path as text. An environment outside the clone has to be activated.
    papermill = scripts.relative_to(ROOT) / "papermill" if scripts.is_relative_to(ROOT) else "papermill"
    parts = [papermill, NOTEBOOKS / "03_fine_tuning.ipynb", path.with_suffix(".ipynb"), "-f", path]
    return _command_line(map(str, parts))


def _command_line(parts: Iterable[str]) -> str:
    """Return a command line quoted for this system's shell; on Windows, for PowerShell and for cmd."""
    if sys.platform != "win32":
        return shlex.join(parts)
    # cmd has no single quotes; a path contains no double ones
    return " ".join(part if re.fullmatch(r"[\w.:/\\=+-]+", part) else f'"{part}"' for part in parts)
