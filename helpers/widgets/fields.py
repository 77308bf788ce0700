"""One control for each field of the settings: its kind, range, step, scale and help are read from the field."""

import math
from decimal import Decimal
from typing import Any, Literal, get_origin

import ipywidgets as w

from helpers.settings import allowed, unit

_LAYOUT = {"width": "auto", "min_width": "0"}
_STYLE = {"description_width": "15em"}
_WIDEST_SLIDER = 10_000  # whole numbers that a slider can still tell apart


def control(name: str, field: Any, value: Any) -> w.DOMWidget:
    """Return the widget of one setting, holding `value`.

    A choice becomes a drop-down, a switch a check box, a number a slider where a slider can reach its values, and
    text a text box, with suggestions where the field has examples.
    """
    common = {"description": name, "tooltip": told(field), "layout": _LAYOUT, "style": _STYLE}
    if get_origin(field.annotation) is Literal:
        made = w.Dropdown(options=field.annotation.__args__, **common)
    elif field.annotation is bool:
        made = w.Checkbox(indent=True, **common)
    elif field.annotation in (int, float):
        made = _number(field, common)
    elif field.examples:
        made = w.Combobox(options=[str(example) for example in field.examples], continuous_update=False, **common)
    else:
        made = w.Text(continuous_update=False, **common)
    put(made, value)
    return made


def told(field: Any) -> str:
    """Return a field's help, its unit and what it allows, in one line.

    >>> from helpers.settings import DataSettings
    >>> told(DataSettings.model_fields["block_size"])
    'tokens in one training row; in tokens; a whole number, at least 8, at most 1024'
    """
    parts = (field.description, unit(field) and f"in {unit(field)}", allowed(field))
    return "; ".join(filter(None, parts))


def put(made: w.DOMWidget, value: Any) -> None:
    """Let a control hold a value exactly: a slider in a browser stands at whole steps only, so those are fitted."""
    with made.hold_sync():  # else a browser rounds the old value to the new steps, and sends it back
        _fit(made, value)
        made.value = value


def _fit(made: w.DOMWidget, value: Any) -> None:
    if isinstance(made, w.SelectionSlider) and value not in made.options:
        made.options = sorted({*made.options, value})
    elif isinstance(made, w.IntSlider) and (value - made.min) % made.step:
        made.step = 1
    elif isinstance(made, w.FloatSlider):
        digits = max(0, -Decimal(repr(value)).as_tuple().exponent)
        made.min, made.step = min(made.min, value), min(made.step, 10.0**-digits)


def holds(made: w.DOMWidget, value: Any) -> bool:
    """Tell whether a control holds a value, but for the rounding of a slider's steps in the browser."""
    if isinstance(made.value, float):
        return math.isclose(made.value, value, rel_tol=1e-6, abs_tol=1e-9)
    return made.value == value


def got(made: w.DOMWidget) -> Any:
    """Return a control's value as a person would write it."""
    return round(made.value, 9) if isinstance(made, w.FloatSlider) else made.value


def bounds(field: Any) -> tuple[float, float, bool]:
    """Return a number's least and greatest value, and whether the least itself is allowed."""
    found = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(bound, name)
    }
    low = found.get("ge", found.get("gt", -math.inf))
    return low, found.get("le", found.get("lt", math.inf)), "ge" in found


def _number(field: Any, common: dict[str, Any]) -> w.DOMWidget:
    low, high, has_low = bounds(field)
    hints, kind = field.json_schema_extra or {}, field.annotation
    if hints.get("scale") == "log":
        return w.SelectionSlider(options=_ladder(low if has_low else None, high, hints.get("least", 1), kind), **common)
    if not math.isfinite(high - low) or (field.annotation is int and high - low > _WIDEST_SLIDER):
        text = w.IntText if field.annotation is int else w.FloatText
        return text(**common)
    step = hints.get("step", 1 if field.annotation is int else 10.0 ** math.floor(math.log10((high - low) / 40)))
    least = low if has_low else low + step
    if field.annotation is int:
        return w.IntSlider(min=least, max=high, step=step, **common)
    return w.FloatSlider(min=least, max=high, step=step, readout_format=".2f", **common)


def _ladder(low: float | None, high: float, least: float, kind: type) -> list[Any]:
    """Return values that grow by a constant factor or so, from the least one to the greatest; `low`, often 0, in front.

    A slider over such values stands at exactly what it shows; one over exponents would round what it is given.

    >>> _ladder(0, 20, 1, int), _ladder(None, 0.2, 0.01, float)
    ([0, 1, 2, 4, 8, 16, 20], [0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
    """
    if kind is int:
        rungs = [2**power for power in range(math.ceil(math.log2(high)) + 1)]
    else:
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(high)) + 1)
        rungs = [float(f"{digit}e{decade}") for decade in decades for digit in ("1", "1.5", "2", "3", "5", "7")]
    ends = {high} if low is None else {low, high}
    return [kind(value) for value in sorted({*ends, *(rung for rung in rungs if least <= rung <= high)})]
