"""All plots of the course: plain rows in, matplotlib Axes out, readable in a light and a dark JupyterLab.

Each function draws into `ax`, or into a new figure, and returns the Axes. Lines differ in style as well as in colour.
Orange marks the tuned model or the subject of a plot, blue everything else. Each plot has alternative text.
"""

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.display import BLUE, GREEN, GREY, ORANGE, RED, STATUS_MARKS, cut, perplexity_text, quoted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DRAW_EVERY_SECONDS = 2  # a plot of a run in training is redrawn at most this often
COMMON_TOKENS = 8  # n-grams of up to about this many tokens occur in most texts of a kind, copied or not


def open_no_windows() -> None:
    """Select matplotlib's backend without windows if none is chosen yet: call it before drawing for a page.

    Outside Jupyter, pyplot would use the desktop's toolkit, which fails on a Windows with an incomplete Tcl.
    """
    import matplotlib as mpl

    if mpl.get_backend(auto_select=False) is None:
        mpl.use("agg")


def new_axes(*, width: float = 7.0, height: float = 3.2) -> "Axes":
    """Return the Axes of a new figure, `width` by `height` inches."""
    return new_figure(width=width, height=height)[1]


def new_figure(n_rows: int = 1, n_columns: int = 1, *, width: float, height: float) -> tuple["Figure", Any]:
    """Return a new white figure, readable in both themes, and its Axes (an array if there are several)."""
    import matplotlib.pyplot as plt

    size = {"figsize": (width, height), "layout": "constrained", "facecolor": "white"}
    figure, axes = plt.subplots(n_rows, n_columns, **size)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    show_description(figure)
    return figure, axes


def show_description(figure: "Figure") -> None:
    """Make a notebook store a figure's description with its picture, as alternative text and as plain text."""
    # Jupyter gets an object's metadata from this method; nbconvert turns it into the image's `alt`.
    figure._repr_mimebundle_ = lambda **_: ({"text/plain": (text := describe(figure))}, {"image/png": {"alt": text}})


def png_of(figure: "Figure") -> str:
    """Return a figure as a base64 PNG for a page, and close the figure."""
    import matplotlib.pyplot as plt

    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(image.getvalue()).decode()


