"""Read a file as text: decompress it a megabyte at a time, and detect its encoding; invalid bytes are an error."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.settings import SettingsError

CODECS = {".gz": "gzip", ".zst": "zstd"}  # suffix -> pyarrow's name
CHUNK_BYTES = 2**20
MAX_EXPANSION = 200  # text shrinks 3 to 30 times; a decompression bomb expands 1,000 times and more
_HARMLESS_BYTES = 2**24  # this little fits in memory at any ratio
_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Many one-byte code pages differ only in a few letters, so several fit the same text: the first that fits is used.
_CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "iso8859_2", "iso8859_7",
    "gb18030", "big5", "cp932", "euc_jp", "cp949",
]  # fmt: skip
_MULTI_BYTE = _CANDIDATES[-5:]
# Excel still writes both, as "CSV (Macintosh)" and "CSV (MS-DOS)". They have letters where Windows' code pages have
# symbols, so the bytes inside words tell them apart; the last five characters join words.
_OLD_CODE_PAGES = ("mac_roman", "cp850")
_BYTE_IN_WORD = re.compile(rb"(?<=[A-Za-z])[\x80-\xff](?=[a-z])")
_LETTERS = "àáâãäåæçèéêëíîïñòóôõöøùúûüßœąćęłńśźżčďěňřšťůž\u2018\u2019\u2013\u2014\u2026"
# a character of UTF-8 whose bytes were read as Windows-1252 and written as UTF-8 again: "Ã¤" for "ä"
_TRAIL = "[\u0080-\u00bf" + "".join(bytes([b]).decode("cp1252", "ignore") for b in range(0x80, 0xA0)) + "]"
_TWICE = re.compile(rf"[\u00c2-\u00df]{_TRAIL}|[\u00e0-\u00ef]{_TRAIL}{{2}}|[\u00f0-\u00f4]{_TRAIL}{{3}}")
_SAMPLE_BYTES = 2**18
# charset-normalizer examines a few parts of a sample: none may be only ASCII, which fits every code page.
_LONG_ASCII = re.compile(rb"(?<![\x00-\x7f])[\x00-\x7f]{129,}")
# Windows-1252 lacks a few letters of these languages, too few to change the scores, so the language decides.
_NOT_WESTERN = {"Croatian", "Czech", "Hungarian", "Polish", "Slovak", "Slovene", "Turkish"}
_MIN_LANGUAGE_BYTES = 400  # in less, a Danish, Italian or Spanish text was taken for one of them
_SCORE_MARGIN = 0.1  # smaller differences between charset-normalizer's scores are ignored


def read_chunks(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed when its name ends in `.gz` or `.zst`.

    Raises:
        SettingsError: the file cannot be read, is truncated, or expands to more than 200 times its size.
    """
    import pyarrow as pa  # streams both formats; Python 3.11 has no zstd

    codec, n_decompressed = CODECS.get(file.suffix.lower()), 0
    try:
        with file.open("rb") as raw:
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            while chunk := stream.read(CHUNK_BYTES):
                n_decompressed += len(chunk)
                if n_decompressed > max(_HARMLESS_BYTES, MAX_EXPANSION * raw.tell()):
                    raise SettingsError(
                        f"{file} expands to more than {MAX_EXPANSION} times its size, which no text does, so it was "
                        "not unpacked. If you trust it, unpack it yourself and use the unpacked file."
                    )
                yield chunk
    except OSError as error:
        cause = error.strerror or str(error)
        fix = ": download or compress it again" if codec else ""
        raise SettingsError(f"{file} cannot be read ({cause}){fix}.") from None


def find_encoding(file: Path, chunks: Iterable[bytes]) -> str:
    """Return the name of a text's encoding: UTF-8 if every byte fits, otherwise a guess from its statistics.

    A UTF-8 text is read to the end because a wrong byte may come late; any other only to its first wrong byte.

    Raises:
        SettingsError: the file is not text, mixes encodings, or was encoded twice.
    """
    decoder, n_before, last = codecs.getincrementaldecoder("utf-8")(), 0, b""
    for chunk in chunks:
        if not n_before and (marked := [name for mark, name in _BYTE_ORDER_MARKS if chunk.startswith(mark)]):
            return marked[0]
        if (position := chunk.find(0)) >= 0:
            raise SettingsError(
                f"{file} holds a NUL byte (byte {n_before + position}): it is a binary file or damaged, not text. Name "
                "a text file, or save this one as UTF-8. If it is UTF-16, set encoding to 'utf-16-le' or 'utf-16-be'."
            )
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            n_carried = len(error.object) - len(chunk)  # bytes of a character that began in the last chunk
            position = n_before + error.start - n_carried
            return _guess_encoding(file, _sample(last + chunk, len(last) + error.start - n_carried), position)
        if not n_before:
            _refuse_encoded_twice(file, text)
        last, n_before = chunk, n_before + len(chunk)
    if unfinished := decoder.getstate()[0]:
        return _guess_encoding(file, _sample(last, len(last)), n_before - len(unfinished))
    return "utf-8"


