import numpy as np
import pytest

from helpers.evaluation.bootstrap import CONFIDENCE, RESAMPLES, compute_interval, resample_sums


def test_each_sum_is_that_of_one_complete_draw_and_the_columns_share_the_draws():
    column = np.array([1.0, 2.0, 4.0])
    sums, doubled = resample_sums(column, 2 * column, seed=0)
    assert len(sums) == RESAMPLES
    assert set(sums) <= {a + b + c for a in column for b in column for c in column}
    assert (doubled == 2 * sums).all()


def test_the_seed_decides_the_draws():
    column = np.arange(9.0)
    one, same, other = (resample_sums(column, seed=seed)[0] for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_the_interval_is_the_middle_of_the_values():
    assert compute_interval(np.arange(1001.0)) == pytest.approx([25, 975])


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    column = np.random.default_rng(0).normal(size=400)
    low, high = compute_interval(resample_sums(column, seed=0)[0] / 400)
    expected = 2 * 1.96 * column.std() / 20
    assert CONFIDENCE == 0.95
    assert high - low == pytest.approx(expected, rel=0.1)
