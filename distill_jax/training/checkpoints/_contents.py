"""What a checkpoint holds: arrays by path, random keys as bits, checksums that reveal damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from distill_jax._fingerprints import checksum, is_key, leaves_by_path, shapes

FORMAT = 2
"""Of what is written beside the arrays. Others are refused."""


class OfAnotherRun(ValueError):
    """An intact checkpoint, but not one of this run, or not of this step."""


def contents(state: PyTree) -> dict[str, jax.Array]:
    """What Orbax is to write. It does not know random keys, and refuses arrays without elements."""
    leaves = {name: jnp.asarray(x) for name, x in leaves_by_path(state).items()}
    return {name: _plain(x) for name, x in leaves.items() if x.size}


def description(
    state: PyTree,
    position: Any,
    metrics: Mapping[str, float] | None,
    *,
    step: int,
    run: str,
    best: tuple[str, str] | None = None,
    watched: Any = None,
) -> dict[str, Any]:
    """What is written beside the arrays, as values of JSON.

    Args:
      state, position, metrics: What ``save`` was given.
      step: Steps taken, which the folder's name must equal when it is read.
      run: The hash of the run's configuration.
      best: The metric by which checkpoints are kept, and whether "higher" or "lower" is better.
      watched: What decides when the run ends, as values of JSON.
    """
    try:
        json.dumps(position)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the position in the data must consist of values of JSON: {error}. Let its get_state "
            "return numbers, strings, lists and dictionaries"
        ) from error
    about = {
        "format": FORMAT,
        "step": step,
        "run": run,
        "positions": _positions(position),
        "metrics": {name: float(x) for name, x in (metrics or {}).items()},
        "best": best,
        "watched": watched,
        "arrays": shapes(state),
        "checksums": checksums(state),
    }
    about = json.loads(json.dumps(about))  # as it will be read
    return about | {"hash": json_hash(about)}


def checked(about: dict[str, Any], step: int, runs: Collection[str] | None) -> dict[str, Any]:
    """What ``description`` returned.

    Args:
      about: What was read.
      step: The folder's name.
      runs: Hashes of configurations that are this run's; None for any.

    Raises:
      OSError: if it has changed.
      OfAnotherRun: if it was saved by another run, at another step, or in another format.
    """
    about = dict(about)
    if about.pop("hash", None) != json_hash(about):
        raise OSError("position and checksums are not what was saved")
    if about.get("format") != FORMAT:
        raise OfAnotherRun(
            f"it was saved by another version of distill_jax (format {about.get('format', 1)}, "
            f"this one reads {FORMAT}): resume it with that version, or use another folder"
        )
    if about["step"] != step:
        raise OfAnotherRun(
            f"it was saved after step {about['step']}, and its folder was renamed: rename that "
            "back, or delete it"
        )
    if runs is not None and about["run"] not in runs:
        raise OfAnotherRun(
            "it was saved by a run with another configuration, and copied here: delete its folder"
        )
    return about


def wanted_arrays(state: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """What is to be read: shapes and dtypes by path, with a sharding if over several devices."""
    wanted = {name: x for name, x in leaves_by_path(state).items() if x.size}
    return {
        name: jax.ShapeDtypeStruct(*_kind(x), sharding=_sharding_of(x))
        for name, x in wanted.items()
    }


def restored(state: PyTree, read: Mapping[str, Any], about: Mapping[str, Any]) -> PyTree:
    """The state from the arrays that were read; raises OSError if that is not what was saved."""
    wanted = leaves_by_path(state)
    leaves = {name: _placed(x, read.get(name)) for name, x in wanted.items()}
    for name, sum_ in checksums(leaves).items():
        if sum_ != about["checksums"][name]:
            raise OSError(f"the array {name!r} is not the one that was saved")
    return jax.tree.unflatten(jax.tree.structure(state), leaves.values())


def checksums(state: PyTree) -> dict[str, str]:
    sums = {name: checksum(jnp.asarray(x)) for name, x in leaves_by_path(state).items()}
    found = jax.device_get(sums)
    return {name: "".join(f"{int(word):08x}" for word in x) for name, x in found.items()}


def position_of(about: Mapping[str, Any]) -> Any:
    """This process's position in the data."""
    positions = about["positions"]
    if len(positions) == 1:
        return positions[0]
    if len(positions) != jax.process_count():
        raise OfAnotherRun(
            f"the checkpoint holds the positions of {len(positions)} processes, each in its own "
            f"data; {jax.process_count()} processes cannot resume from them"
        )
    return positions[jax.process_index()]


def _positions(position: Any) -> list[Any]:
    """The position of every process; a single one if they are all the same."""
    if jax.process_count() == 1:
        return [position]
    text = np.frombuffer(json.dumps(position).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array([len(text)])).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    rows = multihost_utils.process_allgather(padded)
    positions = [json.loads(bytes(row.astype(np.uint8))) for row in rows]
    return positions[:1] if all(p == positions[0] for p in positions) else positions


def _plain(x: Any) -> Any:
    """A key as its bits, anything else as it is."""
    return jax.random.key_data(x) if is_key(x) else x


def _kind(x: Any) -> tuple[tuple[int, ...], Any]:
    if is_key(x):
        bits = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return bits.shape, bits.dtype
    return tuple(x.shape), x.dtype


def _sharding_of(x: Any) -> jax.sharding.Sharding | None:
    """The sharding of a leaf over several devices, or None."""
    sharding = getattr(x, "sharding", None)
    return None if isinstance(sharding, jax.sharding.SingleDeviceSharding) else sharding


def _placed(wanted: Any, read: Any) -> jax.Array:
    shape, dtype = _kind(wanted)
    sharding = _sharding_of(wanted)
    if sharding is None:
        # A copy that is not committed to a device, as in a fresh state.
        array = jnp.zeros(shape, dtype) if read is None else jnp.array(read, copy=True)
    elif read is None:
        empty = np.zeros(shape, dtype)
        array = jax.make_array_from_callback(shape, sharding, lambda index: empty[index])
    else:
        array = read
    if is_key(wanted):
        array = jax.random.wrap_key_data(array, impl=_implementation(wanted))
    return array


def _implementation(keys: Any) -> Any:
    """The generator of random keys, even if only their shape and dtype are known."""
    found: list[Any] = []
    jax.eval_shape(
        lambda k: found.append(jax.random.key_impl(k)), jax.ShapeDtypeStruct(keys.shape, keys.dtype)
    )
    return found[0]


def json_hash(about: Mapping[str, Any]) -> str:
    """A hash of values of JSON, a run's configuration for example."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
