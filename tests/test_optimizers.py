"""Optax transforms of this library."""

from __future__ import annotations

import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax.optimizers import max_norm, pull_to_start


@pytest.mark.quick
def test_units_outside_the_ball_are_scaled_back_and_others_left_alone():
    params = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.2]]), "bias": jnp.array([9.0, 9.0])}
    updates = jax.tree.map(jnp.ones_like, params)
    transform = max_norm(2.0)
    changed, _ = transform.update(updates, transform.init(params), params)
    new = optax.apply_updates(params, changed)
    moved = np.array([4.0, 5.0])
    np.testing.assert_allclose(new["kernel"][:, 0], 2 * moved / np.linalg.norm(moved), rtol=1e-6)
    np.testing.assert_array_equal(new["kernel"][:, 1], np.float32([0.1, 0.2]) + 1)
    np.testing.assert_array_equal(new["bias"], [10.0, 10.0])


def test_zero_weights_stay_zero_without_nan():
    params = {"kernel": jnp.zeros((3, 2))}
    changed, _ = max_norm(1.0).update(params, optax.EmptyState(), params)
    assert not changed["kernel"].any()


@pytest.mark.parametrize(
    ("kernel", "bias", "inputs"),
    [
        ((6, 4), (4,), (0,)),  # dense
        ((4, 4), (4,), (0,)),
        ((6, 4), None, (0,)),
        ((3, 3, 2, 4), (4,), (0, 1, 2)),  # convolution
        ((6, 2, 3), (2, 3), (0,)),  # query, key and value of attention
        ((2, 3, 6), (6,), (0, 1)),  # the projection out of it
        ((5, 6, 4), (5, 4), (1,)),  # five dense layers, stacked by vmap or scan
        ((5, 6, 2, 3), (5, 2, 3), (1,)),  # five layers of attention
        ((5, 2, 3, 6), (5, 6), (1, 2)),
    ],
)
def test_a_unit_is_an_index_of_the_outputs(kernel, bias, inputs):
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(1), kernel)}}
    if bias is not None:
        params["layer"]["bias"] = jnp.ones(bias)
    old = np.asarray(params["layer"]["kernel"])
    sizes = np.sqrt((old**2).sum(inputs, keepdims=True))
    limit = float(np.median(sizes))
    for transform in (max_norm(limit), max_norm(limit, inputs=lambda path, shape: inputs)):
        still = jax.tree.map(jnp.zeros_like, params)
        changed, _ = transform.update(still, transform.init(params), params)
        new = np.asarray(optax.apply_updates(params, changed)["layer"]["kernel"])
        np.testing.assert_allclose(new, old * np.minimum(1.0, limit / sizes), rtol=1e-5)
        inside = np.broadcast_to(sizes <= limit, old.shape)
        np.testing.assert_array_equal(new[inside], old[inside])


def test_attention_of_flax_is_laid_out_so():
    attention = flax.linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones((1, 3, 6)))["params"]
    module = nnx.MultiHeadAttention(
        2, in_features=6, qkv_features=8, decode=False, rngs=nnx.Rngs(0)
    )
    params = jax.tree.map(jnp.ones_like, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    for name, inputs, size in (("query", 0, 6), ("value", 0, 6), ("out", (0, 1), 8)):
        assert shapes[name]["kernel"].shape == params[name]["kernel"].shape
        still = jax.tree.map(jnp.zeros_like, params)
        changed, _ = max_norm(1.0).update(still, optax.EmptyState(), params)
        new = optax.apply_updates(params, changed)[name]["kernel"]
        np.testing.assert_allclose(new, size**-0.5, rtol=1e-6)
        np.testing.assert_allclose(jnp.sqrt((new**2).sum(inputs)), 1.0, rtol=1e-6)


@pytest.mark.usefixtures("library_errors")
@pytest.mark.parametrize(
    ("kernel", "bias"),
    [
        ((3, 3, 2, 4), None),
        ((5, 6, 4), None),
        ((6, 6, 4), (6, 4)),
        ((4, 6), (4,)),
        ((6, 4), (6, 4)),
    ],
)
def test_a_layout_that_is_not_clear_is_refused_by_name(kernel, bias):
    params = {"encoder": {"kernel": jnp.ones(kernel)}}
    if bias is not None:
        params["encoder"]["bias"] = jnp.ones(bias)
    shape = re.escape(str(kernel))
    with pytest.raises(ValueError, match=f"axes of encoder/kernel, of shape {shape}.*inputs="):
        max_norm(1.0).init(params)
    max_norm(1.0, inputs=(-2,)).init(params)
    with pytest.raises(ValueError, match="inputs must be one or more axes.*encoder/kernel"):
        max_norm(1.0, inputs=(7,)).init(params)


def test_it_holds_after_every_step_of_an_optimizer():
    optimizer = optax.chain(optax.sgd(10.0), max_norm(0.5))
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    state = optimizer.init(params)
    for i in range(3):
        grads = {"kernel": jax.random.normal(jax.random.key(i), (4, 3))}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert jnp.linalg.norm(params["kernel"], axis=0).max() <= 0.5 * (1 + 1e-6)


@pytest.mark.usefixtures("library_errors")
def test_messages():
    with pytest.raises(ValueError, match="limit must be finite and > 0"):
        max_norm(0.0)
    with pytest.raises(ValueError, match="needs params"):
        max_norm(1.0).update({}, optax.EmptyState())


def test_pull_to_start_refuses_a_negative_strength_and_missing_params():
    with pytest.raises(ValueError, match="strength"):
        pull_to_start(-1.0)
    pull = pull_to_start(1.0)
    with pytest.raises(ValueError, match="needs params"):
        pull.update({"w": jnp.ones(1)}, pull.init({"w": jnp.ones(1)}))
