"""Start, stop and resume a training from a panel, with its curve; the panel is locked while the run is on.

The training has a thread of its own, so that a stop is heard; it shares the process's random numbers with whatever
else the notebook runs meanwhile.
"""

import html
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from helpers.settings import SettingsError, TrainingSettings, run_folder
from helpers.widgets.drawing import BLUE, ORANGE, Series, line_chart
from helpers.widgets.panel import Panel, button

if TYPE_CHECKING:
    from helpers.training import FineTuned


class RunControls:
    """The buttons of a panel's run.

    Attributes:
        start: starts, or resumes where a checkpoint is.
        stop: ends the step, saves, and stops.
        finished: the last run that came to its end here, or None.
        thread: the last training's, or None.
        is_on: whether a training runs now.
    """

    def __init__(self, panel: Panel) -> None:
        self._panel, self._stop = panel, threading.Event()
        self.finished: FineTuned | None = None
        self.thread: threading.Thread | None = None
        self.is_on = False
        self.start = button("Start", self.begin, tooltip="train this run now", icon="play")
        self.stop = button("Stop", self.end, tooltip="end the step, save a checkpoint, and stop", icon="stop")
        self.stop.disabled = True
        self._state, self._curve = w.HTML().add_class("course-status"), w.HTML()
        row = w.Box([self.start, self.stop, self._state]).add_class("course-row")
        self.widget = w.VBox([w.HTML("<h4>train now</h4>"), row, self._curve])

    def begin(self) -> None:
        """Train the panel's run in the background; say why where that cannot be."""
        if self.is_on:
            return
        with self.told():
            settings = self._panel.settings
            self._stop.clear()
            self._lock(True)
            self._show(f"run {settings.run}: getting ready")
            self.thread = threading.Thread(target=self._train, args=(settings,), daemon=True)
            self.thread.start()

    def end(self) -> None:
        """Ask the training to stop at its next step's end."""
        self._stop.set()
        self._show("stopping: the step is ended and a checkpoint saved")

    def follow(self, settings: TrainingSettings) -> None:
        """Let the button say what it would do with the run of these settings."""
        if self.is_on:
            return
        state = state_of(settings.run)
        self.start.description = "Resume" if state == "stopped" else "Start"
        self.start.disabled = state == "finished"
        told = {
            "new": f"run {settings.run}: not started",
            "stopped": f"run {settings.run}: stopped with a checkpoint; Resume goes on from it",
            "finished": f"run {settings.run}: finished; another run name trains anew",
        }
        self._show(told[state])

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say in the panel what is raised, as one sentence."""
        try:
            yield
        except (SettingsError, OSError) as error:
            self._panel.say(str(error), is_error=True)

    def _train(self, settings: TrainingSettings) -> None:
        from helpers.training import TrainingBrokenError, TrainingStoppedError, fine_tune

        sentence, is_error = "", False
        try:
            self.finished = fine_tune(settings, watch=self._watch, stop=self._stop)
            sentence = str(self.finished)
        except TrainingStoppedError as stopped:
            sentence = str(stopped)
        except (SettingsError, TrainingBrokenError) as error:
            sentence, is_error = str(error), True
        except Exception as error:  # noqa: BLE001 (a thread has nobody else to tell)
            sentence, is_error = f"{type(error).__name__}: {error} (`python -m helpers explain` reads errors.)", True
        finally:
            self._lock(False)
            self._panel.refresh()
            self._panel.say(sentence, is_error=is_error)

    def _watch(self, history: Sequence[Mapping[str, Any]], progress: Any) -> None:
        if not self._stop.is_set():
            self._show(str(progress))
        self._curve.value = loss_curve(history)

    def _lock(self, is_on: bool) -> None:
        self.is_on = is_on
        self._panel.lock(is_on)
        self.start.disabled, self.stop.disabled = is_on, not is_on

    def _show(self, text: str) -> None:
        self._state.value = f"<span>{html.escape(text)}</span>"


def state_of(run: str) -> str:
    """Return 'finished', 'stopped' (a checkpoint is there) or 'new'."""
    folder = run_folder(run)
    if (folder / "training.json").exists():
        return "finished"
    return "stopped" if any(folder.glob("checkpoints/checkpoint-*")) else "new"


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Draw a run's losses over its steps."""
    series = [
        Series(name, [(row["step"], row[key]) for row in history if key in row], colour, dashes)
        for name, key, colour, dashes in (
            ("training", "loss", BLUE, ""),
            ("validation", "eval_loss", ORANGE, "5 3"),
        )
    ]
    return line_chart(series, title="Loss:", xlabel="optimizer step", ylabel="nats a token", width=640)
