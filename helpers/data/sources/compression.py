"""The bytes of a file, a megabyte at a time, compressed or not; what would swell without end is refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from helpers.settings import SettingsError

CHUNK_BYTES = 2**20
MAX_EXPANSION = 200  # text shrinks 3 to 30 times; a bomb swells 1,000 times and more
_UNSUSPECTED_BYTES = 2**24  # less than this harms nobody, however small it was
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def read_chunks(file: Path, *, advance: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed when its name ends in `.gz` or `.zst`.

    Args:
        file: what to read.
        advance: called with the bytes of the file on disk that each chunk took.

    Raises:
        SettingsError: it cannot be read, is cut off, or swells to more than 200 times its size.
    """
    n_read = n_given = 0
    try:
        with file.open("rb") as raw:
            stream = _decompressed(file, raw)
            while chunk := stream.read(CHUNK_BYTES):
                taken, n_read = raw.tell() - n_read, raw.tell()
                n_given += len(chunk)
                _check_expansion(file, n_read, n_given)
                if advance:
                    advance(taken)
                yield chunk
    except OSError as error:
        cause = error.strerror or str(error)
        mend = ": download or compress it again" if file.suffix.lower() in _CODECS else ""
        raise SettingsError(f"{file} cannot be read ({cause}){mend}.") from None


def _decompressed(file: Path, raw: IO[bytes]) -> Any:
    if file.suffix.lower() not in _CODECS:
        return raw
    import pyarrow as pa

    return pa.CompressedInputStream(raw, _CODECS[file.suffix.lower()])


def _check_expansion(file: Path, n_read: int, n_given: int) -> None:
    if n_given > max(_UNSUSPECTED_BYTES, MAX_EXPANSION * n_read):
        raise SettingsError(
            f"{file} swells to more than {MAX_EXPANSION} times its size: no text does, so it is not unpacked. "
            "If you trust it, unpack it yourself and name the unpacked file."
        )
