"""A study as its file declares it (what varies, notebooks, metric to minimise, budgets), and its points.

The models report errors as pydantic does, each with a `loc`, which `study_file` shows as its place in the file.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from helpers.course import find_notebook
from helpers.display import quoted
from helpers.files import refuse_long_paths
from helpers.schema import allowed
from helpers.settings import (
    SettingsError,
    TrainingSettings,
    check_values,
    known_settings,
    read_preset,
    run_folder,
)
from helpers.studies.comparability import Metric

_SEARCH_TRIALS = 20  # for a search without budgets.trials
_MAX_CORNERS = 256  # to plan, at up to 0.05 s each; nine ranges would have 512


def _check_study_name(name: str) -> str:
    try:
        refuse_long_paths(run_folder(name) / "trial-000-rate-1")  # the longest name: an experiment of a trial
    except SettingsError as error:
        raise SettingsError(str(error).replace("run =", "study =", 1)) from None
    return name


def notebook_name(name: Any) -> str:
    """Return the name of an existing notebook; YAML reads an unquoted 03 as the number 3."""
    name = f"{name:02d}" if isinstance(name, int) else str(name)
    find_notebook(name)
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """A range from which a search chooses a number."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    scale: Literal["linear", "log"] = Field("linear", description="log: each factor is equally likely")


class Budgets(_Strict):
    """Upper limits of a study."""

    trials: int = Field(
        0, ge=0, le=10_000, description=f"points to try; 0: the complete grid, or {_SEARCH_TRIALS} points of a search"
    )
    hours: float = Field(
        0.0, ge=0, le=10_000, description="no trial starts later than this after the command; 0: no limit"
    )
    disk_gib: float = Field(0.0, ge=0, description="size of the study's folder; 0: all free space")


class Study(_Strict):
    """A study, as its file declares it."""

    study: Annotated[str, AfterValidator(_check_study_name)] = Field(
        description="name of the study's folder; the file's own name when left out"
    )
    preset: Annotated[str, AfterValidator(lambda preset: read_preset(preset) and preset)] = Field(
        "pocket", description="the settings every trial starts from"
    )
    settings: dict[str, Any] = Field({}, description="changes to the preset, the same in every trial")
    vary: dict[str, list[Any] | Range] = Field(description="setting: a list of values to try, or a range to search")
    notebooks: list[Annotated[str, BeforeValidator(notebook_name)]] = Field(
        ["03", "04"], description="what a trial runs, in this order; []: only the training, without a kernel to start"
    )
    optimise: Metric = Field(
        "eval_loss", description="metric to minimise; eval_loss is of the validation text, so the test text is not used"
    )
    prune: bool = Field(False, description="stop a trial whose validation loss is worse than the median of the others")
    keep_checkpoints: bool = Field(True, description="false: a finished trial keeps its model and no checkpoint")
    storage: Annotated[str, AfterValidator(os.path.expandvars)] = Field(
        "",
        description="address of a database, such as postgresql+psycopg://...; empty: a journal in the folder. "
        "Environment variables are filled in, so that the file need not hold a password; a relative path of an SQLite "
        "file begins in the study file's folder",
    )
    budgets: Budgets = Field(Budgets(), description="limits for trials, hours and disk")

    @field_validator("settings", mode="before")
    @classmethod
    def _check_settings(cls, values: Any) -> Any:
        return _check_each(values, _typed_value)

    @field_validator("vary", mode="before")
    @classmethod
    def _check_vary(cls, values: Any) -> Any:
        if values == {}:
            raise SettingsError("`vary` names no setting: give at least one, with a list of values or a range.")
        return _check_each(values, _typed_variation)

    @property
    def folder(self) -> Path:
        """The folder that contains the trials' folders and the journal."""
        return run_folder(self.study)

    @property
    def is_grid(self) -> bool:
        """Whether all points are known in advance, because nothing varies over a range."""
        return not any(isinstance(variation, Range) for variation in self.vary.values())

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points to try, in the file's order; empty dicts for a search, which chooses its points later."""
        if not self.is_grid:
            return [{} for _ in range(self.budgets.trials or _SEARCH_TRIALS)]
        return list(self._combinations(self.vary.values(), self.budgets.trials or None))

    @property
    def corners(self) -> list[dict[str, Any]]:
        """The points to plan: all points of a grid; for a search, both ends of each range with all list values."""
        if self.is_grid:
            return self.points
        ends = [[spec.low, spec.high] if isinstance(spec, Range) else spec for spec in self.vary.values()]
        return [check_values(corner) for corner in self._combinations(ends, _MAX_CORNERS)]

    def _combinations(self, values: Iterable[list[Any]], limit: int | None) -> Iterable[dict[str, Any]]:
        points = (dict(zip(self.vary, point, strict=True)) for point in itertools.product(*values))
        return itertools.islice(points, limit)

    def training_settings(self, point: Mapping[str, Any]) -> TrainingSettings:
        """Return the training settings of one trial."""
        known = TrainingSettings.model_fields
        changes = {name: value for name, value in {**self.settings, **point}.items() if name in known}
        return TrainingSettings.from_preset(self.preset, **{**changes, "run": "trial"})

    # Studies in old journals are compared with this dict: its keys and format must not change.
    @property
    def essence(self) -> dict[str, Any]:
        """The entries that must stay the same when a study continues, as JSON; budgets may change."""
        return self.model_dump(mode="json", include={"preset", "settings", "vary", "notebooks", "optimise"})


