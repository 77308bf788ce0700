"""Read a file as text: decompress it a megabyte at a time, and detect its encoding; invalid bytes are an error."""

import codecs
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
_SAMPLE_BYTES = 2**18
_SCORE_MARGIN = 0.1  # smaller differences between charset-normalizer's scores are ignored


def read_chunks(file: Path, *, advance: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed when its name ends in `.gz` or `.zst`.

    For each chunk, `advance` is called with the number of bytes read from the file on disk.

    Raises:
        SettingsError: the file cannot be read, is truncated, or expands to more than 200 times its size.
    """
    import pyarrow as pa  # streams both formats; Python 3.11 has no zstd

    codec, n_read, n_decompressed = CODECS.get(file.suffix.lower()), 0, 0
    try:
        with file.open("rb") as raw:
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            while chunk := stream.read(CHUNK_BYTES):
                n_new, n_read = raw.tell() - n_read, raw.tell()
                n_decompressed += len(chunk)
                check_expansion(file, n_decompressed, n_read)
                if advance:
                    advance(n_new)
                yield chunk
    except OSError as error:
        cause = error.strerror or str(error)
        fix = ": download or compress it again" if codec else ""
        raise SettingsError(f"{file} cannot be read ({cause}){fix}.") from None


def check_expansion(file: Path, n_decompressed: int, n_read: int) -> None:
    """Raise `SettingsError` if the bytes read from a file expanded far more than text can."""
    if n_decompressed > max(_HARMLESS_BYTES, MAX_EXPANSION * n_read):
        raise SettingsError(
            f"{file} expands to more than {MAX_EXPANSION} times its size, which no text does, so it was not "
            "unpacked. If you trust it, unpack it yourself and use the unpacked file."
        )


def find_encoding(file: Path, chunks: Iterable[bytes]) -> str:
    """Return the name of a text's encoding: UTF-8 if every byte fits, otherwise a guess from its statistics.

    A UTF-8 text is read to the end because a wrong byte may come late; any other only to its first wrong byte.

    Raises:
        SettingsError: the file is not text, or mixes encodings.
    """
    decoder, n_before, last = codecs.getincrementaldecoder("utf-8")(), 0, b""
    for chunk in chunks:
        if not n_before and (encoding := _encoding_by_first_bytes(chunk)):
            return encoding
        if (position := chunk.find(0)) >= 0:
            raise SettingsError(
                f"{file} holds a NUL byte (byte {n_before + position}): it is a binary file or damaged, not text. "
                "Name a text file, or save this one as UTF-8."
            )
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            n_carried = len(error.object) - len(chunk)  # bytes of a character that began in the last chunk
            position = max(0, n_before + error.start - n_carried)
            return _guess_encoding(file, _sample(last + chunk, len(last) + error.start - n_carried), position)
        last, n_before = chunk, n_before + len(chunk)
    if unfinished := decoder.getstate()[0]:
        return _guess_encoding(file, _sample(last, len(last)), n_before - len(unfinished))
    return "utf-8"


def _sample(text: bytes, position: int) -> bytes:
    """Return the bytes around a position, starting at a character boundary if the text is UTF-8."""
    start = max(0, position - _SAMPLE_BYTES // 2)
    while 0 < start < position and 0x80 <= text[start] < 0xC0:  # a continuation byte of UTF-8
        start += 1
    return text[start : start + _SAMPLE_BYTES]


def _encoding_by_first_bytes(chunk: bytes) -> str | None:
    for mark, name in _BYTE_ORDER_MARKS:
        if chunk.startswith(mark):
            return name
    head = chunk[:4096]
    zeros = head[0::2].count(0), head[1::2].count(0)  # every second byte of Latin letters in UTF-16 is zero
    if len(head) >= 8 and max(zeros) > 0.6 * len(head) / 2 and min(zeros) < 0.1 * len(head) / 2:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


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
    matches = list(from_bytes(sample, cp_isolation=_CANDIDATES))
    if not matches:
        raise SettingsError(
            f"{file} is not text in any known encoding (byte {position} is not UTF-8): name a text file, or set "
            "encoding."
        )
    best = matches[0]
    for match in matches:
        is_close = match.chaos - best.chaos < _SCORE_MARGIN and best.coherence - match.coherence < _SCORE_MARGIN
        if is_close and "cp1252" in (match.encoding, *match.could_be_from_charset):
            return "cp1252"  # the Windows default in Western countries, unless another clearly fits better
    return best.encoding


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
