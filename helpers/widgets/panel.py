"""What all panels share: controls for settings, a line for messages, background work, and a static view."""

import html
import inspect
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ipywidgets as w

from helpers.display import html_text
from helpers.files import explain_os_error
from helpers.paths import ASSETS, COMMAND
from helpers.settings import Settings, SettingsError, without_effect
from helpers.widgets.fields import get_value, has_value, make_control, set_value

_RULE = (
    "This is what the panel showed when its cell ran. It starts with the values of the parameters cell, or with those "
    "that papermill passes (<code>-p</code>, <code>-f</code>); <code>panel.settings</code> returns exactly these "
    "until somebody moves a control in JupyterLab."
)
# The style of a live panel hides the static summary, which is for pages without a kernel.
_STYLE = (
    f"<style>{(ASSETS / 'widgets' / 'panel.css').read_text(encoding='utf-8')}.course-static{{display:none}}</style>"
)
_LABELS = (ASSETS / "widgets" / "labels.js").read_text(encoding="utf-8")

# What people change often, first in the parameters cells of notebooks 02 and 03; the other controls are folded.
COMMON = (
    "run", "seed", "model_name_or_path", "source", "block_size", "learning_rate", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lora_r",
)  # fmt: skip
# Held while a thread changes what panels show: the kernel's own, or one whose background work has ended. Otherwise the
# slower one would show the consequences of values that are no longer there.
CHANGING = threading.RLock()


