"""Reads a study file and checks all of it; each fault is one sentence with the line it stands in."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from helpers.course import declared_parameters, find_notebook
from helpers.display import did_you_mean
from helpers.settings import (
    ASSETS,
    Settings,
    SettingsError,
    allowed,
    check_values,
    known_settings,
    read_preset,
    run_folder,
)
from helpers.studies.comparability import Fault, figure_faults, ranking_faults
from helpers.studies.study import Budgets, Range, Study

STUDIES = ASSETS / "studies"


def find_study(name: str) -> Path:
    """Return the file that a path or the name of a shipped study names; raise `SettingsError` for none."""
    shipped = {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    raise SettingsError(f"There is no study file {name!r}; shipped with the course: {', '.join(shipped)}.")


def read_study(path: Path) -> Study:
    """Read a study file and check all of it.

    Raises:
        SettingsError: one sentence a fault, each with the file and the line at fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node, found = yaml.compose(text), yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path.name}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from None
    lines = dict(_lines(node))
    if not isinstance(found, dict):
        raise SettingsError(f"{path.name}, line 1: a study is a mapping with at least `vary`: see {STUDIES}.")
    faults = [*_faults(found), *(_name_faults(path.stem, is_file=True) if "study" not in found else ())]
    told = sorted([*_twice(node), *((_line(lines, at), sentence) for at, sentence in faults)])
    if told:
        raise SettingsError("\n".join(f"{path.name}, line {line}: {sentence}" for line, sentence in told))
    return Study(**{"study": path.stem, **_typed(found)})


