"""Gradients of batches in pieces: those of the whole batch, for any split and any mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill_jax import models, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Recipe, fit, run
from distill_jax.training.step._gradients import join, split
from distill_jax.types import Outputs

ROWS = 12
STUDENT = models.mlp([6], 3)
SGD = optax.sgd(0.01)  # a large step would amplify rounding
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.normal(size=(ROWS, 4)).astype(np.float32),
    "inputs:half": RNG.normal(size=(ROWS, 4)).astype(np.float32),
    "labels": RNG.integers(0, 3, ROWS).astype(np.int32),
    "where": np.ones(ROWS, bool),
    "labelled": np.ones(ROWS, bool),
}
TEACHERS = {
    "big": teachers.teacher(STUDENT, *STUDENT.init(jax.random.key(9), jnp.ones((1, 4)))),
}


def similarity(student_logits, teacher_logits, *, where):
    """Every row with every other that counts."""

    def gram(x):
        x = jnp.where(where[:, None], x, 0.0)
        return x @ x.T

    square = (gram(student_logits) - gram(teacher_logits)) ** 2
    return jnp.where(where, square.sum(1) / jnp.maximum(where.sum(), 1), 0.0)


def agree(student_logits, views):
    return ((student_logits - views["half"].logits) ** 2).sum(-1)


def scaled(params, state, context):
    """Owns a parameter, and sees its rows one by one."""
    rows = cross_entropy(context.student.logits * params, context.batch["labels"])
    return rows, state


def bank(params, state, context):
    """Owns a state: the mean output, into which every step moves."""
    logits = context.student.logits
    new = 0.5 * state + 0.5 * jax.lax.stop_gradient(logits.mean(0))
    return ((logits - state[None, :]) ** 2).sum(-1), new


LABELS = term("labels", 0.3, cross_entropy, where="labelled")
TEACHER = term("big", 0.7, soft_targets, temperature=2.0)
OBJECTIVES = {
    "uncoupled": weighted_sum(
        LABELS,
        TEACHER,
        term("views", 0.2, agree),
        term("scaled", 0.4, scaled, init=lambda key, context: (jnp.float32(1.5), {})),
    ),
    "coupled": weighted_sum(LABELS, term("big", 0.5, similarity, coupled=True)),
    "stateful": weighted_sum(
        TEACHER, term("bank", 0.5, bank, init=lambda key, context: (None, jnp.ones(3)))
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def two_steps(recipe, objective, batch):
    train = recipe.init(objective, batch, TEACHERS, KEY)
    once, first = recipe.step(train, batch, objective, TEACHERS)
    twice, second = recipe.step(once, batch, objective, TEACHERS)
    return (once, first), (twice, second)


def close(got, want, rtol=1e-6):
    """Within ``rtol`` of the largest entry of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in pairs:
        if jnp.issubdtype(b.dtype, jnp.floating):
            scale = max(1.0, float(jnp.abs(b).max())) if b.size else 1.0
            np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)


masks = hnp.arrays(bool, ROWS)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(where=masks, labelled=masks, pieces=st.sampled_from([2, 6]))
@settings(max_examples=15)
def test_a_split_changes_nothing(name, where, labelled, pieces):
    inputs = np.where(where[:, None], BATCH["inputs"], np.nan)  # padding may hold anything
    batch = BATCH | {"where": where, "labelled": labelled, "inputs": inputs.astype(np.float32)}
    whole = two_steps(Recipe(STUDENT, SGD), OBJECTIVES[name], batch)
    pieced = two_steps(Recipe(STUDENT, SGD, microbatches=pieces), OBJECTIVES[name], batch)
    close(pieced[0], whole[0])
    close(pieced[1], whole[1], rtol=1e-5)  # what a step adds to rounding


def test_means_of_means_would_differ():
    # What the law above would catch: all rows that count lie in one piece.
    batch = BATCH | {"where": np.arange(ROWS) % 2 == 0}
    recipe = Recipe(STUDENT, SGD)
    (whole, _), _ = two_steps(recipe, OBJECTIVES["uncoupled"], batch)
    pieces = Recipe(STUDENT, SGD, microbatches=2)
    (pieced, _), _ = two_steps(pieces, OBJECTIVES["uncoupled"], batch)
    close(pieced.params, whole.params)
    piece = {name: x[::2] for name, x in batch.items()}
    rest = {name: x[1::2] for name, x in batch.items()}
    (half, _), _ = two_steps(recipe, OBJECTIVES["uncoupled"], piece)
    (empty, _), _ = two_steps(recipe, OBJECTIVES["uncoupled"], rest)
    mean_of_means = jax.tree.map(lambda a, b: (a + b) / 2, half.params, empty.params)
    with pytest.raises(AssertionError):
        close(mean_of_means, whole.params, rtol=1e-4)


def test_every_row_alone():
    whole, _ = two_steps(Recipe(STUDENT, SGD), OBJECTIVES["uncoupled"], BATCH)
    alone, _ = two_steps(Recipe(STUDENT, SGD, microbatches=ROWS), OBJECTIVES["uncoupled"], BATCH)
    close(alone, whole)


@pytest.mark.quick
def test_split_and_join_are_inverse():
    pieces = split(BATCH, 3)
    assert pieces["inputs"].shape == (3, 4, 4)
    for name, column in join(pieces).items():
        np.testing.assert_array_equal(column, BATCH[name])


