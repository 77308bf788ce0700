"""Text in, token blocks out: documents, a split by document, and rows of `block_size` tokens without padding.

This module never changes a source. What it makes it keeps in `runs/<run>/data/`, whole or not at all.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.data.duplicates import Marks
from helpers.data.leakage import Leakage
from helpers.data.parts import check_enough, distribute
from helpers.data.quality import notes
from helpers.data.sources import FABLES, Source, source_hash, source_path
from helpers.data.splitting import LEFT_OUT, TEST, assign
from helpers.data.staging import SPLITS, Staging
from helpers.data.store import as_dataset, cut
from helpers.data.tokens import TokenStream
from helpers.files import atomic_folder
from helpers.settings import DataSettings, SettingsError, run_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FABLES", "PreparedData", "load_documents", "open_prepared", "prepare", "source_hash", "source_path",
    "split_documents", "token_blocks",
]  # fmt: skip
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_QUIET_SECONDS = 2  # what takes longer shows how far it is


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on and is measured with.

    Attributes:
        blocks: `train` and `validation`; each row holds `input_ids` of exactly `block_size` tokens.
        documents: `train`, `validation` and `test`; each row holds one document's `text` and its `n_tokens`.
        facts: counts, bytes and hashes, as `data.json` keeps them.
    """

    blocks: "DatasetDict"
    documents: "DatasetDict"
    facts: dict[str, Any]


def prepare(settings: DataSettings, *, progress: bool = False) -> PreparedData:
    """Load, split and cut the text of a run, or return what the run already holds for the same settings and source.

    The source is read once, as a stream. A data set of the Hub counts as the same when its name, configuration, split
    and revision are.

    Args:
        settings: the run, the source, the split.
        progress: show bytes, tokens and the time that is left from the start, and not only after two seconds.

    Raises:
        SettingsError: the source cannot be read, is too small, changed meanwhile, the disk is full, or the run was
            already trained on other data. Nothing is left half done, and what the run held before is still there.
    """
    from filelock import FileLock

    if settings.streaming and not settings.max_tokens:
        raise SettingsError("streaming = True needs an end: set max_tokens to the number of tokens to take.")
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(settings)
    with FileLock(folder / ".data.lock"):
        if _stored_key(folder) != key:
            if (folder / "settings.json").exists():
                raise SettingsError(
                    f"Run {settings.run!r} was trained on other data or other data settings: choose another run name, "
                    f"or delete the folder {folder} to start afresh."
                )
            with _full_disk_in_a_sentence(folder), atomic_folder(folder / "data") as new:
                _write(settings, key, new, progress=progress)
    return open_prepared(settings.run)


def open_prepared(run: str) -> PreparedData:
    """Open what `prepare` wrote for a run, memory-mapped; raise `SettingsError` when there is nothing."""
    from datasets import load_from_disk

    folder = run_folder(run) / "data"
    if not (folder / "data.json").exists():
        raise SettingsError(f"Run {run!r} holds no data yet: run notebook 02 or `prepare(settings)` first.")
    facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return PreparedData(load_from_disk(folder / "blocks"), load_from_disk(folder / "documents"), facts)


def _key(settings: DataSettings) -> dict[str, Any]:
    """Return what decides the blocks: the settings without the run's name, and the source's content."""
    values = settings.part(DataSettings).model_dump(exclude={"run"})
    return {"settings": values, "source_sha256": source_hash(settings.source)}


def _stored_key(folder: Path) -> dict[str, Any] | None:
    path = folder / "data" / "data.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {"settings": facts["settings"], "source_sha256": facts["source_sha256"]}