def trial_name(point: int) -> str:
    """Return the name of the trial folder for a point.

    >>> trial_name(7)
    'trial-007'
    """
    return f"trial-{point:03d}"


def _check_each(values: Any, check: Callable[[Any, Any], Any]) -> Any:
    """Check each value by its key; raise one error with all faults, each with its key in `loc`.

    Pydantic's own dict[str, ...] checks a value without its key; here the key names the setting with the type.
    """
    if not isinstance(values, dict):
        return values  # pydantic will reject it
    checked, faults = {}, []
    for key, value in values.items():
        try:
            checked[key] = check(key, value)
        except ValidationError as error:
            faults += [{**fault, "loc": (key, *fault["loc"])} for fault in error.errors()]
        except SettingsError as error:
            faults.append({"type": "value_error", "loc": (key,), "input": value, "ctx": {"error": error}})
    if faults:
        raise ValidationError.from_exception_data("Study", faults)
    return checked


def _typed_value(name: Any, value: Any) -> Any:
    """Return a value converted to its setting's type."""
    if name == "run":
        raise SettingsError("A study cannot set `run`: each trial has its own folder, named by its number.")
    return check_values({str(name): value})[str(name)]


def _typed_variation(name: Any, variation: Any) -> list[Any] | Range:
    """Return the values or the range of a varied setting, converted to the setting's type."""
    if name not in known_settings():
        return _typed_value(name, variation)  # raises the error for an unknown name
    if isinstance(variation, dict):
        return _typed_range(name, variation)
    if not isinstance(variation, list) or not variation:
        raise SettingsError(
            f"{name} = {quoted(variation)} is not allowed: it must be a list of values, or a range with low and high."
        )
    # one fault per value, with its index in `loc`, rather than only the first
    values = [*_check_each(dict(enumerate(variation)), lambda _, value: _typed_value(name, value)).values()]
    if len({repr(value) for value in values}) < len(values):  # 0.001 and 1e-3 are the same point
        raise SettingsError(f"{name} has the same value twice: each point of a grid is run once.")
    return values


def _typed_range(name: str, entries: dict[str, Any]) -> Range:
    field = known_settings()[name]
    if field.annotation not in (int, float):
        raise SettingsError(f"{name} has no range: it must be {allowed(field)}. List the values to try.")
    scale = (field.json_schema_extra or {}).get("scale", "linear")  # the setting's own, if the file has none
    checked = Range.model_validate({"scale": scale, **entries})
    # the values as in the file: an error message must show 1.5, or the text "7", as the user wrote it
    _check_each({end: entries[end] for end in ("low", "high")}, lambda _, value: _typed_value(name, value))
    low, high = checked.low, checked.high
    if not low < high or not math.isfinite(high - low):
        raise SettingsError(f"The range of {name} goes from {low:g} to {high:g}: low must be below high.")
    if low <= 0 and checked.scale == "log":
        raise SettingsError(f"The range of {name} begins at {low:g}: on a log scale it must begin above 0.")
    return checked
