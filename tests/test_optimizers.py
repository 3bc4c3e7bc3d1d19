"""Optax transforms of this library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
