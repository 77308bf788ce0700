"""Notebook 02's report on a prepared text, as a table and as pictures."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.data.facts import TINY_TOKENS, documents_text, tokens_per_character
from helpers.data.run_data import PreparedData
from helpers.data.token_view import piece_of
from helpers.display import PlainTextMixin, html_table
from helpers.plots import BLUE, GREEN, GREY, ORANGE, RED, new_axes, new_figure, plot_bars, plot_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase

_SAMPLE_TOKENS = 2**21
_N_FREQUENT, _N_DRAWN = 12, 16
_PADDING = "#dddddd"


@dataclass(frozen=True)
class DataReport(PlainTextMixin):
    """Statistics of a prepared text; a notebook shows them as a table.

    Attributes:
        lengths: tokens of each training document, including its end-of-text token. (documents,)
        tokens_per_byte: for each training document. (documents,)
        frequent: the most frequent tokens of the training text: token as text -> share of all tokens.
        facts: the contents of `data.json`.
    """

    lengths: np.ndarray
    tokens_per_byte: np.ndarray
    frequent: dict[str, float]
    facts: dict[str, Any]

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the table, each a name and a value."""
        facts, leakage = self.facts, self.facts["leakage"]
        near = f"{facts['near_duplicates']:,}, of which {facts['near_duplicates_removed']:,} left out"
        if facts["settings"]["near_duplicates"] == "keep":
            near = "not looked for"
        encodings = ", ".join(f"{name}: {count}" for name, count in facts["encodings"].items()) or "no text files"
        return [
            ("what separates documents", documents_text(facts)),
            ("documents read", f"{facts['documents_read']:,}"),
            ("empty, left out", f"{facts['empty']:,}"),
            ("repeated, left out", f"{facts['duplicates_removed']:,}"),
            ("nearly the same as another", near),
            (f"with at most {TINY_TOKENS} tokens", f"{facts['tiny_documents']:,}"),
            ("longest document", f"{facts['longest_document_tokens']:,} tokens"),
            ("text files by encoding", encodings),
            ("tokens per character", f"{tokens_per_character(facts):.3f}"),
            ("bytes per token", f"{facts['bytes'] / max(1, facts['tokens']):.2f}"),
            (
                "test text that is in the training text too",
                f"{leakage['share_in_train']:.2%} of its {leakage['ngram']}-grams",
            ),
        ]

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.facts["notes"])
        return f"{html_table((), self.rows())}<ul>{notes}</ul>"


def report(data: PreparedData, tokenizer: "PreTrainedTokenizerBase") -> DataReport:
    """Describe a prepared text; `tokenizer` must be the one that it was prepared with."""
    lengths = data.documents["train"].with_format("numpy")["n_tokens"][:]
    n_bytes = np.array([len(text.encode()) for text in data.documents["train"]["text"]])
    frequent = _frequent_tokens(data.blocks["train"], tokenizer)
    return DataReport(lengths, lengths / n_bytes, frequent, data.facts)


def useful_share(lengths: Sequence[int] | np.ndarray, width: int) -> float:
    """Return the share of positions that hold text when each document is cut or padded to one row of `width`.

    >>> useful_share([50, 300], 100)
    0.75
    """
    return float(np.minimum(lengths, width).sum() / (width * len(lengths)))


def cut_share(lengths: Sequence[int] | np.ndarray, width: int) -> float:
    """Return the share of the text that is cut off when each document gets one row of `width`.

    >>> cut_share([50, 150], 100)
    0.25
    """
    return float(1 - np.minimum(lengths, width).sum() / np.sum(lengths))


