"""One control per setting: its kind, range, step, scale and help come from the setting's field."""

import math
from decimal import Decimal
from typing import Any, Literal, get_origin

import ipywidgets as w

from helpers.schema import allowed, bounds, unit

_LAYOUT = {"width": "auto", "min_width": "0"}
_STYLE = {"description_width": "15em"}
_WIDEST_SLIDER = 10_000  # whole numbers; with more, one pixel of a slider skips too many values


def make_control(name: str, field: Any, value: Any) -> w.DOMWidget:
    """Return the widget for one setting, set to `value`.

    A choice becomes a drop-down, a bool a check box, a number a slider if its range allows, and text a text box, with
    suggestions if the field has examples.
    """
    common = {"description": name, "tooltip": help_text(field), "layout": _LAYOUT, "style": _STYLE}
    if get_origin(field.annotation) is Literal:
        control = w.Dropdown(options=field.annotation.__args__, **common)
    elif field.annotation is bool:
        control = w.Checkbox(indent=True, **common)
    elif field.annotation in (int, float):
        control = _number_control(field, common)
    elif field.examples:
        # continuous_update=False: read a path when it is complete, not after each letter.
        control = w.Combobox(options=[str(example) for example in field.examples], continuous_update=False, **common)
    else:
        control = w.Text(continuous_update=False, **common)
    set_value(control, value)
    return control


def help_text(field: Any) -> str:
    """Return a field's description, its unit and its allowed values, in one line.

    >>> from helpers.settings import DataSettings
    >>> help_text(DataSettings.model_fields["block_size"])
    'tokens in one training row; in tokens; a whole number, at least 8, at most 1024'
    """
    parts = (field.description, unit(field) and f"in {unit(field)}", allowed(field))
    return "; ".join(filter(None, parts))


def set_value(control: w.DOMWidget, value: Any) -> None:
    """Set a control to exactly this value, after giving a slider a step that can show it."""
    # ipywidgets' selection slider keeps its old end if options and value arrive in one message: send the options first.
    if isinstance(control, w.SelectionSlider) and value not in control.options:
        control.options = sorted({*control.options, value})
    # Any other slider rounds a value between two steps and sends that back. Send steps and value in one message:
    # otherwise it would round the old value to the new steps.
    with control.hold_sync():
        _fit_steps(control, value)
        control.value = value


def _fit_steps(control: w.DOMWidget, value: Any) -> None:
    if isinstance(control, w.IntSlider) and (value - control.min) % control.step:
        control.step = 1
    elif isinstance(control, w.FloatSlider):
        control.min, control.max = min(control.min, value), max(control.max, value)
        control.step = min(control.step, 10.0 ** -_count_decimals(value))
        control.readout_format = _readout_format(control.step)


def _count_decimals(value: float) -> int:
    return max(0, -Decimal(repr(value)).as_tuple().exponent)


def _readout_format(step: float) -> str:
    return f".{max(2, _count_decimals(step))}f"  # 0.999 must not be shown as 1.00


def has_value(control: w.DOMWidget, value: Any) -> bool:
    """Return whether a control has this value, apart from floating-point rounding in the browser."""
    if isinstance(control.value, float):
        return math.isclose(control.value, value, rel_tol=1e-6, abs_tol=1e-9)
    return control.value == value


def get_value(control: w.DOMWidget) -> Any:
    """Return a control's value as a person would write it: 0.3, not 0.30000000000000004."""
    return round(control.value, 9) if isinstance(control, w.FloatSlider) else control.value


def _number_control(field: Any, common: dict[str, Any]) -> w.DOMWidget:
    limits, hints, kind = bounds(field), field.json_schema_extra or {}, field.annotation
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))  # every number has both
    has_low, has_high = "ge" in limits, "le" in limits  # the bound itself is allowed
    if hints.get("scale") == "log":
        values = _log_values(low if has_low else None, high, hints["least"], kind)
        # A browser lets people edit its readout, which ipywidgets ignores: the class prevents that.
        return w.SelectionSlider(options=values, **common).add_class("course-steps")
    if kind is int and high - low > _WIDEST_SLIDER:
        return w.IntText(**common)
    step = hints.get("step", 1 if kind is int else 10.0 ** math.floor(math.log10((high - low) / 40)))
    least, most = low if has_low else low + step, high if has_high else high - step
    if kind is int:
        return w.IntSlider(min=least, max=most, step=step, **common)
    return w.FloatSlider(min=least, max=most, step=step, readout_format=_readout_format(step), **common)


def _log_values(low: float | None, high: float, least: float, kind: type) -> list[Any]:
    """Return values that grow by a roughly constant factor from `least` to `high`, after `low`, which is often 0.

    A selection slider over such values returns exactly what it shows; a logarithmic slider would round to a power.

    >>> _log_values(0, 20, 1, int), _log_values(None, 0.2, 0.01, float)
    ([0, 1, 2, 4, 8, 16, 20], [0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
    """
    if kind is int:
        grid = [2**power for power in range(math.ceil(math.log2(high)))]
    else:
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(high)))
        grid = [float(f"{digit}e{decade}") for decade in decades for digit in ("1", "1.5", "2", "3", "5", "7")]
    ends = {high} if low is None else {low, high}
    return [kind(value) for value in sorted({*ends, *(value for value in grid if least <= value <= high)})]