def test_schedules_count_optimizer_steps():
    rates = optax.piecewise_constant_schedule(1.0, {2: 0.0})  # nothing moves from step 2 on
    objective = weighted_sum(term("labels", lambda step: 1.0 / (1 + step), cross_entropy))
    how = {"key": KEY, "batch_size": 6, "microbatches": 3}
    plain = {name: BATCH[name] for name in ("inputs", "labels")}
    two, _ = run(STUDENT, objective, optax.sgd(rates), plain, steps=2, **how)
    four, history = run(STUDENT, objective, optax.sgd(rates), plain, steps=4, **how)
    close(four.params, two.params, rtol=0)
    weights = history["loss"] / history["labels"]
    np.testing.assert_allclose(weights, 1.0 / np.arange(1, 5), rtol=1e-6)
    assert int(four.step) == 4


def test_run_and_fit_give_the_same_bits():
    plain = {name: BATCH[name] for name in ("inputs", "labels", "labelled")}
    how = {"key": KEY, "steps": 4, "batch_size": 6, "microbatches": 2, "teachers": TEACHERS}
    objective, adam = OBJECTIVES["coupled"], optax.adam(0.1)
    plain["where"] = np.ones(ROWS, bool)
    ran, metrics = run(STUDENT, objective, adam, plain, **how)
    fitted, history = fit(STUDENT, objective, adam, plain, **how)
    for a, b in zip(jax.tree.leaves(ran.params), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(metrics["loss"], history["loss"])


def test_a_convnet_with_batch_norm_keeps_its_statistics():
    model = models.convnet([4], 3)
    images = RNG.normal(size=(8, 6, 6, 1)).astype(np.float32)
    batch = {"inputs": images, "labels": np.arange(8) % 3}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    recipe = Recipe(model, SGD, microbatches=2)
    train = recipe.init(objective, batch, {}, KEY)
    new, metrics = jax.jit(recipe.step)(train, batch, objective, {})
    assert np.isfinite(metrics["loss"])
    # The second piece starts from the statistics that the first one left.
    state = train.state
    for piece in range(2):
        rows = jnp.asarray(split(images, 2)[piece])
        state = model.apply(train.params, state, rows, key=KEY, train=True)[1]
    close(new.state, state, rtol=1e-5)


def test_every_piece_drops_out_for_itself():
    def init(key, inputs):
        return jnp.ones(3)

    def apply(params, inputs, *, key, train):
        drawn = jax.random.uniform(key, (len(inputs), 3)) if train else jnp.zeros((len(inputs), 3))
        return drawn * params[None, :]

    model = models.from_function(init, apply)

    def spread(student_logits, *, where):
        return jnp.broadcast_to(student_logits.std(0, where=where[:, None]).sum(), len(where))

    seen = weighted_sum(term("spread", 1.0, spread, coupled=True))
    recipe = Recipe(model, SGD, microbatches=ROWS)
    train = recipe.init(seen, BATCH, {}, KEY)
    _, metrics = jax.jit(recipe.step)(train, BATCH, seen, {})
    assert metrics["spread"] > 0.1  # equal draws would have no spread


def test_features_that_are_integers_get_no_gradient():
    def apply(params, inputs):
        logits = inputs @ params
        return Outputs(logits, {"top": logits.argmax(-1), "hidden": logits})

    model = models.from_function(lambda key, inputs: jnp.ones((4, 3)), apply)
    objective = weighted_sum(
        term("f", 1.0, lambda context: context.student.features["hidden"][:, 0] ** 2, coupled=True)
    )
    steps = []
    for pieces in (1, 3):
        recipe = Recipe(model, SGD, microbatches=pieces)
        train = recipe.init(objective, BATCH, {}, KEY)
        steps.append(jax.jit(recipe.step)(train, BATCH, objective, {})[0].params)
    close(steps[1], steps[0])


def test_bfloat16_parameters_are_summed_in_float32():
    def apply(params, inputs):
        return inputs.astype(jnp.bfloat16) @ params

    model = models.from_function(lambda key, inputs: jnp.ones((4, 3), jnp.bfloat16), apply)
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    recipe = Recipe(model, SGD, microbatches=ROWS)
    train = recipe.init(objective, BATCH, {}, KEY)
    text = str(jax.make_jaxpr(recipe.step)(train, BATCH, objective, {}))
    new, _ = jax.jit(recipe.step)(train, BATCH, objective, {})
    assert new.params.dtype == jnp.bfloat16
    whole, _ = jax.jit(Recipe(model, SGD).step)(train, BATCH, objective, {})
    np.testing.assert_allclose(
        new.params.astype(np.float32), whole.params.astype(np.float32), rtol=2**-7
    )
    assert "f32[4,3]" in text  # the accumulator


def test_pieces_save_memory():
    wide = models.mlp([256], 3)
    batch = {"inputs": jnp.zeros((2048, 16)), "labels": jnp.zeros(2048, jnp.int32)}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    sizes = []
    for pieces in (1, 16):
        recipe = Recipe(wide, SGD, microbatches=pieces)
        train = jax.eval_shape(recipe.init, objective, batch, {}, KEY)
        compiled = jax.jit(recipe.step).lower(train, batch, objective, {}).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 4, sizes


def test_pieces_must_divide_the_batch():
    plain = {name: BATCH[name] for name in ("inputs", "labels")}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    for train in (run, fit):
        with pytest.raises(ValueError, match=r"divide the 10 rows .* got 4: take one of .*5"):
            train(STUDENT, objective, SGD, plain, key=KEY, steps=1, batch_size=10, microbatches=4)
        with pytest.raises(ValueError, match="microbatches must be 1 or more, got 0"):
            train(STUDENT, objective, SGD, plain, key=KEY, steps=1, batch_size=10, microbatches=0)
