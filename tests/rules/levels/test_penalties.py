"""Penalties against float64 NumPy; masks, extremes, defaults; training with them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import models, training
from distill_jax.objectives import Context, weighted_sum
from distill_jax.rules import Schema, bind, encourage, penalty, posterior_kl, teach
from distill_jax.rules.levels.penalties import HARD_WEIGHT
from distill_jax.types import Outputs
from tests.rules import small_books
from tests.rules.levels import problem

KINDS = ("linear", "log", "squared")


@functools.partial(small_books.quick, static_argnames="kind")
def _compiled(logits, columns, views, rules, weights, where, *, kind):
    def total(logits, weights):
        rows = penalty(logits, columns, views, rules=rules, kind=kind, weights=weights, where=where)
        return rows.sum(), rows

    grads, rows = jax.grad(total, (0, 1), has_aux=True)(logits, weights)
    return rows, *grads


def compiled(rules, logits, columns, views, *, kind, weights=None, where=None):
    """Rows, and the gradients of their sum to logits and weights: one program for each book."""
    if weights is None:
        weights = small_books.WEIGHTS if len(rules) == 6 else small_books.LABEL_WEIGHTS
    where = jnp.ones(len(logits), bool) if where is None else where
    weights = jnp.asarray(weights, jnp.float32)
    return _compiled(logits, columns, views, rules, weights, where, kind=kind)


def expected(kind, sets, logits, columns, views, weights):
    if sets:
        violated = small_books.label_violations(logits, columns)
        truth = 1 - violated
    else:
        violated = small_books.violations(logits, columns, views["later"].logits)
        truth = small_books.truths(logits, columns, views["later"].logits)
    with np.errstate(divide="ignore"):
        each = {"linear": violated, "squared": violated**2, "log": -np.log(truth)}[kind]
    return each, (weights * each).sum(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [False, True])
def test_values_and_gradients_are_those_of_the_definition(kind, sets):
    rules = small_books.labels() if sets else small_books.book()
    weights = small_books.LABEL_WEIGHTS if sets else small_books.WEIGHTS
    for seed in range(3):
        logits, columns, views = small_books.data(seed)

        def want(x, columns=columns, views=views):
            return expected(kind, sets, x, columns, views, weights)[1]

        rows, to_logits, to_weights = compiled(rules, logits, columns, views, kind=kind)
        assert rows.dtype == jnp.float32
        np.testing.assert_allclose(rows, want(logits), rtol=1e-5, atol=1e-6)
        # Rows 3 and 7 have age > 70, where nothing satisfies a rule.
        never = np.isinf(rows)
        np.testing.assert_array_equal(never, (kind == "log" and not sets) & (np.arange(8) % 4 == 3))
        slopes = small_books.slopes(want, logits)
        np.testing.assert_allclose(to_logits[~never], slopes[~never], rtol=1e-4, atol=2e-5)
        assert np.isfinite(to_logits).all()
        each, _ = expected(kind, sets, logits, columns, views, weights)
        np.testing.assert_allclose(to_weights, each.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [False, True])
def test_masked_rows_give_nothing_and_take_nothing(kind, sets):
    rules = small_books.labels() if sets else small_books.book()
    logits, columns, views = small_books.data()
    where = jnp.array([True, False, True, False, True, True, False, False])
    keep = where[:, None]
    bad = jnp.where(keep, logits, jnp.nan), jnp.where(keep, columns, jnp.nan)
    bad_views = {"later": Outputs(jnp.where(keep, views["later"].logits, jnp.inf))}
    rows, slopes, _ = compiled(rules, logits, columns, views, kind=kind)
    got, to_logits, to_weights = compiled(rules, *bad, bad_views, kind=kind, where=where)
    np.testing.assert_array_equal(got, np.where(where, rows, 0.0))
    np.testing.assert_allclose(to_logits, np.where(keep, slopes, 0.0), rtol=1e-6)
    assert np.abs(to_logits[0]).max() > 0 and np.isfinite(to_weights).all()
    nobody = jnp.zeros(8, bool)
    for x in compiled(rules, logits * jnp.nan, columns, views, kind=kind, where=nobody):
        np.testing.assert_array_equal(x, 0.0)


def test_bfloat16_is_computed_in_float32():
    logits, columns, views = small_books.data()
    short = logits.astype(jnp.bfloat16)
    rows, *_ = compiled(small_books.book(), short, columns, views, kind="linear")
    want, *_ = compiled(
        small_books.book(), short.astype(jnp.float32), columns, views, kind="linear"
    )
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, want)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_the_student_excludes(kind):
    logits, columns, views = small_books.data()
    logits = logits.at[2, 1].set(-jnp.inf).at[0, 0].set(-jnp.inf).at[5, 2].set(-jnp.inf)
    _, want = expected(kind, False, logits, columns, views, small_books.WEIGHTS)
    rows, to_logits, _ = compiled(small_books.book(), logits, columns, views, kind=kind)
    np.testing.assert_allclose(rows, want, rtol=5e-6)
    assert np.isfinite(to_logits).all()


def test_no_rule_of_weight_0_is_heard_even_if_infinite():
    weights = small_books.WEIGHTS * (np.arange(6) < 5)
    rows, *_ = compiled(small_books.book(), *small_books.data(), kind="log", weights=weights)
    assert np.isfinite(rows).all()


def test_order_of_classes_does_not_matter():
    logits, columns, views = small_books.data()
    order = (2, 0, 1)
    other = small_books.book(tuple(small_books.CLASSES[k] for k in order))
    turn = jnp.asarray(order)
    turned = {"later": Outputs(views["later"].logits[:, turn])}
    got, *_ = compiled(other, logits[:, turn], columns, turned, kind="log")
    want, *_ = compiled(small_books.book(), logits, columns, views, kind="log")
    np.testing.assert_allclose(got, want, rtol=3e-6)


def test_jit_and_vmap_agree():
    logits, columns, views = small_books.data()
    want, *_ = compiled(small_books.book(), logits, columns, views, kind="linear")

    @small_books.quick
    @jax.vmap
    def one(x, c, v):
        return penalty(x[None], c[None], {"later": v[None]}, rules=small_books.book())[0]

    np.testing.assert_allclose(one(logits, columns, views["later"].logits), want, rtol=2e-6)


# Weights


@pytest.mark.quick
def test_default_weights():
    rules = bind("[w=2] a\n[hard] a\n[learn] a\na\n[p=0.75] a", Schema((), ("a", "b")))
    logits, columns = jnp.zeros((1, 2)), jnp.zeros((1, 0))

    @small_books.quick
    def both(weights):
        def given(weights):
            return penalty(logits, columns, {}, rules=rules, weights=weights).sum()

        return penalty(logits, columns, {}, rules=rules), jax.grad(given)(weights)

    got, grads = both(jnp.ones(5))
    np.testing.assert_allclose(grads, 0.5)
    np.testing.assert_allclose(got, 0.5 * (2 + HARD_WEIGHT + 1 + 1 + math.log(3)), rtol=1e-6)


def test_negative_strengths_are_refused_and_never_rewarded():
    rules = bind("[w=-2] a => b\nb", Schema((), ("a", "b")))
    logits, columns = jnp.zeros((1, 2)), jnp.zeros((1, 0))
    with pytest.raises(ValueError, match=r"negative strength, here -2, in: \[w=-2\] a => b"):
        encourage("rules", 1.0, rules)
    with pytest.raises(ValueError, match="negative strength"):
        penalty(logits, columns, {}, rules=rules)
    traced = small_books.quick(lambda rules: penalty(logits, columns, {}, rules=rules))
    np.testing.assert_allclose(traced(rules), 0.5)
    encourage("rules", 1.0, rules, weights=jnp.array([1.0, 2.0]))


def test_complaints(library_errors):
    rules, (logits, columns, views) = small_books.book(), small_books.data()
    with pytest.raises(ValueError, match="kind must be one of"):
        encourage("rules", 1.0, rules, kind="cubic")
    with pytest.raises(ValueError, match=r"weights must have shape \(6,\)"):
        encourage("rules", 1.0, rules, weights=jnp.ones(5))
    with pytest.raises(ValueError, match="weights must be finite and >= 0"):
        encourage("rules", 1.0, rules, weights=-jnp.ones(6))
    with pytest.raises(ValueError, match='coupled is for kind "log"'):
        encourage("rules", 1.0, rules, coupled=True)
    with pytest.raises(ValueError, match=r"views must hold the model's logits on \['later'\]"):
        penalty(logits, columns, {}, rules=rules)
    with pytest.raises(ValueError, match="student_logits must have shape"):
        penalty(logits[:, :2], columns, views, rules=rules)
    with pytest.raises(TypeError, match="student_logits must be floating"):
        penalty(logits.astype(int), columns, views, rules=rules)
    with pytest.raises(ValueError, match=r"where must have shape \(8,\)"):
        penalty(logits, columns, views, rules=rules, where=jnp.ones(3, bool))


# In an objective


objective_value = small_books.quick(small_books.value_of)


def test_gradient_does_not_depend_on_how_a_batch_is_cut():
    logits, columns, views = small_books.data()
    logits, columns, view = logits[:6], columns[:6], views["later"].logits[:6]
    where = jnp.array([True, True, False, True, True, False])
    weights = lambda step: jnp.arange(1.0, 7.0) + step  # noqa: E731
    objective = weighted_sum(encourage("rules", 0.7, small_books.book(), weights=weights))
    counts = objective.counts({"inputs": columns, "where": where})

    def piece(x, c, v, w):
        views = {"later": Outputs(v)}
        value, _ = small_books.value_of(objective, {}, x, c, views, denominators=counts, where=w)
        return value

    gradient = small_books.quick(jax.grad(piece))
    whole = gradient(logits, columns, view, where)
    cuts = [slice(0, 3), slice(3, 6)]
    parts = [gradient(*(x[cut] for x in (logits, columns, view, where))) for cut in cuts]
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-8)


def test_the_mean_may_stand_inside_the_logarithm():
    logits, columns, views = small_books.data()
    where = jnp.array([True, True, True, False, True, True, False, False])
    objective = weighted_sum(encourage("rules", 1.0, small_books.book(), kind="log", coupled=True))
    got, (parts, _) = objective_value(objective, {}, logits, columns, views, where=where)
    truth = 1 - small_books.violations(logits, columns, views["later"].logits)[np.asarray(where)]
    want = -(small_books.WEIGHTS * np.log(truth.mean(0))).sum()
    np.testing.assert_allclose(got, want, rtol=2e-6)
    each, *_ = compiled(small_books.book(), logits, columns, views, kind="log", where=where)
    assert got < each.sum() / 5
    with pytest.raises(ValueError, match="couples the examples"):
        objective_value(
            objective, {}, logits, columns, views, denominators={"rules": parts["rules"].count}
        )
    nobody = jnp.zeros(8, bool)
    nothing, _ = objective_value(objective, {}, logits * jnp.nan, columns, views, where=nobody)
    assert nothing == 0.0


@functools.cache
def two_rules():
    """The first is often wrong, the second always right."""
    return bind("x > 0 => yes\nx > 0 and y > 0 => yes", problem.SCHEMA)


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_encouraging_lowers_violations(kind):
    rules = two_rules()
    without, _ = problem.violated(rules, problem.trained_without_rules())
    end, metrics = problem.train(
        problem.LABELS, encourage("rules", 1.0, rules, kind=kind, reads={"columns": "inputs"})
    )
    with_rules, _ = problem.violated(rules, end)
    assert with_rules[0] < 0.7 * without[0] and with_rules[1] < without[1], (with_rules, without)
    assert metrics["rules"][-1] < metrics["rules"][0]


@pytest.mark.usefixtures("library_errors")
def test_a_student_with_the_classes_in_another_order_is_refused():
    rules = two_rules()
    first, second = rules.schema.classes
    objective = weighted_sum(encourage("fewer", 1.0, rules, reads={"columns": "inputs"}))
    for classes in ((second, first), (first, "other")):
        with pytest.raises(ValueError, match="rules of term 'fewer' have the classes .* bind them"):
            training.run(
                models.logistic_regression(2, classes=classes),
                objective,
                problem.OPTIMIZER,
                problem.table(),
                key=jax.random.key(0),
                steps=1,
                batch_size=4,
            )


def test_rows_of_rules_have_weights():
    rules = bind("[w=2] x > 0 => yes\n[w=1] y > 0 => no", problem.SCHEMA)
    table = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    trust = [1.0, 0.5, 0.0, 2.0]
    batch = {"inputs": table, "columns": table, "trust": jnp.array(trust)}
    context = Context(Outputs(logits), {}, batch, 0)
    for rows, make in (
        (penalty(logits, table, {}, rules=rules), encourage),
        (posterior_kl(logits, table, {}, rules=rules), teach),
    ):
        for divide_by, number in (("weights", sum(trust)), ("rows", 4)):
            own = make("rules", 1.0, rules, sample_weight="trust", divide_by=divide_by)
            got, _ = weighted_sum(own)({}, {}, context)
            np.testing.assert_allclose(got, rows @ np.array(trust) / number, rtol=1e-5)
