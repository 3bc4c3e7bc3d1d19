"""JAX's strict modes: everything runs under them, or says by name that it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data, evaluation, models, rules, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import breakdown, fit, run, sweep, warmed_up

KEY = jax.random.key(0)
INPUTS = np.sin(np.arange(40.0, dtype=np.float32)).reshape(8, 5)
DATA = {"inputs": INPUTS, "labels": (np.arange(8) % 3).astype(np.int8)}
STUDENT = models.logistic_regression(3)
LARGE = models.mlp([4], 3, dropout=0.1)
OBJECTIVE = weighted_sum(
    term("labels", 0.5, cross_entropy),
    term("big", optax.linear_schedule(1.0, 0.1, 5), soft_targets, temperature=2.0),
)
HOW = {"key": KEY, "steps": 1, "batch_size": 4}
TABLE = {"age": np.array([20.0, 30.0, np.nan, 50.0]), "job": np.array(["a", "b", "a", "c"])}
RULES = '[w=2] old: age > 25 and job == "a" => x\n[hard] older: age > 40 => y'

MODES = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": lambda: jax.checking_leaks(),
    "no jit": lambda: jax.disable_jit(),
}
MODE = pytest.mark.parametrize("mode", MODES)


def taught():
    return {"big": teachers.teacher(LARGE, *LARGE.init(jax.random.key(1), INPUTS))}


def _is_kernel(path, leaf):
    return path.endswith("kernel")


def trial(key, *, rate, data, teacher):
    how = {**HOW, "key": key, "teachers": {"big": teacher}}
    state, metrics = run(STUDENT, OBJECTIVE, optax.adam(rate), data, **how)
    found = evaluation.evaluate(STUDENT, state.params, state.state, data)
    return {"loss": metrics["loss"][-1], "errors": found["per_class/errors"]}


@MODE
def test_run_fit_and_evaluate(mode):
    with MODES[mode]():
        how = {**HOW, "teachers": taught()}
        state, metrics = run(STUDENT, OBJECTIVE, optax.adam(0.1), DATA, **how)
        found = evaluation.evaluate(STUDENT, state.params, state.state, DATA)
        # The rest of the step: dropout, pieces, an average, a compute dtype, a stream.
        stream = data.batches(DATA, key=KEY, batch_size=4)
        del how["batch_size"]
        how |= {"average_decay": warmed_up(0.9), "trainable": _is_kernel}
        how |= {"microbatches": 2, "compute_dtype": jnp.bfloat16}
        _, history = fit(LARGE, OBJECTIVE, optax.adam(0.1), stream, **how)
    for value in (*metrics["loss"], *history["loss"], found["nll"]):
        assert np.isfinite(value)


@pytest.mark.parametrize(
    "mode",
    [
        "strict promotion",
        pytest.param("leaks", marks=pytest.mark.slow),
        pytest.param("no jit", marks=pytest.mark.slow),
    ],
)
def test_rules(mode, library_errors):
    with MODES[mode]():
        book = rules.bind(RULES, rules.infer_schema(TABLE, ["x", "y"]))
        columns = rules.encode(book, TABLE)
        model = rules.to_logistic_regression(book)
        rows = {"inputs": columns, "labels": np.array([0, 1, 0, 1])}
        objective = weighted_sum(
            term("labels", 1.0, cross_entropy),
            rules.encourage("rules", 0.3, book, reads={"columns": "inputs"}),
            rules.teach("teach", 0.5, book, reads={"columns": "inputs"}),
        )
        state, metrics = run(model, objective, optax.adam(0.1), rows, **HOW)
        safe = rules.enforce(model, book).predict(state.params, state.state, columns).logits
        rules.project(book, columns, model.predict(state.params, state.state, columns).logits)
        rules.check(book, columns, labels=rows["labels"])
    assert np.isfinite(metrics["loss"]).all() and safe[3].argmax() == 1


@pytest.mark.parametrize("mode", ["strict promotion", "leaks"])
def test_sweeps(mode):
    with MODES[mode]():
        shared = {"data": DATA, "teacher": taught()["big"]}
        rows = sweep(trial, {"rate": [0.1, 0.01]}, key=KEY, shared=shared, mode="vmap")
    assert np.isfinite([row["loss"] for row in rows]).all()


@pytest.mark.quick
def test_what_must_compile_says_so(library_errors):
    student = STUDENT.init(KEY, INPUTS)
    calls = {
        "sweep": lambda: sweep(trial, {"rate": [0.1]}, key=KEY, shared={"data": DATA}),
        "breakdown": lambda: breakdown(
            STUDENT, OBJECTIVE, optax.sgd(0.1), DATA, key=KEY, batch_size=4
        ),
        "cost": lambda: evaluation.cost(STUDENT, *student, INPUTS),
    }
    for name, call in calls.items():
        with jax.disable_jit(), pytest.raises(ValueError, match=f"{name} compiles its programs"):
            call()
