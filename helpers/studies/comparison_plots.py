"""Pictures of many runs: their curves overlaid, which setting mattered, and how settings and figure hang together."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from helpers.plots import BLUE, GREY, ORANGE, new_axes, plot_bars
from helpers.training.run_files import read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from helpers.studies.comparison import ComparedRun, RunTable

_MOST_NAMED = 8  # lines with a legend entry; more cannot be told apart
_FEWEST = 4  # runs from which an importance says anything


def plot_all(table: "RunTable") -> "Iterator[tuple[str, Axes]]":
    """Yield each picture that the runs allow, with a text for those who do not see it."""
    for group in table.groups:
        if any(_losses(run) for run in group):
            yield "Validation loss of each run over the tokens read", plot_curves(group)
        ranked = [run for run in group if run.ranked(table.by) is not None]
        varied = [name for name in table.differing if len({repr(run.settings.get(name)) for run in ranked}) > 1]
        if varied and len(ranked) >= 2:
            yield "Settings and figure of each run", plot_parallel(ranked, varied, by=table.by)
        if varied and len(ranked) >= _FEWEST:
            yield "How much each setting decides", plot_importance(ranked, varied, by=table.by)


def _losses(run: "ComparedRun") -> list[tuple[float, float]]:
    """Return (step, validation loss) of a run's history; none where it is damaged."""
    rows = read_history(run.folder) if run.state != "damaged" else []
    return [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]


def plot_curves(runs: "Sequence[ComparedRun]", *, ax: "Axes | None" = None) -> "Axes":
    """Draw the validation losses of runs over one another, in nats a token; the first runs given are named.

    The steps are laid out as tokens read where the run says how many a step takes, so that batch sizes compare.
    """
    ax = ax or new_axes(height=3.6)
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"].resampled(_MOST_NAMED + 1)
    in_tokens = all({"per_device_train_batch_size", "block_size"} <= set(run.settings) for run in runs if _losses(run))
    for number, run in reversed([*enumerate(runs)]):
        points = _losses(run)
        if not points:
            continue
        per_step = _tokens_per_step(run) if in_tokens else 1
        named = number < _MOST_NAMED
        ax.plot(
            [step * per_step for step, _ in points],
            [loss for _, loss in points],
            ":" if run.state == "pruned" else "o-",
            markersize=3,
            color=colours(number) if named else GREY,
            alpha=1 if named else 0.4,
            label=run.name.rpartition("/")[2] + (" (pruned)" if run.state == "pruned" else "") if named else None,
        )
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], frameon=False, fontsize="small")
    xlabel = "training tokens read" if in_tokens else "optimizer step"
    ax.set(xlabel=xlabel, ylabel="validation loss (nats a token)", title="The lowest curve at the end is the best run")
    return ax


def _tokens_per_step(run: "ComparedRun") -> int:
    batch = run.settings["per_device_train_batch_size"] * run.settings.get("gradient_accumulation_steps", 1)
    return batch * run.settings["block_size"]


def importance(runs: "Sequence[ComparedRun]", names: Sequence[str], *, by: str) -> dict[str, float]:
    """Return how much each setting decides whether a run is among the best quarter; the shares sum to 1.

    The method is PED-ANOVA as Optuna computes it (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255).
    """
    import optuna

    choices = {name: [run.settings[name] for run in runs if run.settings.get(name) is not None] for name in names}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for run in runs:
        values = {name: run.settings[name] for name in names if run.settings.get(name) is not None}
        spread = {name: _distribution(choices[name]) for name in values}
        study.add_trial(optuna.create_trial(params=values, distributions=spread, value=getattr(run, by)))
    with warnings.catch_warnings(action="ignore"):  # experimental, and few runs are told as such in the title
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: share for name, share in found.items() if math.isfinite(share)}


def _distribution(values: list[Any]) -> Any:
    """Return the distribution that the values of one setting were tried from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not _are_numbers(values) or min(values) == max(values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    return FloatDistribution(min(values), max(values), log=_spans_powers(values))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spans_powers(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 8


def plot_importance(
    runs: "Sequence[ComparedRun]", names: Sequence[str], *, by: str, ax: "Axes | None" = None
) -> "Axes":
    """Draw how much each setting decides about the figure, the most important on top."""
    shares = importance(runs, names, by=by)
    title = f"What decides who is in the best quarter, judged from {len(runs)} runs"
    return plot_bars(shares, xlabel=f"share of importance for {by.replace('_', ' ')}", title=title, ax=ax)


def plot_parallel(runs: "Sequence[ComparedRun]", names: Sequence[str], *, by: str, ax: "Axes | None" = None) -> "Axes":
    """Draw each run as a line through the values of its settings to its figure; the best run is orange."""
    ax = ax or new_axes(width=2.2 + 1.6 * len(names), height=3.8)
    columns = [*names, by]
    places = []
    for column in columns:
        values = [getattr(run, by) if column == by else run.settings.get(column) for run in runs]
        heights, ticks = _heights(values)
        places.append(heights)
        _draw_scale(ax, len(places) - 1, ticks)
    order = sorted(range(len(runs)), key=lambda i: getattr(runs[i], by), reverse=True)
    for number, i in enumerate(order):
        is_best = number == len(order) - 1
        shade = 0.15 + 0.55 * number / len(order)  # the better, the stronger
        ax.plot(range(len(columns)), [heights[i] for heights in places], color=ORANGE if is_best else BLUE,
                alpha=1 if is_best else shade, linewidth=2.5 if is_best else 1.2)  # fmt: skip
    ax.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns])
    ax.set(yticks=[], xlim=(-0.2, len(columns) - 0.6), title="Each line a run; the orange one is the best")
    ax.spines[:].set_visible(False)
    return ax


def _heights(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Place values between 0 and 1, numbers by size and words side by side, and name some of the places."""
    if not _are_numbers(values):
        kinds = list(dict.fromkeys(map(str, values)))
        at = {kind: i / max(1, len(kinds) - 1) for i, kind in enumerate(kinds)}
        return [at[str(value)] for value in values], {height: kind[-18:] for kind, height in at.items()}
    low, high = min(values), max(values)
    measure = math.log if _spans_powers(values) else float
    span = (measure(high) - measure(low)) or 1.0
    heights = [(measure(value) - measure(low)) / span for value in values]
    distinct = dict(zip(heights, values, strict=True))
    named = distinct if len(distinct) <= 6 else {0.0: low, 1.0: high}
    return heights, {height: f"{named[height]:.4g}" for height in _apart(sorted(named))}


def _apart(heights: Sequence[float]) -> list[float]:
    """Return the heights that leave room for a label each, from the lowest on."""
    kept: list[float] = []
    for height in heights:
        if not kept or height - kept[-1] > 0.05:
            kept.append(height)
    return kept


def _draw_scale(ax: "Axes", x: int, ticks: dict[float, str]) -> None:
    ax.axvline(x, color=GREY, linewidth=0.8)
    for height, label in ticks.items():
        ax.text(x + 0.03, height, label, fontsize="small", va="center")
