"""The bytes of a file, compressed or not, a megabyte at a time; decompression bombs are refused."""

from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.settings import SettingsError

CODECS = {".gz": "gzip", ".zst": "zstd"}  # suffix -> pyarrow's name
CHUNK_BYTES = 2**20
MAX_EXPANSION = 200  # text shrinks 3 to 30 times; a decompression bomb expands 1,000 times and more
_HARMLESS_BYTES = 2**24  # so little fits in memory, whatever the ratio


def read_chunks(file: Path, *, advance: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed when its name ends in `.gz` or `.zst`.

    For each chunk, `advance` is called with the bytes that were read of the file on disk.

    Raises:
        SettingsError: the file cannot be read, is truncated, or expands to more than 200 times its size.
    """
    import pyarrow as pa  # reads both formats as streams; Python 3.11 itself has no zstd

    codec, n_read, n_decompressed = CODECS.get(file.suffix.lower()), 0, 0
    try:
        with file.open("rb") as raw:
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            while chunk := stream.read(CHUNK_BYTES):
                n_new, n_read = raw.tell() - n_read, raw.tell()
                n_decompressed += len(chunk)
                if n_decompressed > max(_HARMLESS_BYTES, MAX_EXPANSION * n_read):
                    raise SettingsError(
                        f"{file} expands to more than {MAX_EXPANSION} times its size, which no text does: it is not "
                        "unpacked. If you trust it, unpack it yourself and use the unpacked file."
                    )
                if advance:
                    advance(n_new)
                yield chunk
    except OSError as error:
        cause = error.strerror or str(error)
        fix = ": download or compress it again" if codec else ""
        raise SettingsError(f"{file} cannot be read ({cause}){fix}.") from None
