"""How a text's bytes stand for letters: found, named, and never guessed where the bytes contradict themselves."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.settings import SettingsError

_MARKS = (  # the longer first: UTF-32's mark begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive (or a Word or EPUB file)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "an old Word file",
    b"\x1f\x8b": "gzip-compressed (its name should end in .gz)",
    b"\x28\xb5\x2f\xfd": "zstd-compressed (its name should end in .zst)",
    b"PAR1": "a Parquet table (its name should end in .parquet)",
    b"SQLite format 3": "a database",
}
# One-byte code pages come in families that hardly differ on a given text: of equals the first is taken.
_CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "iso8859_2", "iso8859_7",
    "gb18030", "big5", "cp932", "euc_jp", "cp949",
]  # fmt: skip
_SAMPLE_BYTES = 2**18
_CLOSE = 0.1  # differences of charset-normalizer's measures that decide nothing


def find_encoding(file: Path, chunks: Iterable[bytes]) -> str:
    """Return the name of the encoding of a text, reading it to its end where it is UTF-8 and to the first doubt else.

    Raises:
        SettingsError: it is no text, or mixes encodings.
    """
    decoder, n_before, last = codecs.getincrementaldecoder("utf-8")(), 0, b""
    for chunk in chunks:
        if not n_before and (marked := _by_first_bytes(file, chunk)):
            return marked
        _refuse_nul(file, chunk, n_before)
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            held = len(error.object) - len(chunk)
            position = max(0, n_before + error.start - held)
            return _by_statistics(file, _around(last + chunk, len(last) + error.start - held), position)
        last, n_before = chunk, n_before + len(chunk)
    if decoder.getstate()[0]:
        return _by_statistics(file, _around(last, len(last)), n_before - len(decoder.getstate()[0]))
    return "utf-8"


def _around(text: bytes, position: int) -> bytes:
    start = max(0, position - _SAMPLE_BYTES // 2)
    while 0 < start < position and 0x80 <= text[start] < 0xC0:  # amid a letter
        start += 1
    return text[start : start + _SAMPLE_BYTES]


def _by_first_bytes(file: Path, chunk: bytes) -> str | None:
    for mark, name in _MARKS:
        if chunk.startswith(mark):
            return name
    for magic, what in _NO_TEXT.items():
        if chunk.startswith(magic):
            raise SettingsError(f"{file} is {what}, not text: save its words as UTF-8 text first.")
    head = chunk[:4096]
    zeros = head[0::2].count(0), head[1::2].count(0)  # Latin letters in UTF-16 have one byte of zero
    if len(head) >= 8 and max(zeros) > 0.6 * len(head) / 2 and min(zeros) < 0.1 * len(head) / 2:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def _refuse_nul(file: Path, chunk: bytes, n_before: int) -> None:
    if (at := chunk.find(0)) >= 0:
        raise SettingsError(
            f"{file} holds a NUL byte (byte {n_before + at}): it is a binary file or damaged, not text. "
            "Name a text file, or save this one as UTF-8."
        )


def _by_statistics(file: Path, sample: bytes, position: int) -> str:
    from charset_normalizer import from_bytes

    as_utf8 = sample.decode("utf-8", errors="replace")
    n_bad = as_utf8.count("\ufffd")
    n_good = sum(sign > "\x7f" for sign in as_utf8) - n_bad
    n_before = sum(sign > "\x7f" for sign in as_utf8.partition("\ufffd")[0])
    if n_before > 2 or n_good > 5 * n_bad:  # no other encoding passes for UTF-8 by chance so often
        raise SettingsError(
            f"{file} mixes encodings: most of it is UTF-8, but byte {position} is not. "
            "Save it as UTF-8 throughout, or name an encoding to read all of it as."
        )
    matches = list(from_bytes(sample, cp_isolation=_CANDIDATES))
    if not matches:
        raise SettingsError(
            f"{file} is no text in any encoding known (byte {position} is no UTF-8): name a text file, or its encoding."
        )
    best = matches[0]
    for match in matches:
        is_close = match.chaos - best.chaos < _CLOSE and best.coherence - match.coherence < _CLOSE
        if is_close and "cp1252" in (match.encoding, *match.could_be_from_charset):
            return "cp1252"  # what Windows writes in the West, unless the text speaks against it
    return best.encoding


def decoded(file: Path, chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    r"""Yield text with `\n` at the ends of lines, whatever system it comes from.

    Raises:
        SettingsError: there are bytes that the encoding does not know; the first is named.
    """
    import io

    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    n_before = 0
    try:
        for chunk in chunks:
            yield decoder.decode(chunk)
            n_before += len(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{file} is not {encoding} throughout (near byte {n_before + error.start}: {error.reason}): "
            "save it as UTF-8, or name another encoding."
        ) from None
