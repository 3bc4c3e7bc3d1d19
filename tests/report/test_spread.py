"""Spread of runs against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distill_jax.report import interval95, mean_std


@pytest.mark.quick
@pytest.mark.parametrize("n", [2, 3, 5, 10, 11, 12, 30, 200])
def test_interval_is_students(n):
    x = np.random.default_rng(n).normal(3.0, 2.0, n)
    found = interval95(x)
    low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=1e-12)
    np.testing.assert_allclose(found["mean"], x.mean())
    assert found["n"] == n


def test_the_standard_deviation_is_that_of_a_sample():
    x = [1.0, 4.0, 10.0]
    found = mean_std(x)
    np.testing.assert_allclose(found["std"], np.sqrt(((np.array(x) - 5) ** 2).sum() / 2))
    assert (found["mean"], found["n"]) == (5.0, 3)


def test_one_value_has_no_spread():
    assert mean_std([2]) == {"mean": 2.0, "std": None, "n": 1}
    with pytest.raises(ValueError, match="two or more for an interval, got 1"):
        interval95([2.0])


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], 3.0])
def test_values_are_one_number_a_run(values):
    for function in (mean_std, interval95):
        with pytest.raises(ValueError, match="values must be one number per run"):
            function(values)
