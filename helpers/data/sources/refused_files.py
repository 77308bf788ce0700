"""Recognise files that are neither text nor table by their first bytes, and explain how to get at their text."""

import re
from collections.abc import Iterable
from pathlib import Path

from helpers.data.sources.encodings import read_chunks
from helpers.settings import SettingsError

_HEAD_BYTES = 4096
_SAVE_AS_TEXT = "open it in its program and save it as plain text (.txt, UTF-8)"
_UNPACK = "unpack it and use the folder"
# The beginning of a file, after white space and a byte order mark -> what it is, and how to get at its text.
_KINDS: dict[bytes, tuple[str, str]] = {
    rb"version https://git-lfs": (
        "only a pointer to the data, because the repository was cloned without Git LFS",
        "run `git lfs pull` in its folder, or download the file itself",
    ),
    rb"(?i)(<!--.*?-->\s*)?<(!doctype html|html)\b": (
        "a web page, such as a login page served in place of the file",
        "download the file itself, or save the page as plain text",
    ),
    rb"<\?xml|<!DOCTYPE ": ("an XML file", "extract the text from its elements and save it as .txt or .jsonl"),
    rb"\{\\rtf": ("a rich-text file (RTF)", _SAVE_AS_TEXT),
    rb'\{\s*"(cells|nbformat|metadata)": ?[\[{\d].{0,3000}"(cell_type|nbformat)"': (
        "a Jupyter notebook",
        "export it with `jupyter nbconvert --to markdown`",
    ),
    rb"WEBVTT|1\r?\n\d\d:\d\d:\d\d[,.]\d{3} -->": (
        "a subtitle file",
        "extract the spoken lines, without the numbers and times",
    ),
    rb"From \S+@\S+ +\w{3} \w{3} |(Return-Path|Received|Delivered-To|MIME-Version|Message-ID): |"
    rb"From: [^\n]*@[^\n]*\n([\w-]+: [^\n]*\n){2}": (
        "e-mail with its headers",
        "extract the messages, for example with Python's `mailbox`, and save them as .jsonl",
    ),
    rb"PK\x03\x04": (
        "a ZIP archive, or a Word, Excel or similar file",
        f"{_UNPACK}, or {_SAVE_AS_TEXT}, a table as .csv",
    ),
    rb"%PDF-": ("a PDF", "extract its text, for example with `pdftotext`, and check the result"),
    rb"\xd0\xcf\x11\xe0": ("an old Office file", _SAVE_AS_TEXT),
    rb"\x89PNG|\xff\xd8\xff|GIF8": ("a picture", "name a text file"),
    rb"\x7fELF|MZ[^\0]{0,60}\0": ("a program", "name a text file"),
    rb"\x1f\x8b": ("gzip-compressed", "rename it so that it ends in .gz; unpack it first if it is an archive"),
    rb"\x28\xb5\x2f\xfd": ("zstd-compressed", "rename it so that it ends in .zst, or unpack it"),
    rb"BZh\d|\xfd7zXZ": ("compressed with bzip2 or xz", "unpack it, or compress it with gzip or zstd instead"),
    rb"7z\xbc\xaf|Rar!|[^\0]{1,100}\0.{156,}ustar": ("an archive", _UNPACK),
    rb"PAR1": ("a Parquet table", "rename it so that it ends in .parquet; unpack it first if it is in a .gz or .zst"),
    rb"ARROW1|\xff\xff\xff\xff": (
        "an Arrow file",
        "name the folder that `save_to_disk` wrote, or save the data set with `to_parquet`",
    ),
    rb"SQLite format 3\0": ("a database", "export its table as .csv or .jsonl"),
    rb"\x80[\x02-\x05]": ("a Python pickle, which can run code when it is opened", "save the data as .jsonl"),
}


def refuse_other_kinds(files: Iterable[Path]) -> None:
    """Raise `SettingsError` for files that are neither texts nor tables, whatever their names; it names up to four."""
    refused = {}
    for file in files:
        try:
            _refuse_other_kind(file)
        except SettingsError as error:
            refused[file] = str(error)
    if not refused:
        return
    first, *others = refused
    listed = ", ".join(map(str, others[:3])) + (f" and {len(others) - 3:,} more" if len(others) > 3 else "")
    raise SettingsError(refused[first] + (f" Refused too: {listed}." if others else ""))


def _refuse_other_kind(file: Path) -> None:
    head = next(read_chunks(file), b"")[:_HEAD_BYTES]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.suffix.lower() == ".xml":  # without `<?xml`, it looks like Markdown that contains a tag
        text = b"<?xml" + text
    kind = next((kind for start, kind in _KINDS.items() if re.match(start, text, re.DOTALL)), _binary(head))
    is_parquet = head.startswith(b"PAR1") and file.suffix.lower() == ".parquet"
    if kind and not is_parquet:
        raise SettingsError(f"{file} is {kind[0]}, not text: {kind[1]}.")


def _binary(head: bytes) -> tuple[str, str] | None:
    """Describe a file full of control characters, such as two-byte token ids; None for any other."""
    codes = list(map(ord, head.decode("utf-16-le", "ignore"))) if b"\0" in head else list(head)
    n_control = sum(0 < code < 9 or 13 < code < 32 for code in codes)
    return ("a binary file", "name a text file") if n_control > 0.1 * len(codes) else None
