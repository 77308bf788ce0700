"""The contents of `data.json`: counts, and a note on everything unusual."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from helpers.data.sources.recognition import Choice
from helpers.data.splitting import LEFT_OUT, Split
from helpers.data.writing import Staging
from helpers.settings import DataSettings, describe_without_effect

ENGLISH_TOKENS_PER_CHARACTER = 0.25  # GPT-2's vocabulary on English prose: about four letters per token
POOR_FIT = 0.5  # tokens per character; above this, a vocabulary does not fit a text
LEAKED_SHARE = 0.01  # share of the test's n-grams found in the training text; above this, a note is added
MANY_SHARE = 0.01  # share of the documents; above this, a note is added
TINY_TOKENS = 8


def count_documents(staging: Staging, split: Split) -> dict[str, int]:
    """Count the documents, duplicates, characters, bytes and tokens of the whole source."""
    group_sizes = np.bincount(split.group[split.is_first], minlength=len(split.group))
    return {
        "documents_read": len(split.part) + staging.n_empty,
        "empty": staging.n_empty,
        "duplicates_removed": int((~split.is_first).sum()),
        "near_duplicates": int(group_sizes[group_sizes > 1].sum()),
        "near_duplicates_removed": int((split.is_first & (split.part == LEFT_OUT)).sum()),
        "characters": staging.n_characters,
        "bytes": int(staging.n_bytes.sum()),
        "tokens": int(staging.n_tokens.sum()) - (0 if staging.is_continuous else len(split.part)),  # no end-of-texts
        "longest_document_tokens": int(staging.n_tokens.max(initial=0)),
        "tiny_documents": int((staging.n_tokens <= TINY_TOKENS).sum()),
    }


def find_notes(facts: Mapping[str, Any], settings: DataSettings) -> list[str]:
    """Return one sentence for each unusual property of a text."""
    notes = []
    if "stream" in facts:
        is_near = settings.near_duplicates != "keep" and not facts["documents"]["is_continuous"]
        copies = "copies and near-copies" if is_near else "copies"
        notes.append(
            f"Training reads {settings.max_tokens:,} tokens of the text as a stream. The counts here cover only its "
            f"beginning, from which validation and test were taken; training skips {copies} of their documents."
        )
    rate = tokens_per_character(facts)
    if rate > POOR_FIT:
        notes.append(
            f"The vocabulary fits this text badly: it takes {rate:.2f} tokens per character, while GPT-2 takes about "
            f"{ENGLISH_TOKENS_PER_CHARACTER} on English. The same text takes {rate / ENGLISH_TOKENS_PER_CHARACTER:.0f} "
            f"times as long, and a block holds only {settings.block_size / rate:.0f} characters. Choose a model whose "
            "vocabulary was made from such text, or, from scratch, set tokenizer='train' with a large vocab_size."
        )
    for encoding, count in facts["encodings"].items():
        if not encoding.startswith("utf-8") and settings.encoding == "auto":
            notes.append(
                f"Text files read as {encoding}: {count:,}. Look at a document, and set encoding if it is wrong."
            )
    if facts["leakage"]["share_in_train"] > LEAKED_SHARE:
        notes.append(
            f"{facts['leakage']['share_in_train']:.1%} of the test's runs of {facts['leakage']['ngram']} tokens "
            "also occur in the training text: the test is easier than new text would be."
        )
    if settings.near_duplicates == "report" and facts["near_duplicates"] > MANY_SHARE * facts["documents_read"]:
        notes.append(
            f"{facts['near_duplicates']:,} of {facts['documents_read']:,} documents are nearly the same as another: "
            "near_duplicates='remove' keeps one of each."
        )
    if note := describe_without_effect(settings.part(DataSettings)):
        notes.append(note)
    for count, what in ((facts["empty"], "are empty and were left out"), (facts["tiny_documents"], "are tiny")):
        if count > MANY_SHARE * facts["documents_read"]:
            notes.append(f"{count:,} of {facts['documents_read']:,} documents {what}.")
    return notes


def documents_text(facts: Mapping[str, Any]) -> str:
    """Describe in one line what a document is, why, how many there are and how long they are."""
    info = facts.get("documents")
    if not info:
        return "not recorded: these data were prepared by an older version"
    what = "passages of one continuous text" if info["is_continuous"] else "documents"
    n_documents = facts["documents_read"] - facts["empty"]
    return (
        f"{Choice(info['separator'], info['reason'])}: {n_documents:,} {what}, median {info['median_tokens']:,} tokens"
    )


def tokens_per_character(facts: Mapping[str, Any]) -> float:
    """Return how many tokens the vocabulary needs per character of the text."""
    return facts["tokens"] / max(1, facts["characters"])
