"""The files of a source, and the hash that tells whether they have changed."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from helpers.data.sources.encodings import CODECS
from helpers.display import did_you_mean, last_part
from helpers.paths import ASSETS, NOTEBOOKS, find_path, is_hidden, paths_of, similar_paths
from helpers.settings import SHIPPED_TEXTS, SettingsError

FABLES = ASSETS / "fables"
TEXTS = (".txt", ".text", ".md", ".markdown")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python represents such bytes in a name
_COURSE_FILES = ("README.md", "LICENSE", "Makefile", "constraints.txt", "environment.yml", "pyproject.toml")
_FULL_NAMES = {
    "wikitext": "Salesforce/wikitext",
    "openwebtext": "Skylion007/openwebtext",
    "ag_news": "fancyzhx/ag_news",
    "imdb": "stanfordnlp/imdb",
    "tiny_shakespeare": "a text file of it: the data set was a script",
    "bookcorpus": "Salesforce/wikitext, or your own books: BookCorpus itself was a script and no longer loads",
}


def source_path(source: str) -> Path | None:
    """Return the file or folder that a source names; None if it is not on disk (a Hub id or the Python reference).

    A relative path is searched for as `helpers.paths.find_path` does, starting in the caller's folder.

    Raises:
        SettingsError: the source looks like a path but does not exist, is a broken link, is the name of a data set
            without its owner or a web address, or is a file of the course itself.
    """
    if source == "fables":
        return FABLES
    if source == "python-reference":
        return None
    if (path := find_path(source)) is not None:
        _check_link(path)
        _refuse_own_files(path)
        return path
    if "://" in source:
        raise SettingsError(
            f"source = {source!r} is an address: download the file and name it; a data set of the Hub is written as "
            "'owner/name'."
        )
    suggestion = did_you_mean(source, similar_paths(source, SHIPPED_TEXTS))
    if kind_of(Path(source)) in (*TEXTS, *TABLES) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        searched = " and ".join(map(str, paths_of(source)))
        raise SettingsError(f"source = {source!r} is not there: looked for {searched}{suggestion}")
    if "/" not in source:
        full_name = _FULL_NAMES.get(source)
        advice = f"; write {full_name}." if full_name else f", as in 'Salesforce/wikitext'{suggestion}"
        raise SettingsError(
            f"source = {source!r} is neither shipped ('fables', 'python-reference') nor a file: a data set of the Hub "
            f"needs its owner in front{advice}"
        )
    return None


def public_name(source: str) -> str:
    """Return a source's name for publication: only the last part of a path, which may no longer exist.

    >>> public_name("Salesforce/wikitext"), public_name("letters/mine.txt")
    ('Salesforce/wikitext', 'mine.txt')
    """
    try:
        is_on_hub = source_path(source) is None
    except SettingsError:  # it looks like a path but does not exist
        is_on_hub = False
    return source if is_on_hub else last_part(source)


def check_source(source: str) -> None:
    """Raise `SettingsError` for a source that cannot be read, before any work is done; does not contact the Hub."""
    path = source_path(source)
    if path is not None and not is_saved_dataset(path):
        source_files(path)


def _refuse_own_files(path: Path) -> None:
    course = NOTEBOOKS.parent.resolve()
    real = path.resolve()
    if real == course or (real.parent == course and real.name in _COURSE_FILES):
        raise SettingsError(f"{path} is part of this course and not your text: name your own file or folder.")


def _check_link(path: Path) -> Path:
    """Return the path unchanged; raise `SettingsError` if it is a link without a target."""
    if not path.exists():  # not resolve(strict=True): on some Windows drives it fails for every file
        raise SettingsError(
            f"{path} is a symbolic link that leads nowhere or in a circle: point source at the text itself."
        )
    return path


def kind_of(file: Path) -> str:
    """Return the lower-case suffix that decides how a file is read, ignoring a compression suffix.

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
    """Return the files that a path names, sorted: the file itself, or every text and table below a folder.

    Links are followed, but each folder is visited only once, so a link to its own parent is harmless.

    Raises:
        SettingsError: the folder holds nothing to read, contains a broken or circular link, or is a damaged or
            incomplete copy of what `save_to_disk` wrote.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SettingsError(f"{path} is neither a file nor a folder: write its content to a file.")
    files = list(_walk(path, set()))
    _refuse_parts_of_saved(path, files)
    read = in_order(_check_link(file) for file in files if kind_of(file) in (*TEXTS, *TABLES))
    if not read:
        raise SettingsError(
            f"The folder {path} holds no file of {', '.join((*TEXTS, *TABLES))}, compressed or not; other files in it: "
            f"{len(files):,}."
        )
    return read


def in_order(files: Iterable[Path]) -> list[Path]:
    """Return files in the same order on every system: Windows compares paths case-insensitively."""
    return sorted(files, key=lambda file: file.parts)


def other_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are neither texts nor tables by their names."""
    return [file for file in _walk(folder, set()) if kind_of(file) not in (*TEXTS, *TABLES)]


def _refuse_parts_of_saved(folder: Path, files: Sequence[Path]) -> None:
    """Raise `SettingsError` for a saved data set in a subfolder, or one without the files that identify it."""
    saved = [file for file in files if file.suffix == ".arrow" and (file.parent / "dataset_info.json").is_file()]
    if saved:
        names = ", ".join(sorted({file.relative_to(folder).parts[0] for file in saved}))
        raise SettingsError(
            f"{folder} holds data saved with `save_to_disk` ({names}): set source to the folder that was saved, and "
            "copy it again if its dataset_dict.json or state.json is missing."
        )


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    # Not Path.rglob: it lists hidden files, and before Python 3.13 it does not follow links.
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        entries = [entry for entry in folder.iterdir() if not is_hidden(entry)]
    except OSError as error:
        raise SettingsError(f"{folder} cannot be read ({error.strerror}): change its permissions.") from None
    for entry in entries:
        if _NOT_UTF8.search(entry.name):
            raise SettingsError(f"{str(entry)!a} has a name that is not UTF-8: rename it.")
        if entry.is_dir():
            yield from _walk(entry, seen)
        elif entry.is_file() or entry.is_symlink():  # not a pipe or a socket, which may never end
            yield entry


def source_hash(source: str, *, name: str = "", streaming: bool = False) -> str | None:
    """Return the SHA-256 of the names and bytes of a source's files; None if it is not on disk.

    Args:
        source: a path, a Hub id or the name of a shipped text.
        name: hash a single file under this name instead of its own: the name it had before it was moved.
        streaming: hash only names and sizes: reading all of a large source would take hours.
    """
    path = source_path(source)
    if path is None:
        return None
    digest = hashlib.sha256()
    is_saved = is_saved_dataset(path)
    for file in in_order(filter(Path.is_file, path.rglob("*"))) if is_saved else source_files(path):
        hashed_name = (name or file.name) if file == path else file.relative_to(path).as_posix()
        digest.update(hashed_name.encode(errors="surrogateescape") + b"\0")
        if streaming:
            digest.update(b"%d" % file.stat().st_size)
            continue
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise SettingsError(f"{file} cannot be read ({error.strerror}).") from None
    return digest.hexdigest()
