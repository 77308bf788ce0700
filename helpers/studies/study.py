"""A study: a preset, what varies, the notebooks, the figure to optimise and the budgets; the points that follow."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from helpers.settings import Settings, TrainingSettings, check_values, known_settings, run_folder

_SEARCH_TRIALS = 20  # of a search that names no number


class Range(Settings):
    """From where to where a search may choose a number."""

    low: float = Field(0.0, description="smallest value")
    high: float = Field(1.0, description="largest value")
    scale: Literal["linear", "log"] = Field("linear", description="log: equal chances for equal factors")


class Budgets(Settings):
    """What a study may take at most."""

    trials: int = Field(
        0, ge=0, le=10_000, json_schema_extra={"unit": "trials"},
        description=f"how many points are tried; 0: the whole grid, or {_SEARCH_TRIALS} of a search",
    )  # fmt: skip
    hours: float = Field(
        0.0, ge=0, le=10_000, json_schema_extra={"unit": "hours"},
        description="no trial is begun later than this after the command; 0: no limit",
    )  # fmt: skip
    disk_gib: float = Field(
        0.0, ge=0, json_schema_extra={"unit": "GiB"}, description="what the study's folder may hold; 0: the disk's room"
    )


class Study(Settings):
    """A study, as its file declares it."""

    study: str = Field("study", description="name of the study's folder; the file's own name when left out")
    preset: str = Field("pocket", description="the settings every trial starts from")
    settings: dict[str, Any] = Field({}, description="changes to the preset, the same in every trial")
    vary: dict[str, list[Any] | Range] = Field({}, description="setting: a list to go through, or a range to search")
    notebooks: list[str] = Field(["03", "04"], description="what a trial runs, in this order")
    optimise: Literal["eval_loss", "bits_per_byte", "perplexity"] = Field(
        "eval_loss", description="figure to make small; eval_loss, of the validation text, leaves the test unseen"
    )
    prune: bool = Field(False, description="stop a trial whose validation loss falls behind the median of the others")
    keep_checkpoints: bool = Field(True, description="false: a finished trial keeps its model and no checkpoint")
    storage: str = Field(
        "", description="address of a database, such as postgresql+psycopg://...; empty: a journal in the folder"
    )
    budgets: Budgets = Field(Budgets(), description="trials, hours and disk at most")

    @property
    def folder(self) -> Path:
        """Where the trials' folders and the journal lie."""
        return run_folder(self.study)

    @property
    def is_grid(self) -> bool:
        """Whether every point is known beforehand: nothing varies over a range."""
        return not any(isinstance(over, Range) for over in self.vary.values())

    def is_whole(self, name: str) -> bool:
        """Whether a setting takes whole numbers only."""
        return known_settings()[name].annotation is int

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of the queue: of a grid its values, in the order of the file; of a search nothing yet."""
        if not self.is_grid:
            return [{} for _ in range(self.budgets.trials or _SEARCH_TRIALS)]
        grid = [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        return grid[: self.budgets.trials or None]

    @property
    def corners(self) -> list[dict[str, Any]]:
        """What has to fit: the points of a grid, or the ends of a search's ranges with every value of its lists."""
        if self.is_grid:
            return self.points
        ends = [[over.low, over.high] if isinstance(over, Range) else over for over in self.vary.values()]
        corners = itertools.islice(itertools.product(*ends), 256)
        return [check_values(dict(zip(self.vary, values, strict=True))) for values in corners]

    def training_settings(self, point: Mapping[str, Any], *, run: str = "trial") -> TrainingSettings:
        """Return the training settings of one trial."""
        known = TrainingSettings.model_fields
        asked = {name: value for name, value in {**self.settings, **point}.items() if name in known}
        return TrainingSettings.from_preset(self.preset, **{**asked, "run": run})

    @property
    def essence(self) -> dict[str, Any]:
        """What may not change while a study goes on; budgets may."""
        return self.model_dump(mode="json", include={"preset", "settings", "vary", "notebooks", "optimise"})


def trial_name(point: int) -> str:
    """Return the name of the folder of a point's trial.

    >>> trial_name(7)
    'trial-007'
    """
    return f"trial-{point:03d}"
