"""Files that are no text and no table, recognised by their first bytes and refused with the way to their text."""

import re
from pathlib import Path

from helpers.data.sources.encodings import read_chunks
from helpers.settings import SettingsError

_HEAD_BYTES = 4096
_SAVE_AS_TEXT = "open it in its program and save it as plain text (.txt, UTF-8)"
_UNPACK = "unpack it and use the folder"
# What a file begins with, after white space and a byte order mark -> what it is, and how to get at its text.
_KINDS: dict[bytes, tuple[str, str]] = {
    rb"version https://git-lfs": (
        "only a pointer to the data, because the repository was cloned without Git LFS",
        "run `git lfs pull` in its folder, or download the file itself",
    ),
    rb"(?i)(<!--.*?-->\s*)?<(!doctype html|html)\b": (
        "a web page, such as a login page that came in the file's place",
        "download the file itself, or save the page's words as plain text",
    ),
    rb"<\?xml|<!DOCTYPE ": ("an XML file", "take the text out of its elements and save it as .txt or .jsonl"),
    rb"\{\\rtf": ("a rich-text file (RTF)", _SAVE_AS_TEXT),
    rb'\{\s*"(cells|nbformat|metadata)": ?[\[{\d].{0,3000}"(cell_type|nbformat)"': (
        "a Jupyter notebook",
        "export it with `jupyter nbconvert --to markdown`",
    ),
    rb"WEBVTT|1\r?\n\d\d:\d\d:\d\d[,.]\d{3} -->": (
        "a file of subtitles",
        "take the spoken lines out of it, without the numbers and times",
    ),
    rb"From \S+@\S+ +\w{3} \w{3} |(Return-Path|Received|Delivered-To|MIME-Version|Message-ID): |"
    rb"From: [^\n]*@[^\n]*\n([\w-]+: [^\n]*\n){2}": (
        "e-mail with its headers",
        "take the messages out of it, such as with Python's `mailbox`, and save them as .jsonl",
    ),
    rb"PK\x03\x04": (
        "a ZIP archive, or a file of Word, Excel or another program",
        f"{_UNPACK}, or {_SAVE_AS_TEXT}, a table as .csv",
    ),
    rb"%PDF-": ("a PDF", "take its text out, such as with `pdftotext`, and read what comes out"),
    rb"\xd0\xcf\x11\xe0": ("a file of an old Office program", _SAVE_AS_TEXT),
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


def refuse_other_kinds(file: Path) -> None:
    """Raise `SettingsError` for a file that is neither a text nor a table, whatever its name says."""
    head = next(read_chunks(file), b"")[:_HEAD_BYTES]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.suffix.lower() == ".xml":  # one without its first line cannot be told from Markdown with a tag in it
        text = b"<?xml" + text
    kind = next((kind for start, kind in _KINDS.items() if re.match(start, text, re.DOTALL)), _binary(head))
    is_named_so = head.startswith(b"PAR1") and file.suffix.lower() == ".parquet"
    if kind and not is_named_so:
        raise SettingsError(f"{file} is {kind[0]}, not text: {kind[1]}.")


def _binary(head: bytes) -> tuple[str, str] | None:
    """Return what a file of control characters is, such as one of token ids in two bytes each; None for any other."""
    codes = list(map(ord, head.decode("utf-16-le", "ignore"))) if b"\0" in head else list(head)
    n_control = sum(0 < code < 9 or 13 < code < 32 for code in codes)
    return ("a binary file", "name a text file") if n_control > 0.1 * len(codes) else None
