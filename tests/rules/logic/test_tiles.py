"""Circuits over tiles of rows, and sums over rules and rows, against loops in plain Python."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.rules.binding._plans import plan
from distill_jax.rules.circuits._building import Builder, Interval
from distill_jax.rules.circuits._circuit import FALSE, TRUE, Level
from distill_jax.rules.logic import _label_sums, _tiles
from distill_jax.rules.logic._nodes import fuzzy_nodes
from tests import laws
from tests.rules.random_circuits import (
    BATCH,
    COLUMNS,
    LABELS,
    LOGICS,
    RULES,
    random_circuit,
    table,
    values_of,
)

# Bits


@pytest.mark.parametrize("batch", [1, BATCH])
def test_nodes_hold_where_a_loop_says_so(batch):
    circuit, places = random_circuit(0, 20, labels=True)
    columns, _ = table(batch)
    want = values_of(circuit, columns, None, "godel")[places].T == 1
    got = _tiles.held(circuit, jnp.asarray(columns), jnp.asarray(places))
    np.testing.assert_array_equal(got, want)
    assert batch == 1 or 0 < want.mean() < 1
    counts = _tiles.counted(circuit, jnp.asarray(columns), jnp.asarray(places))
    np.testing.assert_array_equal(counts, want.sum(0))
    where = np.arange(batch) % 3 == 0
    counts = _tiles.counted(circuit, jnp.asarray(columns), jnp.asarray(places), jnp.asarray(where))
    np.testing.assert_array_equal(counts, want[where].sum(0))


@pytest.mark.quick
def test_a_missing_value_is_taken_for_what_is_asked():
    build = Builder(1)
    above = build.interval(Interval(0, 1.0, np.inf))
    missing = build.interval(Interval(0, -np.inf, np.inf, True))
    known = build.interval(Interval(0, -np.inf, np.inf))
    circuit, places = build.circuit([above, missing, known, TRUE, FALSE])
    columns, places = jnp.array([[jnp.nan], [0.0], [2.0]]), jnp.asarray(places)
    got = _tiles.held(circuit, columns, places)
    assert got.tolist() == [
        [False, True, False, True, False],
        [False, False, True, True, False],
        [True, False, True, True, False],
    ]
    got = _tiles.held(circuit, columns, places, unknown=True)
    assert got[0].tolist() == [True, True, False, True, False]
    assert _tiles.counted(circuit, columns, places, unknown=True).tolist() == [2, 1, 2, 3, 0]


def test_a_circuit_without_literals_and_levels():
    circuit, _ = Builder(1).circuit([])
    got = _tiles.held(circuit, jnp.zeros((3, 1)), jnp.array([FALSE, TRUE]))
    assert got.tolist() == [[False, True]] * 3
    nothing = np.zeros((0, 1), np.int32)
    circuit = dataclasses.replace(circuit, levels=(Level(nothing, nothing),))
    assert _tiles.counted(circuit, jnp.zeros((3, 1)), jnp.array([TRUE])).tolist() == [3]


@pytest.mark.parametrize("batch", [128, 129, 8000, 8001, 100_000])
def test_tiles_hold_every_row_and_each_is_fresh_once(batch):
    tiles = _tiles.tiles_of(batch)
    seen = np.zeros(batch, int)
    for t in range(tiles.count):
        for i in range(8):
            first = int(tiles.start(t)) + i * tiles.width
            seen[first : first + tiles.width] += np.asarray(tiles.fresh(t, i))
    assert (seen == 1).all()
    assert tiles.width <= _tiles.WIDTH + 16


# Exclusive classes


def test_scores_of_the_pieces_that_apply():
    circuit, places = random_circuit(1, 12, labels=False)
    columns, shown = table()
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((12, 3)).astype(np.float32)
    factors = np.concatenate([shown.T, np.ones((1, BATCH), np.float32)])
    seen = rng.integers(0, len(factors), (12, 2))
    guards = _tiles.Guards(jnp.asarray(places), jnp.asarray(seen), jnp.asarray(factors))
    slope = rng.standard_normal((BATCH, 3)).astype(np.float32)

    @jax.jit
    def both(scores):
        got, pull = jax.vjp(
            lambda s: _tiles.scored(circuit, jnp.asarray(columns), guards, s), scores
        )
        forwards = jax.jvp(
            lambda s: _tiles.scored(circuit, jnp.asarray(columns), guards, s), (scores,), (moves,)
        )
        return got, pull(jnp.asarray(slope))[0], forwards[1]

    moves = jnp.asarray(rng.standard_normal((12, 3)), jnp.float32)
    got, gradient, forwards = both(jnp.asarray(scores))
    held = values_of(circuit, columns, None, "godel")[places]
    weight = held * factors[seen[:, 0]] * factors[seen[:, 1]]
    laws.close(got, weight.T @ scores, rtol=1e-5, atol=1e-5)
    laws.close(gradient, weight @ slope, rtol=1e-5, atol=1e-4)
    laws.close(forwards, weight.T @ np.asarray(moves), rtol=1e-5, atol=1e-5)


# Label sets


def setting(flat: bool, rules: int):
    circuit, places = random_circuit(2, rules, labels=True, flat=flat)
    columns, everything = table()
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.uniform(0.5, 2.0, rules), jnp.float32)
    slope = jnp.asarray(rng.standard_normal(BATCH), jnp.float32)
    p, seen = jnp.asarray(everything[:, :LABELS]), jnp.asarray(everything[:, LABELS:])
    return circuit, places, plan(circuit, places, LABELS, 1), columns, p, seen, weights, slope


@pytest.mark.parametrize(
    ("flat", "logic", "squared"),
    [
        (True, "product", True),
        (True, "lukasiewicz", False),
        (True, "godel", False),
        (True, "einstein", False),
        (False, "product", False),
        (False, "lukasiewicz", False),
        (False, "godel", True),
        (False, "einstein", True),
    ],
)
def test_value_and_gradients_of_the_penalty(flat, logic, squared):
    """By sums over short lists, as the evaluator and its automatic gradient have it."""
    circuit, places, made, columns, p, seen, weights, slope = setting(flat, RULES)
    assert (made.rest is None) == flat
    assert made.flat
    x = jnp.asarray(columns)

    @jax.jit
    def ours(p, weights):
        rows, pull = jax.vjp(
            lambda p, w: _label_sums.weighted(
                made, circuit, x, p, w, views=seen, logic=LOGICS[logic], squared=squared
            ),
            p,
            weights,
        )
        return rows, *pull(slope)

    @jax.jit
    def theirs(p, weights):
        def rows(p, weights):
            everything = jnp.concatenate([p, seen], 1)
            v = fuzzy_nodes(circuit, x, everything, LOGICS[logic].algebra)[places]
            v = v if LOGICS[logic].rescale is None else LOGICS[logic].rescale(v)
            return weights @ (v * v if squared else v)

        found, pull = jax.vjp(rows, p, weights)
        return found, *pull(slope)

    got, want = ours(p, weights), theirs(p, weights)
    exact = values_of(circuit, columns, np.concatenate([p, seen], 1), logic)[places]
    exact = exact**2 if squared else exact
    laws.close(got[0], np.asarray(weights, np.float64) @ exact, rtol=1e-5, atol=1e-5)
    laws.close(got[0], want[0], rtol=1e-5, atol=1e-5)
    laws.close(got[1], want[1], rtol=1e-4, atol=1e-5)
    laws.close(got[2], want[2], rtol=1e-4, atol=1e-4)
    per_rule = exact @ np.asarray(slope, np.float64)  # the gradient to the weights
    laws.close(got[2], per_rule, rtol=1e-4, atol=1e-4)


def test_gradient_by_differences():
    """Product logic is linear in one label, so a difference is the derivative exactly."""
    circuit, places, made, columns, p, seen, weights, _ = setting(True, RULES)
    x = jnp.asarray(columns)

    @jax.jit
    def pair(p):
        def rows(p):
            return _label_sums.weighted(made, circuit, x, p, weights, views=seen)

        found, pull = jax.vjp(rows, p)
        return found, pull(jnp.ones_like(found))[0]

    p = p.at[:, 1].set(0.0)
    low, gradient = pair(p)
    high, _ = pair(p.at[:, 1].set(1.0))
    laws.close(gradient[:, 1], np.asarray(high) - np.asarray(low), rtol=1e-4, atol=1e-5)


def test_forward_mode():
    """One direction at a time, and both; memory stays that of tiles."""
    circuit, _, made, columns, p, seen, weights, slope = setting(False, 12)
    x = jnp.asarray(columns)

    def rows(p, weights):
        return _label_sums.weighted(made, circuit, x, p, weights, views=seen)

    @jax.jit
    def run(p, weights, moves):
        pull = jax.vjp(rows, p, weights)[1](slope)
        alone = [
            jax.jvp(lambda x: rows(x, weights), (p,), moves[:1])[1],
            jax.jvp(lambda x: rows(p, x), (weights,), moves[1:])[1],
        ]
        return pull, alone, jax.jvp(rows, (p, weights), moves)

    moves = jax.random.normal(jax.random.key(0), p.shape), jnp.cos(weights)
    pull, alone, (value, both) = run(p, weights, moves)
    for back, forwards, move in zip(pull, alone, moves, strict=True):
        laws.close((back * move).sum(), (slope * forwards).sum(), rtol=1e-4, atol=1e-3)
    laws.close(alone[0] + alone[1], both, rtol=1e-5, atol=1e-4)
    laws.close(value, rows(p, weights), rtol=1e-6)


def test_rules_with_few_rows_many_literals_or_no_label():
    build = Builder(1)
    guard = build.interval(Interval(0, 0.0, np.inf))
    many = build.all([build.label(i, False) for i in range(12)])
    one = build.all([build.label(0, True), guard])
    circuit, places = build.circuit([guard, many, one, TRUE, FALSE, one])
    made = plan(circuit, places, 12)
    p, weights = jnp.full((2, 12), 0.5), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    x = jnp.array([[1.0], [jnp.nan]])

    @jax.jit
    def run(p):
        value, pull = jax.vjp(lambda p: _label_sums.weighted(made, circuit, x, p, weights), p)
        return value, pull(jnp.ones_like(value))[0]

    value, gradient = run(p)
    laws.close(value, [1 + 2 * 0.5**12 + 4.5 + 4, 2 * 0.5**12 + 4], rtol=1e-6)
    laws.close(gradient[:, 0], [2 * 0.5**11 - 9, 2 * 0.5**11], rtol=1e-6)
    laws.close(gradient[:, 1:], np.full((2, 11), 2 * 0.5**11), rtol=1e-6)


def test_rules_that_speak_of_views_alone():
    build = Builder(1)
    circuit, places = build.circuit([build.all([build.label(2, False), build.label(3, True)])])
    made = plan(circuit, places, 2, 1)
    p, seen = jnp.full((2, 2), 0.5), jnp.array([[0.5, 0.5], [1.0, 0.0]])

    def total(p):
        return _label_sums.weighted(made, circuit, jnp.zeros((2, 1)), p, jnp.ones(1), views=seen)

    value, pull = jax.vjp(total, p)
    assert value.tolist() == [0.25, 1.0]
    assert (pull(value)[0] == 0).all()


def test_bfloat16_vmap_and_jit():
    circuit, _, made, columns, p, seen, weights, _ = setting(True, RULES)
    x = jnp.asarray(columns)

    def value(p, weights):
        return _label_sums.weighted(made, circuit, x, p, weights, views=seen).sum()

    both = jax.jit(jax.value_and_grad(value, (0, 1)))
    small = p.astype(jnp.bfloat16)
    got, (gradient, _) = both(small, weights)
    want, (exact, _) = both(small.astype(jnp.float32), weights)
    assert got == want and got.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    laws.close(gradient, exact, rtol=1e-2, atol=1e-6)
    stacked = jnp.stack([p, 1 - p]), jnp.stack([weights, 2 * weights])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))(*stacked)
    for i in range(2):
        want, exact = both(stacked[0][i], stacked[1][i])
        laws.close(values[i], want, rtol=1e-5)
        for a, b in zip(gradients, exact, strict=True):
            laws.close(a[i], b, rtol=1e-4, atol=1e-4)


def test_rows_over_devices():
    """One device will do: what varies between devices is known to the types."""
    circuit, places, made, columns, p, seen, weights, _ = setting(True, 6)
    spec, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    wanted = jnp.asarray(places)

    def run(columns, p, seen, weights):
        def value(p, weights):
            return _label_sums.weighted(made, circuit, columns, p, weights, views=seen).sum()

        gradients = jax.grad(value, (0, 1))(p, weights)
        return _tiles.held(circuit, columns, wanted), *gradients

    arguments = jnp.asarray(columns), p, seen, weights
    specs = (spec, spec, spec, whole)
    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(spec, spec, whole)))
    for got, want in zip(split(*arguments), jax.jit(run)(*arguments), strict=True):
        laws.close(got, want, rtol=1e-6)


def test_programs_do_not_grow_with_rules():
    def program(rules):
        draw = random.Random(0)
        build = Builder(2)

        def rule():
            literals = [(draw.randrange(LABELS), draw.random() < 0.5) for _ in range(3)]
            above = build.interval(Interval(draw.randrange(2), draw.random(), np.inf))
            return build.all([above, *(build.label(*x) for x in dict(literals).items())])

        circuit, places = build.circuit([rule() for _ in range(rules)])
        made = plan(circuit, places, LABELS)
        p, weights = jnp.zeros((BATCH, LABELS)), jnp.ones(rules)

        def value(p, made, circuit, weights):
            rows = _label_sums.weighted(made, circuit, jnp.zeros((BATCH, 2)), p, weights)
            return rows.sum()

        made_program = jax.make_jaxpr(jax.grad(value))(p, made, circuit, weights)
        return str(made_program).count(" = ")  # an equation each, inner ones too

    assert program(800) < 1.5 * program(80)


def test_memory_does_not_grow_with_rows_times_rules():
    def temporary(batch):
        circuit, _, made, *_, weights, _ = setting(True, RULES)
        shapes = [jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (COLUMNS, LABELS, LABELS)]

        def value(x, p, seen):
            return _label_sums.weighted(made, circuit, x, p, weights, views=seen).sum()

        lowered = jax.jit(jax.grad(value, 1)).lower(*shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Both have whole tiles of one width; beside them, a row takes less than 60 numbers would.
    assert temporary(32_000) - temporary(16_000) < 16_000 * 4 * 60
