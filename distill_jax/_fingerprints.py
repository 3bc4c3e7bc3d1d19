"""Fingerprints of arrays and of traced programs: short values that two processes can compare.

Whether two things are the same is decided by :func:`digest`, a cryptographic hash of all their
bytes, computed on the host. :func:`checksum` is for damage: cheaper, on the devices where the
arrays lie, and good against everything but intent.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend import core
from jaxtyping import Array, UInt32

from distill_jax import _batches
from distill_jax._programs import inner_jaxprs

CHUNK = 2**24
"""Bytes that are hashed at a time; part of the definition of a digest."""

GATHERED = 2**28
"""Bytes of an array over several processes that one of them holds at a time."""


def is_key(x: Any) -> bool:
    """Whether an array, or the shape of one, holds typed random keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


@jax.jit
def checksum(x: Array) -> UInt32[Array, 2]:
    """64 bits that change with an array's bits: sums of each number mixed with its position.

    Integers wrap around exactly, so the sums do not depend on how the array lies on devices. The
    mixing is one-to-one and not linear: a change of a single number always changes the sums, and
    another sign or factor does not cancel.
    """
    bits = _bits(x)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    sums = [
        jnp.sum(_mixed(bits ^ _mixed(position + np.uint32(start))), dtype=jnp.uint32)
        for start in (0x9E3779B9, 0x7F4A7C15)
    ]
    return jnp.stack(sums)


def digest(tree: Any) -> str:
    """A SHA-256 of the paths, dtypes, shapes and bytes of a tree's arrays, computed on the host.

    It does not depend on devices or sharding. Other static parts of the tree's structure do not
    enter it. If an array lies on several processes, all of them must call this.
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        generator = ""
        if isinstance(leaf, jax.Array) and is_key(leaf):
            generator, leaf = f" {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
        x = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else np.asarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype}{generator}"
        found.update(f"{len(head)} {head}".encode())
        for part in _hashes(x):
            found.update(part)
    return found.hexdigest()


def rows_and_digest(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Number of rows and a digest per array, by the column's name and the path in it."""
    return {name: [len(x), digest(x)] for name, x in _batches.arrays(columns).items()}


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
    return hashlib.sha256(f"{text} {digest(list(constants(closed)))}".encode()).hexdigest()[:32]


def constants(program: Any) -> Iterator[Any]:
    """The arrays in a jaxpr and in those inside it, whose values its text does not show."""
    for jaxpr in inner_jaxprs(program):
        yield from getattr(jaxpr, "consts", ())
        for equation in jaxpr.eqns:
            yield from (x.val for x in equation.invars if isinstance(x, core.Literal))
            parts = jax.tree.leaves(list(equation.params.values()))
            yield from (x for x in parts if isinstance(x, np.ndarray | jax.Array))


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


def _mixed(x: Array) -> Array:
    """The final mixing of MurmurHash3: one-to-one, and every bit depends on every other."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _hashes(x: Any) -> Iterator[bytes]:
    """A hash of every few rows of an array: several cores share the work."""
    size = max(1, x.dtype.itemsize * math.prod(x.shape[1:]))
    rows = max(1, CHUNK // size)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for part in _parts(x, rows * max(1, GATHERED // (rows * size))):
            blocks = [part[at : at + rows] for at in range(0, len(part), rows)]
            yield from pool.map(_hash, blocks) if len(blocks) > 1 else map(_hash, blocks)


def _hash(x: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).digest()


def _parts(x: Any, rows: int) -> Iterator[np.ndarray]:
    """An array on the host: at once, or ``rows`` of it at a time if it is spread over processes."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        yield np.atleast_1d(_on_host(x))
        return
    for at in range(0, len(x), rows):
        yield np.asarray(multihost_utils.process_allgather(x[at : at + rows], tiled=True))


def _on_host(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    if not x.is_fully_addressable:  # each process has it whole
        x = x.addressable_data(0)
    if next(iter(x.devices())).platform != "cpu":
        # An array keeps the host's copy of it: this one goes with it.
        x = jax.device_put(x, x.sharding, may_alias=False)
    return np.asarray(jax.device_get(x))