def _frequent_tokens(blocks: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> dict[str, float]:
    """Return the most frequent tokens among the first two million, as text, with their shares."""
    n_rows = min(len(blocks), max(1, _SAMPLE_TOKENS // len(blocks[0]["input_ids"])))
    counts = np.bincount(blocks.with_format("numpy")[:n_rows]["input_ids"].ravel())
    top = counts.argsort()[::-1][:_N_FREQUENT]
    # repr makes line ends and spaces visible; its quotes are removed
    pieces = map(piece_of, tokenizer.convert_ids_to_tokens(top.tolist()))
    return {repr(piece)[1:-1]: counts[token] / counts.sum() for piece, token in zip(pieces, top, strict=True)}


def plot_report(report: DataReport) -> np.ndarray:
    """Plot a data report: lengths, tokens per byte, waste through padding, frequent tokens; return the four Axes."""
    _, axes = new_figure(2, 2, width=10, height=6.4)
    plot_lengths(report.lengths, block_size=report.facts["settings"]["block_size"], ax=axes[0, 0])
    axes[0, 1].hist(report.tokens_per_byte, bins=40, color=GREEN)
    axes[0, 1].set(xlabel="tokens per byte", ylabel="documents", title="Far right: poor fit of the vocabulary")
    for ax in axes[0]:
        ax.yaxis.get_major_locator().set_params(integer=True)  # no half documents
    _plot_waste(report.lengths, ax=axes[1, 0])
    frequent = {name.replace("$", r"\$"): 100 * share for name, share in report.frequent.items()}  # $ starts a formula
    plot_bars(frequent, xlabel="share of all tokens (%)", title="The most frequent tokens", ax=axes[1, 1])
    return axes


def _plot_waste(lengths: np.ndarray, *, ax: "Axes") -> None:
    """Plot what one document per row would waste, for the usual widths: no width avoids both kinds of waste."""
    widths = [2**power for power in range(6, 11)]
    padding = [100 * (1 - useful_share(lengths, width)) for width in widths]
    cut_off = [100 * cut_share(lengths, width) for width in widths]
    ax.plot(widths, padding, "o-", color=BLUE, label="positions without text")
    ax.plot(widths, cut_off, "s--", color=RED, label="text that is cut off")
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(width) for width in widths])
    ax.set(xlabel="tokens in a row of one document", ylabel="%", ylim=(-4, 104), title="What padding would waste")
    ax.legend(frameon=False)


def plot_packing(lengths: Sequence[int] | np.ndarray, *, block_size: int) -> "Axes":
    """Draw the first 16 documents to scale: each padded to its own row, and below, the same documents packed.

    Text that is cut off is hatched, to the right of its row. `lengths` are the tokens of each document, including its
    end-of-text token.
    """
    shown = np.asarray(lengths)[:_N_DRAWN]
    ends = shown.cumsum()
    n_rows = min(2 * _N_DRAWN, -(-int(ends[-1]) // block_size))  # one document can be an entire book
    ax = new_axes(width=8.0, height=1.2 + 0.16 * (len(shown) + n_rows))
    for row, length in enumerate(shown):
        ax.barh(row, block_size, color=_PADDING, height=0.8)
        ax.barh(row, min(length, block_size), color=(BLUE, ORANGE)[row % 2], height=0.8)
        if length > block_size:
            lost = {"facecolor": "white", "edgecolor": RED, "hatch": "////", "height": 0.8}
            ax.barh(row, length - block_size, left=block_size, **lost)
    first_row = len(shown) + 1
    for number, (start, end) in enumerate(zip(ends - shown, ends, strict=True)):
        for row in range(start // block_size, min(n_rows, -(-end // block_size))):
            left, right = max(start, row * block_size), min(end, (row + 1) * block_size)
            ax.barh(first_row + row, right - left, left=left % block_size, color=(BLUE, ORANGE)[number % 2], height=0.8)
    padded, lost = useful_share(shown, block_size), cut_share(shown, block_size)
    ax.axvline(block_size, color=GREY, linewidth=1)
    ax.set_yticks([(len(shown) - 1) / 2, first_row + (n_rows - 1) / 2], ["padded", "packed"])
    ax.set(xlim=(0, min(3 * block_size, max(block_size, shown.max()))), ylim=(first_row + n_rows - 0.4, -0.6))
    ax.set_xlabel("position in the row (tokens); grey: padding, hatched: cut off")
    ax.set_title(f"Padded, {padded:.0%} of the positions hold text, and {lost:.0%} of the text is cut off")
    return ax
