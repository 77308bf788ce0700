"""Find exact and near-duplicate documents without holding their texts in memory.

Each document takes 8 bytes of memory for exact duplicates; near-duplicates need another 64 bytes of memory and a
256-byte sketch on disk. Candidate pairs share a 32-bit band of their sketches; some do so by accident, so the sketches
of each pair are compared. (datasketch's own MinHashLSH does the same with more memory.)
"""

import functools
import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHINGLE_WORDS = 5
NUM_PERM, BANDS = 64, 16  # 16 bands of 4 find nearly all pairs that share 70% of their shingles
NEAR = 0.7  # documents that share at least this much of their shingles are near-duplicates
_SKETCHED_CHARACTERS = 2**18  # only the beginning of a longer document is compared
_SHINGLES_AT_ONCE, _PAIRS_AT_ONCE = 2**12, 2**13
# Random odd factors that mix the four numbers of a band into one.
_FACTORS = np.random.default_rng(0).integers(1, 2**63, NUM_PERM // BANDS, np.uint64) | np.uint64(1)


def normalize(text: str) -> str:
    r"""Return a text in lower case with single spaces: texts that are then equal count as duplicates.

    >>> normalize("One  Fox\n")
    'one fox'
    """
    folded = text.casefold()
    # A list of all the words of a very long text would take several times its memory.
    return " ".join(folded.split()) if len(folded) < 2**20 else re.sub(r"\s+", " ", folded).strip()


def _key_of_normalized(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class Fingerprints:
    """Collects what is needed to find duplicates, in the order in which documents are added.

    Args:
        sketches: the file for the sketches that reveal near-duplicates; None finds exact duplicates only.
    """

    def __init__(self, sketches: Path | None) -> None:
        self._keys: list[np.ndarray] = []
        self._bands: list[np.ndarray] = []
        self._path = sketches
        self._file = sketches.open("wb") if sketches else None

    def add(self, texts: Sequence[str]) -> None:
        """Add the next documents."""
        texts = [normalize(text) for text in texts]
        self._keys.append(np.frombuffer(b"".join(map(_key_of_normalized, texts)), np.uint64))
        if self._file and texts:
            signatures = np.stack([sketch(text) for text in texts])  # (documents, NUM_PERM)
            self._file.write(signatures.tobytes())
            self._bands.append(_bands_of(signatures))

    def find_first_copies(self, order: np.ndarray) -> np.ndarray:
        """Return which documents are the first of their equals, by `order` and then as added; (documents,) bool."""
        return are_first(np.concatenate([np.empty(0, np.uint64), *self._keys]), order)

    def group_near_duplicates(self, compared: np.ndarray) -> np.ndarray:
        """Return for each document the index of the first near-duplicate in its group; (documents,) int.

        A document without near-duplicates forms its own group, and so does one excluded by `compared`,
        (documents,) bool.
        """
        group = np.arange(len(compared))
        if not self._file:
            return group
        self._file.flush()
        for band_number in range(BANDS):
            band = np.concatenate([np.empty(0, np.uint32), *(rows[:, band_number] for rows in self._bands)])
            pairs = _candidate_pairs(band, compared)
            pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
            group = _merge_groups(group, pairs[self._are_near(pairs)])
        return group

    def _are_near(self, pairs: np.ndarray) -> np.ndarray:
        """Return which pairs share enough of their signatures; (pairs,) bool."""
        near = np.zeros(len(pairs), bool)
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            chunk = slice(start, start + _PAIRS_AT_ONCE)
            signatures = np.memmap(self._path, np.uint32, "r").reshape(-1, NUM_PERM)  # a new map frees the old pages
            one, other = (signatures[pairs[chunk, side]] for side in (0, 1))
            near[chunk] = (one == other).mean(axis=1) >= NEAR
        return near

    def close(self) -> None:
        """Close the file of sketches."""
        if self._file:
            self._file.close()


class HeldOut:
    """The documents of validation and test: `text in held_out` is true when a text repeats one of them.

    Args:
        texts: the documents.
        finds_near: also find near-duplicates, as `Fingerprints` does; adds a third of the tokenizing time.
    """

    def __init__(self, texts: Iterable[str], *, finds_near: bool) -> None:
        normalized = [normalize(text) for text in texts]
        self._keys = set(map(_key_of_normalized, normalized))
        self._signatures = np.array([sketch(text) for text in normalized if finds_near])  # (documents, NUM_PERM)
        self._documents_by_band: dict[tuple[int, int], list[int]] = {}  # (band number, value) -> the documents with it
        for document, bands in enumerate(_bands_of(self._signatures).tolist()):
            for band in enumerate(bands):
                self._documents_by_band.setdefault(band, []).append(document)

    def __contains__(self, text: str) -> bool:
        text = normalize(text)
        if _key_of_normalized(text) in self._keys:
            return True
        if not self._documents_by_band:
            return False
        signature = sketch(text)
        (bands,) = _bands_of(signature[None]).tolist()
        candidates = {document for band in enumerate(bands) for document in self._documents_by_band.get(band, ())}
        return any((self._signatures[document] == signature).mean() >= NEAR for document in candidates)


def are_first(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return which elements are the first of equal values, by `order` and then by position; (n,) bool."""
    by_order = np.argsort(order, kind="stable")
    _, first_positions = np.unique(values[by_order], return_index=True)  # of each value's first occurrence
    is_first = np.zeros(len(values), bool)
    is_first[by_order[first_positions]] = True
    return is_first


def _bands_of(signatures: np.ndarray) -> np.ndarray:
    """Return the bands of signatures (documents, NUM_PERM), each mixed into one number; (documents, BANDS) uint32."""
    rows = signatures.reshape(len(signatures), BANDS, NUM_PERM // BANDS).astype(np.uint64)
    return ((rows * _FACTORS).sum(axis=-1, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)


def _candidate_pairs(band: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Return the pairs of documents with an equal band that are adjacent when sorted by it; (pairs, 2).

    Adjacent pairs are enough because groups are merged; the number of all pairs in a group grows quadratically.
    """
    documents = np.flatnonzero(compared)
    by_band = documents[np.argsort(band[documents], kind="stable")]
    pairs = np.stack([by_band[:-1], by_band[1:]], axis=1)
    return pairs[band[pairs[:, 0]] == band[pairs[:, 1]]]


def _merge_groups(group: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Merge the groups of each pair; a group's number is the index of its first document."""
    if not len(pairs):
        return group
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(group)
    one, other = np.concatenate([pairs, np.stack([np.arange(n), group], axis=1)]).T
    _, labels = connected_components(coo_array((np.ones(len(one), bool), (one, other)), (n, n)), directed=False)
    _, first = np.unique(labels, return_index=True)
    return first[labels]


def sketch(text: str) -> np.ndarray:
    """Return the MinHash signature of a normalized text's five-word shingles; (NUM_PERM,) uint32.

    A text with few spaces, such as Chinese, uses five-character shingles.
    """
    text = text[:_SKETCHED_CHARACTERS]
    words = text.encode().split()
    if len(words) * 20 < len(text):
        hashes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    else:
        hashes = np.fromiter(map(zlib.crc32, words), np.uint32, len(words))
    # One hash per five consecutive words, computed for all positions at once; the factor is the FNV hash's.
    mixed = np.zeros(max(1, len(hashes) - SHINGLE_WORDS + 1), np.uint32)
    for shift in range(min(SHINGLE_WORDS, len(hashes))):
        mixed = mixed * np.uint32(0x01000193) + hashes[shift : shift + len(mixed)]
    signature = _minhash()
    signature.clear()
    for start in range(0, len(mixed), _SHINGLES_AT_ONCE):  # datasketch allocates a (shingles, NUM_PERM) matrix
        signature.update_batch(mixed[start : start + _SHINGLES_AT_ONCE].tolist())
    return signature.hashvalues.copy()


@functools.cache
def _minhash() -> Any:
    """Return the MinHash object that sketches every text: creating one takes longer than using it."""
    from datasketch import MinHash

    return MinHash(num_perm=NUM_PERM, scheme="affine32", hashfunc=int)
