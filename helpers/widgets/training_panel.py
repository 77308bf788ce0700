"""The training panel of notebook 3: every setting to move, what it will take, and a training to start and stop."""

import html
from typing import Any

import ipywidgets as w

from helpers.settings import TrainingSettings, preset_names
from helpers.training import CARDS, DEFAULT_CARD, GraphicsCard, card_of_this_machine, find_card
from helpers.widgets.gauge import Gauge
from helpers.widgets.panel import Panel, button
from helpers.widgets.parameters import save_parameters
from helpers.widgets.run_controls import RunControls

THIS_MACHINE = "this machine"
_FROM_CELL, _BY_HAND = "the parameters cell", "moved by hand"


class TrainingPanel(Panel):
    """A control for each training setting, a gauge that follows, and the buttons of a run.

    Attributes:
        preset: drop-down that fills all controls.
        card: drop-down of the cards to plan for.
        gauge: what a run will take on that card.
        run: start, stop and resume.
    """

    def __init__(self, settings: TrainingSettings, *, card: str | None = None) -> None:
        super().__init__(settings)
        self._gauge, self._here = Gauge(), card_of_this_machine()
        wide = {"style": {"description_width": "auto"}, "layout": {"width": "auto"}}
        self.preset = w.Dropdown(
            options=[_FROM_CELL, *preset_names(), _BY_HAND],
            description="preset",
            tooltip="fills all controls: a preset's values, or again those of the parameters cell",
            **wide,
        )
        self.card = w.Dropdown(
            options=[*(known.name for known in CARDS), THIS_MACHINE],
            value=card or (THIS_MACHINE if self._here else DEFAULT_CARD),
            description="graphics card",
            tooltip="the card that memory and time are predicted for",
            **wide,
        )
        self.gauge, self._commands = w.HTML().add_class("course-status"), w.HTML()
        self.run = RunControls(self)
        self.preset.observe(self._choose_preset, "value")
        self.card.observe(lambda _: self.refresh(), "value")
        suggest = button(
            "Suggest", self.suggest, tooltip="take the largest batch that fits, at the same effective batch"
        )
        save = button(
            "Save as parameters", self.save, tooltip="write a papermill file and show the command that runs it"
        )
        self._buttons = [self.preset, self.card, suggest, save]
        head = w.Box(self._buttons).add_class("course-row")
        self.widget = self.framed(head, self.gauge, self._error, self._commands, *self.groups(), self.run.widget)
        self.refresh()

    @property
    def chosen_card(self) -> GraphicsCard | None:
        """The card that is planned for; None for this machine when it has none."""
        return self._here if self.card.value == THIS_MACHINE else find_card(self.card.value)

    def suggest(self) -> None:
        """Take the largest batch that fits the card and leaves the effective batch as it is, and say so."""
        settings, card = self.settings, self.chosen_card
        if card is None:
            self.say("Choose a graphics card first: the memory of a training on the processor is not predicted.")
            return
        plan = self._gauge.plan(settings, card)
        if not plan.suggested:
            self.say(plan.verdict, is_error=True)
            return
        self.preset.value = _BY_HAND
        self.fill(plan.suggested)
        chosen = self.settings
        self.say(
            f"Batch {chosen.per_device_train_batch_size} with accumulation {chosen.gradient_accumulation_steps} is the "
            f"largest pass that fits the {card.name}, at the effective batch of {chosen.effective_batch_size}."
        )

    def save(self) -> None:
        """Write the values for papermill and show the commands that run them; say why where that cannot be."""
        with self.run.told():
            saved = save_parameters(self.settings)
            lines = "".join(f"<div><code>{html.escape(line)}</code></div>" for line in (saved.papermill, saved.run))
            self._commands.value = f"<div class='course-note'>Written: {html.escape(str(saved.path))}{lines}</div>"

    def _described(self) -> list[w.Widget]:
        return [*super()._described(), self.preset, self.card]

    def lock(self, is_locked: bool) -> None:
        """Lock all but the button that stops."""
        super().lock(is_locked)
        for made in self._buttons:
            made.disabled = is_locked

    def _choose_preset(self, change: Any) -> None:
        if change.new == _FROM_CELL:
            self.fill(self._start.model_dump())
        elif change.new != _BY_HAND:
            self.fill(TrainingSettings.from_preset(change.new).model_dump())

    def _moved_by_hand(self, name: str) -> None:
        self.preset.value = _BY_HAND

    def _follow(self, settings: TrainingSettings) -> None:
        self._commands.value = ""  # they ran what was said before
        self.run.follow(settings)
        self.gauge.value = self._gauge.draw(settings, self.chosen_card)

    def _summary(self) -> str:
        return self._gauge.draw(self.settings, self.chosen_card)
