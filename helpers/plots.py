"""Plain rows in, matplotlib Axes out: every picture of the course, readable in a light and a dark JupyterLab.

Each function draws into `ax`, or into a new figure, and returns the Axes. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/); lines differ by style too.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#777777", "#B34700"
STATUS_COLOURS = {"ok": BLUE, "warn": ORANGE, "fail": RED, "unknown": GREY}


def new_axes(*, width: float = 7.0, height: float = 3.2) -> "Axes":
    """Return the Axes of a new figure of `width` by `height` inches on white, which both themes can show."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained", facecolor="white")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_history(history: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None, label: str = "") -> "Axes":
    """Draw training and validation loss in nats a token over the steps of a run."""
    ax = ax or new_axes()
    for key, name, colour, style in (("loss", "training", BLUE, "-"), ("eval_loss", "validation", ORANGE, "o--")):
        rows = [row for row in history if key in row]
        ax.plot([r["step"] for r in rows], [r[key] for r in rows], style, color=colour, label=f"{label} {name}".strip())
    ax.set(
        xlabel="optimizer step",
        ylabel="loss (nats a token)",
        title="While both fall, the model learns something general",
    )
    ax.legend(frameon=False)
    return ax


def plot_learning_rate(history: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw the learning rate over the steps of a run."""
    ax = ax or new_axes(height=2.4)
    rows = [row for row in history if "learning_rate" in row]
    ax.plot([row["step"] for row in rows], [row["learning_rate"] for row in rows], color=GREEN)
    ax.set(xlabel="optimizer step", ylabel="learning rate", title="The learning rate along the schedule")
    return ax


class LivePlot:
    """Draws a run's history in place while it trains: `fine_tune(settings, watch=LivePlot())`.

    In JupyterLab one figure changes; under papermill and nbmake the last state of it is what remains.
    """

    def __init__(self, *, interval_seconds: float = 1.0) -> None:
        self._interval, self._drawn_at = interval_seconds, -math.inf
        self._handle: Any = None

    def __call__(self, history: Sequence[Mapping[str, Any]], progress: Any) -> None:
        """Draw, unless the last drawing is younger than the interval and more is to come."""
        import matplotlib.pyplot as plt
        from IPython.display import display

        is_last = progress.step >= progress.max_steps
        if not is_last and time.monotonic() - self._drawn_at < self._interval:
            return
        self._drawn_at = time.monotonic()
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", facecolor="white")
        plot_history(history, ax=left)
        plot_learning_rate(history, ax=right)
        figure.suptitle(str(progress), fontsize="medium")
        plt.close(figure)  # what is displayed here shall not be displayed once more at the cell's end
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)


def plot_lengths(lengths: Sequence[int], *, block_size: int, ax: "Axes | None" = None) -> "Axes":
    """Draw how long documents are, in tokens, beside the length of a block."""
    ax = ax or new_axes()
    ax.hist(lengths, bins=40, color=BLUE)
    ax.axvline(block_size, color=ORANGE, linestyle="--", label=f"block_size = {block_size}")
    ax.set(
        xlabel="tokens in a document",
        ylabel="documents",
        title="What lies left of the line, padding would have filled up",
    )
    ax.legend(frameon=False)
    return ax


def plot_bars(
    values: Mapping[str, float], *, xlabel: str, title: str, ax: "Axes | None" = None, log: bool = False
) -> "Axes":
    """Draw named values as horizontal bars with their figures; the first on top."""
    ax = ax or new_axes(height=0.8 + 0.4 * len(values))
    names = list(values)[::-1]
    bars = ax.barh(
        names, [values[name] for name in names], color=[BLUE if i % 2 else ORANGE for i in range(len(names))]
    )
    ax.bar_label(bars, labels=[f" {values[name]:,.4g}" for name in names])
    if log:
        ax.set_xscale("log")
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.15)
    return ax


def plot_gain(base_nats: "np.ndarray", tuned_nats: "np.ndarray", *, ax: "Axes | None" = None) -> "Axes":
    """Draw, for each held-out document, the nats the base model needed and the tuned one needs."""
    ax = ax or new_axes(width=4.6, height=4.2)
    ax.scatter(base_nats, tuned_nats, s=14, color=BLUE)
    top = float(max(base_nats.max(), tuned_nats.max()))
    ax.plot([0, top], [0, top], "--", color=GREY, label="no change")
    ax.set(xlabel="base model (nats a document)", ylabel="tuned model (nats a document)")
    ax.set_title("Below the line: easier after fine-tuning")
    ax.legend(frameon=False)
    return ax


def plot_chain(chain: Sequence[Mapping[str, str]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw a chain of links, each leaning on the one above, and where it breaks.

    Args:
        chain: rows of `link`, `status` ('ok', 'warn', 'fail' or 'unknown'), `reading` and `role`, in order.
        ax: where to draw; its axes are taken away, since nothing is measured here.
    """
    ax = ax or new_axes(width=9.0, height=0.4 + 0.75 * len(chain))
    broken = next((row["link"] for row in chain if row["status"] == "fail"), None)
    for y, row in enumerate(chain):
        colour = STATUS_COLOURS[row["status"]]
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        ax.text(0, y, f"{row['link']}: {row['status']}", ha="center", va="center", bbox=box)
        ax.text(0.75, y - 0.13, _cut(row["reading"], 85), va="center")
        ax.text(0.75, y + 0.22, row["role"], va="center", color=GREY, fontsize="small", style="italic")
        if y:
            is_broken = broken in (row["link"], chain[y - 1]["link"])
            ax.plot([0, 0], [y - 0.7, y - 0.3], ":" if is_broken else "-", color=RED if is_broken else GREY)
    ax.set(xlim=(-0.8, 6), ylim=(len(chain) - 0.4, -0.6))
    ax.set_title(f"The chain breaks at: {broken}" if broken else "Nothing in the chain is broken")
    ax.axis("off")
    return ax


def _cut(text: str, length: int) -> str:
    text = text.replace("$", r"\$")  # matplotlib would read mathematics between two of them
    return text if len(text) <= length else text[: length - 1] + "…"