def _refuse_encoded_twice(file: Path, text: str) -> None:
    found = [] if text.isascii() else _TWICE.findall(text)
    if len(found) >= 3 and sum(map(len, found)) > 0.9 * _count_non_ascii(text):
        raise SettingsError(
            f"{file} was encoded in UTF-8 twice: it holds {found[0]!r} where one letter was meant. Save it as UTF-8 "
            "again from where it came from, or set encoding to 'utf-8' to read it as it is."
        )


def _sample(text: bytes, position: int) -> bytes:
    """Return the bytes around a position, starting at a character boundary if the text is UTF-8."""
    start = max(0, position - _SAMPLE_BYTES // 2)
    while 0 < start < position and 0x80 <= text[start] < 0xC0:  # a continuation byte of UTF-8
        start += 1
    return text[start : start + _SAMPLE_BYTES]


def _guess_encoding(file: Path, sample: bytes, position: int) -> str:
    from charset_normalizer import from_bytes

    as_utf8 = sample.decode("utf-8", errors="replace")
    n_bad = as_utf8.count("\ufffd")
    n_good = _count_non_ascii(as_utf8) - n_bad
    n_good_before = _count_non_ascii(as_utf8.partition("\ufffd")[0])
    # Text in another encoding is rarely valid UTF-8 by accident, so several valid characters mean damaged UTF-8.
    if n_good_before > 2 or n_good > 5 * n_bad:
        raise SettingsError(
            f"{file} mixes encodings: most of it is UTF-8, but byte {position} is not. "
            "Save it as UTF-8 throughout, or set encoding to read all of it in one."
        )
    shortened = _LONG_ASCII.sub(lambda run: run[0][:64] + b" " + run[0][-64:], sample)
    best = _likeliest(list(from_bytes(shortened, cp_isolation=_CANDIDATES)), len(shortened))
    if best not in _MULTI_BYTE:
        bytes_in_words = _BYTE_IN_WORD.findall(sample)
        # charset-normalizer sometimes finds no code page for ordinary Western text
        names = (best, *_OLD_CODE_PAGES) if best else ("ascii", "cp1252", *_OLD_CODE_PAGES)
        n_letters = [sum(byte.decode(name, "replace") in _LETTERS for byte in bytes_in_words) for name in names]
        if max(n_letters) > max(n_letters[0], 0.9 * len(bytes_in_words)):  # not DOS's and the Mac's other code pages
            best = names[n_letters.index(max(n_letters))]
    if best is None:
        raise SettingsError(
            f"{file} is not text in any known encoding (byte {position} is not UTF-8): name a text file, or set "
            "encoding."
        )
    return best


def _likeliest(matches: list[Any], n_bytes: int) -> str | None:
    for match in matches:
        is_close = max(match.chaos - matches[0].chaos, matches[0].coherence - match.coherence) < _SCORE_MARGIN
        is_western = match is matches[0] or match.language not in _NOT_WESTERN or n_bytes < _MIN_LANGUAGE_BYTES
        if is_close and is_western and "cp1252" in (match.encoding, *match.could_be_from_charset):
            return "cp1252"  # the Windows default in Western countries, unless another clearly fits better
    return matches[0].encoding if matches else None


def _count_non_ascii(text: str) -> int:
    return sum(character > "\x7f" for character in text)


def decode(file: Path, chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    r"""Yield a file's text with `\n` as the only line end, whatever system wrote it.

    Raises:
        SettingsError: a byte is invalid in this encoding; the message names the position of the first one.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    n_before = 0
    try:
        for chunk in chunks:
            text = decoder.decode(chunk)
            yield text if n_before else text.removeprefix("\ufeff")  # BOM, which `utf-8` and `utf-16-le` keep
            n_before += len(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeError as error:  # 'utf-16' without a byte order mark has no position
        reason = str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = f"near byte {n_before + error.start}: {error.reason}"
        raise SettingsError(
            f"{file} is not {encoding} throughout ({reason}): save it as UTF-8, or set another encoding."
        ) from None
