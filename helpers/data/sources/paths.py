"""The files a source names, and the hash that shows whether they are still the same."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.data.sources.compression import CODECS
from helpers.settings import ASSETS, NOTEBOOKS, SettingsError

FABLES = ASSETS / "fables"
TEXTS = (".txt", ".md", ".markdown")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_FULL_NAMES = {
    "wikitext": "Salesforce/wikitext",
    "openwebtext": "Skylion007/openwebtext",
    "ag_news": "fancyzhx/ag_news",
    "imdb": "stanfordnlp/imdb",
    "tiny_shakespeare": "a text file of it: the data set was a script",
    "bookcorpus": "Salesforce/wikitext, or your own books: BookCorpus itself was a script and no longer loads",
}


def source_path(source: str) -> Path | None:
    """Return the file or folder a source names; None for what is not on disk: a Hub id or the Python reference.

    A relative path is looked for in the current folder, then next to the folder of the notebooks: they run in their
    own folder, and papermill in the caller's.

    Raises:
        SettingsError: the source looks like a path and does not exist, is a link that leads nowhere, or is the name of
            a data set without its owner.
    """
    if source == "fables":
        return FABLES
    if source == "python-reference":
        return None
    path = Path(source).expanduser()
    for candidate in (path, NOTEBOOKS.parent / path):
        if os.path.lexists(candidate):
            return _check_link(candidate)
    if _looks_like_a_path(source):
        raise SettingsError(f"source = {source!r} is not there: looked in {Path.cwd()} and {NOTEBOOKS.parent}.")
    if "/" not in source:
        full_name = _FULL_NAMES.get(source)
        advice = f"; write {full_name}." if full_name else ", as in 'Salesforce/wikitext'."
        raise SettingsError(
            f"source = {source!r} is neither shipped ('fables', 'python-reference') nor a file: a data set of the Hub "
            f"needs its owner in front{advice}"
        )
    return None


def _looks_like_a_path(source: str) -> bool:
    return kind_of(Path(source)) in (*TEXTS, *TABLES) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)


def _check_link(path: Path) -> Path:
    """Return the path as it was given; raise `SettingsError` when it is a link without a target."""
    try:
        path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise SettingsError(
            f"{path} is a symbolic link that leads nowhere or in a circle: point source at the text itself."
        ) from None
    return path


def kind_of(file: Path) -> str:
    """Return the suffix that decides how a file is read, in lower case and without the suffix of its compression.

    >>> kind_of(Path("News.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def source_files(path: Path) -> list[Path]:
    """Return the files a path names, sorted: the file itself, or every text and table below a folder.

    Links are followed, but each folder is entered once, so that a link to its own parent does no harm.

    Raises:
        SettingsError: the folder holds nothing to read, or a link in it leads nowhere or in a circle.
    """
    if path.is_file():
        return [path]
    files = sorted(_check_link(file) for file in _walk(path, set()) if kind_of(file) in (*TEXTS, *TABLES))
    if not files:
        raise SettingsError(f"The folder {path} holds no file of {', '.join((*TEXTS, *TABLES))}, compressed or not.")
    return files


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    # Not Path.rglob: before Python 3.13 it does not follow links, and it does list hidden files.
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, seen)
        else:
            yield entry


def source_hash(source: str) -> str | None:
    """Return the SHA-256 of the names and bytes of a source's files; None for a source that is not on disk."""
    path = source_path(source)
    if path is None:
        return None
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if is_saved_dataset(path) else source_files(path)
    for file in files:
        digest.update((file.name if file == path else file.relative_to(path).as_posix()).encode() + b"\0")
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise SettingsError(f"{file} cannot be read ({error.strerror}).") from None
    return digest.hexdigest()
