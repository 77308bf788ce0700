"""Buttons that start, stop and resume training from a panel, and the loss curve.

Training runs in a thread, so that the kernel can react to the Stop button. It shares the process's random state with
everything else that the notebook runs meanwhile; our own `generate` and the playground do not use that state.
"""

import html
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakSet

import ipywidgets as w

from helpers.display import BLUE, ORANGE
from helpers.settings import SettingsError, TrainingSettings, run_folder
from helpers.training import is_finished, is_in_training
from helpers.training.processes import TRAINING
from helpers.widgets.drawing import Series, line_chart
from helpers.widgets.panel import CHANGING, Panel, make_button

_TRAINED_ELSEWHERE = "being trained by another notebook or command"
_MAX_POINTS = 640  # per line: the chart is as many pixels wide
_STOPS: dict[str, threading.Event] = {}  # run being trained in this kernel -> the event that stops it, from any panel
_CONTROLS = WeakSet["RunControls"]()  # of all panels in this kernel: each shows what another one trains


class RunControls:
    """The buttons for a panel's run: start or resume, and stop after the current step with a checkpoint."""

    def __init__(self, panel: Panel) -> None:
        self._panel, self._stop = panel, threading.Event()
        self.start = make_button("Start", self.begin, tooltip="train this run now", icon="play")
        self.stop = make_button("Stop", self.end, tooltip="finish the step, save a checkpoint, and stop", icon="stop")
        self.stop.disabled = True
        self._state, self._curve = w.HTML().add_class("course-status"), w.HTML()
        self._curves: dict[str, str] = {}  # run trained in this panel -> its curve
        row = w.Box([self.start, self.stop, self._state]).add_class("course-row")
        self.widget = w.VBox([w.HTML("<h4>train now</h4>"), row, self._curve])
        with CHANGING:  # a set cannot grow while another thread goes through it
            _CONTROLS.add(self)

    def begin(self) -> None:
        """Train the panel's run in the background, or show why that is not possible."""
        if self._panel.is_locked:
            return
        self._panel.say("")  # remove the message of the previous training
        with self._panel.show_errors():
            settings = self._panel.settings
            refuse_during_training()  # a thread that waits for another training to end would not react to Stop
            if state_of(settings.run) == "in training":
                raise SettingsError(
                    f"Run {settings.run!r} is {_TRAINED_ELSEWHERE}: wait until it ends, or choose another run name."
                )
            self._stop.clear()
            _STOPS[settings.run] = self._stop
            self._show(f"run {settings.run}: getting ready")
            self._panel.run_in_background(partial(self._train, settings))
            _show_states()

    def end(self) -> None:
        """Ask training to stop after the current step."""
        for stop in tuple(_STOPS.values()):  # at most one: a kernel trains one run at a time
            stop.set()
            self._show("stopping: finishing the step and saving a checkpoint")

    def show_state(self, settings: TrainingSettings) -> None:
        """Show the state of these settings' run, what the start button would do, and the curve if there is one."""
        if self._panel.is_locked:
            return
        state = state_of(settings.run)
        self.start.description = "Resume" if state == "stopped" else "Start"
        self.start.disabled = state == "finished"
        is_here = settings.run in _STOPS
        self.stop.disabled = not is_here
        texts = {
            "new": "not started",
            "stopped": "stopped with a checkpoint; Resume continues from it",
            "in training": "being trained in this notebook" if is_here else _TRAINED_ELSEWHERE,
            "finished": "finished; choose another run name to train again",
        }
        self._show(f"run {settings.run}: {texts[state]}")
        self._curve.value = self._curves.get(settings.run, "")  # by name: a broken run is "new" but keeps its curve

    def _train(self, settings: TrainingSettings) -> str:
        from helpers.training import TrainingBrokenError, TrainingStoppedError, fine_tune

        try:
            return str(fine_tune(settings, watch=partial(self._watch, settings.run), stop=self._stop))
        except TrainingStoppedError as stopped:
            return str(stopped)
        except TrainingBrokenError as error:
            raise SettingsError(str(error)) from error  # the message is enough: show it without the error's type
        finally:
            del _STOPS[settings.run]
            _show_states()

    def _watch(self, run: str, history: Sequence[Mapping[str, Any]], progress: Any) -> None:
        if not self._stop.is_set():  # otherwise "stopping" would be overwritten
            self._show(str(progress))
        self._curve.value = self._curves[run] = loss_curve(history)
        if warnings := [row["warning"] for row in history if "warning" in row]:
            self._panel.say(warnings[-1])

    def _show(self, text: str) -> None:
        self._state.value = f"<span>{html.escape(text)}</span>"


def refuse_during_training() -> None:
    """Raise `SettingsError` while a run is being trained in this kernel, from a panel or a cell."""
    if _STOPS or TRAINING.locked():
        raise SettingsError("A run is being trained in this kernel: wait until it ends, or stop it.")


def _show_states() -> None:
    """Update the state that every unlocked panel shows, after training began or ended."""
    with CHANGING:
        for controls in tuple(_CONTROLS):
            with suppress(SettingsError, OSError):  # a panel with invalid values keeps its message
                controls.show_state(controls._panel.settings)


def state_of(run: str) -> str:
    """Return 'finished', 'in training', 'stopped' (there is a checkpoint) or 'new'."""
    folder = run_folder(run)
    if is_finished(folder):
        return "finished"
    if run in _STOPS or is_in_training(folder):
        return "in training"
    return "stopped" if any(folder.glob("checkpoints/checkpoint-*")) else "new"


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Draw a run's training and validation losses over its steps, with at most as many points as pixels."""
    series = []
    for name, key, colour, dashes in (("training", "loss", BLUE, ""), ("validation", "eval_loss", ORANGE, "5 3")):
        points = [(row["step"], row[key]) for row in history if key in row]
        stride = 1 + len(points) // _MAX_POINTS
        series.append(Series(name, points[::-stride][::-1], colour, dashes))  # keeps the last point
    return line_chart(series, title="Loss:", xlabel="optimizer step", ylabel="nats per token", width=640)
