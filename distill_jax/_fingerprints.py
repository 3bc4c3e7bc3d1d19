"""Fingerprints of arrays and of traced programs: short values that two processes can compare.

Equal arrays have equal fingerprints, on any device and in any process; arrays that differ have
different ones, but for a negligible probability.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from distill_jax._programs import inner_jaxprs

LARGE = 2**28
"""Bytes above which only a sample of a column's rows is part of its fingerprint."""


def is_key(x: Any) -> bool:
    """Whether an array, or the shape of one, holds typed random keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


@jax.jit
def checksum(x: Array) -> UInt32[Array, ""]:
    """The sum of an array's bits, each number times an odd factor of its own, modulo 2³².

    Integers wrap around exactly, so the sum does not depend on how the array lies on devices. A
    change of a single number always changes it.
    """
    bits = _bits(x)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


def tree_checksum(tree: Any) -> int:
    """One number for all arrays of a tree, in their order, computed where they lie."""
    sums = jax.device_get([checksum(jnp.asarray(x)) for x in jax.tree.leaves(tree)])
    return sum(int(x) * (2 * i + 1) for i, x in enumerate(sums)) % 2**32


def digest(tree: Any, *, size: int = 16) -> str:
    """A hash of the paths, dtypes, shapes and values of a tree's arrays, computed on the host.

    Other static parts of the tree's structure do not enter it.
    """
    found = hashlib.blake2b(digest_size=size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and is_key(leaf):
            leaf = jax.random.key_data(leaf)
        x = np.ascontiguousarray(leaf)  # which gives a scalar an axis
        found.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {x.dtype}".encode())
        found.update(x.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def rows_and_checksum(columns: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Number of rows and a checksum per column; of columns beyond ``LARGE``, of sampled rows."""
    found = {}
    for name, column in columns.items():
        rows = column
        if column.nbytes > LARGE:
            rows = column[np.linspace(0, len(column) - 1, 1000).astype(int)]
        found[name] = [len(column), zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data)]
    return found


def key_words(key: Array) -> dict[str, Any]:
    """A random key as plain data: the name of its generator, and its words."""
    typed = is_key(key)
    words = jax.random.key_data(key) if typed else key
    return {
        "implementation": str(jax.random.key_impl(key)) if typed else "raw",
        "words": np.asarray(words).tolist(),
    }


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by names that say where they are, in the tree's order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # {"a/b": x} and {"a": {"b": x}} would share a name.
        named[jax.tree_util.keystr(path) if name in named else name] = leaf
    return named


def shapes(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path."""
    return {name: dtype_and_shape(x) for name, x in leaves_by_path(tree).items()}


def dtype_and_shape(x: Any) -> str:
    """As ``"float32[8, 2]"``."""
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"


def program(closed: Any) -> str:
    """A hash of what a jaxpr computes, with its constants; the same in every process."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed))
    # The order of a set of strings differs between processes.
    text = re.sub(r"\{([^{}:=]*)\}", lambda m: f"{{{', '.join(sorted(m[1].split(', ')))}}}", text)
    hashed = hashlib.sha256(text.encode())
    # The text does not show the values of constants, here or in the jaxprs inside.
    constants = (x for inner in inner_jaxprs(closed) for x in getattr(inner, "consts", ()))
    for constant in map(jnp.asarray, constants):
        hashed.update(f"{constant.dtype}{constant.shape}{int(checksum(constant))}".encode())
    return hashed.hexdigest()[:16]


def lowered_program(lowered: Any, platform: str) -> dict[str, str]:
    """A hash of a lowered program's text, and what else that text depends on."""
    # Addresses of host objects differ between processes. Those of arrays are quoted.
    text = re.sub(r'(?<!")0x[0-9a-f]{8,}', "", lowered.as_text())
    return {
        "text": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        "jax": jax.__version__,
        "platform": platform,
    }


def _bits(x: Array) -> Array:
    if is_key(x):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    information = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
    width = min(information(x.dtype).bits, 32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
