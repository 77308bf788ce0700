"""Prepare text for training: read documents, split them, and pack their tokens into blocks without padding.

A source is never changed. The result is kept in `runs/<run>/data/`, complete or not at all.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from helpers.data.duplicates import Fingerprints
from helpers.data.facts import count_documents, find_notes
from helpers.data.sources import Source, check_source, newest_commit, source_hash, source_path
from helpers.data.sources.chat import Dialogue
from helpers.data.splitting import SPLITS, UNDECIDED, split_by_document, split_by_position
from helpers.data.tokens import TokenStream
from helpers.data.writing import Staging, block_batch, check_enough, cut_blocks, training_stream, write_parts
from helpers.display import first_line, progress_bar
from helpers.files import atomic_folder, is_disk_full, read_json
from helpers.model import check_model_name, load_tokenizer, model_hash, quiet, train_tokenizer
from helpers.paths import is_same_place
from helpers.settings import DataSettings, SettingsError, read_run_settings, run_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

Kind = TypeVar("Kind", bound=DataSettings)
_BUFFER_BLOCKS = 2048  # of a stream are shuffled together: 4 MB, read in about two seconds, which a resume reads again
_SAMPLE_TOKENS = 2_000_000  # of a stream are kept: 2,000 blocks of 1,024, a tenth each for validation and test


@dataclass(frozen=True)
class PreparedData:
    """The data that a run is trained and evaluated on.

    Attributes:
        blocks: `train` and `validation`; each row holds `input_ids` of exactly `block_size` tokens.
        documents: `train`, `validation` and `test`; each row holds one document's `text` and its `n_tokens`.
        facts: counts, bytes and hashes, as in `data.json`.

    With `streaming` all of these are of the text's first tokens; a training reads `open_training_blocks` instead.
    """

    blocks: "DatasetDict"
    documents: "DatasetDict"
    facts: dict[str, Any]


def prepare(settings: DataSettings) -> PreparedData:
    """Read, split and tokenise the text of a run, or open the result when the same was done before.

    The source is read once, as a stream. A file counts as the same when its bytes are, a folder when the names and
    bytes of its files are, a data set of the Hub when its name, configuration, split and revision are.

    A progress bar is shown where it takes more than ten seconds.

    Raises:
        SettingsError: the source cannot be read, is too small or changed meanwhile, the disk is full, or the run was
            already trained on other data. The run's old data are still complete then.
    """
    from filelock import FileLock

    if settings.streaming and settings.train_on == "completion":
        raise SettingsError("streaming = True trains on all of the text: set train_on to 'all', or streaming to False.")
    if settings.streaming and not settings.max_tokens:
        raise SettingsError("streaming = True needs an end: set max_tokens to the number of tokens of an epoch.")
    folder = run_folder(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    # Two notebooks, or the processes of one training, may ask for the same run at the same time: the first one works.
    with FileLock(folder / ".data.lock"):
        if not is_same_text(settings):
            key = _key(settings)
            if (folder / "data" / "data.json").exists():
                _refuse_other_data(settings, {})
            with _explain_full_disk(folder), atomic_folder(folder / "data") as new:
                _write(settings, key, new)
                _refuse_other_data(settings, read_json(new / "data.json")["splits"])
    return open_prepared(settings.run)


def _refuse_other_data(settings: DataSettings, splits: Mapping[str, Any]) -> None:
    """Raise `SettingsError` where a run was trained, and not on these data, as when its folder `data` is made again."""
    path = run_folder(settings.run) / "settings.json"
    if not path.exists():
        return
    names = DataSettings.model_fields.keys() - {"source", "model_name_or_path"}  # whose places may have changed
    before, now = read_json(path).get("data_sha256"), {name: part["sha256"] for name, part in splits.items()}
    if before != now or read_run_settings(settings.run).model_dump(include=names) != settings.model_dump(include=names):
        raise SettingsError(
            f"Run {settings.run!r} was trained on other data or other data settings: choose another run name, "
            f"or delete the folder {path.parent} to start afresh."
        )


def open_prepared(run: str) -> PreparedData:
    """Open the data that `prepare` wrote for a run, memory-mapped.

    Raises:
        SettingsError: there are none, or they are damaged.
    """
    from datasets import load_from_disk

    folder = run_folder(run) / "data"
    if not (folder / "data.json").exists():
        raise SettingsError(f"Run {run!r} holds no data yet: run notebook 02 or `prepare(settings)` first.")
    facts = read_json(folder / "data.json")
    try:
        return PreparedData(load_from_disk(folder / "blocks"), load_from_disk(folder / "documents"), facts)
    except (OSError, ValueError, KeyError) as error:  # of which pyarrow's errors are some
        raise SettingsError(
            f"The data of run {run!r} are damaged ({first_line(error)}): delete the folder {folder}, and run notebook "
            "02 for this run; the same text and settings give the same data."
        ) from None


def load_run_tokenizer(settings: DataSettings) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a prepared run: the one that was trained on its text, or that of its model."""
    own = run_folder(settings.run) / "data" / "tokenizer"
    return load_tokenizer(str(own) if settings.tokenizer == "train" else settings.model_name_or_path)


