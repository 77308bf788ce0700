import gzip
import io
import json
import pickle
import tarfile
import zipfile

import pytest

from helpers.data.sources import Source
from helpers.data.sources.refused_files import refuse_other_kinds
from helpers.settings import DataSettings, SettingsError


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "words")
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


NOTEBOOK = json.dumps({"cells": [{"cell_type": "markdown", "source": ["words"]}], "nbformat": 4}, indent=1).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# name of a file -> what it holds, and what the sentence must say it is
OTHERS = {
    "letter.rtf": (rb"{\rtf1\ansi Dear fox}", "rich-text file.*plain text"),
    "page.html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "login.csv": (b"<html><head><title>Sign in</title></head></html>", "a web page, such as a login page"),
    "login.txt": (b"\xef\xbb\xbf<!-- proxy --><!doctype html><html></html>", "a web page"),
    "dump.XML": (b"<pages><page>words</page></pages>", "an XML file"),
    "feed.txt": (b'<?xml version="1.0"?><rss></rss>', "an XML file"),
    "lesson.ipynb": (NOTEBOOK, "a Jupyter notebook.*nbconvert"),
    "film.srt": (b"1\r\n00:00:00,000 --> 00:00:00,900\r\nThe fox\r\n", "a subtitle file"),
    "pointer.parquet": (POINTER, "only a pointer to the data.*git lfs pull"),
    "pointer.txt": (POINTER, "only a pointer"),
    "book.docx": (archive("[Content_Types].xml", "word/document.xml"), "a Word, Excel or similar file.*plain text"),
    "table.csv": (archive("[Content_Types].xml", "xl/workbook.xml"), "Excel or similar file.*as .csv"),
    "book.epub": (archive("mimetype", "OEBPS/a.xhtml"), "a ZIP archive, or a Word"),
    "tales.zip": (archive("a.txt"), "a ZIP archive, .* not text: unpack it"),
    "tales.tar": (tar(), "a binary file"),
    "tales.txt": (b"BZh91AY&SY words", "a compressed file"),
    "tales.csv": (gzip.compress(b"words"), "a compressed file.*ends in .gz"),
    "tales.json": (b"\x28\xb5\x2f\xfd words", "a compressed file.*ends in .*zst"),
    "fox.png": (b"\x89PNG\r\n\x1a\n\0", "a binary file"),
    "book.txt": (b"%PDF-1.7 \xe2\xe3", "a PDF"),
    "tool.exe": (b"MZ\x90\0\x03\0\0\0\x04\0", "a binary file"),
    "data.txt": (b"SQLite format 3\0\x10\0", "a binary file"),
    "old.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a binary file"),
    "table.txt": (b"PAR1 and more", "a Parquet table.*ends in .parquet"),
    "part.arrow": (b"ARROW1\0\0", "an Arrow file.*save_to_disk"),
    "model.pkl": (pickle.dumps({"text": "words"}), "a binary file"),
    "train.bin": (b"\x01\0\x02\0\x03\0\x40\x9c" * 9, "a binary file"),
    "bytes.bin": (b"\x01\x08\x0e\x1f" + 30 * b"a", "a binary file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_unsupported_file_is_refused_with_the_way_to_its_text(tmp_path, name):
    content, words = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as refused:
        list(Source(DataSettings(source=str(path))).parts())
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        "Words of a story.".encode("utf-16"),
        "Words of a story.".encode("utf-32"),
        "Слова и дело".encode("utf-16-le"),
        b"# Title\n<div>\n<b>Words</b></div>",
        b"{'cells': 1}",
        b"MZ. A story of two letters.\n\nThe end.",
        b"SQLite format 3 is what this story is about.",
        b"1\nThe first chapter",
        b"a\tb\r\n",
        b"",
    ],
)
def test_a_text_that_only_looks_like_another_kind_is_accepted(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    refuse_other_kinds([path])


def test_a_folder_with_such_a_file_is_refused_before_anything_is_read(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"{\\rtf1" if number == 1 else b"A story.")
    with pytest.raises(SettingsError, match=r"1\.txt is a rich-text file \(RTF\), not text: open it"):
        next(iter(Source(DataSettings(source=str(tmp_path))).parts()))
