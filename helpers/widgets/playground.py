"""The playground of notebook 04: models side by side, token by token, with the candidates for each token."""

import html
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import ipywidgets as w

from helpers.data.sources.documents import replace_half_characters
from helpers.display import BLUE, ORANGE
from helpers.model import describe_prompt, on_device
from helpers.settings import EvaluationSettings, SettingsError
from helpers.widgets.drawing import Bar, bar_chart
from helpers.widgets.panel import Panel, make_button

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, LogitsProcessorList, PreTrainedTokenizerBase

_NAMES = ("prompt", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
_COLOURS = (BLUE, ORANGE)
_N_CANDIDATES = 8


class Playground(Panel):
    """Models that continue a prompt side by side, with the candidates for each next token as bars.

    Attributes:
        start: generates; `stop` ends it after the present token.
        look: slider that chooses the token whose candidates are shown.
        columns: name of a model -> its column.
    """

    def __init__(
        self,
        models: Mapping[str, "GPT2LMHeadModel"],
        tokenizer: "PreTrainedTokenizerBase",
        settings: EvaluationSettings,
    ) -> None:
        super().__init__(settings, _NAMES)
        # Two colours, two columns: further models are left out.
        self.columns = {
            name: _Column(name, model, tokenizer, colour)
            for (name, model), colour in zip(models.items(), _COLOURS, strict=False)
        }
        self._stop = threading.Event()
        self.start = make_button("Generate", self.begin, tooltip="let the models continue the prompt", icon="play")
        self.stop = make_button("Stop", self._stop.set, tooltip="stop after this token", icon="stop")
        self.stop.disabled = True
        self.look = w.IntSlider(
            min=1, max=1, description="look at token", tooltip="the token whose candidates the bars show",
            style={"description_width": "auto"}, layout={"width": "26em"},
        )  # fmt: skip
        self.look.observe(lambda _: self.refresh(), "value")
        self._others, self._stop_button = [self.start, self.look], self.stop
        row = w.Box([self.start, self.stop, self.look]).add_class("course-row")
        pair = w.Box([column.widget for column in self.columns.values()]).add_class("course-pair")
        controls = w.Box([*self.controls.values()]).add_class("course-grid")
        self.widget = self.framed(controls, row, self._message, pair)
        self.refresh()

    def begin(self) -> None:
        """Generate in the background, token by token; if that is not possible, say why."""
        if self.is_locked:
            return
        with self.errors_shown():
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
            self.look.max = max(1, *(len(column.tokens) for column in self.columns.values()))
            self.look.value = self.look.max
        return ""

    def _on_moved_by_hand(self, name: str) -> None:
        """Discard the generated text when the prompt changes."""
        if name == "prompt":
            for column in self.columns.values():
                column.prompt, column.tokens = [], []
                column.text.value = column.bars.value = ""  # a prompt that is too long shows nothing in their place
            self.look.max = 1

    def _show(self, settings: EvaluationSettings) -> None:
        for column in self.columns.values():
            if not column.prompt:
                column.start(settings)
            column.show(settings, min(self.look.value - 1, max(0, len(column.tokens) - 1)))
        if note := describe_prompt(settings.prompt):
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
        # Tokens -> the logits of the next one (1, V): sliders move without another forward pass.
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}
        self.text, self.bars = w.HTML(), w.HTML()
        heading = w.HTML(f"<h4>{html.escape(name)}</h4>")
        self.widget = w.VBox([heading, self.bars, self.text], layout={"overflow": "hidden"})

    def start(self, settings: EvaluationSettings) -> None:
        """Begin again after the prompt."""
        self.prompt, self.tokens = encode_prompt(self.model, self.tokenizer, settings), []
        self._logits.clear()
        self.text.value = self.text_html(0)  # without what was generated before

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
        """Draw the candidates for the token at `position`, as long as their probability of being drawn."""
        ids = (*self.prompt, *self.tokens[:position])
        drawn = self.tokens[position] if position < len(self.tokens) else None
        if ids not in self._logits:
            self._logits[ids] = next_logits(self.model, ids)
        shown = candidates(self._logits[ids], ids, self.tokenizer, settings, include=drawn)
        bars = [
            # repr: the spaces and line breaks of a token are visible.
            Bar(repr(text), drawn_probability, f"{100 * drawn_probability:.1f} %", probability, token == drawn)
            for token, text, probability, drawn_probability in shown
        ]
        title = f"candidates for token {position + 1}: probability of being drawn (bar), at temperature 1 (dashed)"
        return bar_chart(bars, title=title, colour=self.colour)


