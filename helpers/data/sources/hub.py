"""Data sets of the Hub and those saved by `save_to_disk`: their splits, their rows, and what keeps them away."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from helpers.data.sources.tables import Row, find_column
from helpers.display import first_line
from helpers.model import hub_answers
from helpers.settings import DataSettings, SettingsError

Rows = TypeVar("Rows")
_BATCH = 1000  # rows asked of the library at once
_BROKEN_OFF = ("peer closed", "RemoteProtocolError", "ReadError", "ReadTimeout", "ConnectError", "ConnectionError")
_PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def part_names(splits: Mapping[str, Rows], settings: DataSettings) -> list[tuple[str, Rows]]:
    """Return a source's splits under our names; what is no part of training, such as `unsupervised`, is left out.

    One split alone, whatever its name, is '': still to be split. So is the one that `source_split` names.

    Raises:
        SettingsError: there is no such split, or none for training; those there are are listed.
    """
    wanted = settings.source_split
    if wanted and wanted not in splits:
        raise SettingsError(f"{settings.source!r} has no split {wanted!r}: set source_split to one of {list(splits)}.")
    if wanted or len(splits) == 1:
        return [("", splits[wanted] if wanted else next(iter(splits.values())))]
    parts = {_PARTS[name]: rows for name, rows in splits.items() if name in _PARTS}
    if "train" not in parts:
        raise SettingsError(
            f"{settings.source!r} has no split for training among {list(splits)}: set source_split to one of them."
        )
    return list(parts.items())


def saved_tables(folder: Path, settings: DataSettings) -> dict[str, Iterator[Row]]:
    """Return the splits of a folder that `datasets` saved.

    Raises:
        SettingsError: it is damaged.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(folder)
    except Exception as error:  # noqa: BLE001 (a damaged folder makes the library raise anything)
        raise SettingsError(f"{folder} cannot be opened as a saved data set ({first_line(error)}).") from None
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {name: _rows(split, settings) for name, split in splits.items()}


def saved_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Arrow files of each split of a folder that `datasets` saved."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("data-*.arrow")):
        files.setdefault("train" if file.parent == folder else file.parent.name, []).append(file)
    return files


def hub_tables(settings: DataSettings) -> dict[str, Iterator[Row]]:
    """Return the splits of a data set of the Hub, downloaded whole, or read as it arrives with `streaming`.

    What was downloaded before is used again where the Hub cannot be reached.

    Raises:
        SettingsError: it is not there, is closed, needs a configuration, or neither the Hub nor a cache has it.
    """
    from datasets import load_dataset

    is_online = hub_answers()
    try:
        with _offline(not is_online):
            splits = load_dataset(
                settings.source,
                settings.source_config or None,
                revision=settings.source_revision or None,
                streaming=settings.streaming,
            )
    except Exception as error:  # noqa: BLE001 (the clients raise many kinds; each becomes one sentence)
        raise SettingsError(_what_happened(settings, error, is_online=is_online)) from None
    return {name: _guarded(settings, _rows(split, settings)) for name, split in splits.items()}


def _rows(split: Any, settings: DataSettings) -> Iterator[Row]:
    """Yield the rows of a split; of its columns only that of the text where the library knows their types."""
    if split.features:
        kinds = {name: getattr(kind, "dtype", "") for name, kind in split.features.items()}
        sketch = {name: "words" if kind in ("string", "large_string") else 0 for name, kind in kinds.items()}
        split = split.select_columns([find_column(sketch, settings.text_column, name=repr(settings.source))])
    number = 0
    for batch in split.iter(_BATCH):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield f"row {number}", dict(zip(batch, values, strict=True))


def _guarded(settings: DataSettings, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows; a connection that breaks meanwhile, as it can in a stream, is told in a sentence."""
    try:
        yield from rows
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        raise SettingsError(_what_happened(settings, error, is_online=True)) from None


@contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """Let `datasets` look in its cache at once, where it would try the Hub for minutes."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or is_offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _what_happened(settings: DataSettings, error: BaseException, *, is_online: bool) -> str:
    """Return one sentence: what kept the data set away, and what to do."""
    source, words = settings.source, " ".join(_messages(error))
    shipped = "or use source='fables', which is shipped"
    if "gated" in words.lower():
        what = "is gated: accept its terms on its page, log in with `hf auth login`, and run this again"
    elif not is_online:
        what = f"is not in the cache, and the Hub does not answer: connect to the network once, {shipped}"
    elif "scripts are no longer supported" in words:
        what = f"is a script, and scripts no longer load: look for a Parquet copy of it, {shipped}"
    elif "doesn't exist" in words or "404" in words:
        what = f"is not on the Hub, or is private: check the name and its owner, {shipped}"
    elif "onfig" in words and ("missing" in words or "not found" in words):
        what = f"needs another configuration: set source_config ({first_line(error)}{_choices(words)})"
    elif any(sign in words for sign in _BROKEN_OFF):
        what = f"broke off while it was downloaded ({first_line(error)}): run this again, and it goes on"
    else:
        what = f"could not be loaded ({first_line(error)}): check source_config and the network, {shipped}"
    return f"The Hub's data set {source!r} {what}."


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


def _choices(words: str) -> str:
    _, there_are, names = words.partition("vailable configs: [")
    return f": {names.partition(']')[0]}" if there_are else ""
