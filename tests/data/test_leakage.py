import numpy as np
import pytest

from helpers.data.leakage import NGRAM, Leakage

END = 0


def ngrams(ids):
    pieces = [ids[i : i + NGRAM] for i in range(len(ids) - NGRAM + 1)]
    return {tuple(piece.tolist()) for piece in pieces if END not in piece}


def share(test, train, n_test_tokens=100):
    leakage = Leakage(n_test_tokens, END)
    leakage.add_test(test)
    for piece in np.array_split(train, 3):
        leakage.add_train(piece)
    return leakage.facts


def test_the_leaked_share_matches_a_count_with_sets_of_ngrams():
    draw = np.random.default_rng(0)
    train, test = draw.integers(1, 1000, 3000), draw.integers(1, 1000, 500)
    test[100:300] = train[100:300]
    facts = share(test, train)
    common = ngrams(test) & ngrams(train)
    assert facts["test_ngrams"] == len(ngrams(test))
    assert facts["share_in_train"] == pytest.approx(len(common) / len(ngrams(test)))


def test_an_ngram_across_two_documents_is_not_counted():
    test = np.r_[np.arange(1, 10), END, np.arange(11, 20)]
    assert share(test, test)["test_ngrams"] == 0


def test_sampling_a_large_test_split_gives_about_the_same_share():
    draw = np.random.default_rng(0)
    train = draw.integers(1, 50_000, 60_000)
    test = np.r_[train[:15_000], draw.integers(1, 50_000, 15_000)]
    facts = share(test, train, n_test_tokens=2**20 * 9)
    assert facts["test_ngrams"] == pytest.approx(3000, rel=0.1)
    assert facts["share_in_train"] == pytest.approx(0.5, abs=0.05)


def test_a_test_split_shorter_than_an_ngram_has_no_leakage():
    short, exact = (share(np.arange(1, n + 1), np.arange(1, 50)) for n in (NGRAM - 1, NGRAM))
    assert (short["test_ngrams"], short["share_in_train"]) == (0, 0)
    assert (exact["test_ngrams"], exact["share_in_train"]) == (1, 1)