def refuse_missing(values: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for a text or a model that is not there, before anything starts; the Hub is not asked.

    Args:
        values: settings of a run; only `source`, `general_source` and `model_name_or_path` are looked up. A run that
            has its text needs its source no more.
    """
    if "model_name_or_path" in values:
        check_model_name(values["model_name_or_path"])
    if "general_source" in values:
        check_source(values["general_source"])
    if "source" in values:
        try:
            check_source(values["source"])
        except SettingsError:
            known = DataSettings.model_fields.keys() & values.keys()
            if not is_same_text(DataSettings(**{name: values[name] for name in known})):
                raise


def _key(settings: DataSettings) -> dict[str, Any]:
    """Return everything the data depend on: the settings without the run's name, and the source's content."""
    values = settings.part(DataSettings).model_dump(exclude={"run"})
    return {"settings": values, "source_sha256": source_hash(settings.source, streaming=settings.streaming)}


def is_same_text(settings: DataSettings) -> bool:
    """Return whether a run holds the data of these settings, wherever its source lies now.

    A file that was moved, renamed or written as another path is the same while its bytes are. One that is gone is not
    needed any more: the run has its text.
    """
    path = run_folder(settings.run) / "data" / "data.json"
    if not path.exists():
        return False
    facts = read_json(path)
    before, now = DataSettings(**facts["settings"]), settings.part(DataSettings)
    alike = {"run": now.run, "source": now.source}
    if is_same_model(now.run, before.model_name_or_path, now.model_name_or_path):
        alike["model_name_or_path"] = now.model_name_or_path
    if before.model_copy(update=alike) != now:
        return False
    is_same_name = before.source == now.source
    try:
        # A single file is hashed with its name, which then must be the name it had.
        name = PurePath(facts["settings"]["source"].replace("\\", "/")).name
        sha256 = source_hash(now.source, name=name, streaming="stream" in facts)
    except SettingsError:
        if is_same_name:
            return True
        raise
    return sha256 == facts["source_sha256"] and (is_same_name or sha256 is not None)


def is_same_model(run: str, before: str, now: str) -> bool:
    """Return whether the model of a run that has its data, and another name for one, are the same by their files."""
    if is_same_place(before, now):
        return True
    path = run_folder(run) / "data" / "data.json"
    facts = read_json(path) if path.exists() else {}
    return facts.get("model_sha256") is not None and facts["model_sha256"] == model_hash(now)


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise SettingsError(
                f"The disk of {folder} is full: the text needs about three times its size there for a while. "
                "Free some space, set COURSE_RUNS to a folder on another disk, or set max_tokens to take less."
            ) from None
        raise


def _write(settings: DataSettings, key: dict[str, Any], folder: Path) -> None:
    """Write blocks, documents and data.json into a folder."""
    tokens = TokenStream(load_tokenizer(settings.model_name_or_path))
    staged = folder / "staged"
    staged.mkdir()
    with (
        quiet(),
        closing(_new_fingerprints(settings, staged)) as fingerprints,
        Staging(staged, tokens, fingerprints, has_prompts=settings.train_on == "completion") as staging,
    ):
        read = settings
        if settings.streaming and source_path(settings.source) is None and settings.source != "python-reference":
            read = settings.model_copy(update={"source_revision": newest_commit(settings)})
        source = _read(read, staging)
        # Otherwise data.json would keep the hash of text that these blocks do not come from.
        if source_hash(settings.source, streaming=settings.streaming) != key["source_sha256"]:
            raise SettingsError(
                f"{settings.source!r} changed while it was read: wait until nothing writes to it, and run this again."
            )
        if staging.is_continuous:
            split = split_by_position(staging.n_bytes, staging.parts, settings)
        else:
            split = split_by_document(fingerprints, staging.parts, settings)
        if settings.tokenizer == "train":
            trained = train_tokenizer(staging.training_texts(split.part), vocab_size=settings.vocab_size)
            trained.save_pretrained(folder / "tokenizer")
            staging.encode_again(TokenStream(load_tokenizer(str(folder / "tokenizer"))))
        facts = key | count_documents(staging, split) | {"encodings": dict(source.encodings)}
        facts["model_sha256"] = model_hash(settings.model_name_or_path)
        facts["documents"] = source.choice._asdict() | {
            "is_continuous": staging.is_continuous,
            "median_tokens": int(np.median(staging.n_tokens)) if len(staging.n_tokens) else 0,
        }
        facts |= write_parts(staging, split.part, settings, folder)
        if settings.streaming:
            n_blocks = max(1, settings.max_tokens // settings.block_size)
            facts["stream"] = {"blocks": n_blocks, "buffer_blocks": _BUFFER_BLOCKS, "revision": read.source_revision}
    shutil.rmtree(staged)  # after the files in it are closed: Windows deletes no open file
    facts["notes"] = [*source.notes, *find_notes(facts, settings)]
    (folder / "data.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def _new_fingerprints(settings: DataSettings, folder: Path) -> Fingerprints:
    return Fingerprints(folder / "sketches" if settings.near_duplicates != "keep" else None)


def _read(settings: DataSettings, staging: Staging) -> Source:
    """Stage the whole source, and return it with what was found out on the way."""
    source, n_tokens = Source(settings), 0
    with progress_bar(source.n_bytes, unit="B", unit_scale=True, desc="reading", leave=True) as bar:

        def show(n_bytes: int, n_new_tokens: int) -> None:
            nonlocal n_tokens
            n_tokens += n_new_tokens
            bar.set_postfix_str(f"{n_tokens:,} tokens", refresh=False)
            if source.n_bytes is None:  # otherwise the bytes on disk are counted, by `advance`
                bar.update(n_bytes)

        for part, texts in source.parts(advance=bar.update):
            staging.is_continuous = source.is_continuous
            is_ended = staging.add(texts, part, budget=(budget := _budget(settings, part)), on_batch=show)
            if is_ended and not settings.streaming:
                source.note(f"Reading {part or 'the text'} stopped at {budget:,} tokens, because of max_tokens.")
    staging.finish()
    return source


def _budget(settings: DataSettings, part: str) -> int:
    """Return how many tokens to take of a part, 0 for all; a source without parts gets the whole budget."""
    max_tokens = sample_settings(settings).max_tokens
    if not max_tokens or not part:
        return max_tokens
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    return max(1, round(max_tokens * shares.get(part, 1 - sum(shares.values()))))


def sample_settings(settings: Kind) -> Kind:
    """Return settings that train on what is kept of a stream, its first tokens, where `settings` stream.

    >>> sample_settings(DataSettings(streaming=True, max_tokens=10**9)).max_tokens
    2000000
    """
    if not settings.streaming:
        return settings
    return settings.model_copy(update={"streaming": False, "max_tokens": min(settings.max_tokens, _SAMPLE_TOKENS)})


# The same steps one by one and in memory, for lessons and small texts.


def load_documents(settings: DataSettings, *, n_documents: int | None = None) -> "DatasetDict":
    """Read the documents of a source into memory.

    Args:
        settings: the source.
        n_documents: how many of each part to read at most, for a look at a large source.

    Returns:
        The parts that the source brings, or one part, `train`, with everything; each has a column `text`. The passages
        of one continuous text have another, `continues`, and dialogues of which only the completions are learned
        `borders`: the places in the text where prompt and completion take turns, beginning with a prompt.

    Raises:
        SettingsError: the source does not exist, has no such column, or cannot be read.
    """
    from datasets import Dataset, DatasetDict

    source, parts = Source(settings), {}
    for part, texts in source.parts():
        columns: dict[str, list] = {"text": list(islice(filter(str.strip, texts), n_documents))}
        if settings.train_on == "completion":
            columns["borders"] = [text.borders for text in columns["text"]]
        if source.is_continuous:
            columns["continues"] = [True] * len(columns["text"])
        parts[part or "train"] = Dataset.from_dict(columns)
    return DatasetDict(parts)


def split_documents(documents: "DatasetDict", settings: DataSettings) -> tuple["DatasetDict", int]:
    """Drop repeated documents and split the rest by document; a source's own split is kept.

    Two documents are the same when they differ in nothing but upper case and white space. Near-duplicates go to the
    same part. The passages of one continuous text are split by position.

    Returns:
        `train`, `validation` and `test`, and the number of repeated documents that were left out.

    Raises:
        SettingsError: there are too few documents for three parts.
    """
    from datasets import DatasetDict, concatenate_datasets

    merged = concatenate_datasets([documents[name] for name in documents])
    own = [SPLITS.index(name) if len(documents) > 1 else UNDECIDED for name in documents]
    parts = np.repeat(own, [len(documents[name]) for name in documents]).astype(np.int8)
    texts = merged["text"][:]
    rows = np.flatnonzero([bool(text and text.strip()) for text in texts])  # those that are not empty
    if "continues" in merged.column_names:
        split = split_by_position(np.array([len(texts[row].encode()) for row in rows]), parts[rows], settings)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(_new_fingerprints(settings, Path(folder))) as fingerprints,
        ):
            fingerprints.add([texts[row] for row in rows])
            split = split_by_document(fingerprints, parts[rows], settings)
    chosen = {name: merged.select(rows[split.part == place]) for place, name in enumerate(SPLITS)}
    return DatasetDict(chosen), int((~split.is_first).sum())


def token_blocks(documents: "Dataset", tokenizer: "PreTrainedTokenizerBase", block_size: int) -> tuple["Dataset", int]:
    """Tokenise documents, end each with the end-of-text token, join them and cut the result into blocks.

    Args:
        documents: rows with a `text`; where they have a `continues`, no end-of-text follows them; where they have
            `borders`, the blocks get `labels`, in which the prompts are -100, and blocks without any are left out.
        tokenizer: a tokenizer with an end-of-text token.
        block_size: tokens in a block.

    Returns:
        The blocks, each an `input_ids` of `block_size` int32 tokens, and the number of tokens before the last,
        incomplete block was dropped.

    Raises:
        SettingsError: there is less than one block of text.
    """
    from datasets import Dataset

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


def dialogues(documents: "Dataset") -> Sequence[str]:
    """Return the texts of documents, with their borders where they have any: what `score` takes."""
    if "borders" not in documents.column_names:
        return documents["text"]
    return [Dialogue(text, borders) for text, borders in zip(documents["text"], documents["borders"], strict=True)]
