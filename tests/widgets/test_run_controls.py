"""A training run that is started, stopped and resumed from the panel, and what the panel shows meanwhile."""

import threading

from helpers.training import TrainingBrokenError
from helpers.training.processes import one_training_at_a_time, run_lock
from helpers.widgets import TrainingPanel, run_controls
from helpers.widgets.run_controls import state_of


def test_a_run_can_be_started_stopped_and_resumed_while_the_panel_is_locked(tiny_settings, runs):
    panel = TrainingPanel(tiny_settings.model_copy(update={"num_train_epochs": 3.0}))
    locked = []
    watch = panel.run._watch

    def look(*seen):
        locked.append(panel.controls["seed"].disabled and panel.run.start.disabled and not panel.run.stop.disabled)
        watch(*seen)
        if len(locked) == 3:
            panel.run.stop.click()

    panel.run._watch = look
    panel.run.start.click()
    panel.thread.join()
    assert "Stopped after step 4 of" in panel._message.value
    assert all(locked)
    assert "<polyline" in panel.run._curve.value
    assert (state_of("tiny"), panel.run.start.description) == ("stopped", "Resume")
    assert not panel.controls["seed"].disabled
    panel.run._watch = watch
    panel.run.start.click()
    panel.thread.join()
    assert state_of("tiny") == "finished"
    assert "run tiny: " in panel._message.value
    assert "validation loss" in panel._message.value
    assert panel.run.start.disabled
    assert not panel.is_locked


def test_a_cell_that_is_rerun_during_training_can_still_stop_it(tiny_settings, runs):
    settings = tiny_settings.model_copy(update={"num_train_epochs": 3.0})
    before, panel, states = TrainingPanel(settings), TrainingPanel(settings), []
    watch = panel.run._watch

    def run_the_cell_again(*seen):
        watch(*seen)
        if not states:
            again = TrainingPanel(settings)
            for shown in (before, again):
                states.append((shown.run._state.value, shown.run.stop.disabled))
            again.controls["run"].value = "not a name!"  # the state of the training run stays, and so does its button
            again.run.stop.click()

    panel.run._watch = run_the_cell_again
    panel.run.start.click()
    panel.thread.join()
    assert states == [("<span>run tiny: being trained in this notebook</span>", False)] * 2
    assert "Stopped after step" in panel._message.value
    assert "run tiny: stopped with a checkpoint" in before.run._state.value
    assert before.run.stop.disabled
    assert TrainingPanel(settings).run.stop.disabled


def test_a_start_right_after_the_end_does_not_show_the_previous_message(tiny_settings, runs, monkeypatch):
    panel, ends, may_end = TrainingPanel(tiny_settings), threading.Event(), threading.Event()
    old_lock = panel.lock

    def lock(is_locked):
        old_lock(is_locked)
        if not is_locked:
            ends.set()
            may_end.wait(1)  # the next start would be ready by then

    monkeypatch.setattr(panel, "lock", lock)
    monkeypatch.setattr(panel.run, "_train", lambda settings: run_controls._STOPS.pop(settings.run) and "the first")
    panel.run.start.click()
    assert ends.wait(60)
    first, may_go_on = panel.thread, threading.Event()
    monkeypatch.setattr(
        panel.run, "_train", lambda settings: (may_go_on.wait(60) and run_controls._STOPS.clear()) or ""
    )
    panel.run.start.click()
    first.join()
    shown = panel.is_locked, panel._message.value, panel.run._state.value
    may_go_on.set()
    panel.thread.join()
    assert shown == (True, "", "<span>run tiny: getting ready</span>")


def test_a_curve_is_shown_only_for_its_own_run_even_if_that_broke(tiny_settings, runs):
    panel = TrainingPanel(tiny_settings)
    watch = panel.run._watch

    def break_early(*seen):
        watch(*seen)
        if "<polyline" in panel.run._curve.value:
            raise TrainingBrokenError("broken")

    panel.run._watch = break_early
    panel.run.start.click()
    panel.thread.join()
    assert state_of("tiny") == "new", "it broke before its first checkpoint"
    curve = panel.run._curve.value
    assert "<polyline" in curve
    panel.controls["run"].value = "tiny-2"
    assert "run tiny-2: not started" in panel.run._state.value
    assert not panel.run._curve.value
    panel.controls["run"].value = "tiny"
    assert panel.run._curve.value == curve


def test_a_run_that_is_being_trained_elsewhere_is_not_started(tiny_settings, runs):
    (runs / "tiny").mkdir(parents=True)
    panel = TrainingPanel(tiny_settings)
    panel.say("what was said before")
    with one_training_at_a_time():
        panel.run.start.click()
        assert "A run is being trained in this kernel" in panel._message.value
    with run_lock(runs / "tiny"):
        panel.run.start.click()
        assert "Run &#x27;tiny&#x27; is being trained by another notebook" in panel._message.value
        panel.refresh()
        assert "being trained by another notebook" in panel.run._state.value
    assert (panel.thread, panel.is_locked, state_of("tiny")) == (None, False, "new")


def test_a_training_error_is_shown_in_the_panel(tiny_run, tiny_settings):
    panel = TrainingPanel(tiny_settings.model_copy(update={"learning_rate": 2e-3}))
    panel.run.begin()
    panel.thread.join()
    assert "was started with learning_rate = 0.001, not 0.002" in panel._message.value
    assert not panel.controls["seed"].disabled


def test_the_curve_of_a_long_run_is_thinned_out_and_ends_at_the_last_point(monkeypatch):
    drawn = []
    monkeypatch.setattr(run_controls, "line_chart", lambda series, **_: drawn.extend(series))
    for n_rows in (1, 600, 12_345):
        run_controls.loss_curve([{"step": step, "loss": 1.0} for step in range(n_rows)])
    one, all_of_them, some, *_ = (line.points for line in drawn if line.points)
    assert (len(one), len(all_of_them)) == (1, 600)
    assert 320 <= len(some) <= 640
    assert some[-1] == (12_344, 1.0)
