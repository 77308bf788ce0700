"""Every run of a text that also stands in a corpus, found by bisection in the corpus's sorted suffixes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_MATCH = 1024  # longer runs are told as this long
NO_ID = -1  # equal to nothing, not even to itself


class SuffixArray:
    """The suffixes of a sequence of ids in sorted order, as far as their first `MAX_MATCH` ids tell them apart.

    Built by prefix doubling (https://doi.org/10.1137/0222058), in O(n log n) a round and at most 11 rounds.

    Args:
        ids: (n,) whole numbers; what is below 0 matches nothing.
    """

    def __init__(self, ids: "np.ndarray") -> None:
        import numpy as np

        n = len(ids)
        _, rank = np.unique(ids, return_inverse=True)  # (n,): order by the first id alone
        order, told_apart = np.argsort(rank, kind="stable"), 1
        while told_apart < MAX_MATCH and n and rank.max() < n - 1:
            behind = np.zeros(n, np.int64)
            behind[: n - told_apart] = rank[told_apart:] + 1  # 0: the sequence ends there
            keys = rank * (n + 1) + behind
            order = np.argsort(keys, kind="stable")
            rank[order] = np.concatenate([[0], np.cumsum(np.diff(keys[order]) != 0)])
            told_apart *= 2
        self._order = order
        self._ids = np.append(ids, NO_ID)

    def longest_matches(self, query: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        """Return, for each position of `query` (m,), the length of the longest run from there that is in the ids.

        Returns:
            (m,) lengths, and (m,) places where such a run begins in the ids; a length of 0 has no place.

        >>> import numpy as np
        >>> SuffixArray(np.array([5, 6, 7, 5, 6, 9])).longest_matches(np.array([6, 7, 5, 9]))[0].tolist()
        [3, 2, 1, 1]
        """
        import numpy as np

        lengths, places = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
        at = np.flatnonzero(query >= 0)  # positions whose run still goes on
        low, high = np.zeros(len(at), np.int64), np.full(len(at), len(self._order))
        for depth in range(MAX_MATCH):
            goes_on = at + depth < len(query)
            at, low, high = at[goes_on], low[goes_on], high[goes_on]
            wanted = query[at + depth]
            low = self._bisect(low, high, depth, wanted)
            high = self._bisect(low, high, depth, wanted + 1)
            found = (low < high) & (wanted >= 0)
            at, low, high = at[found], low[found], high[found]
            if not len(at):
                break
            lengths[at], places[at] = depth + 1, self._order[low]
        return lengths, places

    def _bisect(self, low: "np.ndarray", high: "np.ndarray", depth: int, wanted: "np.ndarray") -> "np.ndarray":
        """Return the first suffixes in [low, high) whose id at `depth` is at least `wanted`."""
        import numpy as np

        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            place = self._order[np.minimum(middle, len(self._order) - 1)] + depth
            is_less = self._ids[np.minimum(place, len(self._ids) - 1)] < wanted
            low = np.where(open_ & is_less, middle + 1, low)
            high = np.where(open_ & ~is_less, middle, high)
        return low
