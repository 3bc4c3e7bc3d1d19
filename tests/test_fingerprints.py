"""Fingerprints: equal for equal arrays, different after any change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import _fingerprints
from distill_jax._fingerprints import checksum, digest, leaves_by_path, program

DTYPES = [
    jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int8, jnp.uint32, jnp.int4,
    jnp.bool_, jnp.complex64,
]  # fmt: skip


def words(x):
    return tuple(checksum(x).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_checksum_and_digest_see_every_change(dtype):
    x = jnp.asarray(np.arange(24).reshape(4, 6) % 2, dtype)
    changed = [x]
    for i in range(4):
        for j in range(6):
            changed.append(x.at[i, j].set(jnp.asarray((j + 1) % 2, dtype)))
    for made in (words, digest):
        assert len({made(y) for y in changed}) == 25
        assert made(x) != made(x[:, ::-1])
        assert made(jnp.copy(x)) == made(x)


def test_they_see_bits_and_not_values():
    for made in (words, digest):
        assert made(jnp.float32(0.0)) != made(jnp.float32(-0.0))
        assert made(jnp.float32(np.nan)) == made(jnp.float32(np.nan))
        assert made(jax.random.key(1)) != made(jax.random.key(2))


@pytest.mark.parametrize("shape", [(8,), (16, 3), (64, 64)])
def test_another_sign_or_factor_does_not_cancel(shape):
    """A sum that is linear in the bits is blind to these wherever the number of values is even."""
    x = jax.random.normal(jax.random.key(0), shape)
    others = [
        x,
        -x,
        2 * x,
        4 * x,
        x / 4,
        jnp.abs(x),
        x[::-1],
        jnp.roll(x, 1, 0),
        x[jnp.array([1, 0])],
    ]
    for made in (words, digest):
        assert len({made(y) for y in others}) == len(others)

    def program_of(prior):
        return program(jax.make_jaxpr(lambda y: y + prior)(x))

    assert len({program_of(y) for y in others[:5]}) == 5
    assert program_of(x) == program_of(jnp.copy(x))


def test_a_digest_sees_names_shapes_dtypes_and_generators():
    x = np.arange(6, dtype=np.int32)
    different = [
        x, {"a": x}, {"b": x}, [x], [x, x], x.reshape(2, 3), x.view(np.uint32), x.view(np.float32),
        x.reshape(6, 1), jax.random.wrap_key_data(x[:2].astype(np.uint32)),
        jax.random.wrap_key_data(x[:4].astype(np.uint32), impl="rbg"), x[:2].astype(np.uint32), [],
    ]  # fmt: skip
    assert len({digest(y) for y in different}) == len(different)
    same = [x, jnp.asarray(x), np.arange(12, dtype=np.int32)[:6], x[::-1].copy()[::-1]]
    assert len({digest(y) for y in same}) == 1
    assert digest(3) == digest(np.asarray(3)) and digest(()) == digest([])


def test_a_digest_in_pieces_sees_all_rows(monkeypatch):
    monkeypatch.setattr(_fingerprints, "CHUNK", 64)
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    seen = {digest(x)}
    for row in range(0, 100, 7):
        other = x.copy()
        other[row, row % 4] += 1
        seen.add(digest(other))
    assert len(seen) == 16
    assert digest(np.asfortranarray(x)) == digest(jnp.asarray(x)) == digest(x)


@pytest.mark.quick
def test_paths_are_unique_and_in_order():
    tree = {"a/b": 1, "a": {"b": 2}, "c": [3, None, (4,)]}
    assert list(leaves_by_path(tree).values()) == jax.tree.leaves(tree)
    assert {"a/b", "c/0", "c/2/0"} < leaves_by_path(tree).keys()
