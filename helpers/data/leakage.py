"""Data leakage: how much of the test text is also in the training text, measured by shared 13-token n-grams."""

import numpy as np

NGRAM = 13  # tokens; GPT-3's authors looked for 13 common words (https://arxiv.org/abs/2005.14165, appendix C)
_MAX_NGRAMS = 2**20  # test n-grams to keep; with more, a uniform sample is chosen by hash
# Odd factors whose products mix all bits; the first is 2**64 divided by the golden ratio.
_FACTOR, _SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Leakage:
    """Counts the test's distinct n-grams and how many of them are also in the training text.

    Args:
        n_test_tokens: approximate size of the test; for a large test only a sample of n-grams is counted.
        eos: the end-of-text token: an n-gram that contains it spans two documents and is not counted.
    """

    def __init__(self, n_test_tokens: int, eos: int) -> None:
        self._sampling, self._eos = np.uint64(1 + n_test_tokens // _MAX_NGRAMS), eos
        self._pieces: list[np.ndarray] = []
        self._sorted = np.empty(0, np.uint64)
        self._is_in_train = np.empty(0, bool)

    def add_test(self, ids: np.ndarray) -> None:
        """Add tokens of the test; add all of them before the first training tokens."""
        self._pieces.append(np.unique(self._ngrams(ids)))

    def add_train(self, ids: np.ndarray) -> None:
        """Search tokens of the training text for the test's n-grams."""
        if self._pieces:
            self._sorted, self._pieces = np.unique(np.concatenate(self._pieces)), []
            self._is_in_train = np.zeros(len(self._sorted), bool)
        if len(self._sorted):
            ngrams = self._ngrams(ids)
            indices = np.searchsorted(self._sorted, ngrams) % len(self._sorted)
            self._is_in_train[indices[self._sorted[indices] == ngrams]] = True

    def _ngrams(self, ids: np.ndarray) -> np.ndarray:
        """Return the hashes of the n-grams to count; (n,) uint64."""
        n = len(ids) - NGRAM + 1
        if n <= 0:
            return np.empty(0, np.uint64)
        hashes = np.zeros(n, np.uint64)
        for shift in range(NGRAM):
            hashes = hashes * _FACTOR + ids[shift : shift + n].astype(np.uint64)
        ends = np.concatenate([[0], np.cumsum(ids == self._eos)])
        hashes = hashes[ends[NGRAM:] == ends[:-NGRAM]] * _SPREAD
        return hashes[(hashes >> np.uint64(32)) % self._sampling == 0]

    @property
    def facts(self) -> dict[str, float]:
        """The n-gram length, how many test n-grams were counted, and the share found in the training text."""
        n_counted = len(self._sorted)
        share = float(self._is_in_train.mean()) if n_counted else 0.0
        return {"ngram": NGRAM, "test_ngrams": n_counted, "share_in_train": share}
