"""The playground of notebook 04: models side by side, token by token, with the candidates for each token."""

import html
import threading
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import ipywidgets as w

from helpers.data.sources.chat import as_question, question_frame
from helpers.display import BLUE, ORANGE
from helpers.evaluation.sampling import candidates, encode_prompt, next_logits, sample_tokens
from helpers.model import describe_prompt
from helpers.settings import EvaluationSettings
from helpers.widgets.drawing import Bar, bar_chart
from helpers.widgets.panel import Panel, make_button

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_NAMES = ("prompt", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
_COLOURS = (BLUE, ORANGE)


class Playground(Panel):
    """Models that continue a prompt side by side, with the candidates for each next token as bars."""

    def __init__(
        self,
        models: Mapping[str, "GPT2LMHeadModel"],
        tokenizer: "PreTrainedTokenizerBase",
        settings: EvaluationSettings,
    ) -> None:
        EvaluationSettings.check_type(settings)
        before, after = question_frame(tokenizer)  # of a chat model; its control shows only the question
        question = settings.prompt.removesuffix(after).removeprefix(before)
        super().__init__(settings.model_copy(update={"prompt": question}), _NAMES)
        # Two colours, so at most two columns: further models are left out.
        self.columns = {
            name: _Column(name, model, tokenizer, colour)
            for (name, model), colour in zip(models.items(), _COLOURS, strict=False)
        }
        self._stop = threading.Event()
        self.start = make_button("Generate", self.begin, tooltip="let the models continue the prompt", icon="play")
        self.stop = make_button("Stop", self._stop.set, tooltip="stop after this token", icon="stop")
        self.stop.disabled = True
        self.token_slider = w.IntSlider(
            min=1, max=1, description="look at token", tooltip="the token whose candidates the bars show",
            style={"description_width": "auto"}, layout={"width": "26em"},
        )  # fmt: skip
        self.token_slider.observe(lambda _: self.is_locked or self.refresh(), "value")
        self._other_widgets, self._stop_button = [self.start, self.token_slider], self.stop
        row = w.Box([self.start, self.stop, self.token_slider]).add_class("course-row")
        pair = w.Box([column.widget for column in self.columns.values()]).add_class("course-pair")
        controls = w.Box([*self.controls.values()]).add_class("course-grid")
        self.widget = self.frame(controls, row, self._message, pair)
        self.refresh()

    def begin(self) -> None:
        """Generate in the background, token by token, or show why that is not possible."""
        if self.is_locked:
            return
        with self.show_errors():
            settings = self.settings
            for column in self.columns.values():
                column.start(settings)
            self._stop.clear()
            self.say("")
            self.run_in_background(partial(self._generate, settings))

    def _generate(self, settings: EvaluationSettings) -> str:
        # One model after the other: not every card holds two.
        try:
            for column in self.columns.values():
                with closing(sample_tokens(column.model, column.prompt, settings)) as stream:
                    for token, logits in stream:
                        column.append(token, logits, settings)
                        if self._stop.is_set():
                            return "Stopped."
        finally:
            self.token_slider.max = max(1, *(len(column.tokens) for column in self.columns.values()))
            self.token_slider.value = self.token_slider.max
        return ""

    def _on_user_change(self, name: str) -> None:
        """Discard the generated text when the prompt changes."""
        if name == "prompt":
            for column in self.columns.values():
                column.prompt, column.tokens = [], []
                column.text.value = column.bars.value = ""  # and stay empty if the prompt is too long
            self.token_slider.max = 1

    def _show(self, settings: EvaluationSettings) -> None:
        for column in self.columns.values():
            if not column.prompt:
                column.start(settings)
            column.show(settings, min(self.token_slider.value - 1, max(0, len(column.tokens) - 1)))
            if note := describe_prompt(as_question(settings.prompt, column.tokenizer)):
                self.say(note)

    def _summary(self) -> str:
        columns = [
            f"<div style='flex:1 1 20em'><h4>{html.escape(name)}: {column.escaped(column.prompt)}…</h4>"
            f"{column.bars_html(self.settings, 0)}</div>"
            for name, column in self.columns.items()
            if column.prompt  # none if it is too long, as the message says
        ]
        return f"<div style='display:flex;flex-wrap:wrap;gap:1em'>{''.join(columns)}</div>"


class _Column:
    """One model: the text it has generated, and the candidates for one of its tokens."""

    def __init__(self, name: str, model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", colour: str) -> None:
        self.model, self.tokenizer, self.colour = model, tokenizer, colour
        self.prompt: list[int] = []
        self.tokens: list[int] = []
        # Tokens -> the logits of the next one (1, V): moving a slider needs no other forward pass.
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}
        self.text, self.bars = w.HTML(), w.HTML()
        heading = w.HTML(f"<h4>{html.escape(name)}</h4>")
        self.widget = w.VBox([heading, self.bars, self.text], layout={"overflow": "hidden"})

    def start(self, settings: EvaluationSettings) -> None:
        """Encode the prompt and discard the generated text."""
        self.prompt, self.tokens = encode_prompt(self.model, self.tokenizer, settings), []
        self._logits.clear()
        self.text.value = self.text_html(0)  # removes what was generated before

    def append(self, token: int, logits: "torch.Tensor", settings: EvaluationSettings) -> None:
        """Append a token that was drawn from these logits, and show it."""
        self._logits[*self.prompt, *self.tokens] = logits
        self.tokens.append(token)
        self.show(settings, len(self.tokens) - 1)

    def show(self, settings: EvaluationSettings, position: int) -> None:
        """Show the text and the candidates for its token at `position`."""
        self.bars.value = self.bars_html(settings, position)
        self.text.value = self.text_html(position)

    def text_html(self, position: int) -> str:
        """Return the text, escaped, with the token at `position` highlighted."""
        before, token, after = self.tokens[:position], self.tokens[position : position + 1], self.tokens[position + 1 :]
        prompt, before, token, after = (self.escaped(part) for part in (self.prompt, before, token, after))
        return (
            "<div class='course-text' style='white-space:pre-wrap;overflow-wrap:anywhere'>"
            f"<b>{prompt}</b>{before}{f'<mark>{token}</mark>' if token else ''}{after}</div>"
        )

    def escaped(self, tokens: list[int]) -> str:
        """Return the text of some tokens, escaped for HTML."""
        return html.escape(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def bars_html(self, settings: EvaluationSettings, position: int) -> str:
        """Draw the candidates for the token at `position` as bars; the length is the probability of being drawn."""
        ids = (*self.prompt, *self.tokens[:position])
        drawn = self.tokens[position] if position < len(self.tokens) else None
        if ids not in self._logits:
            self._logits[ids] = next_logits(self.model, ids)
        shown = candidates(self._logits[ids], ids, self.tokenizer, settings, include=drawn)
        bars = [
            # repr makes spaces and line breaks visible.
            Bar(repr(text), drawn_probability, f"{100 * drawn_probability:.1f}%", probability, token == drawn)
            for token, text, probability, drawn_probability in shown
        ]
        title = f"candidates for token {position + 1}: probability of being drawn (bar), at temperature 1 (dashed)"
        return bar_chart(bars, title=title, colour=self.colour)
