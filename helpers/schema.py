"""What a setting is: a field that defines its check, its messages, its slider and its row in a table.

The settings themselves are declared in `helpers.settings`.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.display import PlainTextMixin, cut, did_you_mean, html_table, quoted

_LONGEST_WORD = 1000  # characters; longer than the paths that people use
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD},}}")
_PHRASES = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}  # bound -> its wording in a message


class SettingsError(ValueError):
    """An invalid setting; the message has one sentence per fault: what was found and what is allowed.

    Words of more than 1000 characters are cut.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_LONG_WORD.sub(lambda word: cut(word[0], _LONGEST_WORD), message))


def setting(default: Any, help_text: str, **options: Any) -> Any:
    """Return a pydantic field; `unit`, `step` and `log_from` (where a logarithmic slider starts) are for display.

    All other options are pydantic's own, such as bounds and examples.
    """
    extra = {name: options.pop(name) for name in ("unit", "step") if name in options}
    if (least := options.pop("log_from", None)) is not None:
        extra |= {"scale": "log", "least": least}
    return Field(default, description=help_text, json_schema_extra=extra or None, **options)


class Settings(PlainTextMixin, BaseModel):
    """Base class of all settings: frozen, no unknown names, errors in plain sentences, shown as a table."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        for name in fields.keys() & values.keys():
            refuse_truth_value(name, values[name], fields[name])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("\n".join(sentence(fault, fields) for fault in error.errors())) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Build the settings from a notebook's variables: pass `globals()`.

        Variables that have the name of a setting are used. A parameter that papermill injected and that is not a
        setting is an error: papermill itself only logs it and goes on.
        """
        unknown = _injected_names(namespace.get("In", [])) - set(cls.model_fields)
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        return cls(**values, **{name: namespace[name] for name in unknown})

    @classmethod
    def check_type(cls, settings: Any) -> None:
        """Raise `SettingsError` if a function was given something else than settings, such as the name of a run."""
        if not isinstance(settings, cls):
            raise SettingsError(
                f"settings = {quoted(settings)} is not allowed: give {cls.__name__}(run='mine') or the like, with the "
                "values to change."
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not checked; refuse a name that is no setting."""
        for name in (update or {}).keys() - type(self).model_fields.keys():
            raise SettingsError(unknown(name, type(self).model_fields))
        return super().model_copy(update=update, deep=deep)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a change: a run's settings are compared with those it was started with."""
        raise SettingsError(
            f"Settings cannot be changed. Make a copy: settings.model_copy(update={{{name!r}: {quoted(value)}}})"
        )

    def part(self, kind: type["Settings"]) -> Any:
        """Return the subset of these settings that `kind` declares: `training.part(DataSettings)`."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields if hasattr(self, name)})

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per setting: name, value, unit, help."""
        return [
            {"name": name, "value": getattr(self, name), "unit": unit(field), "help": field.description}
            for name, field in type(self).model_fields.items()
        ]

    def _repr_html_(self) -> str:
        fields = type(self).model_fields
        changed = [row for row in self.rows() if row["value"] != fields[row["name"]].default]
        head = _html_rows(changed) if changed else "<p>Every setting has its default value.</p>"
        return f"{head}<details><summary>all {len(fields)} settings</summary>{_html_rows(self.rows())}</details>"


def _html_rows(rows: list[dict[str, Any]]) -> str:
    cells = ("name", "value", "unit", "help")
    return html_table(cells, ([str(row[cell]) for cell in cells] for row in rows))  # str keeps every digit of a value


def unit(field: Any) -> str:
    """Return the unit of a setting's field, or an empty string."""
    return (field.json_schema_extra or {}).get("unit", "")


def sentence(fault: Any, fields: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as a sentence about one of these fields."""
    if not fault["loc"]:  # a rule between several settings, whose message names them
        return f"{fault['ctx']['error']}."
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return unknown(name, fields)
    given = f"{name} = {quoted(fault['input'])}"
    if fault["type"] == "value_error":
        return f"{given} {fault['ctx']['error']}."
    return f"{given} is not allowed: it must be {allowed(fields[name])}."


def refuse_truth_value(name: str, value: Any, field: Any) -> None:
    """Raise `SettingsError` for `lora_r: yes` and the like, which pydantic would read as 1."""
    if isinstance(value, bool) and field.annotation in (int, float):
        raise SettingsError(f"{name} = {value} is not allowed: it must be {allowed(field)}.")


def allowed(field: Any) -> str:
    """Describe in words what a setting's field allows.

    >>> class Walk(Settings):
    ...     steps: int = setting(1, "how many", ge=1, le=1024)
    ...     song: str = setting("la", "what is sung", max_length=90)
    >>> allowed(Walk.model_fields["steps"]), allowed(Walk.model_fields["song"])
    ('a whole number, at least 1, at most 1024', 'text, at most 90 characters')
    """
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if getattr(field.annotation, "__origin__", None) is Literal:
        return "one of " + ", ".join(repr(value) for value in field.annotation.__args__)
    limits = [f"{_PHRASES[name]} {limit}" for name, limit in bounds(field).items()]
    limits += ["not empty" for rule in field.metadata if hasattr(rule, "min_length")]
    limits += [f"at most {rule.max_length} characters" for rule in field.metadata if hasattr(rule, "max_length")]
    return ", ".join([words[field.annotation], *limits])


def bounds(field: Any) -> dict[str, float]:
    """Return the bounds of a number, under pydantic's names: `gt`, `ge`, `lt`, `le`."""
    return {name: getattr(rule, name) for rule in field.metadata for name in _PHRASES if hasattr(rule, name)}


def unknown(name: str, names: Any) -> str:
    """Return a sentence about a name that is no setting, or a setting of another notebook or command."""
    if any(name in kind.model_fields for kind in _kinds(Settings)):
        return f"{name} is a setting of another notebook or command, with no effect here: leave it out."
    return f"There is no setting {name!r}{did_you_mean(name, names)}"


def _kinds(kind: type[Settings]) -> Iterator[type[Settings]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def _injected_names(cells: list[str]) -> set[str]:
    """Return the names assigned in the cells that papermill injected, which begin with its comment line."""
    sources = [cell for cell in cells if cell.startswith("# Parameters\n")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
