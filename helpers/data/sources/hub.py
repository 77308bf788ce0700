"""Data sets that the `datasets` library opens, from the Hub or saved on disk: their splits and rows."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from helpers.data.sources.rows import Row
from helpers.data.sources.tables import Table, kind_of_type, peek_columns
from helpers.display import did_you_mean, first_line
from helpers.model import hub_answers
from helpers.paths import similar_paths
from helpers.settings import DataSettings, SettingsError

_BATCH = 64  # rows requested from the library at once: each may be a book
_CONNECTION_ERRORS = (
    "peer closed", "RemoteProtocolError", "ReadError", "ReadTimeout", "ConnectError", "ConnectionError",
)  # fmt: skip
_offline_lock = threading.Lock()  # panels read in threads: overlapping blocks would leave it offline


def open_saved(folder: Path, settings: DataSettings) -> dict[str, list[Callable[[], Table]]]:
    """Return, as `open_from_hub`, what opens each split of a folder that `save_to_disk` wrote.

    Raises:
        SettingsError: it is damaged.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(folder)
    except Exception as error:  # noqa: BLE001 (a damaged folder makes the library raise anything)
        raise SettingsError(f"{folder} cannot be opened as a saved data set ({first_line(error)}).") from None
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    # The format it was saved with may hide columns or turn rows into arrays.
    return {name: [partial(_open_split, split.with_format(None), settings)] for name, split in splits.items()}


def open_from_hub(settings: DataSettings, *, by_shard: bool) -> dict[str, list[Callable[[], Table]]]:
    """Return, for each split of a Hub data set, a function that opens it, or one for each of its shards.

    It is downloaded first, or streamed if only a part of it is needed. If the Hub cannot be reached, the cache is used.

    Raises:
        SettingsError: it does not exist, is gated, needs a configuration, or is neither on the Hub nor in the cache.
    """
    from datasets import load_dataset

    is_online = hub_answers()
    with _explain_errors(settings, is_online=is_online), nullcontext() if is_online else _force_offline():
        splits = load_dataset(
            settings.source,
            settings.source_config or None,
            revision=settings.source_revision or None,
            streaming=settings.streaming or (is_online and bool(settings.max_tokens)),
        )
    return {
        name: [partial(_open_split, split, settings, n) for n in (range(split.num_shards) if by_shard else [None])]
        for name, split in splits.items()
    }


def newest_commit(settings: DataSettings) -> str:
    """Return the current commit of a Hub data set, so that a stream can stay on it; raises as `open_from_hub`."""
    from huggingface_hub import HfApi

    with _explain_errors(settings, is_online=hub_answers()):
        return HfApi().dataset_info(settings.source, revision=settings.source_revision or None).sha


def _open_split(split: Any, settings: DataSettings, shard: int | None = None) -> Table:
    """Return a split, or one of its shards, as a table that reads only the requested columns."""
    name = repr(settings.source)
    if shard is not None:
        split = split.shard(num_shards=split.num_shards, index=shard)
    if not split.features:  # some streams do not know them
        return peek_columns(name, _rows(split, settings))
    columns = {field.name: kind_of_type(field.type) for field in split.features.arrow_schema}
    return Table(name, columns, lambda wanted: _rows(split.select_columns(list(wanted)), settings))


def _rows(split: Any, settings: DataSettings) -> Iterator[Row]:
    """Yield rows; an error while reading, such as a lost connection, becomes a `SettingsError`."""
    number = 0
    with _explain_errors(settings, is_online=True):
        for batch in split.iter(_BATCH):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield f"row {number}", dict(zip(batch, values, strict=True))


@contextmanager
def _force_offline() -> Iterator[None]:
    """Make `datasets` use its cache at once in this block: otherwise it retries the Hub for minutes.

    Setting the environment variable HF_HUB_OFFLINE is too late: the library reads it at import.
    """
    from datasets import config

    with _offline_lock:
        before = config.HF_HUB_OFFLINE
        config.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            config.HF_HUB_OFFLINE = before


@contextmanager
def _explain_errors(settings: DataSettings, *, is_online: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 (the clients raise many kinds; each becomes one sentence)
        raise SettingsError(_describe_error(settings, error, is_online=is_online)) from None


def _describe_error(settings: DataSettings, error: BaseException, *, is_online: bool) -> str:
    """Return one sentence that says why the data set cannot be loaded and what to do.

    Goes by the words of the messages: the libraries raise the same exception for different causes.
    """
    source, words = settings.source, " ".join(_messages(error))
    shipped = "or use source='fables', which is shipped"
    if "gated" in words.lower():
        reason = "is gated: accept its terms on its page, log in with `hf auth login`, and run this again"
    elif not is_online:
        reason = f"is not in the cache, and the Hub does not answer: connect to the network once, {shipped}"
    elif "scripts are no longer supported" in words:
        reason = f"is a script, and scripts no longer load: look for a Parquet copy of it, {shipped}"
    elif "doesn't exist" in words or "404" in words:
        reason = f"is not on the Hub, or is private: check the name and its owner, {shipped}"
    elif "onfig" in words and ("missing" in words or "not found" in words):
        reason = f"needs another configuration: set source_config ({' '.join(str(error).split())[:500]})"
    elif any(name in words for name in _CONNECTION_ERRORS):
        reason = f"could not be downloaded completely ({first_line(error)}): run this again to continue"
    else:
        reason = f"could not be loaded ({first_line(error)}): check source_config and the network, {shipped}"
    return f"The Hub's data set {source!r} {reason}{did_you_mean(source, similar_paths(source))}"


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__