@contextmanager
def _full_disk_in_a_sentence(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SettingsError(
                f"The disk of {folder} is full: the text needs about three times its size there for a while. "
                "Free some space, set COURSE_RUNS to a folder on another disk, or set max_tokens to take less."
            ) from None
        raise


def _write(settings: DataSettings, key: dict[str, Any], folder: Path, *, progress: bool) -> None:
    """Write blocks, documents and data.json into a folder."""
    from helpers.model import load_tokenizer, quiet

    tokens = TokenStream(load_tokenizer(settings.model_name_or_path))
    workshop = folder / "staged"
    workshop.mkdir()
    with quiet(), Staging(workshop, tokens, near=settings.near_duplicates != "keep") as staging:
        encodings = _read(settings, staging, progress=progress)
        if source_hash(settings.source) != key["source_sha256"]:
            raise SettingsError(
                f"{settings.source!r} changed while it was read: wait until nothing writes to it, and run this again."
            )
        first = staging.marks.firsts(-staging.parts)
        group = staging.marks.groups(first)
        code = assign(staging.parts, first, group, settings)
        leakage = _leakage(staging, code, tokens)
        splits = distribute(staging, code, settings, folder, leakage)
        facts = key | _counts(staging, code, first, group) | {"encodings": dict(encodings), "splits": splits}
        facts["leakage"] = leakage.facts
    shutil.rmtree(workshop)
    facts["notes"] = notes(facts, settings)
    (folder / "data.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def _read(settings: DataSettings, staging: Staging, *, progress: bool) -> dict[str, int]:
    """Read the whole source into the staging area; return how many text files had which encoding."""
    from tqdm.auto import tqdm

    source, n_tokens = Source(settings), 0
    delay = 0 if progress else _QUIET_SECONDS
    with tqdm(total=source.n_bytes, unit="B", unit_scale=True, desc="reading", delay=delay) as bar:

        def tell(n_bytes: int, n_new: int) -> None:
            nonlocal n_tokens
            n_tokens += n_new
            bar.set_postfix_str(f"{n_tokens:,} tokens", refresh=False)
            if source.n_bytes is None:
                bar.update(n_bytes)

        for part, texts in source.parts(advance=bar.update):
            staging.read(texts, part, budget=_budget(settings, part), tell=tell)
    staging.finish()
    return source.encodings


def _budget(settings: DataSettings, part: str) -> int:
    """Return how many tokens to take of a part; 0: all. What is not split yet is worth the whole budget."""
    if not settings.max_tokens or not part:
        return settings.max_tokens
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    return max(1, round(settings.max_tokens * shares.get(part, 1 - sum(shares.values()))))


def _leakage(staging: Staging, code: np.ndarray, tokens: TokenStream) -> Leakage:
    leakage = Leakage(int(staging.n_tokens[code == TEST].sum()), tokens.eos)
    for _, ids, documents in staging.batches():
        leakage.add_test(ids[np.repeat(code[documents] == TEST, staging.n_tokens[documents])])
    return leakage


def _counts(staging: Staging, code: np.ndarray, first: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Return what `data.json` says of the source as a whole."""
    sizes = np.bincount(group[first], minlength=len(group))
    n_tokens = int(staging.n_tokens.sum()) - len(first)  # without the end-of-texts
    return {
        "documents_read": len(first) + staging.n_empty,
        "empty": staging.n_empty,
        "duplicates_removed": int((~first).sum()),
        "near_duplicates": int(sizes[sizes > 1].sum()),
        "near_duplicates_removed": int((first & (code == LEFT_OUT)).sum()),
        "characters": staging.n_characters,
        "bytes": int(staging.n_bytes.sum()),
        "tokens": n_tokens,
        "longest_document_tokens": int(staging.n_tokens.max(initial=0)),
        "tiny_documents": int((staging.n_tokens <= 8).sum()),
    }


def token_blocks(
    documents: "Dataset", tokenizer: "PreTrainedTokenizerBase", block_size: int, *, name: str = "train"
) -> tuple["Dataset", int]:
    """Tokenise documents, end each with the end-of-text token, join all and cut into blocks, in memory.

    Args:
        documents: rows with a `text`.
        tokenizer: a tokenizer with an end-of-text token.
        block_size: tokens in a block.
        name: what the documents are called in an error.

    Returns:
        The blocks, each an `input_ids` of `block_size` int32 tokens, and the number of tokens before the last,
        incomplete block was dropped.

    Raises:
        SettingsError: there is less than one block of text.
    """
    tokens = TokenStream(tokenizer)
    pieces = [tokens.encode(batch["text"])[0] for batch in documents.iter(1000)]
    stream = np.concatenate([np.empty(0, np.int32), *pieces])  # (n_tokens,)
    check_enough(name, len(stream), block_size)
    rows, _ = cut(stream, block_size)
    return as_dataset(rows, block_size), len(stream)


def split_documents(documents: "DatasetDict", settings: DataSettings) -> tuple["DatasetDict", int]:
    """Drop documents that repeat an earlier one, then split by document; a source's own split is kept.

    Returns:
        `train`, `validation` and `test`, and the number of repeated documents that were left out. Two documents are
        the same when they differ in nothing but upper case and white space. What is nearly the same is on one side.

    Raises:
        SettingsError: there are too few documents for three parts.
    """
    import tempfile

    from datasets import DatasetDict, concatenate_datasets

    whole = concatenate_datasets([documents[name].select_columns("text") for name in documents])
    codes = [np.full(len(documents[name]), SPLITS.index(name) if len(documents) > 1 else -1) for name in documents]
    texts = whole["text"][:]
    parts = np.concatenate(codes).astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        marks = Marks(Path(folder) / "sketches" if settings.near_duplicates != "keep" else None)
        marks.add([text or "" for text in texts])
        first, is_empty = marks.firsts(-parts), np.array([not (text and text.strip()) for text in texts], bool)
        group = marks.groups(first & ~is_empty)
        marks.close()
    code = assign(parts, first & ~is_empty, group, settings)
    split = {name: whole.select(np.flatnonzero(code == place)) for place, name in enumerate(SPLITS)}
    return DatasetDict(split), int((~first & ~is_empty).sum())


def load_documents(settings: DataSettings, *, n_documents: int | None = None) -> "DatasetDict":
    """Read a source's documents into memory: a `train` part, or the parts it brings; one column, `text`.

    For a look at a large source say how many documents of each part; `prepare` reads it whole and holds nothing.

    Raises:
        SettingsError: the source is not there, has no such column, or cannot be read; the sentence says what to do.
    """
    from datasets import Dataset, DatasetDict

    return DatasetDict(
        {part or "train": Dataset.from_dict({"text": list(islice(filter(None, texts), n_documents))})
         for part, texts in Source(settings).parts()}
    )  # fmt: skip
