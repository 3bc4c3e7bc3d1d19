"""A student taught by its own predictions as the rules correct them; strengths that are learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.rules import (
    Column,
    Schema,
    bind,
    imitation,
    learned,
    posterior_kl,
    remainder,
    teach,
)
from distill_jax.types import Outputs
from tests.rules import small_books
from tests.rules.levels import problem
from tests.rules.small_books import posterior


@small_books.quick
def taught(logits, columns, views, strengths, temperature, where):
    def total(logits, strengths):
        rows = posterior_kl(
            logits,
            columns,
            views,
            rules=small_books.book(),
            strengths=strengths,
            temperature=temperature,
            where=where,
        )
        return rows.sum(), rows

    grads, rows = jax.grad(total, (0, 1), has_aux=True)(logits, strengths)
    return rows, *grads


def kl(q, p):
    return np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / p), 0).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teaching_is_kl_from_the_corrected_student(temperature):
    everyone, strengths = jnp.ones(8, bool), jnp.asarray(small_books.STRENGTHS, jnp.float32)
    t = jnp.asarray(temperature)
    for seed in range(3):
        logits, columns, views = small_books.data(seed)
        q = posterior(logits, columns, views["later"].logits)
        q = q ** (1 / temperature) / (q ** (1 / temperature)).sum(1, keepdims=True)
        p = small_books.softmax(np.asarray(logits, np.float64) / temperature)
        rows, grads, none = taught(logits, columns, views, strengths, t, everyone)
        assert rows.dtype == jnp.float32
        np.testing.assert_allclose(rows, temperature**2 * kl(q, p), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(grads, temperature * (p - q), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(none, 0.0)


def test_masked_rows_teach_nothing():
    logits, columns, views = small_books.data()
    strengths, t = jnp.asarray(small_books.STRENGTHS, jnp.float32), jnp.asarray(1.0)
    where = jnp.array([True, False, True, False, True, True, False, False])
    keep = where[:, None]
    views_bad = {"later": Outputs(jnp.where(keep, views["later"].logits, jnp.nan))}
    bad = jnp.where(keep, logits, jnp.nan), jnp.where(keep, columns, jnp.inf)
    rows, grads, _ = taught(logits, columns, views, strengths, t, jnp.ones(8, bool))
    got, slopes, _ = taught(*bad, views_bad, strengths, t, where)
    np.testing.assert_array_equal(got, np.where(where, rows, 0.0))
    np.testing.assert_array_equal(slopes, np.where(keep, grads, 0.0))
    for x in taught(logits * jnp.nan, columns, views, strengths, t, jnp.zeros(8, bool)):
        np.testing.assert_array_equal(x, 0.0)


def test_schedules_of_the_paper_and_of_the_code():
    code = imitation(0.95, steps_per_epoch=7)
    for batch in (1, 3, 700):  # get_pi(cur_iter=batch * 1. / n_batches, params=[.95, 0])
        want = 1.0 - max(0.95 ** (batch / 7), 0)
        np.testing.assert_allclose(code(batch - 1), want, rtol=1e-5)
    paper = imitation(0.9, steps_per_epoch=1, ceiling=0.6, first=0)
    np.testing.assert_allclose([paper(t) for t in range(3)], [0, 0.1, 0.19], atol=1e-6)
    np.testing.assert_allclose(paper(1000), 0.6)
    np.testing.assert_allclose(remainder(paper)(2), 0.81, rtol=1e-6)
    assert paper == imitation(0.9, steps_per_epoch=1, ceiling=0.6, first=0)
    assert hash(remainder(paper)) == hash(remainder(paper)) and paper != code
    with pytest.raises(ValueError, match="alpha must lie in"):
        imitation(1.2, steps_per_epoch=1)
    with pytest.raises(ValueError, match="steps_per_epoch must be finite and > 0"):
        imitation(0.9, steps_per_epoch=0)


def test_the_schedule_weighs_the_term_and_pieces_add_up():
    logits, columns, views = small_books.data()
    pi = imitation(0.5, steps_per_epoch=1)
    objective = weighted_sum(teach("r", pi, small_books.book()))
    view = views["later"].logits
    counts = {"r": jnp.asarray(8.0)}

    @small_books.quick
    @jax.grad
    def gradient(x, c, v, step):
        return small_books.value_of(
            objective, {}, x, c, {"later": v}, denominators=counts, step=step
        )[0]

    whole = gradient(logits, columns, view, 0)
    q = posterior(logits, columns, view)
    np.testing.assert_allclose(
        whole, 0.5 * (small_books.softmax(logits) - q) / 8, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(gradient(logits, columns, view, 1), 1.5 * whole, rtol=1e-5)
    parts = [gradient(logits[i], columns[i], view[i], 0) for i in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-8)


def test_learning_moves_strengths_by_labels_and_the_student_by_imitation():
    logits, columns, views = small_books.data()
    labels = np.array([0, 2, 1, 2, 1, 0, 1, 2])
    known = np.array([True, True, True, False, True, True, True, True])
    where = np.array([True, True, True, True, False, True, True, True])
    batch = {
        "labels": jnp.where(known, labels, -7),
        "known": jnp.asarray(known),
        "where": jnp.asarray(where),
    }
    objective = weighted_sum(teach("r", 1.0, small_books.book(), learn=True, labelled="known"))
    start = np.array([9.0, 9.0, 0.4, 9.0, 9.0, 9.0])  # only the third is marked [learn]

    def value(params, logits):
        return small_books.value_of(
            objective, params, logits, columns, views, state={"r": {}}, **batch
        )[0]

    run = small_books.quick(jax.value_and_grad(value, (0, 1)))
    got, (to_params, to_logits) = run({"r": {"strengths": jnp.asarray(start, jnp.float32)}}, logits)
    strengths = small_books.STRENGTHS + start * (np.arange(6) == 2)

    def likelihood(strength):
        s = strengths.copy()
        s[2] = strength
        q = posterior(logits, columns, views["later"].logits, s)
        rows = known & where & (q[np.arange(8), labels] > 0)
        return -np.log(q[np.arange(8), labels][rows]).sum() / 7

    q = posterior(logits, columns, views["later"].logits, strengths)
    p = small_books.softmax(logits)
    np.testing.assert_allclose(got, (kl(q, p) * where).sum() / 7 + likelihood(0.4), rtol=1e-5)
    slope = (likelihood(0.4 + 1e-5) - likelihood(0.4 - 1e-5)) / 2e-5
    want = np.where(np.arange(6) == 2, slope, 0.0)
    np.testing.assert_allclose(to_params["r"]["strengths"], want, rtol=1e-3, atol=1e-6)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(to_logits, (p - q) * where[:, None] / 7, rtol=1e-4, atol=1e-6)


def test_a_label_that_hard_rules_forbid_says_nothing():
    rules = bind("[hard] x > 0 => a\n[learn] x > 0 => b", Schema((Column("x"),), ("a", "b")))
    objective = weighted_sum(teach("r", 1.0, rules, learn=True))
    columns, batch = jnp.ones((2, 1)), {"labels": jnp.array([1, 1])}

    def value(params):
        return small_books.value_of(
            objective, params, jnp.zeros((2, 2)), columns, {}, state={"r": {}}, **batch
        )[0]

    got, grads = small_books.quick(jax.value_and_grad(value))({"r": {"strengths": jnp.zeros(2)}})
    np.testing.assert_allclose(got, np.log(2), rtol=1e-6)  # of imitation: 0, 1 against ½, ½
    np.testing.assert_array_equal(grads["r"]["strengths"], 0.0)


def test_complaints(library_errors):
    with pytest.raises(ValueError, match="exclusive classes.*encourage"):
        teach("r", 1.0, small_books.labels())
    with pytest.raises(ValueError, match=r"a rule marked \[learn\]"):
        teach("r", 1.0, bind("a", Schema((), ("a", "b"))), learn=True)
    with pytest.raises(ValueError, match="leave strengths out"):
        teach("r", 1.0, small_books.book(), learn=True, strengths=jnp.ones(6))
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        teach("r", 1.0, small_books.book(), temperature=0.0)


def test_teaching_lowers_violations_and_projecting_lowers_them_further():
    rules = bind("[w=2] x > 0 and y > 0 => yes\n[hard] x < -1 and y < -1 => no", problem.SCHEMA)
    pi = imitation(0.9, steps_per_epoch=10)
    plain = problem.trained_without_rules()
    mixed, _ = problem.train(
        term("labels", remainder(pi), cross_entropy),
        teach("rules", pi, rules, reads={"columns": "inputs"}),
    )
    without, corrected = problem.violated(rules, plain)
    with_rules, both = problem.violated(rules, mixed)
    assert (with_rules < 0.9 * without).all(), (without, with_rules)
    assert (corrected < 0.5 * without).all() and (both < 0.5 * with_rules).all()
    assert corrected[1] == 0.0 and both[1] == 0.0


def test_learned_strengths_tell_good_rules_from_bad_ones():
    """A student that sees nothing leaves it to the strengths, which become log-odds."""
    rules = bind("[learn] x > 1 => yes\n[learn] x < -1 => yes\n[w=0] y > 0 => yes", problem.SCHEMA)
    x = np.linspace(-2, 2, 200, dtype=np.float32)
    rate = np.where(x > 1, 10, np.where(x < -1, 90, 50))  # percent that say no
    labels = ((np.arange(200) * 37) % 100 >= rate).astype(np.int32)
    columns = np.stack([x, x], 1)
    data = {"inputs": np.ones_like(columns), "columns": columns, "labels": labels}
    end, _ = problem.train(
        term("labels", 0.7, cross_entropy),
        teach("rules", 0.3, rules, learn=True),
        data=data,
        steps=300,
    )
    book = learned(rules, end.term_params["rules"])
    found = np.asarray(book.strengths)
    assert not book.learn.any() and "[learn]" not in str(book)
    written = [rule.strength.log_odds for rule in book.rules]  # what it prints is what it holds
    np.testing.assert_allclose(written, found)
    rates = [labels[rule].mean() for rule in (x > 1, x < -1, abs(x) <= 1)]
    odds = [np.log(r / (1 - r)) for r in rates]
    np.testing.assert_allclose(found[:2], [odds[0] - odds[2], odds[1] - odds[2]], atol=0.3)
    assert found[0] > 1.5 and found[1] < -1.5 and found[2] == 0.0
