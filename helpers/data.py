"""Text in, token blocks out: documents, a split by document, and rows of `block_size` tokens without padding.

This module never changes a source. What it makes it keeps in `runs/<run>/data/`, whole or not at all.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.settings import ASSETS, NOTEBOOKS, DataSettings, SettingsError, run_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

FABLES = ASSETS / "fables"
SPLITS = ("train", "validation", "test")
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
TEXTS = (".txt", ".md")
_BATCH = 1000  # documents tokenised at once: enough to keep the tokenizer's threads busy, little memory


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on and is measured with.

    Attributes:
        blocks: `train` and `validation`; each row holds `input_ids` of exactly `block_size` tokens.
        documents: `train`, `validation` and `test`; each row holds one document's `text`.
        facts: counts, bytes and hashes, as `data.json` keeps them.
    """

    blocks: "DatasetDict"
    documents: "DatasetDict"
    facts: dict[str, Any]


def prepare(settings: DataSettings) -> PreparedData:
    """Load, split and cut the text of a run, or return what the run already holds for the same settings and source.

    Raises:
        SettingsError: the source cannot be read, is too small, or the run was already trained on other data.
    """
    from filelock import FileLock

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
            _write(settings, key, folder / "data")
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
    return {"settings": values, "source_sha256": source_hash(settings)}


def _stored_key(folder: Path) -> dict[str, Any] | None:
    path = folder / "data" / "data.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {"settings": facts["settings"], "source_sha256": facts["source_sha256"]}


