"""Which files a source names, and what decides that they are the same again."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.settings import ASSETS, NOTEBOOKS, SettingsError

FABLES = ASSETS / "fables"
TEXTS = (".txt", ".md", ".markdown")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
_OWNERS = {
    "wikitext": "Salesforce/wikitext",
    "openwebtext": "Skylion007/openwebtext",
    "ag_news": "fancyzhx/ag_news",
    "imdb": "stanfordnlp/imdb",
    "tiny_shakespeare": "a text file of it: the data set was a script",
    "bookcorpus": "Salesforce/wikitext, or your own books: BookCorpus itself was a script and no longer loads",
}


def source_path(source: str) -> Path | None:
    """Return the file or folder a source names, or None for what is not on disk: a Hub id or the Python reference.

    A relative path is looked for in the current folder and then beside the notebooks' folder.

    Raises:
        SettingsError: the source looks like a path and is not there, leads in a circle, or is a bare data set name.
    """
    if source == "fables":
        return FABLES
    if source == "python-reference":
        return None
    path = Path(source).expanduser()
    for candidate in (path, NOTEBOOKS.parent / path):
        if os.path.lexists(candidate):
            return _resolved(candidate)
    if _looks_like_a_path(source):
        raise SettingsError(f"source = {source!r} is not there: looked in {Path.cwd()} and {NOTEBOOKS.parent}.")
    if "/" not in source:
        instead = _OWNERS.get(source)
        raise SettingsError(
            f"source = {source!r} is neither shipped ('fables', 'python-reference') nor a file: a data set of the Hub "
            + (
                f"needs its owner in front; write {instead}."
                if instead
                else "needs its owner in front, as in 'Salesforce/wikitext'."
            )
        )
    return None


def _looks_like_a_path(source: str) -> bool:
    return kind_of(Path(source)) in (*TEXTS, *TABLES) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)


def _resolved(path: Path) -> Path:
    """Return the path as it was given, when its links lead somewhere."""
    try:
        path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise SettingsError(
            f"{path} is a symbolic link that leads nowhere or in a circle: point source at the text itself."
        ) from None
    return path


def kind_of(file: Path) -> str:
    """Return the suffix that tells how a file is read, without that of its compression, in lower case.

    >>> kind_of(Path("News.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_saved_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def source_files(path: Path) -> list[Path]:
    """Return the files a path names, in order: itself, or every text and table below a folder.

    Links are followed, each folder once, so that a link to its own parent does no harm.

    Raises:
        SettingsError: the folder holds nothing to read, or a link in it leads nowhere or in a circle.
    """
    if path.is_file():
        return [path]
    files = sorted(_resolved(file) for file in _walk(path, set()) if kind_of(file) in (*TEXTS, *TABLES))
    if not files:
        raise SettingsError(f"The folder {path} holds no file of {', '.join((*TEXTS, *TABLES))}, compressed or not.")
    return files


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
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
    """Return a SHA-256 over the names and bytes of a source's files; None where the source is not on disk."""
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
