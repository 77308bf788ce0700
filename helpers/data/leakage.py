"""How much of the test text stands in the training text, by runs of tokens that both hold."""

import numpy as np

NGRAM = 13  # tokens; GPT-3's authors looked for 13 words in common (https://arxiv.org/abs/2005.14165, appendix C)
_MOST = 2**20  # n-grams of the test that are kept; of more an even sample is taken
_FACTOR, _SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Leakage:
    """Counts the test's distinct n-grams and those that training text holds too.

    Args:
        n_test_tokens: about how many tokens the test has; it decides how many of its n-grams are looked for.
        eos: the end-of-text token: an n-gram that holds it belongs to no document.
    """

    def __init__(self, n_test_tokens: int, eos: int) -> None:
        self._one_of, self._eos = np.uint64(1 + n_test_tokens // _MOST), eos
        self._pieces: list[np.ndarray] = []
        self._sorted = np.empty(0, np.uint64)
        self._is_found = np.empty(0, bool)

    def add_test(self, ids: np.ndarray) -> None:
        """Take in tokens of the test; all of them come before the first of the training text."""
        self._pieces.append(np.unique(self._ngrams(ids)))

    def add_train(self, ids: np.ndarray) -> None:
        """Look for the test's n-grams in tokens of the training text."""
        if self._pieces:
            self._sorted, self._pieces = np.unique(np.concatenate(self._pieces)), []
            self._is_found = np.zeros(len(self._sorted), bool)
        if len(self._sorted):
            ngrams = self._ngrams(ids)
            places = np.searchsorted(self._sorted, ngrams) % len(self._sorted)
            self._is_found[places[self._sorted[places] == ngrams]] = True

    def _ngrams(self, ids: np.ndarray) -> np.ndarray:
        """Return hashes of the n-grams that are looked for; (n,) uint64."""
        n = len(ids) - NGRAM + 1
        if n <= 0:
            return np.empty(0, np.uint64)
        hashes = np.zeros(n, np.uint64)
        for shift in range(NGRAM):
            hashes = hashes * _FACTOR + ids[shift : shift + n].astype(np.uint64)
        ends = np.concatenate([[0], np.cumsum(ids == self._eos)])
        hashes = hashes[ends[NGRAM:] == ends[:-NGRAM]] * _SPREAD
        return hashes[(hashes >> np.uint64(32)) % self._one_of == 0]

    @property
    def facts(self) -> dict[str, float]:
        """Return the length of the n-grams, how many of the test's were looked for, and the share that was found."""
        n_looked_for = len(self._sorted)
        share = float(self._is_found.mean()) if n_looked_for else 0.0
        return {"ngram": NGRAM, "test_ngrams": n_looked_for, "share_in_train": share}
