"""Prepare text for training: read documents, split them, and pack their tokens into blocks.

A source is never changed. The result goes to `runs/<run>/data/`, either complete or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from helpers.data.duplicates import Fingerprints
from helpers.data.facts import count_documents, find_notes
from helpers.data.run_data import PreparedData, is_same_text, open_prepared
from helpers.data.sources import Source, newest_commit, source_hash, source_path
from helpers.data.splitting import split_by_document, split_by_position
from helpers.data.tokens import TokenStream
from helpers.data.writing import Staging, write_parts
from helpers.display import progress_bar
from helpers.files import atomic_folder, folder_removed_on_error, is_disk_full, read_json
from helpers.model import load_tokenizer, model_hash, quiet, train_tokenizer
from helpers.settings import DataSettings, SettingsError, read_run_settings, run_folder

Kind = TypeVar("Kind", bound=DataSettings)
_BUFFER_BLOCKS = 2048  # of a stream, shuffled together: 4 MB, about two seconds of reading, repeated on resume
_SAMPLE_TOKENS = 2_000_000  # kept of a stream: 2,000 blocks of 1,024, a tenth each for validation and test


def prepare(settings: DataSettings) -> PreparedData:
    """Read, split and tokenise the text of a run, or open the data if this was already done.

    The source is read once, as a stream. A file counts as unchanged when its bytes are, a folder when the names and
    bytes of its files are, a Hub data set when its name, configuration, split and revision are.

    A progress bar appears after ten seconds.

    Raises:
        SettingsError: the source cannot be read, is too small or changed while it was read, the disk is full, or the
            run was already trained on other data. The run's old data then stay complete.
    """
    DataSettings.check_type(settings)
    if settings.streaming and settings.train_on == "completion":
        raise SettingsError("streaming = True trains on all of the text: set train_on to 'all', or streaming to False.")
    if settings.streaming and not settings.max_tokens:
        raise SettingsError("streaming = True needs an end: set max_tokens to the number of tokens of an epoch.")
    folder = run_folder(settings.run)
    # Two notebooks, or the processes of one training run, may prepare the same run at once: the first does the work.
    with folder_removed_on_error(folder), FileLock(folder / ".data.lock"):
        if not is_same_text(settings):
            if (folder / "data" / "data.json").exists():
                _refuse_other_data(settings, {})
            try:
                with atomic_folder(folder / "data") as new:
                    _write(settings, new)
                    _refuse_other_data(settings, read_json(new / "data.json")["splits"])
            except OSError as error:
                if not is_disk_full(error):
                    raise
                raise SettingsError(
                    f"The disk of {folder} is full: preparing the text temporarily needs about three times its size. "
                    "Free some space, set COURSE_RUNS to a folder on another disk, or set max_tokens to use less text."
                ) from None
    return open_prepared(settings.run)


def _refuse_other_data(settings: DataSettings, splits: Mapping[str, Any]) -> None:
    """Raise `SettingsError` when a run was already trained, on other data than `splits` describes."""
    path = run_folder(settings.run) / "settings.json"
    if not path.exists():
        return
    names = DataSettings.model_fields.keys() - {"source", "model_name_or_path"}  # these may have moved
    before, now = read_json(path).get("data_sha256"), {name: part["sha256"] for name, part in splits.items()}
    if before != now or read_run_settings(settings.run).model_dump(include=names) != settings.model_dump(include=names):
        raise SettingsError(
            f"Run {settings.run!r} was trained on other data or other data settings: choose another run name, "
            f"or delete the folder {path.parent} to start afresh."
        )


def _write(settings: DataSettings, folder: Path) -> None:
    """Write blocks, documents and data.json into a folder."""
    # Everything that the data depend on: the settings without the run's name, and the source's content.
    facts = {"settings": settings.part(DataSettings).model_dump(exclude={"run"})}
    facts["source_sha256"] = source_hash(settings.source, streaming=settings.streaming)
    tokens = TokenStream(load_tokenizer(settings.model_name_or_path))
    staging_folder = folder / "staged"
    staging_folder.mkdir()
    finds_near = settings.near_duplicates != "keep"
    with (
        quiet(),
        closing(Fingerprints(staging_folder / "sketches" if finds_near else None)) as fingerprints,
        Staging(staging_folder, tokens, fingerprints) as staging,
    ):
        pinned = settings
        if settings.streaming and source_path(settings.source) is None and settings.source != "python-reference":
            pinned = settings.model_copy(update={"source_revision": newest_commit(settings)})
        source = _read(pinned, staging)
        # Otherwise data.json would hold the hash of a text that these blocks do not come from.
        if source_hash(settings.source, streaming=settings.streaming) != facts["source_sha256"]:
            raise SettingsError(
                f"{settings.source!r} changed while it was read: wait until nothing writes to it, then run this again."
            )
        if staging.is_continuous:
            split = split_by_position(staging.n_bytes, staging.parts, settings)
        else:
            split = split_by_document(fingerprints, staging.parts, settings)
        if settings.tokenizer == "train":
            trained = train_tokenizer(staging.training_texts(split.part), vocab_size=settings.vocab_size)
            trained.save_pretrained(folder / "tokenizer")
            staging.reencode(TokenStream(load_tokenizer(str(folder / "tokenizer"))))
        facts |= count_documents(staging, split) | {"encodings": dict(source.encodings)}
        facts["model_sha256"] = model_hash(settings.model_name_or_path)
        facts["documents"] = source.choice._asdict() | {
            "is_continuous": staging.is_continuous,
            "is_chat": source.is_chat,
            "train_on": "completion" if source.has_prompts else "all",
            "median_tokens": int(np.median(staging.n_tokens)) if len(staging.n_tokens) else 0,
        }
        facts |= write_parts(staging, split.part, settings, folder)
        if settings.streaming:
            n_blocks = max(1, settings.max_tokens // settings.block_size)
            facts["stream"] = {"blocks": n_blocks, "buffer_blocks": _BUFFER_BLOCKS, "revision": pinned.source_revision}
    shutil.rmtree(staging_folder)  # only now that its files are closed: Windows cannot delete an open file
    facts["notes"] = [*source.notes, *find_notes(facts, settings)]
    (folder / "data.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def _read(settings: DataSettings, staging: Staging) -> Source:
    """Stage the whole source, and return it with its notes and counts."""
    source, n_tokens = Source(settings), 0
    with progress_bar(source.estimate_bytes() or None, unit="B", unit_scale=True, desc="reading", leave=True) as bar:

        def show(n_bytes: int, n_new_tokens: int) -> None:
            nonlocal n_tokens
            n_tokens += n_new_tokens
            bar.set_postfix_str(f"{n_tokens:,} tokens", refresh=False)
            bar.update(n_bytes)

        for part, texts in source.parts():
            staging.is_continuous, staging.has_prompts = source.is_continuous, source.has_prompts
            is_ended = staging.add(texts, part, budget=(budget := _budget(settings, part)), on_batch=show)
            if is_ended and not settings.streaming:
                source.note(f"Reading {part or 'the text'} stopped at {budget:,} tokens, because of max_tokens.")
    staging.finish()
    return source


def _budget(settings: DataSettings, part: str) -> int:
    """Return how many tokens to take from a part, 0 for all; a source without parts gets the whole budget."""
    max_tokens = sample_settings(settings).max_tokens
    if not max_tokens or not part:
        return max_tokens
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    return max(1, round(max_tokens * shares.get(part, 1 - sum(shares.values()))))


def sample_settings(settings: Kind) -> Kind:
    """Return settings that train on the stored first tokens of a stream instead of streaming.

    >>> sample_settings(DataSettings(streaming=True, max_tokens=10**9)).max_tokens
    2000000
    """
    if not settings.streaming:
        return settings
    return settings.model_copy(update={"streaming": False, "max_tokens": min(settings.max_tokens, _SAMPLE_TOKENS)})
