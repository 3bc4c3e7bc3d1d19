"""Metrics inside other programs, and of training states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import losses, models, teachers, term, training, weighted_sum
from distill_jax.evaluation import evaluate, evaluator

RNG = np.random.default_rng(0)
N = 23
INPUTS = RNG.normal(size=(N, 5)).astype(np.float32)
ROWS = {"inputs": INPUTS, "where": RNG.random(N) < 0.8}
WEIGHTS = {"weights": RNG.random(N).astype(np.float32)}
CASES = {
    "softmax": {"labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32), **WEIGHTS},
    "multi_label": {"labels": (INPUTS[:, :3] > 0).astype(np.int32)},
    "regression": {"targets": INPUTS[:, :3] ** 2, **WEIGHTS},
    "embedding": {},
}
MODEL = models.logistic_regression(3)


@pytest.mark.quick
@pytest.mark.parametrize("kind", CASES)
def test_they_are_those_outside(kind):
    model = models.mlp([], 3, outputs=kind)
    params, state = model.init(jax.random.key(0), INPUTS)
    teacher = teachers.teacher(model, *model.init(jax.random.key(1), INPUTS))
    data = ROWS | CASES[kind]
    want = evaluate(model, params, state, data, teacher=teacher, rank=False)

    def inside(params, data):
        return evaluate(model, params, state, data, teacher=teacher, batch_size=5)

    got = jax.jit(inside)(params, data)
    for name, x in want.items():
        if isinstance(x, list):
            for key in [key for key in x[0] if key not in ("class", "label", "output")]:
                column = [row[key] for row in x]
                np.testing.assert_allclose(got.pop(f"{name}/{key}"), column, rtol=1e-5, atol=1e-6)
        elif x is not None:
            np.testing.assert_allclose(got.pop(name), x, rtol=1e-5, atol=1e-6)
    assert not got
    many = jax.vmap(inside, in_axes=(0, None))(jax.tree.map(lambda x: x[None], params), data)
    np.testing.assert_allclose(many["count"], [want["count"]])


def test_a_trial_of_a_sweep_evaluates_with_figures_of_each_class():
    objective = weighted_sum(term("labels", 1.0, losses.cross_entropy))

    def trial(key, *, rate, data):
        state, _ = training.run(
            MODEL, objective, optax.sgd(rate), data, key=key, steps=5, batch_size=8
        )
        return evaluate(MODEL, state.params, state.state, data)

    data = {"inputs": INPUTS, "labels": CASES["softmax"]["labels"]}
    rows = training.sweep(
        trial, {"rate": [0.0, 0.5]}, key=jax.random.key(0), shared={"data": data}, progress=False
    )
    still = MODEL.init(jax.random.key(0), INPUTS)
    want = evaluate(MODEL, *still, data)
    assert rows[0]["errors"] == want["errors"]
    np.testing.assert_array_equal(
        rows[0]["per_class/errors"], [row["errors"] for row in want["per_class"]]
    )
    assert rows[1]["nll"] < rows[0]["nll"]


def test_of_a_state_and_of_its_average():
    objective = weighted_sum(term("labels", 1.0, losses.cross_entropy))
    data = {"inputs": INPUTS, "labels": CASES["softmax"]["labels"]}
    how = {"key": jax.random.key(0), "steps": 4, "batch_size": 8}
    state, _ = training.run(MODEL, objective, optax.sgd(0.5), data, **how, average_decay=0.9)
    assert evaluator(MODEL, data)(state) == evaluate(MODEL, state.params, state.state, data)
    averaged = evaluator(MODEL, data, average=True)
    assert averaged(state) == evaluate(MODEL, *state.average, data)
    assert averaged(state)["nll"] > evaluator(MODEL, data)(state)["nll"]
    free, _ = training.run(MODEL, objective, optax.contrib.schedule_free_sgd(0.5), data, **how)
    assert evaluator(MODEL, data)(free) == evaluate(MODEL, free.eval_params, free.state, data)
    with pytest.raises(ValueError, match="no moving average: pass average_decay"):
        averaged(free)


@pytest.mark.usefixtures("library_errors")
def test_ranking_needs_the_host():
    params, state = MODEL.init(jax.random.key(0), INPUTS)
    data = ROWS | CASES["softmax"]
    with pytest.raises(ValueError, match="rank must be None or False inside jit"):
        jax.jit(lambda p: evaluate(MODEL, p, state, data, rank=True))(params)
    with pytest.raises(ValueError, match="data must have a column inputs"):
        evaluator(MODEL, {"labels": jnp.zeros(3, int)})
