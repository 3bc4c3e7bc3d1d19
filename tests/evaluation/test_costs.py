"""What a model costs: counts that are known, and times that are there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.evaluation import compression, cost
from distill_jax.models import from_function, mlp
from distill_jax.types import Model, Outputs

INPUTS = jnp.ones((4, 16))


@pytest.fixture(scope="module")
def big():
    model = mlp([32], 8)
    return cost(model, *model.init(jax.random.key(0), INPUTS), INPUTS, repeats=3)


@pytest.mark.quick
def test_counts_parameters_and_operations(big):
    parameters = 16 * 32 + 32 + 32 * 8 + 8
    assert big["parameters"] == parameters
    assert big["bytes"] == 4 * parameters
    assert big["batch_size"] == 4
    # two for each weight, and little else
    np.testing.assert_allclose(big["flops"], 2 * (16 * 32 + 32 * 8), rtol=0.1)
    assert big["latency_ms"] > 0
    assert big["compile_s"] > 0
    assert big["temp_bytes"] is None or big["temp_bytes"] >= 0


def test_state_and_dtypes_count_in_the_bytes():
    params, state = {"w": jnp.ones((16, 3), jnp.bfloat16)}, {"mean": jnp.ones(16)}

    def apply(params, state, inputs, *, key=None, train=False):
        return Outputs((inputs - state["mean"][None]) @ params["w"].astype(jnp.float32)), state

    found = cost(Model(lambda key, inputs: (params, state), apply), params, state, INPUTS)
    assert (found["parameters"], found["bytes"]) == (48, 48 * 2 + 16 * 4)


def test_features_cost_nothing():
    def apply(params, inputs):
        wide = inputs @ params["unused"]
        return Outputs(inputs @ params["used"], {"wide": wide})

    params = {"used": jnp.ones((16, 2)), "unused": jnp.ones((16, 512))}
    found = cost(from_function(lambda key, inputs: params, apply), params, {}, INPUTS, repeats=1)
    assert found["flops"] < 16 * 512


def test_compression_is_a_ratio(big):
    found = compression(big, big | {"parameters": big["parameters"] // 4, "flops": None})
    assert found == {"parameters": 4.0, "bytes": 1.0, "flops": None, "latency_ms": 1.0}
    assert compression(big, big | {"flops": 0.0})["flops"] is None
    assert compression(big | {"flops": None}, big)["flops"] is None


def test_batches_of_different_size_do_not_compare(big):
    with pytest.raises(ValueError, match="batches of the same size, got 4 and 8"):
        compression(big, big | {"batch_size": 8})


@pytest.mark.parametrize(
    ("inputs", "repeats", "message"),
    [
        (INPUTS, 0, "repeats must be 1 or more"),
        (INPUTS[:0], 1, "must have a row or more, got none in .'inputs'"),
        (jnp.ones(()), 1, "inputs.* must have a leading axis of rows"),
    ],
)
def test_names_what_is_wrong(inputs, repeats, message):
    model = mlp([], 2)
    params, state = model.init(jax.random.key(0), INPUTS)
    with pytest.raises(ValueError, match=message):
        cost(model, params, state, inputs, repeats=repeats)


@pytest.mark.parametrize("analysis", [None, {}, [], [{"flops": -1.0}]])
def test_unknown_operations_are_none(analysis, monkeypatch):
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", lambda self: analysis)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    model = mlp([], 2)
    found = cost(model, *model.init(jax.random.key(0), INPUTS), INPUTS, repeats=1)
    assert (found["flops"], found["temp_bytes"]) == (None, None)
