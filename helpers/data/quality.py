"""What a prepared text is like, and what of it a person should know before training on it."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.display import html_table
from helpers.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from helpers.data.preparation import PreparedData

ENGLISH_TOKENS_PER_CHARACTER = 0.25  # GPT-2's vocabulary on English prose: about four letters a token
POOR_FIT = 0.5  # tokens per character from which a vocabulary does not fit a text
LEAKED = 0.01  # share of the test's n-grams in the training text that is worth a word
MANY = 0.01  # share of the documents that is worth a word
TINY_TOKENS = 8
_SAMPLE_TOKENS = 2**21
_N_FREQUENT = 12


@dataclass(frozen=True)
class DataReport:
    """What a person wants to know of a prepared text; in a notebook it shows as a table.

    Attributes:
        lengths: tokens of each training document, its end-of-text included. (documents,)
        tokens_per_byte: of each training document. (documents,)
        useful_share: share of positions that hold text: by way of making rows.
        frequent: the most frequent tokens of the training text, as text, with their share of all tokens.
        facts: as in `data.json`.
    """

    lengths: np.ndarray
    tokens_per_byte: np.ndarray
    useful_share: dict[str, float]
    frequent: dict[str, float]
    facts: dict[str, Any]

    def rows(self) -> list[tuple[str, str]]:
        """Return what the table shows: a name and a value."""
        facts, leakage = self.facts, self.facts["leakage"]
        encodings = ", ".join(f"{name}: {count}" for name, count in facts["encodings"].items()) or "none to find"
        return [
            ("documents read", f"{facts['documents_read']:,}"),
            ("of them empty", f"{facts['empty']:,}"),
            ("repeated, left out", f"{facts['duplicates_removed']:,}"),
            ("nearly the same as another", _near(facts)),
            (f"of at most {TINY_TOKENS} tokens", f"{facts['tiny_documents']:,}"),
            ("longest document", f"{facts['longest_document_tokens']:,} tokens"),
            ("text files by encoding", encodings),
            ("tokens per character", f"{tokens_per_character(facts):.3f}"),
            ("bytes per token", f"{facts['bytes'] / max(1, facts['tokens']):.2f}"),
            (
                "test text that training text holds too",
                f"{leakage['share_in_train']:.2%} of its {leakage['ngram']}-grams",
            ),
        ]

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(note)}</li>" for note in self.facts["notes"])
        return f"{html_table((), self.rows())}<ul>{said}</ul>"


def report(data: "PreparedData", tokenizer: "PreTrainedTokenizerBase") -> DataReport:
    """Return the report of a prepared text.

    Args:
        data: what `prepare` returned.
        tokenizer: the one it was prepared with.
    """
    documents, block_size = data.documents["train"].with_format("numpy"), data.facts["settings"]["block_size"]
    lengths = documents["n_tokens"][:]
    n_bytes = np.array([len(text.encode()) for text in data.documents["train"]["text"]])
    useful = {f"padded to {block_size}": useful_share(lengths, block_size), "packed": 1.0}
    return DataReport(
        lengths, lengths / n_bytes, useful, frequent_tokens(data.blocks["train"], tokenizer, _N_FREQUENT), data.facts
    )


def useful_share(lengths: Sequence[int] | np.ndarray, width: int) -> float:
    """Return the share of positions that hold text when each document fills a row of its own, cut or padded to `width`.

    >>> useful_share([50, 300], 100)
    0.75
    """
    return float(np.minimum(lengths, width).sum() / (width * len(lengths)))


def frequent_tokens(blocks: "Dataset", tokenizer: "PreTrainedTokenizerBase", n: int) -> dict[str, float]:
    """Return the `n` most frequent tokens of the first two million, as text, with their share."""
    n_rows = min(len(blocks), max(1, _SAMPLE_TOKENS // len(blocks[0]["input_ids"])))
    counts = np.bincount(blocks.with_format("numpy")[:n_rows]["input_ids"].ravel())
    return {repr(tokenizer.decode([token]))[1:-1]: counts[token] / counts.sum() for token in counts.argsort()[::-1][:n]}


def tokens_per_character(facts: Mapping[str, Any]) -> float:
    """Return how many tokens the vocabulary needs for a letter of the text."""
    return facts["tokens"] / max(1, facts["characters"])


def notes(facts: Mapping[str, Any], settings: DataSettings) -> list[str]:
    """Return what is unusual about a text, a sentence each, from the facts of `data.json`."""
    found = []
    rate = tokens_per_character(facts)
    if rate > POOR_FIT:
        found.append(
            f"The vocabulary of {settings.model_name_or_path!r} fits this text badly: it takes {rate:.2f} tokens for a "
            f"character, where GPT-2 takes about {ENGLISH_TOKENS_PER_CHARACTER} on English. The same text costs "
            f"{rate / ENGLISH_TOKENS_PER_CHARACTER:.0f} times the time, and a block holds only "
            f"{settings.block_size / rate:.0f} characters."
        )
    for encoding, count in facts["encodings"].items():
        if not encoding.startswith("utf-8") and settings.encoding == "auto":
            found.append(
                f"{count} text file(s) were read as {encoding}: look at a document, and set encoding if it is wrong."
            )
    if facts["leakage"]["share_in_train"] > LEAKED:
        found.append(
            f"{facts['leakage']['share_in_train']:.1%} of the test's runs of {facts['leakage']['ngram']} tokens "
            "stand in the training text too: the test is easier than new text would be."
        )
    if facts["near_duplicates"] > MANY * facts["documents_read"]:
        found.append(
            f"{_near(facts)} documents are nearly the same as another: near_duplicates='remove' keeps one of each."
        )
    for count, what in ((facts["empty"], "hold nothing, and were left out"), (facts["tiny_documents"], "are tiny")):
        if count > MANY * facts["documents_read"]:
            found.append(f"{count:,} of {facts['documents_read']:,} documents {what}.")
    return found


def _near(facts: Mapping[str, Any]) -> str:
    if facts["settings"]["near_duplicates"] == "keep":
        return "not looked for"
    return f"{facts['near_duplicates']:,}, of which {facts['near_duplicates_removed']:,} left out"
