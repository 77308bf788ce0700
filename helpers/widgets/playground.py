"""The playground of notebook 4: models side by side, token by token, and what each token was drawn from."""

import html
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from helpers.settings import EvaluationSettings, SettingsError
from helpers.widgets.drawing import BLUE, ORANGE, Bar, bar_chart
from helpers.widgets.panel import Panel, button
from helpers.widgets.sampling import Candidate, candidates, draw, encode_prompt, next_logits

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_NAMES = ("prompt", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
_COLOURS = (ORANGE, BLUE)


class _Column:
    """One model: its text so far, and the candidates for the token that is looked at."""

    def __init__(self, name: str, model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", colour: str) -> None:
        self.name, self.model, self.tokenizer, self.colour = name, model, tokenizer, colour
        self.prompt: list[int] = []
        self.tokens: list[int] = []
        self._logits: tuple[tuple[int, ...], Any] | None = None
        self.text, self.bars = w.HTML(), w.HTML()
        self.widget = w.VBox(
            [w.HTML(f"<h4>{html.escape(name)}</h4>"), self.bars, self.text], layout={"overflow": "hidden"}
        )

    def start(self, settings: EvaluationSettings) -> None:
        self.prompt, self.tokens = encode_prompt(self.model, self.tokenizer, settings), []

    def take(self, token: int, logits: Any) -> None:
        self._logits = (*self.prompt, *self.tokens), logits
        self.tokens.append(token)

    def show(self, settings: EvaluationSettings, position: int) -> None:
        self.bars.value = self.bars_html(settings, position)
        self.text.value = self.text_html(position)

    def text_html(self, position: int) -> str:
        """Return the text, escaped, with the token that is looked at marked."""
        before, after = self.tokens[:position], self.tokens[position + 1 :]
        here = self.tokens[position : position + 1]
        prompt, before, here, after = (self.plain(part) for part in (self.prompt, before, here, after))
        return (
            "<div class='course-text' style='white-space:pre-wrap;overflow-wrap:anywhere'>"
            f"<b>{prompt}</b>{before}{f'<mark>{here}</mark>' if here else ''}{after}</div>"
        )

    def plain(self, tokens: list[int]) -> str:
        return html.escape(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def bars_html(self, settings: EvaluationSettings, position: int) -> str:
        """Return the candidates at a position as bars, as long as their chance to be drawn."""
        ids = [*self.prompt, *self.tokens[:position]]
        drawn = self.tokens[position] if position < len(self.tokens) else None
        if self._logits is None or self._logits[0] != tuple(ids):
            self._logits = tuple(ids), next_logits(self.model, ids)
        found = candidates(self._logits[1], ids, self.tokenizer, settings, drawn=drawn)
        title = f"candidates for token {position + 1}: chance to be drawn (bar), at temperature 1 (dashed)"
        return bar_chart([_bar(one, one.token == drawn) for one in found], title=title, colour=self.colour)


class Playground(Panel):
    """Models that go on from a prompt side by side, streamed, with each next token's candidates as bars.

    Attributes:
        start: generates; `stop` ends it after the token it is at.
        look: slider that chooses the token whose candidates are shown.
        columns: name of a model -> what is shown of it.
        thread: the last generation's, or None.
        is_on: whether the models go on now.
    """

    def __init__(
        self,
        models: Mapping[str, "GPT2LMHeadModel"],
        tokenizer: "PreTrainedTokenizerBase",
        settings: EvaluationSettings,
    ) -> None:
        super().__init__(settings, _NAMES)
        self.columns = {
            name: _Column(name, model, tokenizer, colour)
            for (name, model), colour in zip(models.items(), _COLOURS, strict=False)
        }
        self._stop, self.is_on = threading.Event(), False
        self.thread: threading.Thread | None = None
        self.start = button("Generate", self.begin, tooltip="let the models go on from the prompt", icon="play")
        self.stop = button("Stop", self._stop.set, tooltip="stop after this token", icon="stop")
        self.stop.disabled = True
        self.look = w.IntSlider(
            min=1, max=1, description="look at token", tooltip="the token whose candidates the bars show",
            style={"description_width": "auto"}, layout={"width": "26em"},
        )  # fmt: skip
        self.look.observe(lambda _: self.refresh(), "value")
        row = w.Box([self.start, self.stop, self.look]).add_class("course-row")
        pair = w.Box([column.widget for column in self.columns.values()]).add_class("course-pair")
        controls = w.Box([*self.controls.values()]).add_class("course-grid")
        self.widget = self.framed(controls, row, self._error, pair)
        self.refresh()

    def begin(self) -> None:
        """Generate in the background, a token of each model in turn; say why where that cannot be."""
        if self.is_on:
            return
        try:
            settings = self.settings
            for column in self.columns.values():
                column.start(settings)
        except SettingsError as error:
            self.say(str(error), is_error=True)
            return
        self._stop.clear()
        self.lock(True)
        self.say("")
        self.thread = threading.Thread(target=self._generate, args=(settings,), daemon=True)
        self.thread.start()

    def _described(self) -> list[w.Widget]:
        return [*super()._described(), self.look]

    def lock(self, is_locked: bool) -> None:
        """Lock all but the button that stops."""
        super().lock(is_locked)
        self.is_on = is_locked
        self.start.disabled, self.look.disabled, self.stop.disabled = is_locked, is_locked, not is_locked

    def _generate(self, settings: EvaluationSettings) -> None:
        sentence, is_error = "", False
        try:
            streams = {name: draw(column.model, column.prompt, settings) for name, column in self.columns.items()}
            while streams and not self._stop.is_set():
                for name in [*streams]:
                    self._take(self.columns[name], streams, settings)
            sentence = "Stopped." if streams else ""
        except Exception as error:  # noqa: BLE001 (a thread has nobody else to tell)
            sentence, is_error = f"{type(error).__name__}: {error}", True
        finally:
            self.lock(False)
            self.look.max = max(1, *(len(column.tokens) for column in self.columns.values()))
            self.look.value = self.look.max
            self.say(sentence, is_error=is_error)

    def _take(self, column: _Column, streams: dict[str, Any], settings: EvaluationSettings) -> None:
        """Take a model's next token and show it."""
        drawn = next(streams[column.name], None)
        if drawn is None:
            del streams[column.name]
            return
        column.take(*drawn)
        column.show(settings, len(column.tokens) - 1)

    def _moved_by_hand(self, name: str) -> None:
        """Forget what was generated when the prompt changes."""
        if name == "prompt":
            for column in self.columns.values():
                column.prompt, column.tokens = [], []
            self.look.max = 1

    def _follow(self, settings: EvaluationSettings) -> None:
        for column in self.columns.values():
            if not column.prompt:
                column.start(settings)
            column.show(settings, min(self.look.value - 1, max(0, len(column.tokens) - 1)))

    def _summary(self) -> str:
        shown = [
            f"<div style='flex:1 1 20em'><h4>{html.escape(name)}: {column.plain(column.prompt)}…</h4>"
            f"{column.bars_html(self.settings, 0)}</div>"
            for name, column in self.columns.items()
        ]
        return f"<div style='display:flex;flex-wrap:wrap;gap:1em'>{''.join(shown)}</div>"


def _bar(one: Candidate, is_drawn: bool) -> Bar:
    return Bar(repr(one.text), one.drawn_chance, f"{100 * one.drawn_chance:.1f} %", one.chance, is_drawn)