def _lines(node: yaml.Node | None, at: tuple = ()) -> Iterator[tuple[tuple, int]]:
    """Yield where each part of a file stands: its path of keys and indices, and its line from 1."""
    if node is None:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def _twice(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield line and sentence for each key that a mapping has again: YAML takes the last and says nothing."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in first:
                yield (
                    line,
                    f"{key.value!r} is here for the second time, after line {first[key.value]}: keep one of them.",
                )
            first.setdefault(key.value, line)
            yield from _twice(value)


def _line(lines: dict[tuple, int], at: tuple) -> int:
    """Return the line of a part, or of what it is a part of."""
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


def _faults(found: dict[str, Any]) -> Iterator[Fault]:
    for name, value in found.items():
        if name not in Study.model_fields:
            yield (name,), f"A study has no {name!r}{did_you_mean(str(name), Study.model_fields)}"
        elif name in _CHECKS:
            yield from _CHECKS[name](value)
        elif sentence := _refusal(Study, name, value):
            yield (name,), sentence
    if not found.get("vary"):
        yield ("vary",), "`vary` names no setting: give at least one, with a list of values or a range."
    yield from _in_both(found)
    yield from ranking_faults(found)
    yield from _notebooks_that_do_not_serve(found)


def _in_both(found: dict[str, Any]) -> Iterator[Fault]:
    """Find settings that are held and varied."""
    held, varied = (found.get(section) for section in ("settings", "vary"))
    for name in varied if isinstance(held, dict) and isinstance(varied, dict) else ():
        if name in held:
            yield ("vary", name), f"{name} stands under `settings` too: keep it in one of the two."


def _refusal(kind: type[Settings], name: str, value: Any) -> str:
    """Return the sentence with which a kind of settings refuses one value; empty when it takes it."""
    if name not in kind.model_fields:
        return f"There is no {name!r} here{did_you_mean(name, kind.model_fields)}"
    try:
        kind(**{name: value})
    except SettingsError as error:
        return str(error)
    return ""


def _settings_faults(found: Any) -> Iterator[Fault]:
    if not isinstance(found, dict):
        yield ("settings",), f"settings = {found!r} is not allowed: write `name: value`, one a line."
        return
    for name, value in found.items():
        yield from _value_faults(("settings", name), name, value)


def _value_faults(at: tuple, name: str, value: Any) -> Iterator[Fault]:
    if name == "run":
        yield at, "`run` is not for a study to set: each trial has a folder of its own, named by its number."
        return
    try:
        check_values({str(name): value})
    except SettingsError as error:
        yield at, str(error)


def _vary_faults(found: Any) -> Iterator[Fault]:
    if not isinstance(found, dict):
        yield ("vary",), f"vary = {found!r} is not allowed: write `setting: [value, value]` or a range, one a line."
        return
    for name, over in found.items():
        at = ("vary", name)
        if name not in known_settings():
            yield from _value_faults(at, name, None)
        elif isinstance(over, dict):
            yield from _range_faults(at, name, over)
        elif isinstance(over, list) and over:
            faults = [fault for index, value in enumerate(over) for fault in _value_faults((*at, index), name, value)]
            yield from faults
            if not faults and len({repr(check_values({name: value})[name]) for value in over}) < len(over):
                yield at, f"{name} has a value twice: each point of a grid is run once."
        else:
            yield at, f"{name} = {over!r} is not allowed: it must be a list of values, or a range with low and high."


def _range_faults(at: tuple, name: str, over: dict[str, Any]) -> Iterator[Fault]:
    field = known_settings()[name]
    if field.annotation not in (int, float):
        yield at, f"{name} has no range: it must be {allowed(field)}. List the values to try."
        return
    wrong = [((*at, key), said) for key, value in over.items() if (said := _refusal(Range, str(key), value))]
    missing = [key for key in ("low", "high") if key not in over]
    yield from wrong
    if missing:
        yield at, f"The range of {name} lacks {' and '.join(missing)}."
    if wrong or missing:
        return
    for key in ("low", "high"):
        yield from _value_faults((*at, key), name, over[key])
    low, high = float(over["low"]), float(over["high"])
    if not low < high or not math.isfinite(high - low):
        yield at, f"The range of {name} goes from {low:g} to {high:g}: low must be below high."
    elif low <= 0 and _scale(name, over) == "log":
        yield at, f"The range of {name} begins at {low:g}: on a log scale it must begin above 0."


def _scale(name: str, over: dict[str, Any]) -> str:
    """Return a range's scale: the file's, else the setting's own."""
    return over.get("scale", (known_settings()[name].json_schema_extra or {}).get("scale", "linear"))


def _notebook_faults(found: Any) -> Iterator[Fault]:
    if not isinstance(found, list) or not found:
        yield ("notebooks",), f'notebooks = {found!r} is not allowed: it must be a list such as ["03", "04"].'
        return
    for index, name in enumerate(found):
        try:
            find_notebook(_notebook(name))
        except SettingsError as error:
            yield ("notebooks", index), str(error)


def _notebook(name: Any) -> str:
    return f"{name:02d}" if isinstance(name, int) else str(name)  # YAML reads 03 as the number 3


def _budget_faults(found: Any) -> Iterator[Fault]:
    if not isinstance(found, dict):
        yield ("budgets",), f"budgets = {found!r} is not allowed: write trials, hours or disk_gib, one a line."
        return
    for name, value in found.items():
        if sentence := _refusal(Budgets, str(name), value):
            yield ("budgets", name), sentence


def _preset_faults(found: Any) -> Iterator[Fault]:
    try:
        read_preset(found if isinstance(found, str) else str(found))
    except SettingsError as error:
        yield ("preset",), str(error)


def _name_faults(found: Any, *, is_file: bool = False) -> Iterator[Fault]:
    try:
        run_folder(str(found))
    except SettingsError as error:
        instead = " The study has the file's name: rename the file, or set `study:` in it." if is_file else ""
        yield ("study",), str(error).replace("run =", "study =", 1) + instead


_CHECKS = {
    "study": _name_faults,
    "settings": _settings_faults,
    "vary": _vary_faults,
    "notebooks": _notebook_faults,
    "budgets": _budget_faults,
    "preset": _preset_faults,
}


def _notebooks_that_do_not_serve(found: dict[str, Any]) -> Iterator[Fault]:
    """Find settings that none of the chosen notebooks takes, and a figure that none makes."""
    names = found.get("notebooks", Study.model_fields["notebooks"].default)
    if list(_notebook_faults(names)):
        return
    notebooks = [find_notebook(_notebook(name)) for name in names]
    yield from figure_faults(found, notebooks)
    declared = set().union(*map(declared_parameters, notebooks))
    for section in ("settings", "vary"):
        for name in found.get(section) if isinstance(found.get(section), dict) else ():
            if name in known_settings() and name not in declared:
                yield (section, name), f"None of the notebooks {', '.join(map(_notebook, names))} takes {name!r}."


def _typed(found: dict[str, Any]) -> dict[str, Any]:
    """Return the checked values in their settings' types."""
    typed = dict(found)
    typed["settings"] = check_values(found.get("settings", {}))
    typed["vary"] = {
        name: Range(**{**over, "scale": _scale(name, over)})
        if isinstance(over, dict)
        else [check_values({name: value})[name] for value in over]
        for name, over in found["vary"].items()
    }
    if "notebooks" in found:
        typed["notebooks"] = [_notebook(name) for name in found["notebooks"]]
    typed["storage"] = os.path.expandvars(found.get("storage", ""))  # so that a password need not stand in the file
    return typed