def describe(figure: "Figure") -> str:
    """Describe a figure in words: for each Axes its title, its labels, and the legend or the values."""
    parts = [figure.get_suptitle()]
    for ax in figure.axes:
        words = [ax.get_title()]
        if ax.get_xlabel():
            words.append(" against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel()))))
        heights = {line: _sample_values(line) for line in ax.lines if line.get_transform() == ax.transData}
        legend = zip(*ax.get_legend_handles_labels(), strict=True)
        named = [f"{name} {heights.get(handle, '')}".strip() for handle, name in legend]
        texts = [text.get_text().strip() for text in ax.texts]
        values = ax.get_label() or ", ".join(filter(None, named or texts or heights.values()))
        parts.append(": ".join(filter(None, [". ".join(filter(None, words)), values])))
    return " | ".join(filter(None, parts))


def _sample_values(line: "Line2D") -> str:
    """Return up to five evenly spaced values of a line as text, from the first to the last."""
    ys = line.get_ydata(orig=False)
    places = sorted({round(part * (len(ys) - 1) / 4) for part in range(5)}) if len(ys) else []
    return " … ".join(_three_digits(ys[place]) for place in places)


def plot_history(history: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw training and validation loss, in nats per token, over the steps of a run."""
    _check_history(history)
    ax = ax or new_axes()
    for key, name, colour, style in (("loss", "training", BLUE, "-"), ("eval_loss", "validation", ORANGE, "o--")):
        rows = [row for row in history if key in row]
        style = "o" if len(rows) == 1 else style  # a line of one point is invisible
        ax.plot([r["step"] for r in rows], [r[key] for r in rows], style, color=colour, label=name)
    ax.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    ax.set_title("While both fall, the model learns something general")
    ax.legend(frameon=False)
    return ax


def _check_history(history: Any) -> None:
    """Raise `TypeError` for something else than rows, such as the name of a run, which would give an empty picture."""
    if not isinstance(history, Sequence) or not all(isinstance(row, Mapping) for row in history):
        raise TypeError(f"history = {quoted(history)} has no rows: give a run's, such as open_run('mine').history.")


def plot_learning_rate(
    history: Sequence[Mapping[str, Any]], *, rates: Sequence[float] = (), ax: "Axes | None" = None
) -> "Axes":
    """Draw the logged learning rates over the steps of a run, as dots on the line of `rates` if those are given.

    `rates` is the schedule, one rate per step from step 1: a history that logs every tenth step hides the warm-up.
    """
    _check_history(history)
    ax = ax or new_axes(height=2.4)
    rows = [row for row in history if "learning_rate" in row]
    if rates:
        ax.plot(range(1, len(rates) + 1), rates, color=GREEN)
    style = "o" if rates or len(rows) == 1 else "-"
    ax.plot([row["step"] for row in rows], [row["learning_rate"] for row in rows], style, color=GREEN)
    ax.set(xlabel="optimizer step", ylabel="learning rate", title="The learning rate along the schedule")
    return ax


class LivePlot:
    """Draws a run's history in place while it trains: `fine_tune(settings, watch=LivePlot())`.

    In JupyterLab one figure is updated; an executed notebook keeps its last state. Training waits 0.1 to 0.5 s for
    each drawing, so the next one starts only after ten times as long, and after two seconds at the earliest.
    """

    def __init__(self) -> None:
        self._due, self._handle = -math.inf, None

    def __call__(self, history: Sequence[Mapping[str, Any]], progress: Any) -> None:
        """Draw the history, unless the last drawing is too recent; the last step is always drawn."""
        import matplotlib.pyplot as plt
        from IPython.display import display

        begin = time.monotonic()
        if begin < self._due and progress.step < progress.max_steps:
            return
        figure, (left, right) = new_figure(1, 2, width=10, height=3.2)
        plot_history(history, ax=left)
        plot_learning_rate(history, ax=right)
        figure.suptitle(str(progress), fontsize="medium")
        plt.close(figure)  # otherwise Jupyter displays it once more at the end of the cell
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        self._due = begin + max(_DRAW_EVERY_SECONDS, 10 * (time.monotonic() - begin))


def plot_lengths(lengths: Sequence[int], *, block_size: int, ax: "Axes | None" = None) -> "Axes":
    """Draw a histogram of document lengths in tokens, with a line at the length of a block."""
    ax = ax or new_axes()
    ax.hist(lengths, bins=40, color=BLUE)
    ax.axvline(block_size, color=ORANGE, linestyle="--")
    ax.set(
        xlabel=f"tokens in a document (dashed: block_size = {block_size})",  # a legend would cover bars
        ylabel="documents",
        title="How long the documents are",
    )
    return ax


def plot_bars(
    values: Mapping[str, float], *, xlabel: str, title: str, accent: str = "tuned", ax: "Axes | None" = None
) -> "Axes":
    """Draw named values as horizontal bars with their values; the first on top, the one named `accent` in orange."""
    ax = ax or new_axes(height=0.8 + 0.4 * len(values))
    names = list(values)[::-1]
    bars = ax.barh(
        names, [values[name] for name in names], color=[ORANGE if name == accent else BLUE for name in names]
    )
    ax.bar_label(bars, labels=[f" {_three_digits(values[name])}" for name in names])
    ax.set(xlabel=xlabel, title=title)
    ax.set_label(", ".join(f"{name} {_three_digits(value)}" for name, value in values.items()))
    ax.margins(x=0.15)
    return ax


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot_surprise(tokens: Sequence[str], nats: Mapping[str, Sequence[float]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw models' surprise at each token of a sentence; `nats` is a model's name -> its values in nats (tokens,)."""
    ax = ax or new_axes(width=min(max(6.0, 0.5 * len(tokens)), 12.0), height=4.0)  # a page would shrink a wider one
    colours = dict(zip(nats, (BLUE, ORANGE, GREEN), strict=False))
    width = 0.8 / len(nats)
    for number, (name, values) in enumerate(nats.items()):
        mean = sum(values) / len(values)
        label = f"{name}: mean {mean:.2f} nats, perplexity {perplexity_text(mean)}"
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(tokens))]
        ax.bar(places, values, width=width, color=colours[name], label=label)
        ax.axhline(mean, color=colours[name], linestyle="--", linewidth=1)
    labels = [_cut(token.replace("\n", "\u21b5").replace(" ", "\u00b7"), 14) for token in tokens]
    size = min(10.0, 650 / len(tokens))  # points; otherwise the labels of many tokens overlap
    ax.set_xticks(range(len(tokens)), labels, rotation=60, ha="right", fontsize=size)
    ax.set(xlabel="token", ylabel="surprise (nats)")
    ax.set_title("The mean of the bars is the loss; its exponential is the perplexity")
    ax.figure.legend(loc="outside lower center", ncols=len(nats), frameon=False)  # inside it would cover bars
    return ax


