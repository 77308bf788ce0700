"""A comparison as one page with pictures: validation losses, settings and metric, and each setting's importance."""

import html
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.files import write_html_page
from helpers.plots import GREY, ORANGE, new_axes, open_no_windows, plot_bars, png_of, show_description
from helpers.studies.comparability import Metric
from helpers.studies.compared_run import ComparedRun
from helpers.studies.comparison import RunTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study as OptunaStudy

_MAX_NAMED = 8  # lines with a legend entry; more could not be told apart
_MIN_RUNS = 5  # runs; with fewer, the best quarter is one run, which every setting separates equally well
_TOKENS_PER_STEP = {"per_device_train_batch_size", "gradient_accumulation_steps", "block_size"}  # their product
_LOG_FACTOR = 8  # ratio of largest to smallest value from which a setting has a log scale


def write_page(table: RunTable, path: Path) -> None:
    """Write a table and its pictures as a single page that needs no network."""
    open_no_windows()
    pictures = "".join(
        f"<p><img alt='{html.escape(alt)}' src='data:image/png;base64,{png_of(ax.figure)}'></p>"
        for alt, ax in plot_all(table)
    )
    write_html_page(path, title="Runs compared", body=f"{table._repr_html_()}{pictures}")


def plot_all(table: RunTable) -> "Iterator[tuple[str, Axes]]":
    """Yield each picture that the runs allow, with alternative text for readers who cannot see it."""
    for group in table.groups:
        if any(run.losses for run in group):
            yield "Validation loss of each run over the tokens read", plot_curves(group)
        ranked = [run for run in group if run.ranked(table.by) is not None]
        varied = [name for name in table.differing if len({repr(run.settings.get(name)) for run in ranked}) > 1]
        if varied and len(ranked) >= 2:
            yield "Settings and metric of each run", plot_parallel(ranked, varied, by=table.by)
        if varied and len(ranked) >= _MIN_RUNS:
            yield "How much each setting decides", plot_importance(ranked, varied, by=table.by)


def plot_curves(runs: Sequence[ComparedRun]) -> "Axes":
    """Plot the validation losses of runs, in nats per token, over the tokens read, so that batch sizes are comparable.

    Only the first eight runs are named in the legend.
    """
    ax = new_axes(height=3.6)
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"].resampled(min(len(runs), _MAX_NAMED) + 1)  # without its yellow end
    for number, run in reversed([*enumerate(runs)]):  # the best run last, on top of the others
        if not run.losses or not run.settings.keys() >= _TOKENS_PER_STEP:  # such as a run that lost its settings.json
            continue
        steps, values = zip(*run.losses, strict=True)
        tokens_per_step = math.prod(run.settings[name] for name in _TOKENS_PER_STEP)
        is_named = number < _MAX_NAMED
        ax.plot(
            [step * tokens_per_step for step in steps],
            values,
            ":" if run.state == "pruned" else "o-",
            markersize=3,
            color=colours(number) if is_named else GREY,
            alpha=1 if is_named else 0.4,
            label=run.name.rpartition("/")[2] + (" (pruned)" if run.state == "pruned" else "") if is_named else None,
        )
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], frameon=False, fontsize="small")
    ax.set(xlabel="training tokens read", ylabel="validation loss (nats per token)")
    ax.set_title("The lowest curve at the end is the best run")
    return ax


def plot_parallel(runs: Sequence[ComparedRun], names: Sequence[str], *, by: Metric) -> "Axes":
    """Plot each run as a line from its metric through its settings' values; the best run is orange."""
    import numpy as np
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    with warnings.catch_warnings(action="ignore"):  # marked experimental
        ax = plot_parallel_coordinate(_as_study(runs, names, by=by), list(names), target_name=by.replace("_", " "))
    lines = ax.collections[0]
    lines.colorbar.remove()  # it repeats the first axis and covers the last one's labels
    metrics = lines.get_array()
    lines.set_clim(metrics.min(), metrics.max() + np.ptp(metrics))  # otherwise the worst lines would be pale on white
    ax.plot(*lines.get_segments()[metrics.argmin()].T, color=ORANGE, linewidth=2.5)
    ax.set_title("Each line a run; the orange one is the best", y=1.06)
    best = min(runs, key=lambda run: getattr(run, by))
    ax.set_label(f"{best.name}, {by.replace('_', ' ')} {getattr(best, by):.4g}")
    show_description(ax.figure)
    ax.figure.set(size_inches=(3.5 + 1.6 * len(names), 3.8), facecolor="white")
    return ax


def plot_importance(runs: Sequence[ComparedRun], names: Sequence[str], *, by: Metric) -> "Axes":
    """Plot how much each setting affects the metric, with the most important one on top."""
    title = f"What puts a run in the best quarter, judged from {len(runs)} runs"
    return plot_bars(
        importance(runs, names, by=by), xlabel=f"share of importance for {by.replace('_', ' ')}", title=title
    )


def importance(runs: Sequence[ComparedRun], names: Sequence[str], *, by: Metric) -> dict[str, float]:
    """Return how much each setting determines whether a run is in the best quarter; the shares sum to 1.

    The method is PED-ANOVA as Optuna computes it (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255).
    """
    import optuna

    with warnings.catch_warnings(action="ignore"):  # marked experimental; the title gives the number of runs
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        shares = optuna.importance.get_param_importances(_as_study(runs, names, by=by), evaluator=evaluator)
    return {name: share for name, share in shares.items() if math.isfinite(share)}


def _as_study(runs: Sequence[ComparedRun], names: Sequence[str], *, by: Metric) -> "OptunaStudy":
    """Return an in-memory study with the runs as trials, over the range of the values that the runs have."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = [{name: run.settings[name] for name in names if run.settings.get(name) is not None} for run in runs]
    spread = {name: _distribution([params[name] for params in known if name in params]) for name in names}
    study = optuna.create_study()
    for run, params in zip(runs, known, strict=True):
        distributions = {name: spread[name] for name in params}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=getattr(run, by)))
    return study


def _distribution(values: list[Any]) -> Any:
    """Return a distribution that covers the values of one setting."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not are_numbers or min(values) == max(values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    return FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_FACTOR)
