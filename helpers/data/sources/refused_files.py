"""Recognise files that are neither text nor table by their first bytes, and explain how to get at their text."""

import re
from collections.abc import Iterable
from pathlib import Path

from helpers.data.sources.encodings import read_chunks
from helpers.settings import SettingsError

_HEAD_BYTES = 4096
_SAVE_AS_TEXT = "open it in its program and save it as plain text (.txt, UTF-8)"
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
    rb"PK\x03\x04": (
        "a ZIP archive, or a Word, Excel or similar file",
        f"unpack it and use the folder, or {_SAVE_AS_TEXT}, a table as .csv",
    ),
    rb"%PDF-": ("a PDF", "extract its text, for example with `pdftotext`, and check the result"),
    rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh\d|\xfd7zXZ": (
        "a compressed file",
        "unpack it, or rename it so that it ends in .gz (gzip) or .zst (zstd)",
    ),
    rb"PAR1": ("a Parquet table", "rename it so that it ends in .parquet; unpack it first if it is in a .gz or .zst"),
    rb"ARROW1|\xff\xff\xff\xff": (
        "an Arrow file",
        "name the folder that `save_to_disk` wrote, or save the data set with `to_parquet`",
    ),
}


def refuse_other_kinds(files: Iterable[Path]) -> None:
    """Raise `SettingsError` for the first file that is neither text nor table, whatever its name."""
    for file in files:
        head = next(read_chunks(file), b"")[:_HEAD_BYTES]
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if file.suffix.lower() == ".xml":  # without `<?xml`, it looks like Markdown that contains a tag
            text = b"<?xml" + text
        kind = next((kind for start, kind in _KINDS.items() if re.match(start, text, re.DOTALL)), None)
        # Control characters are rare in text, except in UTF-16; a file with a NUL byte is refused when it is decoded.
        n_control = 0 if b"\0" in head else sum(byte < 9 or 13 < byte < 32 for byte in head)
        if n_control > 0.1 * len(head):
            kind = ("a binary file", "name a text file")
        is_parquet = head.startswith(b"PAR1") and file.suffix.lower() == ".parquet"
        if kind and not is_parquet:
            raise SettingsError(f"{file} is {kind[0]}, not text: {kind[1]}.")