def plot_gain(
    gains: Sequence[float],
    *,
    mean: float,
    interval: Sequence[float] | None,
    confidence: float = 0.95,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the bits per byte that fine-tuning saved on each document, the greatest gain first.

    `mean` is the gain over all bytes, and `interval` its confidence interval (low, high) at `confidence`, or None.
    """
    ax = ax or new_axes()
    ordered = sorted(gains, reverse=True)
    ax.bar(range(1, len(ordered) + 1), ordered, color=[BLUE if gain > 0 else RED for gain in ordered], width=0.9)
    ax.axhline(mean, color=ORANGE, linestyle="--", label=f"all documents: {mean:.2f}")
    if interval is not None:
        label = f"{confidence:.0%} interval: {interval[0]:.2f} to {interval[1]:.2f}"
        ax.axhspan(*interval, color=ORANGE, alpha=0.3, label=label)
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set(xlabel="documents, sorted by gain", ylabel="gain (bits per byte)")
    ax.set_title("Above 0: easier after fine-tuning")
    ax.figure.legend(loc="outside lower center", ncols=2, frameon=False)  # inside it would cover bars
    return ax


def plot_novelty(curves: Mapping[str, Sequence[float | None]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw the share of n-grams that are not in the training text, for n = 1, 2, ...

    `curves` is name -> share for each n; a share is None if no text has n tokens.
    """
    ax = ax or new_axes()
    ax.axvspan(1, COMMON_TOKENS, color=GREY, alpha=0.15, label="phrases that any two texts share")
    for (name, shares), colour, style in zip(curves.items(), (ORANGE, BLUE, GREEN), ("o-", "s--", "^:"), strict=False):
        measured = [share for share in shares if share is not None]
        ax.plot(range(1, len(measured) + 1), measured, style, color=colour, label=name)
    ax.set(xlabel="n (tokens)", ylabel="share of new n-grams", ylim=(-0.02, 1.04))
    ax.set_title("Copying shows at the right: long n-grams that are not new" if curves else "Not measured")
    if curves:
        ax.legend(frameon=False, loc="lower right")
    return ax


def plot_chain(chain: Sequence[Mapping[str, str]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw a chain of requirements, each of which depends on the one above it, and where the chain breaks.

    Each row has a `link`, a `status` (a key of `STATUS_MARKS`), a `reading` and a `role`.
    """
    ax = ax or new_axes(width=9.0, height=0.4 + 0.75 * len(chain))
    broken = next((row["link"] for row in chain if row["status"] == "fail"), None)
    for y, row in enumerate(chain):
        colour = STATUS_MARKS[row["status"]][1]
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        ax.text(0, y, f"{row['link']}: {row['status']}", ha="center", va="center", bbox=box)
        ax.text(0.75, y - 0.13, _cut(row["reading"], 85), va="center")
        ax.text(0.75, y + 0.22, row["role"], va="center", color=GREY, fontsize="small", style="italic")
        if y:
            is_broken = broken in (row["link"], chain[y - 1]["link"])
            ax.plot([0, 0], [y - 0.7, y - 0.3], ":" if is_broken else "-", color=RED if is_broken else GREY)
    ax.set(xlim=(-0.8, 6), ylim=(len(chain) - 0.4, -0.6))
    on_card = chain[0]["status"] != "absent"
    intact = "Nothing in the chain is broken" if on_card else "No card responds: the CPU does the work"
    ax.set_title(f"The chain breaks at: {broken}" if broken else intact)
    ax.axis("off")
    return ax


def _cut(text: str, length: int) -> str:
    return cut(text.replace("$", r"\$"), length)  # matplotlib reads text between two $ as mathematics
