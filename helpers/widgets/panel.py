"""What all panels share: controls, the settings they come to, a lock, one line for errors, and two ways to be shown."""

import html
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ipywidgets as w

from helpers.settings import ASSETS, Settings, SettingsError
from helpers.widgets.fields import control, got, holds, put

_RULE = (
    "This is what the panel held when its cell ran. It begins with the values of the parameters cell, or with those "
    "that papermill puts there (<code>-p</code>, <code>-f</code>); <code>panel.settings</code> returns exactly these "
    "until somebody moves something in a live JupyterLab."
)
# The style of a live panel hides the static summary, which is there for pages without one.
_STYLE = (
    f"<style>{(ASSETS / 'widgets' / 'panel.css').read_text(encoding='utf-8')}.course-static{{display:none}}</style>"
)
_LABELS = (ASSETS / "widgets" / "labels.js").read_text(encoding="utf-8")


class Panel:
    """Controls for some settings; `settings` are what they come to.

    Attributes:
        controls: name of a setting -> its widget.
        widget: all of the panel.
    """

    def __init__(self, settings: Settings, names: Iterable[str] | None = None) -> None:
        self._start, self._values = settings, settings.model_dump()
        fields = type(settings).model_fields
        names = list(fields) if names is None else list(names)
        self.controls = {name: control(name, fields[name], self._values[name]) for name in names}
        self._error = w.HTML().add_class("course-status")
        self._is_filling = False
        for name, made in self.controls.items():
            made.observe(partial(self._moved, name), "value")

    @property
    def settings(self) -> Any:
        """What the panel says; raise `SettingsError` while something in it cannot be."""
        return type(self._start)(**self._values)

    def fill(self, values: Mapping[str, Any]) -> None:
        """Let the controls show other values, and refresh once."""
        self._is_filling = True
        try:
            for name, value in values.items():
                self._values[name] = value
                if name in self.controls:
                    put(self.controls[name], value)
        finally:
            self._is_filling = False
        self.refresh()

    def refresh(self) -> None:
        """Show what follows from the values, or what is wrong with them in one sentence."""
        self.say("")  # first, since what follows may speak from a thread of its own
        try:
            self._follow(self.settings)
        except SettingsError as error:
            self.say(str(error), is_error=True)

    def say(self, sentence: str, *, is_error: bool = False) -> None:
        """Show one sentence, escaped; an empty one takes the last away."""
        sign = "<b>Not possible:</b> " if is_error else ""
        text = sign + html.escape(sentence).replace("\n", "<br>")
        self._error.value = f"<div class='course-{'error' if is_error else 'note'}'>{text}</div>" if sentence else ""

    def lock(self, is_locked: bool) -> None:
        """Keep everybody from moving a control, or let them again."""
        for made in self.controls.values():
            made.disabled = is_locked

    def _moved(self, name: str, change: Any) -> None:
        if self._is_filling or holds(self.controls[name], self._values[name]):
            return
        self._values[name] = got(self.controls[name])
        self._moved_by_hand(name)
        self.refresh()

    def _moved_by_hand(self, name: str) -> None:
        """Take note of a control that a person moved; a panel may do something about it."""

    def _follow(self, settings: Any) -> None:
        """Show what follows from valid settings."""
        raise NotImplementedError

    def _summary(self) -> str:
        """Return what the panel shows beside its values, as HTML without widgets."""
        raise NotImplementedError

    def groups(self) -> list[w.Widget]:
        """Return the controls under headings: one for each class that declares some of the settings, the last first."""
        found = []
        for kind in type(self._start).__mro__:
            mine = [self.controls[name] for name in inspect.get_annotations(kind) if name in self.controls]
            if mine:
                title = kind.__name__.removesuffix("Settings").lower()
                found += [w.HTML(f"<h4>{title}</h4>"), w.Box(mine).add_class("course-grid")]
        return found

    def static_html(self) -> str:
        """Return the panel as a page without a kernel shows it."""
        return f"<div class='course-static'>{self._summary()}{self.settings._repr_html_()}<p>{_RULE}</p></div>"

    def framed(self, *children: w.Widget) -> w.VBox:
        """Return the panel's widgets in a frame that brings the panel's style."""
        return w.VBox([w.HTML(_STYLE), *children]).add_class("course-panel")

    def help(self) -> dict[str, str]:
        """Return what is said of each control when somebody points at it or has it read out."""
        return {made.description: made.tooltip for made in self._described()}

    def _described(self) -> list[w.Widget]:
        return [*self.controls.values()]

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, Javascript, display

        display(self.widget)
        display(HTML(self.static_html()))
        display(Javascript(f"const help = {json.dumps(self.help())};\n{_LABELS}"))


def button(text: str, action: Callable[[], None], *, tooltip: str, icon: str = "", style: str = "") -> w.Button:
    """Return a button that calls `action`."""
    made = w.Button(description=text, tooltip=tooltip, icon=icon, button_style=style, layout={"width": "auto"})
    made.on_click(lambda _: action())
    return made
