"""The intervals of a paired bootstrap: their width, and how often they cover the true gain."""

import math

import numpy as np
import pytest

from helpers.evaluation.intervals import bootstrap_intervals

BITS = math.log(2) * 50  # nats per document of 50 bytes that are one bit per byte


def interval(gains, *, is_continuous=False):
    """Return the interval of the bits per byte that a model saves, from its nats on documents of equal size."""
    n = len(gains)
    sizes = np.full(n, 10), np.full(n, 50)
    return bootstrap_intervals(
        np.full(n, 50.0), 50 - np.array(gains), *sizes, seed=0, is_continuous=is_continuous
    )["bits_per_byte"]  # fmt: skip


def test_an_interval_from_few_documents_covers_about_as_often_as_it_says():
    random, n_trials = np.random.default_rng(0), 200
    intervals = (interval(random.normal(5, 1, 8)) for _ in range(n_trials))
    covered = sum(low <= 5 / BITS <= high for low, high in intervals)
    assert 0.9 < covered / n_trials < 0.97  # 0.86 between the percentiles 2.5 and 97.5 of the draws


def test_an_interval_has_the_theoretical_width_and_is_reproducible():
    gains = np.random.default_rng(0).normal(5.0, 1.0, 400)
    low, high = interval(gains)
    assert [low, high] == interval(gains)
    assert high - low == pytest.approx(2 * 1.96 * gains.std() / 20 / BITS, rel=0.1)


def test_the_interval_of_a_continuous_text_allows_for_neighbours_that_are_alike():
    random = np.random.default_rng(0)
    gains = np.repeat(random.normal(5, 1, 10), 30) + random.normal(0, 1, 300)  # by chapter and by passage
    (low, high), (low_alone, high_alone) = (interval(gains, is_continuous=each) for each in (True, False))
    assert (high - low) / (high_alone - low_alone) > 3
    assert interval(gains[:8], is_continuous=True) == interval(gains[:8]), "no longer than ten stretches"


def test_fewer_than_six_documents_give_no_interval():
    assert interval([2.0] * 5) is None
    assert interval([2.0] * 6) == pytest.approx([2 / BITS] * 2)