def _write(settings: DataSettings, key: dict[str, Any], folder: Path) -> None:
    """Write blocks, documents and data.json into a folder beside the final one, then move it there."""
    from datasets import DatasetDict

    from helpers.model import load_tokenizer, quiet

    tokenizer = load_tokenizer(settings.model_name_or_path)
    documents, n_duplicates = split_documents(load_documents(settings), settings)
    facts: dict[str, Any] = {**key, "duplicates_removed": n_duplicates, "splits": {}}
    blocks = DatasetDict()
    for name in SPLITS:
        n_tokens = None
        if name != "test":  # the test text is scored by sliding windows, not in blocks
            blocks[name], n_tokens = token_blocks(documents[name], tokenizer, settings.block_size, name=name)
        facts["splits"][name] = _count(documents[name]) | {"tokens": n_tokens}
        if n_tokens is not None:
            n_blocks = len(blocks[name])
            facts["splits"][name] |= {
                "blocks": n_blocks,
                "tokens_dropped": n_tokens - n_blocks * settings.block_size,
            }
    new = folder.with_name("data.new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet():
        blocks.save_to_disk(new / "blocks")
        documents.save_to_disk(new / "documents")
    (new / "data.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _count(documents: "Dataset") -> dict[str, Any]:
    digest, n_bytes = hashlib.sha256(), 0
    for text in documents["text"]:
        encoded = text.encode()
        digest.update(encoded + b"\0")
        n_bytes += len(encoded)
    return {"documents": len(documents), "bytes": n_bytes, "sha256": digest.hexdigest()}


def token_blocks(
    documents: "Dataset", tokenizer: "PreTrainedTokenizerBase", block_size: int, *, name: str = "train"
) -> tuple["Dataset", int]:
    """Tokenise documents, end each with the end-of-text token, join all and cut into blocks.

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
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    stream = np.concatenate([*_token_arrays(documents, tokenizer), np.empty(0, np.int32)])  # (n_tokens,)
    n_blocks = len(stream) // block_size
    if n_blocks == 0:
        larger_share = "" if name == "train" else f"a larger {name}_share, "
        raise SettingsError(
            f"The {name} text has {len(stream)} tokens, less than one block of {block_size}: "
            f"use {larger_share}more text or a smaller block_size."
        )
    rows = pa.FixedSizeListArray.from_arrays(pa.array(stream[: n_blocks * block_size]), block_size)
    return Dataset(pa.table({"input_ids": rows})).with_format("torch"), len(stream)


def _token_arrays(documents: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> Iterator[Any]:
    """Yield the tokens of some documents at a time, each document closed by the end-of-text token."""
    import numpy as np

    for batch in documents.iter(_BATCH):
        for ids in tokenizer(batch["text"], verbose=False)["input_ids"]:
            yield np.array([*ids, tokenizer.eos_token_id], np.int32)


def split_documents(documents: "DatasetDict", settings: DataSettings) -> tuple["DatasetDict", int]:
    """Drop documents that repeat an earlier one, then split by document; a source's own split is kept.

    Returns:
        `train`, `validation` and `test`, and the number of repeated documents that were left out. Two documents are
        the same when they differ in nothing but upper case and white space.

    Raises:
        SettingsError: there are too few documents for three parts.
    """
    from datasets import DatasetDict

    kept, n_duplicates = _without_duplicates(documents)
    if set(SPLITS) <= set(kept):
        return DatasetDict({name: kept[name] for name in SPLITS}), n_duplicates
    whole = kept["train"]
    n_held_out = {
        name: max(1, round(len(whole) * share))
        for name, share in (("validation", settings.validation_share), ("test", settings.test_share))
    }
    if len(whole) <= sum(n_held_out.values()):
        raise SettingsError(
            f"{settings.source!r} has {len(whole)} different documents: three parts need at least 3. "
            "Give more documents; a blank line in a text file starts a new one."
        )
    shuffled = whole.shuffle(seed=settings.seed)
    n_test, n_both = n_held_out["test"], sum(n_held_out.values())
    parts = {"train": (n_both, len(whole)), "validation": (n_test, n_both), "test": (0, n_test)}
    return DatasetDict({name: shuffled.select(range(*bounds)) for name, bounds in parts.items()}), n_duplicates


def _without_duplicates(documents: "DatasetDict") -> tuple["DatasetDict", int]:
    """Keep the first of equal documents, and none that is empty; the test part is asked first, training last."""
    from datasets import DatasetDict

    seen: set[bytes] = set()
    kept, n_duplicates = DatasetDict(), 0
    for name in sorted(documents, key=lambda name: (*reversed(SPLITS), name).index(name)):
        rows = []
        for row, text in enumerate(documents[name]["text"]):
            if not (text and text.strip()):
                continue
            key = hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
            if key in seen:
                n_duplicates += 1
            else:
                seen.add(key)
                rows.append(row)
        kept[name] = documents[name].select(rows)
    return kept, n_duplicates


def load_documents(settings: DataSettings) -> "DatasetDict":
    """Read the source's documents: a `train` part, or the three parts a Hub data set brings; one column, `text`.

    Raises:
        SettingsError: the source is not there, has no such column, or cannot be read; the sentence says what to do.
    """
    from datasets import Dataset, DatasetDict

    path = source_path(settings.source)
    if settings.source == "python-reference":
        from pydoc_data.topics import topics

        texts = list(topics.values())
    elif path is None:
        return _load_from_hub(settings)
    elif path.suffix in TABLES:
        return _load_table(path, settings)
    else:
        texts = list(_read_texts(path))
    return DatasetDict(train=Dataset.from_dict({"text": texts}))


def source_path(source: str) -> Path | None:
    """Return the file or folder a source names, or None for what is not on disk: a Hub id or the Python reference.

    A relative path is looked for in the current folder and then beside the notebooks' folder.

    Raises:
        SettingsError: the source looks like a path and is not there, or is a bare data set name.
    """
    if source == "fables":
        return FABLES
    if source == "python-reference":
        return None
    path = Path(source).expanduser()
    for candidate in (path, NOTEBOOKS.parent / path):
        if candidate.exists():
            return candidate
    if path.suffix in (*TABLES, *TEXTS) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise SettingsError(f"source = {source!r} is not there: looked in {Path.cwd()} and {NOTEBOOKS.parent}.")
    if "/" not in source:
        raise SettingsError(
            f"source = {source!r} is neither shipped ('fables', 'python-reference') nor a file: a data set of the Hub "
            "needs its owner in front, such as 'Salesforce/wikitext'"
            + (". BookCorpus itself was a script and no longer loads." if "bookcorpus" in source else ".")
        )
    return None


def source_hash(settings: DataSettings) -> str | None:
    """Return a SHA-256 over the source's files; None where the source is not on disk."""
    path = source_path(settings.source)
    if path is None:
        return None
    digest = hashlib.sha256()
    for file in _text_files(path) if path.is_dir() else [path]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _text_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in TEXTS)
    if not files:
        raise SettingsError(f"The folder {folder} holds no {' or '.join(TEXTS)} file.")
    return files


def _read_texts(path: Path) -> Iterator[str]:
    """Yield documents: of the fables each story, of a folder each file, of one file each block of lines."""
    if path == FABLES:
        for file in _text_files(path):
            yield from _fables(_read(file))
    elif path.is_dir():
        yield from map(_read, _text_files(path))
    else:
        yield from (block.strip() for block in re.split(r"\n\s*\n", _read(path)))


def _fables(markdown: str) -> Iterator[str]:
    """Yield each fable as title, story and moral; a heading starts one."""
    for fable in re.split(r"^# ", markdown, flags=re.MULTILINE)[1:]:
        yield fable.strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{file} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#x}): save it as UTF-8 first."
        ) from None


def _load_table(path: Path, settings: DataSettings) -> "DatasetDict":
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    options = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        table = load_dataset(TABLES[path.suffix], data_files={"train": str(path)}, **options)
    except DatasetGenerationError as error:
        raise SettingsError(f"{path} cannot be read as {path.suffix[1:]}: {error.__cause__ or error}.") from None
    return _text_only(table, settings)


def _load_from_hub(settings: DataSettings) -> "DatasetDict":
    from datasets import load_dataset

    try:
        table = load_dataset(settings.source, settings.source_config or None)
    except (OSError, ValueError, RuntimeError) as error:  # not found, gated, no network, no such config, a script
        first_line = str(error).splitlines()[0]
        raise SettingsError(
            f"The Hub's data set {settings.source!r} could not be loaded ({first_line}): check the name, "
            "source_config and the network, or use source='fables', which is shipped."
        ) from None
    return _text_only(table, settings)


def _text_only(table: "DatasetDict", settings: DataSettings) -> "DatasetDict":
    columns = next(iter(table.values())).column_names
    if settings.text_column not in columns:
        raise SettingsError(
            f"{settings.source!r} has no column {settings.text_column!r}: set text_column to one of {columns}."
        )
    table = table.select_columns(settings.text_column)
    return table if settings.text_column == "text" else table.rename_column(settings.text_column, "text")
