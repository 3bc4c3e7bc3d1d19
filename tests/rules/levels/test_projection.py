"""The corrected distribution against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.rules import Column, RuleWarning, Schema, bind, energies, explain, project
from distill_jax.types import Outputs
from tests.rules import small_books
from tests.rules.small_books import posterior

projected = small_books.quick(
    lambda book, columns, logits, views, strengths=None: project(
        book, columns, logits, strengths=strengths, views=views
    )
)


def test_projection_is_the_definition():
    for seed in range(3):
        logits, columns, views = small_books.data(seed)
        want = posterior(logits, columns, views["later"].logits)
        got = projected(small_books.book(), columns, logits, views)
        np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
        np.testing.assert_array_equal(np.isneginf(got), want == 0)
        assert np.isneginf(got[1, 0]) and np.isneginf(got[4, 0])  # smokers are not well
    other = np.linspace(-2, 3, 6)
    got = projected(small_books.book(), columns, logits, views, jnp.asarray(other, jnp.float32))
    want = posterior(logits, columns, views["later"].logits, other)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)


def test_projection_takes_excluded_classes_and_gaps_of_10000():
    logits, columns, views = small_books.data()
    logits = logits.at[0, 2].set(-jnp.inf).at[4, 1].set(-jnp.inf).at[5, 0].set(1e4)
    want = posterior(logits, columns, views["later"].logits)
    got = projected(small_books.book(), columns, logits, views)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
    assert np.isneginf(got[0, 2]) and np.isneginf(got[4, 1])
    short = projected(small_books.book(), columns, logits.astype(jnp.bfloat16), views)
    assert short.dtype == jnp.float32


@pytest.mark.quick
def test_where_hard_rules_leave_no_class_they_are_ignored():
    schema = Schema((Column("x"),), ("a", "b", "c"))
    text = "[hard] x > 0 => a\n[hard] x > 1 => b\n[w=2] x > 1 => c"
    with pytest.warns(RuleWarning, match="together forbid everything"):
        rules = bind(text, schema, conflicts="warn")
    columns = jnp.array([[0.5], [2.0], [0.5], [jnp.nan]])
    logits = jnp.array([[0.0, 0, 0], [0.0, 0, 0], [-jnp.inf, 1.0, 0], [0.0, 0, 0]])

    def total(logits):
        found = project(rules, columns, logits)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum(), found

    grads, got = small_books.quick(jax.grad(total, has_aux=True))(logits)
    e = np.exp(2)
    want = [[1, 0, 0], [1 / (2 + e), 1 / (2 + e), e / (2 + e)], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
    assert np.isfinite(grads).all()


def test_no_strength_and_no_logit_gives_nan():
    schema = Schema((Column("x"),), ("a", "b", "c"))
    text = (
        "[w=3e38] x > 0 => a\n" * 4
        + "[w=-3e38] x > 1 => b\n" * 3
        + "[w=2] not b\n[hard] x > 2 => b or c"
    )
    rules = bind(text, schema)
    columns = jnp.array([[0.0], [1.0], [2.0], [3.0], [0.0], [2.0], [3.0], [0.0]])
    inf = jnp.inf
    logits = jnp.array(
        [
            [0.0, inf, 0.0],  # the model is certain
            [0.0, 5.0, 1e38],  # for a
            [-inf, 0.0, 0.0],  # the strengths for b are negative, against it
            [0.0, -inf, -inf],  # b and c are left, and the model excludes them
            [inf, inf, 0.0],  # a rule decides between a and b
            [0.0, 0.0, 0.0],
            [inf, 0.0, -inf],  # b alone is left
            [-inf, -inf, -inf],  # no distribution
        ]
    )
    e = np.exp(2)
    want = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [e / (e + 1), 1 / (e + 1), 0], [1, 0, 0],
            [0, 1, 0], [np.nan] * 3]  # fmt: skip

    def total(logits, strengths):
        found = project(rules, columns, logits, strengths=strengths)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum(), found

    grads, got = small_books.quick(jax.grad(total, (0, 1), has_aux=True))(logits, rules.strengths)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
    assert np.isfinite(grads[0][:-1]).all() and not np.isnan(got[:-1]).any()
    np.testing.assert_array_equal(energies(rules, columns)[2], np.float32([-inf, inf, 3e38]))
    for i in (0, 3, 4):
        found = explain(rules, columns[i], logits[i]).summary["probabilities"]
        np.testing.assert_allclose(list(found.values()), want[i], atol=1e-12)


def test_order_of_classes_does_not_matter():
    logits, columns, views = small_books.data()
    turn = jnp.array([2, 0, 1])
    other = small_books.book(tuple(small_books.CLASSES[k] for k in turn))
    turned = {"later": Outputs(views["later"].logits[:, turn])}
    np.testing.assert_allclose(
        projected(other, columns, logits[:, turn], turned),
        projected(small_books.book(), columns, logits, views)[:, turn],
        rtol=1e-5,
        atol=1e-6,
    )


def test_complaints(library_errors):
    logits, columns, _ = small_books.data()
    with pytest.raises(ValueError, match="exclusive classes.*encourage"):
        project(small_books.labels(), columns, logits)
    with pytest.raises(ValueError, match=r"views must hold the model's logits on \['later'\]"):
        project(small_books.book(), columns, logits)
