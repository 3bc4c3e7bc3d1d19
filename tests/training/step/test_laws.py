"""Laws of a step's keys, states and positions: who draws what, and which state is read."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Recipe
from distill_jax.training.fitting import _groups
from distill_jax.training.step._forward import forward_passes
from distill_jax.training.step._gradients import gradients

KEY = jax.random.key(3)
ROWS, SIZE, CLASSES = 6, 4, 3
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.normal(size=(ROWS, SIZE)).astype(np.float32),
    "inputs:view": RNG.normal(size=(ROWS, SIZE)).astype(np.float32),
}
STILL = optax.sgd(0.0)


def linear(key, inputs):
    return jax.random.normal(key, (SIZE, CLASSES))


def dropped(params, inputs, *, key, train):
    keep = jax.random.bernoulli(key, 0.5, inputs.shape) if train else 0.5
    return (inputs * keep) @ params


def read_and_moved(params, state, inputs, *, key, train):
    """Linear in its params; the forward pass in training reads the state, and moves it."""
    logits = (inputs * state[None, :]) @ params
    return logits, 0.5 * state + (inputs**2).mean(0) if train else state


DROPPED = models.from_function(linear, dropped)
STATEFUL = models.from_function(lambda key, x: (linear(key, x), jnp.ones(SIZE)), read_and_moved)


def size(student_logits):  # linear too
    return student_logits @ jnp.array([1.0, -2.0, 0.5])


def noisy(student_logits, key):
    return size(student_logits) * jax.random.normal(key, (len(student_logits),))


def noisy_owner(params, state, student_logits, key):
    return noisy(student_logits, key), state + 1.0


OBJECTIVES = {
    "one pass": weighted_sum(term("size", 1.0, size)),
    "two passes": weighted_sum(term("size", 1.0, size, coupled=True)),
    "coupled noise": weighted_sum(term("noise", 1.0, noisy, coupled=True)),
    "owned noise": weighted_sum(
        term("noise", 1.0, noisy_owner, init=lambda key: ({}, jnp.zeros(())))
    ),
}


@functools.cache
def found(model, name, microbatches):
    """The gradient of one step, and the params that it is taken at."""
    objective = OBJECTIVES[name]
    train = Recipe(model, STILL).init(objective, BATCH, {}, KEY)
    trainable = {"student": train.params, "terms": train.term_params}

    @jax.jit
    def compute(trainable, state, term_state, columns):
        forward, step = forward_passes(model, {}, None), jnp.zeros((), jnp.int32)
        return gradients(
            forward, objective, trainable, state, term_state, columns, step, KEY,
            microbatches=microbatches,
        )  # fmt: skip

    return compute(trainable, train.state, train.term_state, BATCH), train.params


@pytest.mark.quick
def test_a_student_drops_out_anew_in_every_step():
    recipe, objective = Recipe(DROPPED, STILL), OBJECTIVES["one pass"]
    train = recipe.init(objective, BATCH, {}, KEY)
    step = jax.jit(recipe.step)
    once, first = step(train, BATCH, objective, {})
    _, second = step(once, BATCH, objective, {})
    np.testing.assert_array_equal(once.params, train.params)
    assert abs(first["loss"] - second["loss"]) > 1e-3


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_draw_alike_whether_terms_are_coupled_or_not(pieces):
    one, two = (found(DROPPED, name, pieces)[0] for name in ("one pass", "two passes"))
    np.testing.assert_allclose(one.loss, two.loss, atol=1e-6)
    np.testing.assert_allclose(one.grads["student"], two.grads["student"], atol=1e-5)


@pytest.mark.parametrize("model", [DROPPED, STATEFUL], ids=["dropped", "stateful"])
@pytest.mark.parametrize(("name", "pieces"), [("one pass", 1), ("one pass", 3), ("two passes", 3)])
def test_of_a_linear_student_the_gradient_times_the_parameters_is_the_loss(model, name, pieces):
    """The backward pass must see what the forward pass drew, and the state that it read."""
    made, params = found(model, name, pieces)
    np.testing.assert_allclose((made.grads["student"] * params).sum(), made.loss, atol=1e-5)


def test_the_state_passes_from_piece_to_piece_in_one_pass_and_in_two():
    one, two = (found(STATEFUL, name, 3)[0] for name in ("one pass", "two passes"))
    np.testing.assert_allclose(one.loss, two.loss, atol=1e-6)
    want = jnp.ones(SIZE)
    for piece in range(3):
        want = 0.5 * want + (BATCH["inputs"][piece::3] ** 2).mean(0)
    for made in (one, two):
        np.testing.assert_allclose(made.state, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["coupled noise", "owned noise"])
def test_a_term_that_draws_gives_the_same_loss_whole_and_in_pieces(name):
    whole, pieces = (found(STATELESS, name, n)[0] for n in (1, 3))
    assert abs(whole.loss) > 1e-3
    np.testing.assert_allclose(pieces.loss, whole.loss, rtol=1e-5)
    np.testing.assert_allclose(pieces.grads["student"], whole.grads["student"], atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (pieces.term_state, whole.term_state)), strict=True):
        np.testing.assert_array_equal(a, b)  # moved once in a step


STATELESS = models.from_function(linear, lambda params, inputs: inputs @ params)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_moves_the_state_of_a_term_and_the_number_of_steps_once(pieces):
    objective = OBJECTIVES["owned noise"]
    recipe = Recipe(STATELESS, STILL, microbatches=pieces)
    train, step = recipe.init(objective, BATCH, {}, KEY), jax.jit(recipe.step)
    for taken in (1, 2):
        train, _ = step(train, BATCH, objective, {})
        assert train.term_state["noise"] == taken and train.step == taken


def test_no_gradient_passes_through_another_view():
    def apart(student_logits, views):
        return ((student_logits - views["view"].logits) ** 2).sum(-1)

    objective = weighted_sum(term("apart", 1.0, apart))
    recipe = Recipe(STATELESS, optax.sgd(1.0))
    train = recipe.init(objective, BATCH, {}, KEY)
    new, _ = jax.jit(recipe.step)(train, BATCH, objective, {})
    gap = (BATCH["inputs"] - BATCH["inputs:view"]) @ train.params
    want = 2 * BATCH["inputs"].T @ gap / ROWS
    np.testing.assert_allclose(train.params - new.params, want, rtol=1e-4, atol=1e-5)


def test_the_average_holds_half_of_the_old_and_half_of_the_new_params_and_state():
    recipe = Recipe(STATEFUL, optax.sgd(0.5), averaging=True)
    objective = OBJECTIVES["one pass"]
    train = recipe.init(objective, BATCH, {}, KEY)
    new, _ = jax.jit(recipe.step)(train, BATCH, objective, {}, jnp.float32(0.5))
    for old, now, mean in (
        (train.params, new.params, new.average[0]),
        (train.state, new.state, new.average[1]),
    ):
        assert jnp.abs(now - old).min() > 1e-4
        np.testing.assert_allclose(mean, (old + now) / 2, rtol=1e-6)


def test_positions_are_those_after_each_group_where_shapes_change():
    batches = [({"x": np.zeros(rows)}, i + 1) for i, rows in enumerate([2, 2, 1])]
    groups = list(_groups(batches, 8))
    assert [(len(group), position) for group, position in groups] == [(2, 2), (1, 3)]
    groups = list(_groups(batches, 1))
    assert [(len(group), position) for group, position in groups] == [(1, 1), (1, 2), (1, 3)]


def draw(key):
    return jax.random.uniform(key, minval=1.0, maxval=2.0)


def test_two_equal_terms_start_apart_and_apart_from_the_student():
    def start(key):
        return draw(key), {}

    def own(params, state, student_logits):
        return size(student_logits) * params, state

    objective = weighted_sum(*(term(name, 1.0, own, init=start) for name in "ab"))
    student = models.from_function(  # as a module would, it draws from keys that it derives
        lambda key, x: jnp.stack([draw(key), *(draw(jax.random.fold_in(key, i)) for i in (0, 1))]),
        lambda params, x: x[:, :CLASSES] * params[None, :],
    )
    train = Recipe(student, STILL).init(objective, BATCH, {}, KEY)
    values = [*train.term_params.values(), *train.params, draw(train.key), draw(KEY)]
    values += [draw(jax.random.fold_in(train.key, step)) for step in (0, 1)]
    assert len({f"{float(x):.6f}" for x in values}) == 9


@pytest.mark.parametrize("pieces", [1, 2])
def test_student_terms_and_augmentation_draw_apart_in_every_step_and_piece(pieces):
    """Each mean is that of one draw a piece; of equal keys two would be equal."""

    def augment(key, batch):  # draws from keys that it derives, too
        keys = {"drawn": key, **dict(zip(("left", "right"), jax.random.split(key), strict=True))}
        return {**batch, **{name: jnp.full(ROWS, draw(key)) for name, key in keys.items()}}

    def apply(params, inputs, *, key, train):
        drawn = draw(key) if train else 0.0
        return jnp.full((len(inputs), CLASSES), drawn) + 0.0 * params[None, :]

    student = models.from_function(lambda key, x: jnp.zeros(CLASSES), apply)
    objective = weighted_sum(
        term("student", 1.0, lambda student_logits: student_logits[:, 0]),
        term("augmentation", 1.0, lambda drawn: drawn),
        term("left", 1.0, lambda left: left),
        term("right", 1.0, lambda right: right),
        term("term", 1.0, lambda drawn, key: draw(key) + 0.0 * drawn),
        term("square", 1.0, lambda drawn, key: draw(key) ** 2 + 0.0 * drawn),
        term("squares", 1.0, lambda student_logits: student_logits[:, 0] ** 2),
    )
    recipe = Recipe(student, STILL, augment=augment, microbatches=pieces)
    step, train = jax.jit(recipe.step), recipe.init(objective, BATCH, {}, KEY)
    drawn = []
    for _ in range(2):
        train, metrics = step(train, BATCH, objective, {})
        drawn += [float(metrics[t.name]) for t in objective.terms[:5]]
        for mean, square in (("student", "squares"), ("term", "square")):
            spread = metrics[square] - metrics[mean] ** 2  # of the draws of all pieces
            assert (spread > 1e-5) == (pieces > 1), (mean, spread)
    assert all(abs(a - b) > 1e-4 for a, b in itertools.combinations(drawn, 2)), drawn


def test_masked_rows_of_inputs_hold_what_a_row_that_counts_holds():
    """Of zeros, a student that divides by a norm would make NaN, in every parameter."""

    def apply(params, inputs):
        return (inputs / jnp.linalg.norm(inputs, axis=-1, keepdims=True)) @ params

    student = models.from_function(linear, apply)
    recipe, objective = Recipe(student, optax.sgd(1.0)), OBJECTIVES["one pass"]
    train = recipe.init(objective, BATCH, {}, KEY)
    where = np.arange(ROWS) % 3 == 1
    inputs = np.where(where[:, None], BATCH["inputs"], np.nan).astype(np.float32)
    step = jax.jit(recipe.step)
    masked, _ = step(train, {"inputs": inputs, "where": where}, objective, {})
    kept, _ = step(train, {"inputs": inputs[where]}, objective, {})
    np.testing.assert_allclose(masked.params, kept.params, rtol=1e-5)
    seen = recipe.columns({"inputs": inputs, "where": where}, KEY)["inputs"]
    np.testing.assert_array_equal(seen, np.where(where[:, None], inputs, inputs[1]))
    nothing = recipe.columns({"inputs": inputs, "where": np.zeros(ROWS, bool)}, KEY)["inputs"]
    np.testing.assert_array_equal(nothing, np.zeros_like(inputs))
    tokens = recipe.columns({"inputs": np.arange(ROWS)[:, None], "where": where}, KEY)["inputs"]
    assert tokens.ravel().tolist() == [1, 1, 1, 1, 4, 1]