class Candidate(NamedTuple):
    """A possible next token: its id and text, its probability by the model, and its probability of being drawn."""

    token: int
    text: str
    probability: float
    drawn_probability: float


def encode_prompt(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", settings: EvaluationSettings) -> list:
    """Return the prompt's tokens; raise `SettingsError` when they and `max_new_tokens` exceed the model's positions."""
    ids = tokenizer.encode(replace_half_characters(settings.prompt), verbose=False) or [tokenizer.eos_token_id]
    if len(ids) + settings.max_new_tokens > model.config.n_positions:
        raise SettingsError(
            f"The prompt has {len(ids)} tokens and max_new_tokens is {settings.max_new_tokens}: together at most "
            f"{model.config.n_positions}, the model's positions."
        )
    return ids


def sample_tokens(
    model: "GPT2LMHeadModel", ids: Sequence[int], settings: EvaluationSettings
) -> "Iterator[tuple[int, torch.Tensor]]":
    """Yield the tokens that follow `ids`, up to end-of-text or `max_new_tokens`, each with its logits (1, V).

    The same seed gives the same tokens as `evaluation.generate` for one sequence. Until the end, or until it is closed,
    the model stays on the card.
    """
    # Not the model's own `generate`: it returns logits only at the end, and draws with the notebook's random state.
    import torch
    from transformers import DynamicCache

    processors = _logits_processors(settings)
    with on_device(model.eval()):
        generator = torch.Generator(model.device).manual_seed(settings.seed)
        ids, step = torch.tensor([list(ids)], device=model.device), None  # ids: (1, T)
        cache = DynamicCache()  # by position, and kept here: transformers 5.24 renames the argument and the result
        for _ in range(settings.max_new_tokens):
            with torch.inference_mode():
                out = model(
                    ids if step is None else step, cache, attention_mask=torch.ones_like(ids),
                    use_cache=True, logits_to_keep=1,
                )  # fmt: skip
                logits = out.logits[:, -1].float()  # (1, V) in float32, in which `generate` draws too
                # A clone: some processors write into the scores.
                step = torch.multinomial(processors(ids, logits.clone()).softmax(-1), 1, generator=generator)
                ids = torch.cat([ids, step], dim=1)
            yield step.item(), logits.cpu()
            if step.item() == model.config.eos_token_id:
                return


def next_logits(model: "GPT2LMHeadModel", ids: Sequence[int]) -> "torch.Tensor":
    """Return the logits (1, V) of the token that follows `ids`."""
    import torch

    # Not through sample_tokens: drawing from NaN raises, and on CUDA ends the kernel.
    with on_device(model.eval()), torch.inference_mode():
        batch = torch.tensor([list(ids)], device=model.device)  # (1, T)
        return model(input_ids=batch, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()


def candidates(
    logits: "torch.Tensor",
    ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    settings: EvaluationSettings,
    *,
    include: int | None = None,
) -> list[Candidate]:
    """Return the most probable next tokens.

    Args:
        logits: (1, V), as the model returns them.
        ids: the tokens before; those among them are penalised for repetition.
        tokenizer: gives the tokens' text.
        settings: temperature, top_k, top_p and repetition penalty.
        include: a token that takes the last place if it is not among the most probable.
    """
    import torch

    plain = logits.softmax(-1)[0]
    drawn = _logits_processors(settings)(torch.tensor([list(ids)]), logits.clone()).softmax(-1)[0]
    tokens = plain.topk(_N_CANDIDATES).indices.tolist()
    if include is not None and include not in tokens:
        tokens[-1] = include
    return [Candidate(token, tokenizer.decode([token]), plain[token].item(), drawn[token].item()) for token in tokens]


def _logits_processors(settings: EvaluationSettings) -> "LogitsProcessorList":
    """Return what turns logits into the scores to draw from, in the order of transformers' `generate`."""
    import transformers as t

    processors = t.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(t.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        processors.append(t.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(t.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(t.TopPLogitsWarper(settings.top_p))
    return processors
