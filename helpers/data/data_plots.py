"""Pictures of a text: padding against packing to scale, and the four of the data report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from helpers.data.quality import DataReport, useful_share
from helpers.plots import BLUE, GREEN, GREY, ORANGE, new_axes, plot_bars, plot_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PADDING = "#dddddd"


def plot_packing(
    lengths: Sequence[int] | np.ndarray, *, block_size: int, n_documents: int = 16, ax: "Axes | None" = None
) -> "Axes":
    """Draw the first documents to scale, each padded to a row of its own, and below them the same ones packed.

    Args:
        lengths: tokens of each document, its end-of-text included.
        block_size: positions of a row.
        n_documents: how many are drawn.
        ax: where to draw.
    """
    shown = np.asarray(lengths)[:n_documents]
    ends = shown.cumsum()
    n_rows = -(-int(ends[-1]) // block_size)
    ax = ax or new_axes(width=8.0, height=1.2 + 0.16 * (len(shown) + n_rows))
    for row, length in enumerate(shown):
        ax.barh(row, block_size, color=_PADDING, height=0.8)
        ax.barh(row, min(length, block_size), color=(BLUE, ORANGE)[row % 2], height=0.8)
    first_row = len(shown) + 1
    for place, (start, end) in enumerate(zip(ends - shown, ends, strict=True)):
        for row in range(start // block_size, -(-end // block_size)):
            left, right = max(start, row * block_size), min(end, (row + 1) * block_size)
            ax.barh(first_row + row, right - left, left=left % block_size, color=(BLUE, ORANGE)[place % 2], height=0.8)
    padded = useful_share(shown, block_size)
    ax.set_yticks([(len(shown) - 1) / 2, first_row + (n_rows - 1) / 2], ["padded", "packed"])
    ax.set(xlim=(0, block_size), ylim=(first_row + n_rows - 0.4, -0.6), xlabel="position in the row (tokens)")
    ax.set_title(f"The same {len(shown)} documents: padded, {padded:.0%} of the positions hold text (grey: none)")
    return ax


def plot_report(report: DataReport) -> np.ndarray:
    """Draw a data report: lengths, tokens per byte, what padding would waste, frequent tokens; return the four Axes."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained", facecolor="white")
    plot_lengths(report.lengths, block_size=report.facts["settings"]["block_size"], ax=axes[0, 0])
    axes[0, 0].set_title("How long the documents are")
    axes[0, 1].hist(report.tokens_per_byte, bins=40, color=GREEN)
    axes[0, 1].set(xlabel="tokens per byte", ylabel="documents", title="Far right: what the vocabulary fits badly")
    waste = {name: 100 * (1 - share) for name, share in report.useful_share.items()}
    plot_bars(waste, xlabel="positions without text (%)", title="What padding would waste", ax=axes[1, 0])
    frequent = {name.replace("$", r"\$"): 100 * share for name, share in report.frequent.items()}
    plot_bars(frequent, xlabel="share of all tokens (%)", title="The most frequent tokens", ax=axes[1, 1])
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=GREY)
    return axes
