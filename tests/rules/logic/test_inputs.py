"""Views are logits, in whatever function: against float64 NumPy, for two views at once."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from distill_jax.rules import (
    Column,
    Schema,
    bind,
    check,
    energies,
    fires,
    log_truth,
    penalty,
    project,
    truth,
    violation,
)
from distill_jax.types import Outputs
from tests.rules import small_books

CLASSES = ("a", "b", "c")
CLASSES_RULES = """
[w=2] kind == view(left).kind
[w=0.5] x > 0 and view(left).b => view(right).kind == kind
[w=3] view(right).c => not a
"""
LABELS_RULES = """
[w=2] a => view(left).b
[w=0.5] x > 0 and view(left).b => view(right).c
[w=3] view(right).c => not a
"""
STRENGTHS = np.array([2.0, 0.5, 3.0])


@functools.cache
def book(exclusive):
    names = {"target": "kind"} if exclusive else {"exclusive": False}
    schema = Schema((Column("x"),), CLASSES, views=("left", "right"), **names)
    with jax.ensure_compile_time_eval():
        return bind(CLASSES_RULES if exclusive else LABELS_RULES, schema)


def violations(exclusive, x, p, left, right):
    """Of each rule, from probabilities: by the worlds of classes, or by product logic."""
    if not exclusive:
        return np.stack(
            [
                p[:, 0] * (1 - left[:, 1]),
                (x > 0) * left[:, 1] * (1 - right[:, 2]),
                right[:, 2] * p[:, 0],
            ],
            1,
        )
    found = np.zeros((len(x), 3))
    for k, i, j in itertools.product(range(3), repeat=3):
        world = p[:, k] * left[:, i] * right[:, j]
        broken = (k != i, i == 1 and j != k, j == 2 and k == 0)
        found += world[:, None] * np.array(broken) * np.stack([x < 9, x > 0, x < 9], 1)
    return found


@functools.cache
def data():
    """Columns and logits; in the views, classes at -inf."""
    x = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    logits, left, right = np.random.default_rng(0).normal(0, 2, (3, 6, 3)).astype(np.float16)
    left[0, 1] = right[2, 2] = right[3, 0] = -np.inf
    return x, logits, left, right


@small_books.quick
def found(book, columns, logits, left, right):
    """What every function that takes views says, and gradients to the views."""

    def everything(left, right):
        views = {"left": left, "right": Outputs(right)}
        p = jnp.asarray(logits, jnp.float32)
        p = jax.nn.softmax(p) if book.schema.exclusive else jax.nn.sigmoid(p)
        out = {
            "truth": truth(book, columns, p, views=views),
            "violation": violation(book, columns, p, views=views),
            "log_truth": log_truth(book, columns, logits, views=views),
        }
        for kind in ("linear", "squared", "log"):
            out[kind] = penalty(logits, columns, views, rules=book, kind=kind)
        if book.schema.exclusive:
            out["energies"] = energies(book, columns, views=views)
            out["project"] = project(book, columns, logits, views=views)
        return sum(x.sum() for x in out.values()), out

    slopes, out = jax.grad(everything, (0, 1), has_aux=True)(left, right)
    return out, slopes


@pytest.mark.quick
@pytest.mark.parametrize("exclusive", [True, False])
def test_views_are_logits_in_every_function(exclusive):
    x, logits, left, right = data()
    to_p = functools.partial(softmax, axis=-1) if exclusive else expit
    p, *views = (to_p(z.astype(np.float64)) for z in (logits, left, right))
    want = violations(exclusive, x[:, 0], p, *views)
    got, slopes = found(book(exclusive), x, logits, left, right)
    np.testing.assert_allclose(got["violation"], want, atol=2e-6)
    np.testing.assert_allclose(got["truth"], 1 - want, atol=2e-6)
    np.testing.assert_allclose(got["log_truth"], np.log1p(-want), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["linear"], want @ STRENGTHS, rtol=1e-5)
    np.testing.assert_allclose(got["squared"], want**2 @ STRENGTHS, rtol=1e-5)
    np.testing.assert_allclose(got["log"], -np.log1p(-want) @ STRENGTHS, rtol=1e-4)
    # The same again from truth, which takes the same views.
    np.testing.assert_allclose(got["linear"], (1 - got["truth"]) @ STRENGTHS, rtol=1e-5)
    assert all(x.dtype == jnp.float32 for x in got.values())
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0.0)
    if exclusive:
        by_class = [violations(True, x[:, 0], np.tile(row, (6, 1)), *views) for row in np.eye(3)]
        against = np.stack(by_class, 1) @ STRENGTHS
        np.testing.assert_allclose(got["energies"], against, rtol=1e-5, atol=1e-6)
        scores = np.log(p) - against
        want = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        np.testing.assert_allclose(got["project"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_check_counts_what_views_predict_and_takes_the_mean_of_their_probabilities(exclusive):
    x, logits, left, right = data()
    views = {"left": left, "right": right}
    rows = check(book(exclusive), x, logits=logits, views=views).rows
    to_p = functools.partial(softmax, axis=-1) if exclusive else expit
    mean = violations(exclusive, x[:, 0], *(to_p(z.astype(np.float64)) for z in data()[1:]))
    crisp = violations(
        exclusive,
        x[:, 0],
        *(np.eye(3)[z.argmax(1)] if exclusive else (z > 0).astype(float) for z in data()[1:]),
    )
    fires = np.stack([x[:, 0] < 9, x[:, 0] > 0, x[:, 0] < 9], 1)
    for r, row in enumerate(rows):
        assert row["fires"] == fires[:, r].sum()
        assert row["violated"] == crisp[fires[:, r], r].sum()
        assert row["mean_violation"] == pytest.approx(mean[fires[:, r], r].mean(), abs=1e-5)


@pytest.mark.usefixtures("library_errors")
def test_lists_and_data_frames_are_columns_and_tables_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
    rows = [[70.0], [50.0]]
    for columns in (rows, np.array(rows), pandas.DataFrame(rows)):
        np.testing.assert_array_equal(fires(book, columns), [[True], [False]])
    with pytest.raises(ValueError, match=r"columns must have shape \[batch, 1\].* got \(\)"):
        fires(book, {"age": [70.0, 50.0]})
    with pytest.raises(TypeError, match="columns must be floating point, got int"):
        fires(book, np.array([[70], [50]]))
