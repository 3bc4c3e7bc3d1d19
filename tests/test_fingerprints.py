"""Fingerprints: equal for equal arrays, different after any change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax._fingerprints import checksum, leaves_by_path

DTYPES = [
    jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int8, jnp.uint32, jnp.int4,
    jnp.bool_, jnp.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_a_checksum_sees_every_change(dtype):
    x = jnp.asarray(np.arange(24).reshape(4, 6) % 2, dtype)
    sums = {int(checksum(x))}
    for i in range(4):
        for j in range(6):
            other = jnp.asarray((j + 1) % 2, dtype)
            sums.add(int(checksum(x.at[i, j].set(other))))
    assert len(sums) == 25
    assert int(checksum(x)) != int(checksum(x[:, ::-1]))
    assert int(checksum(jnp.copy(x))) == int(checksum(x))


def test_a_checksum_sees_bits_and_not_values():
    assert int(checksum(jnp.float32(0.0))) != int(checksum(jnp.float32(-0.0)))
    assert int(checksum(jnp.float32(np.nan))) == int(checksum(jnp.float32(np.nan)))
    assert int(checksum(jax.random.key(1))) != int(checksum(jax.random.key(2)))


@pytest.mark.quick
def test_paths_are_unique_and_in_order():
    tree = {"a/b": 1, "a": {"b": 2}, "c": [3, None, (4,)]}
    assert list(leaves_by_path(tree).values()) == jax.tree.leaves(tree)
    assert {"a/b", "c/0", "c/2/0"} < leaves_by_path(tree).keys()
