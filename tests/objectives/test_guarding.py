"""Rows that do not count, and terms of weight 0: neither value nor gradient, whatever they hold."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, teachers
from distill_jax.losses import cross_entropy
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.training import NonFiniteLoss, fit, run
from distill_jax.types import Outputs

ROWS, CLASSES = 6, 3
RNG = np.random.default_rng(0)
WHERE = np.arange(ROWS) % 3 > 0
X, T = (RNG.normal(size=(ROWS, CLASSES)).astype(np.float32) for _ in range(2))
BAD = np.where(WHERE[:, None], T, np.nan).astype(np.float32)
WANT = (2 * (X - T) * WHERE[:, None] / WHERE.sum(), ((X - T) ** 2).sum(1)[WHERE].mean())


def squares(a, b):  # without where, as users write it
    return ((a - b) ** 2).sum(-1)


def by_columns(student_logits, targets):
    return squares(student_logits, targets)


def by_teacher(student_logits, teacher_logits):
    return squares(student_logits, teacher_logits)


def by_features(student_features, teacher_features):
    return squares(student_features, teacher_features)


def by_views(student_logits, views):
    return squares(student_logits, views["v"].logits)


def by_context(context):
    return squares(context.student.features["h"], context.batch["targets"])


def by_function(student_logits):
    return squares(student_logits, 0.0)


def read(context):
    return context.student.logits - context.teachers["big"].features["h"]


LOSSES = {
    "columns": (by_columns, {}),
    "renamed": (by_columns, {"targets": "noisy"}),
    "function": (by_function, {"student_logits": read}),
    "teacher": (by_teacher, {}),
    "features": (by_features, {"student_features": "h", "teacher_features": "big:h"}),
    "views": (by_views, {}),
    "context": (by_context, {}),
}


def context_of(x, bad=BAD):
    bad = jnp.asarray(bad)
    batch = {"inputs": jnp.zeros((ROWS, 1)), "targets": bad, "noisy": bad}
    batch |= {"mine": jnp.asarray(WHERE), "labels": jnp.where(WHERE, 1, -100)}
    big = Outputs(bad, {"h": bad})
    return Context(Outputs(x, {"h": x}), {"big": big}, batch, views={"v": Outputs(bad)})


@pytest.mark.quick
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_where_reads_zeros_in_masked_rows(name):
    loss, reads = LOSSES[name]
    objective = weighted_sum(term("t", 1.0, loss, where="mine", reads=reads))

    def value(x):
        return objective({}, {}, context_of(x))[0]

    x = np.where(WHERE[:, None], X, np.inf)
    got, grad = jax.value_and_grad(value)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(grad, WANT[0], rtol=1e-6)
    np.testing.assert_allclose(got, WANT[1], rtol=1e-6)
    _, slope = jax.jvp(value, (jnp.asarray(X),), (jnp.ones_like(X),))
    np.testing.assert_allclose(slope, WANT[0].sum(), rtol=1e-5)


def test_labels_are_integers_in_masked_rows_too():
    seen = []

    def loss(student_logits, labels):
        seen.append(labels)
        return student_logits.sum(-1)

    weighted_sum(term("t", 1.0, loss, where="mine"))({}, {}, context_of(jnp.asarray(X)))
    assert seen[0].dtype == context_of(X).batch["labels"].dtype
    np.testing.assert_array_equal(seen[0], np.where(WHERE, 1, 0))


def test_tokens_are_masked_one_by_one_and_pooled_features_row_by_row():
    """Two sequences of three tokens, and arrays that have the axes of the mask or have not."""
    mask = jnp.array([[True, False, False], [False, False, False]])
    batch = {
        "inputs": jnp.ones((2, 3)),
        "tokens": jnp.ones((2, 3)),
        "targets": jnp.ones((2, 3, 4)),
        "sentence": jnp.ones((2, 5)),
        "where": mask,
    }
    features = {
        "hidden": jnp.ones((2, 3, 3)),
        "pooled": jnp.ones((2, 3)),
        "map": jnp.ones((2,) * 4),
    }

    def loss(context):
        tokens = mask.astype(jnp.float32)
        rows = mask.any(1).astype(jnp.float32)
        made, seen = context.student, context.batch
        for got, want in (
            (made.logits, tokens),
            (made.features["hidden"], tokens),
            (made.features["pooled"], rows),
            (made.features["map"], rows),
            (seen["tokens"], tokens),
            (seen["targets"], tokens),
            (seen["sentence"], rows),
        ):
            want = want.reshape(*want.shape, *[1] * (got.ndim - want.ndim))
            np.testing.assert_array_equal(got, jnp.broadcast_to(want, got.shape))
        return tokens

    context = Context(Outputs(jnp.ones((2, 3, 4)), features), {}, batch)
    assert weighted_sum(term("t", 1.0, loss))({}, {}, context)[0] == 1


def test_masked_tokens_may_hold_anything_before_the_first_step():
    mask = np.array([[True, False, False], [False, True, True]])
    data = {"inputs": np.zeros((2, 3)), "where": mask, "labels": np.where(mask, 1, -100)}
    data["targets"] = np.where(mask, 0.5, np.nan)

    def loss(student_logits, labels, targets):
        raise NotImplementedError

    objective = weighted_sum(term("t", 1.0, loss))
    objective.check(data, CLASSES)
    with pytest.raises(ValueError, match="targets must be finite, got NaN or inf in 2 of 3 rows"):
        objective.check({**data, "targets": np.where(mask[:, ::-1], 0.5, np.nan)}, CLASSES)


def steep(student_logits):  # 0, with an infinite slope
    return jnp.sqrt((student_logits * 0.0).sum(-1))


def infinite(student_logits):
    return jnp.inf * jnp.abs(student_logits).sum(-1)


def undefined(student_logits):
    return jnp.log(-jnp.abs(student_logits).sum(-1))


def owner(params, state, student_logits, *, scale):
    return steep(student_logits * params * scale[None, None]), state


TERMS = {
    "steep": {"loss": steep},
    "infinite": {"loss": infinite},
    "undefined": {"loss": undefined},
    "owner": {"loss": owner, "init": lambda key: (jnp.float32(1.0), {}), "scale": 2.0},
}
ZERO = {"number": -0.0, "schedule": lambda step: 0.0 * step}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("weight", ZERO)
def test_a_term_of_weight_0_sends_no_gradient(name, weight):
    objective = weighted_sum(
        term("columns", 1.0, by_columns), term("t", ZERO[weight], **TERMS[name])
    )

    def value(arguments, objective):
        x, params = arguments
        return objective({"t": params}, {"t": {}}, context_of(x, T))[0]

    arguments = jnp.asarray(X), jnp.float32(1.0)
    want = 2 * (X - T) / ROWS
    for transform in (lambda f: f, jax.jit):
        (grad, own), options = transform(jax.grad(value, (0, 1), allow_int=True))(
            arguments, objective
        )
        np.testing.assert_allclose(grad, want, rtol=1e-5)
        assert own == 0
        assert all(x == 0 for x in jax.tree.leaves(options.terms[1].options))
    one = jax.tree.map(jnp.ones_like, arguments)

    def slope(arguments):
        return jax.jvp(lambda a: value(a, objective), (arguments,), (one,))[1]

    np.testing.assert_allclose(slope(arguments), want.sum(), rtol=1e-5)
    second, _ = jax.grad(slope)(arguments)  # reverse over forward
    np.testing.assert_allclose(second, jnp.full_like(X, 2 / ROWS), rtol=1e-5)
    gradient = jax.grad(lambda a: value(a, objective)[()])
    _, (second, _) = jax.jvp(gradient, (arguments,), (one,))  # forward over reverse
    np.testing.assert_allclose(second, jnp.full_like(X, 2 / ROWS), rtol=1e-5)


def test_weights_side_by_side_of_which_one_is_0():
    def value(x, weight):
        objective = weighted_sum(term("t", weight, steep), term("c", 1.0, by_columns))
        return objective({}, {}, context_of(x, T))[0]

    grads = jax.vmap(jax.grad(value), (None, 0))(jnp.asarray(X), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(grads[0], 2 * (X - T) / ROWS, rtol=1e-5)
    assert not np.isfinite(grads[1]).any()


def test_the_slope_of_a_weight_is_the_loss_at_0_too():
    def value(weight):
        return weighted_sum(term("t", weight, by_columns))({}, {}, context_of(jnp.asarray(X), T))[0]

    mean = value(jnp.float32(1.0))
    for weight in (0.0, 0.5):
        np.testing.assert_allclose(jax.grad(value)(jnp.float32(weight)), mean, rtol=1e-6)
        slope = jax.jvp(value, (jnp.float32(weight),), (jnp.float32(2.0),))[1]
        np.testing.assert_allclose(slope, 2 * mean, rtol=1e-6)


def test_a_learned_weight_starts_at_0():
    """A weight is a leaf, so Optax can train it with the rest."""

    def value(objective):
        return objective({}, {}, context_of(jnp.asarray(X), T))[0]

    objective = weighted_sum(term("t", 0.0, by_columns))
    assert jax.grad(value)(objective).terms[0].weight > 1


DATA = {
    "inputs": RNG.normal(size=(ROWS, 4)).astype(np.float32),
    "targets": BAD,
    "labels": np.arange(ROWS) % CLASSES,
    "where": WHERE,
}
STUDENT = models.logistic_regression(CLASSES)
SGD = optax.sgd(0.1)


@functools.cache
def clean():
    keep = {name: column[WHERE] for name, column in DATA.items() if name != "where"}
    how = {"key": jax.random.key(0), "steps": 2, "batch_size": int(WHERE.sum())}
    labels = weighted_sum(term("labels", 1.0, cross_entropy))
    squared = weighted_sum(term("squares", 1.0, by_columns))
    return {o.terms[0].name: run(STUDENT, o, SGD, keep, **how)[0].params for o in (labels, squared)}


@pytest.mark.parametrize("train", [run, fit])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_training_with_rows_that_do_not_count(train, microbatches):
    objective = weighted_sum(term("squares", 1.0, by_columns))
    how = {"key": jax.random.key(0), "steps": 2, "batch_size": ROWS, "microbatches": microbatches}
    state, history = train(STUDENT, objective, SGD, DATA, **how)
    for got, want in zip(*map(jax.tree.leaves, (state.params, clean()["squares"])), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.isfinite(history["squares"]).all()


@pytest.mark.parametrize("train", [run, fit])
@pytest.mark.parametrize("coupled", [False, True])
def test_training_with_terms_of_weight_0_raises_no_alarm(train, coupled):
    def watched(student_logits, *, where):
        return infinite(student_logits) * where

    objective = weighted_sum(
        term("labels", 1.0, cross_entropy),
        term("owner", lambda step: jnp.where(step < 9, 0.0, 1.0), **TERMS["owner"]),
        term("watched", 0.0, watched, coupled=coupled),
        term("undefined", 0.0, undefined),
    )
    how = {"key": jax.random.key(0), "steps": 2, "batch_size": ROWS, "microbatches": 2}
    state, history = train(STUDENT, objective, SGD, DATA, **how)
    for got, want in zip(*map(jax.tree.leaves, (state.params, clean()["labels"])), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert state.term_params["owner"] == 1
    assert not np.isfinite(history["undefined"]).any() and np.isfinite(history["loss"]).all()


def test_the_alarm_names_the_terms_that_weigh_something():
    objective = weighted_sum(
        term("labels", 1.0, cross_entropy),
        term("watched", 0.0, undefined),
        term("later", lambda step: 1.0 * (step > 0), infinite),
    )
    with pytest.raises(NonFiniteLoss, match="term 'later' is inf") as caught:
        fit(STUDENT, objective, SGD, DATA, key=jax.random.key(0), steps=3, batch_size=ROWS)
    assert caught.value.terms == ["later"]


def test_a_teacher_that_is_undefined_on_masked_rows():
    def predict(params, inputs):
        return jnp.where(jnp.abs(inputs).sum(1, keepdims=True) == 0, jnp.nan, inputs[:, :CLASSES])

    taught = {"big": teachers.from_function(predict, {})}
    objective = weighted_sum(term("big", 1.0, by_teacher))
    how = {"key": jax.random.key(0), "steps": 1, "batch_size": ROWS, "teachers": taught}
    state, _ = run(STUDENT, objective, SGD, DATA, **how)
    assert all(math.isfinite(x.sum()) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("train", [run, fit])
def test_masks_that_leave_nothing_in_memory(train):
    objective = weighted_sum(
        term("labels", 1.0, cross_entropy), term("t", 1.0, by_columns, where="none")
    )
    data = {**DATA, "none": ~WHERE}
    with pytest.raises(ValueError, match="term 't' counts none of the 6 rows of the data"):
        train(STUDENT, objective, SGD, data, key=jax.random.key(0), steps=1, batch_size=ROWS)


def test_masks_that_leave_nothing_in_a_stream():
    objective = weighted_sum(
        term("labels", 1.0, cross_entropy), term("later", 1.0, by_columns, where="later")
    )

    def stream(last):
        for step in range(3):
            yield {**DATA, "later": WHERE & (step == last)}

    how = {"key": jax.random.key(0), "steps": 3}
    fit(STUDENT, objective, SGD, stream(last=2), **how)
    with pytest.warns(UserWarning, match=r"the masks of \['later'\] counted no row in 3 steps"):
        fit(STUDENT, objective, SGD, stream(last=5), **how)
