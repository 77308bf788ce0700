"""One control for each setting: its kind, its bounds, its help, and values between a slider's steps."""

import ipywidgets as w
import pytest

from helpers.settings import EvaluationSettings, TrainingSettings
from helpers.widgets.fields import get_value, has_value, make_control, set_value

FIELDS = {**TrainingSettings.model_fields, **EvaluationSettings.model_fields}


@pytest.mark.parametrize("name", FIELDS)
def test_a_control_is_made_from_the_field_and_has_its_default(name):
    control = make_control(name, FIELDS[name], FIELDS[name].default)
    assert control.description == name
    assert FIELDS[name].description in control.tooltip
    assert control.value == FIELDS[name].default


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("learning_rate", w.SelectionSlider),
        ("per_device_train_batch_size", w.SelectionSlider),
        ("block_size", w.IntSlider),
        ("weight_decay", w.FloatSlider),
        ("lr_scheduler_type", w.Dropdown),
        ("gradient_checkpointing", w.Checkbox),
        ("source", w.Combobox),
        ("run", w.Text),
        ("seed", w.IntText),
    ],
)
def test_each_field_gets_the_right_kind_of_control(name, kind):
    control = make_control(name, FIELDS[name], FIELDS[name].default)
    assert type(control) is kind
    # panel.css and labels.js prevent typing where ipywidgets ignores it
    assert ("course-steps" in control._dom_classes) == (kind is w.SelectionSlider)


def test_a_slider_reaches_the_bounds_of_the_schema():
    batch = make_control("b", FIELDS["per_device_train_batch_size"], 8)
    assert (batch.options[0], batch.options[-1]) == (1, 1024)
    block = make_control("b", FIELDS["block_size"], 256)
    assert (block.min, block.max, block.step) == (8, 1024, 8)
    rate = make_control("r", FIELDS["learning_rate"], 1e-3)
    assert (rate.options[0], rate.options[-1]) == (1e-6, 0.1)
    top_k = make_control("k", FIELDS["top_k"], 0)
    assert (top_k.options[0], top_k.options[-1]) == (0, 50257)
    beta = make_control("adam_beta2", FIELDS["adam_beta2"], 0.999)  # above 0, below 1
    assert (beta.min, beta.max) == (0.001, 0.999)


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_size", 250), ("weight_decay", 0.0125), ("learning_rate", 3e-9), ("adam_beta2", 0.99995)],
)
def test_a_slider_accepts_a_value_between_its_steps(name, value):
    control = make_control(name, FIELDS[name], FIELDS[name].default)
    set_value(control, value)
    assert control.value == value
    if name == "learning_rate":
        assert list(control.options) == sorted(control.options)
    else:
        steps = (value - control.min) / control.step
        assert steps == pytest.approx(round(steps), abs=1e-6), "a browser would move it to a whole step"


@pytest.mark.parametrize("name", ["source", "run"])
def test_a_text_is_read_when_it_is_complete(name):
    control = make_control(name, FIELDS[name], FIELDS[name].default)
    assert not control.continuous_update
    assert list(getattr(control, "options", [])) == (FIELDS[name].examples or [])


def test_a_value_is_read_without_the_rounding_error_of_a_slider():
    control = make_control("weight_decay", FIELDS["weight_decay"], 0.0)
    control.value = 0.30000000000000004
    assert get_value(control) == 0.3
    assert has_value(control, 0.3)
    assert not has_value(control, 0.31)


@pytest.mark.parametrize(
    ("name", "value", "format_"),
    [
        ("adam_beta2", 0.999, ".3f"),
        ("top_p", 0.9, ".2f"),
        ("weight_decay", 0.01, ".2f"),
        ("weight_decay", 1e-7, ".7f"),
    ],
)
def test_the_number_next_to_a_slider_shows_every_decimal_of_its_value(name, value, format_):
    control = make_control(name, FIELDS[name], FIELDS[name].default)
    set_value(control, value)
    assert (control.value, control.readout_format) == (value, format_)
