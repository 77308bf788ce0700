"""The steps of `prepare` one by one and in memory, for lessons and small texts."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets

from helpers.data.duplicates import Fingerprints
from helpers.data.packing import block_batch, check_enough, cut_blocks, training_stream
from helpers.data.sources import Source
from helpers.data.sources.chat import Dialogue
from helpers.data.splitting import SPLITS, UNDECIDED, split_by_document, split_by_position
from helpers.data.tokens import TokenStream
from helpers.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_documents(settings: DataSettings, *, n_documents: int | None = None) -> DatasetDict:
    """Read the documents of a source into memory, at most `n_documents` of each part.

    Returns:
        The source's own parts, or one part `train` with everything; each has a column `text`. Passages of one
        continuous text also have a column `continues`. If only completions are learned, a column `borders` holds the
        character positions where prompt and completion alternate, starting with a prompt.

    Raises:
        SettingsError: the source does not exist, lacks the text column, or cannot be read.
    """
    DataSettings.check_type(settings)
    source, parts = Source(settings), {}
    for part, texts in source.parts():
        columns: dict[str, list] = {"text": list(islice(filter(str.strip, texts), n_documents))}
        if source.has_prompts:
            columns["borders"] = [text.borders for text in columns["text"]]
        if source.is_continuous:
            columns["continues"] = [True] * len(columns["text"])
        parts[part or "train"] = Dataset.from_dict(columns)
    return DatasetDict(parts)


def split_documents(documents: DatasetDict, settings: DataSettings) -> tuple[DatasetDict, int]:
    """Drop repeated documents and split the rest by document, keeping the source's own split.

    Two documents are equal when they differ only in letter case and white space. Near-duplicates go to the same
    part. The passages of one continuous text are split by position.

    Returns:
        `train`, `validation` and `test`, and the number of repeated documents left out.

    Raises:
        SettingsError: there are too few documents for three parts.
    """
    DataSettings.check_type(settings)
    merged = concatenate_datasets([documents[name] for name in documents])
    own_parts = [SPLITS.index(name) if len(documents) > 1 else UNDECIDED for name in documents]
    parts = np.repeat(own_parts, [len(documents[name]) for name in documents]).astype(np.int8)
    texts = merged["text"][:]
    rows = np.flatnonzero([bool(text and text.strip()) for text in texts])  # the non-empty ones
    if "continues" in merged.column_names:
        split = split_by_position(np.array([len(texts[row].encode()) for row in rows]), parts[rows], settings)
    else:
        finds_near = settings.near_duplicates != "keep"
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(Fingerprints(Path(folder) / "sketches" if finds_near else None)) as fingerprints,
        ):
            fingerprints.add([texts[row] for row in rows])
            split = split_by_document(fingerprints, parts[rows], settings)
    splits = {name: merged.select(rows[split.part == index]) for index, name in enumerate(SPLITS)}
    return DatasetDict(splits), int((~split.is_first).sum())


def token_blocks(documents: Dataset, tokenizer: "PreTrainedTokenizerBase", block_size: int) -> tuple[Dataset, int]:
    """Tokenise documents, end each with the end-of-text token, join them and cut the result into blocks.

    Documents with `continues` get no end-of-text token. For documents with `borders`, the blocks get `labels` that are
    -100 in prompts, and blocks without a learned token are dropped. `SettingsError`: there is less than one block.

    Returns:
        The blocks, each with `input_ids` of `block_size` int32 tokens, and the number of tokens including the
        incomplete last block that was dropped.
    """
    tokens, is_prompt = TokenStream(tokenizer), None
    if "borders" in documents.column_names:
        ids, _, is_prompt = tokens.encode_dialogues(dialogues(documents))
    else:
        with_ends = "continues" not in documents.column_names
        pieces = [tokens.encode(batch["text"], with_ends=with_ends)[0] for batch in documents.iter(1000)]
        ids = np.concatenate([np.empty(0, np.int32), *pieces])  # (n_tokens,)
    check_enough("train", len(ids), block_size)
    blocks, _ = cut_blocks(training_stream(ids, is_prompt), block_size)
    return Dataset(pa.table(block_batch(blocks))).with_format("torch"), len(ids)


def dialogues(documents: Dataset) -> Sequence[str]:
    """Return the texts of documents, with their borders if they have any, as `score` expects."""
    if "borders" not in documents.column_names:
        return documents["text"]
    return [Dialogue(text, borders) for text, borders in zip(documents["text"], documents["borders"], strict=True)]
