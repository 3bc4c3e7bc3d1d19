"""log_truth against float64 NumPy: extremes, digits near 1, and every logic."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.rules import Column, Schema, bind, log_truth, violation
from distill_jax.rules.logic.logarithms import LEAST_TRUTH
from tests.rules import small_books


@small_books.quick
def logarithm(rules, columns, logits, counted=True):
    """log_truth, and the gradients of its sum to columns and logits."""

    def total(columns, logits):
        found = log_truth(rules, columns, logits)
        return jnp.where(counted, found, 0.0).sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(columns, logits)
    return found, *grads


@pytest.mark.quick
def test_of_classes_it_does_not_underflow_and_keeps_its_digits_near_1():
    rules = bind("a\na or b", Schema((), ("a", "b", "c")))
    logits = jnp.array(
        [
            [0.0, 200.0, 0.0], [-1e4, 0.0, 0.0], [300.0, 0.0, 1.0], [-jnp.inf, 0, 0],
            [0.0, 0.0, -30.0], [5.0, 3.0, -40.0],
        ]
    )  # fmt: skip
    got, _, grads = logarithm(rules, jnp.zeros((6, 0)), logits, jnp.array([True, False]))
    first = got[:, 0]
    np.testing.assert_allclose(first[:2], [-200.0, -1e4 - math.log(2)], rtol=1e-6)
    assert first[2] == 0.0 and first[3] == -jnp.inf
    want = np.array([[1, -1, 0], [1, -0.5, -0.5], [0, 0, 0], [0, 0, 0]])  # 1[y] - p
    np.testing.assert_allclose(grads[:4], want, atol=1e-6)
    x = np.asarray(logits[4:], np.float64)
    want = -np.exp(x[:, 2] - np.log(np.exp(x).sum(1)))
    np.testing.assert_allclose(got[4:, 1], want, rtol=1e-5)


@pytest.mark.quick
def test_of_labels_it_does_not_underflow():
    rules = bind("a => b\na and b and c\na or b or c", Schema((), ("a", "b", "c"), exclusive=False))
    logits = jnp.array(
        [[100.0, -100.0, 0.0], [-100.0, -90.0, -80.0], [9.0, 10.0, 11.0], [-jnp.inf, 3, 1e4]]
    )
    x = np.asarray(logits, np.float64)
    yes, no = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    implies = np.logaddexp(no[:, 0], yes[:, 0] + yes[:, 1])
    either = -np.exp(no[2].sum())
    first = jnp.array([[True, False, False]] * 4)
    got, _, grads = logarithm(rules, jnp.zeros((4, 0)), logits, first)
    np.testing.assert_allclose(got[:, 0], implies, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(got[:3, 1], yes[:3].sum(1), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(got[1, 2], np.logaddexp.reduce(yes[1]), rtol=1e-6)
    np.testing.assert_allclose(got[2, 2], either, rtol=1e-5)
    assert got[3, 1] == -jnp.inf and got[3, 2] == 0.0
    np.testing.assert_allclose(grads[0], [-0.5, 0.5, 0.0], atol=1e-6)
    assert np.isfinite(grads).all()


@small_books.quick
def both(rules, columns, logits):
    return violation(rules, columns, jax.nn.sigmoid(logits)), log_truth(rules, columns, logits)


@pytest.mark.parametrize("logic", ["product", "lukasiewicz", "godel", "sigmoidal"])
def test_it_is_the_logarithm_of_truth_in_each_logic(logic):
    logits, columns, _ = small_books.data(scale=1.0)
    violated, got = both(small_books.labels(logic), columns, logits)
    np.testing.assert_allclose(
        got, np.log(np.maximum(1.0 - violated, LEAST_TRUTH)), rtol=1e-4, atol=1e-6
    )


def test_soft_comparisons_reach_the_columns_and_keep_their_logarithm():
    schema = Schema((Column("age"),), ("a", "b"), exclusive=False)
    rules = bind("age > 50 => a", schema, widths={"age": 2.0})
    columns, logits = jnp.array([[53.0], [49.0], [jnp.nan]]), jnp.array([[0.5, 0.0]] * 3)
    soft = 1 / (1 + np.exp(-(np.array([53.0, 49.0]) - 50) / 2))
    want = np.log(1 - soft * (1 - 1 / (1 + np.exp(-0.5))))
    got, grads, _ = logarithm(rules, columns, logits)
    np.testing.assert_allclose(got.ravel(), [*want, 0.0], rtol=1e-5)
    assert (grads[:2] < 0).all() and grads[2] == 0
