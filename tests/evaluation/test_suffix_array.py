import numpy as np
import pytest

from helpers.evaluation.suffix_array import MAX_MATCH, NO_ID, SuffixArray


def longest_by_search(ids, query, start):
    """Return the longest run by asking every place: quadratic, and written another way."""
    longest = 0
    for place in range(len(ids)):
        n = 0
        while start + n < len(query) and place + n < len(ids) and query[start + n] == ids[place + n] != NO_ID:
            n += 1
        longest = max(longest, n)
    return longest


@pytest.mark.parametrize("n_kinds", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_run_is_as_long_as_a_search_of_every_place_finds(n_kinds, seed):
    random = np.random.default_rng(seed)
    ids, query = random.integers(n_kinds, size=120), random.integers(n_kinds, size=60)
    ids[[20, 21, 77]] = query[[5, 6, 30]] = NO_ID
    lengths, places = SuffixArray(ids).longest_matches(query)
    assert lengths.tolist() == [longest_by_search(ids, query, start) for start in range(len(query))]
    for start, (length, place) in enumerate(zip(lengths, places, strict=True)):
        assert ids[place : place + length].tolist() == query[start : start + length].tolist()


def test_a_run_longer_than_the_longest_told_is_told_as_that():
    ids = np.arange(3 * MAX_MATCH)
    assert SuffixArray(ids).longest_matches(ids)[0][:2].tolist() == [MAX_MATCH] * 2
    same = np.zeros(3000, int)  # as alike as suffixes can be
    assert SuffixArray(same).longest_matches(same[:5])[0].tolist() == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(("ids", "query"), [([], [1, 2]), ([1, 2], []), ([NO_ID], [NO_ID]), ([3], [1])])
def test_where_there_is_nothing_to_find_nothing_is_found(ids, query):
    lengths, _ = SuffixArray(np.array(ids, int)).longest_matches(np.array(query, int))
    assert lengths.tolist() == [0] * len(query)