class Panel:
    """Controls for some settings; `settings` returns their values.

    A subclass builds `widget`, the complete panel, and implements `_show(settings)`, which shows the consequences of
    valid settings in `gauge`, and `_summary()`. `gauge` is empty while the values are invalid.
    """

    def __init__(self, settings: Settings, names: Iterable[str] | None = None) -> None:
        self._start, self._values = settings, settings.model_dump()
        fields = type(settings).model_fields
        self.controls = {name: make_control(name, fields[name], self._values[name]) for name in names or fields}
        self.gauge, self._message = (w.HTML().add_class("course-status") for _ in range(2))
        self.thread: threading.Thread | None = None  # the latest background thread
        self._is_filling = self.is_locked = False
        self._late: dict[str, str] = {}  # control -> what it sent after the start of the latest background work
        self._other_widgets: list[w.Widget] = []  # a subclass's further widgets that are locked with the controls
        self._fold = w.ToggleButton(
            icon="caret-down",
            tooltip="show or hide the other controls",
            layout={"width": "auto", "align_self": "flex-start"},
        )
        self._stop_button: w.Button | None = None  # the only one that can be pressed while the panel is locked
        for name, control in self.controls.items():
            control.observe(partial(self._take_change, name), "value")

    @property
    def settings(self) -> Any:
        """The settings that the controls show; raises `SettingsError` while they are invalid."""
        return type(self._start)(**self._values)

    def fill(self, values: Mapping[str, Any]) -> None:
        """Set several controls to new values, and refresh once."""
        with CHANGING:
            self._is_filling = True  # every control reports its change, but one refresh at the end is enough
            try:
                for name, value in values.items():
                    self._values[name] = value
                    if name in self.controls:
                        set_value(self.controls[name], value)
            finally:
                self._is_filling = False
            self.refresh()

    def refresh(self) -> None:
        """Show the consequences of the values, or a sentence that says what is wrong with them."""
        with CHANGING, self.show_errors():
            self.say("")
            self._label_fold()
            try:
                settings = self.settings
                self._dim(without_effect(settings))
                self._show(settings)
            except (SettingsError, OSError):
                self.gauge.value = ""  # what it showed for the previous values would contradict the error
                raise

    def _label_fold(self) -> None:
        """Say on the button how many controls are folded, and how many of them do not have their default values."""
        fields = type(self._start).model_fields
        changed = [self._values[name] != fields[name].default for name in self.controls if name not in COMMON]
        self._fold.description = f"{len(changed)} rarely changed settings, {sum(changed)} not at their defaults"

    def _dim(self, names: Iterable[str]) -> None:
        """Dim the controls of settings without effect; they still work: settings may be changed in any order."""
        for name, control in self.controls.items():
            (control.add_class if name in names else control.remove_class)("course-idle")

    @contextmanager
    def show_errors(self) -> Iterator[None]:
        """Show an error that the user can fix as one sentence in the panel, without a traceback."""
        try:
            yield
        except (SettingsError, OSError) as error:
            self.say(sentence_about(error), is_error=True)

    def say(self, sentence: str, *, is_error: bool = False) -> None:
        """Show a sentence, escaped, instead of the previous one; an empty one only removes that."""
        prefix = "<b>Not possible:</b> " if is_error else ""
        text = prefix + html.escape(sentence).replace("\n", "<br>")
        self._message.value = f"<div class='course-{'error' if is_error else 'note'}'>{text}</div>" if sentence else ""

    def lock(self, is_locked: bool) -> None:
        """Disable everything except the stop button, or enable it again (and disable the stop button)."""
        self.is_locked = is_locked
        for control in (*self.controls.values(), *self._other_widgets):
            control.disabled = is_locked
        if self._stop_button:
            self._stop_button.disabled = not is_locked

    def run_in_background(self, work: Callable[[], str]) -> None:
        """Run some work in a thread while the panel is locked; then show the sentence it returns, or its error."""
        self._late.clear()
        self.lock(True)
        # A daemon thread: restarting the kernel must not wait for the end of training.
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], str]) -> None:
        sentence, is_error = "", True
        try:
            sentence, is_error = work(), False
        except Exception as error:  # noqa: BLE001 (nobody sees an exception that ends a thread)
            sentence = sentence_about(error)
        finally:
            with CHANGING:
                self.lock(False)
                self.refresh()
                if sentences := [*filter(None, [sentence]), *self._late.values()]:  # else keep the refresh's message
                    self.say("\n".join(sentences), is_error=is_error)

    def _take_change(self, name: str, change: Any) -> None:
        with CHANGING:
            # A browser also reports a value that it only rounded: nobody moved that control.
            if self._is_filling or has_value(self.controls[name], self._values[name]):
                return
            if self.is_locked:
                self._refuse_late_change(name)
                return
            self._values[name] = get_value(self.controls[name])
            self._on_user_change(name)
            self.refresh()

    def _refuse_late_change(self, name: str) -> None:
        """Set a control back to the value that the background work began with.

        While the kernel is busy, a browser keeps the last value of a moved control, but sends a click at once. So the
        kernel may see a button pressed first and the value afterwards.
        """
        late, used = get_value(self.controls[name]), self._values[name]
        set_value(self.controls[name], used)
        self._say_late(name, f"{name} = {late!r} arrived after the start, which used {name} = {used!r}.")

    def _say_late(self, name: str, sentence: str) -> None:
        self._late[name] = sentence
        self.say("\n".join(self._late.values()))

    def _on_user_change(self, name: str) -> None:
        """React to a control that a person moved, before the panel is refreshed."""

    def _show(self, settings: Any) -> None:
        """Show the consequences of valid settings."""
        raise NotImplementedError

    def _summary(self) -> str:
        """Return what the panel shows besides its values, as HTML without widgets."""
        raise NotImplementedError

    def common_controls(self) -> w.Widget:
        """Return the controls that people use often."""
        return w.Box([self.controls[name] for name in COMMON if name in self.controls]).add_class("course-grid")

    def other_controls(self) -> w.Widget:
        """Return a button that shows the other controls, and these under headings: the classes that declare them."""
        groups = []
        for kind in type(self._start).__mro__:
            names = [name for name in inspect.get_annotations(kind) if name in self.controls and name not in COMMON]
            if names:
                title = kind.__name__.removesuffix("Settings").lower()
                grid = w.Box([self.controls[name] for name in names]).add_class("course-grid")
                groups += [w.HTML(f"<h4>{title}</h4>"), grid]
        folded = w.VBox(groups, layout={"display": "none"})
        self._fold.observe(lambda change: setattr(folded.layout, "display", "" if change.new else "none"), "value")
        return w.VBox([self._fold, folded])

    def static_html(self) -> str:
        """Return the panel as HTML for a page without a kernel."""
        summary = table = ""
        with suppress(SettingsError):  # invalid values: the message says so
            summary, table = self._summary(), self.settings._repr_html_()
        return f"<div class='course-static'>{summary}{self._message.value}{table}<p>{_RULE}</p></div>"

    def frame(self, *children: w.Widget) -> w.VBox:
        """Return widgets in a frame that includes the panel's style."""
        return w.VBox([w.HTML(_STYLE), *children]).add_class("course-panel")

    def help(self) -> dict[str, str]:
        """Return the help of each control, for tooltips and screen readers."""
        controls = (*self.controls.values(), *self._other_widgets)
        # Buttons are left out: they show their own tooltips.
        return {control.description: control.tooltip for control in controls if not isinstance(control, w.Button)}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # A notebook that is opened later shows the plain text of a widget: '' instead of the names of classes.
        display({**self.widget._repr_mimebundle_(), "text/plain": ""}, raw=True)
        page = self.static_html()
        display({"text/html": page, "text/plain": html_text(page)}, raw=True)
        # A separate output, because a browser does not run a script inside a widget's HTML.
        script = f"const help = {json.dumps(self.help())};\n{_LABELS}"
        display({"application/javascript": script, "text/plain": ""}, raw=True)


def sentence_about(error: Exception) -> str:
    """Return what a panel says about an error: what to correct, or else the error and the command that explains it."""
    if isinstance(error, SettingsError):
        return str(error)
    explained = explain_os_error(error) if isinstance(error, OSError) else ""
    return explained or f"{type(error).__name__}: {error} (`{COMMAND} explain` reads errors.)"


def make_button(text: str, action: Callable[[], None], *, tooltip: str, icon: str = "") -> w.Button:
    """Return a button that calls `action`, except while it is disabled: a browser may not know that yet."""

    def press(_: w.Button) -> None:
        with CHANGING:
            if not button.disabled:
                action()

    button = w.Button(description=text, tooltip=tooltip, icon=icon, layout={"width": "auto"})
    button.on_click(press)
    return button
