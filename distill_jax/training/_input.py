"""What ``run`` and ``fit`` do with their arguments before the first step."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks, models
from distill_jax import data as data_
from distill_jax.training._configuration import checksum
from distill_jax.training.step import VIEW
from distill_jax.types import Batch, Model


class Source(NamedTuple):
    """Batches, of which the first has been looked at.

    Attributes:
      seen: What can be looked at before the first step: all rows, or a batch.
      open: From a position, or None for the beginning, to ``(batch, position)`` pairs.
      close: To be called at the end.
      rows: Rows of a batch; here, where processes hold rows of their own.
      whole: Whether ``seen`` is all of the data, which every process holds.
    """

    seen: Batch
    open: Callable[[Any], Iterator[tuple[Batch, Any]]]
    close: Callable[[], None]
    rows: int
    whole: bool


def source(
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]],
    key: Array,
    batch_size: int | None,
    steps: int,
    start: int,
    may_miss: Callable[[Batch], tuple[str, ...]],
) -> Source:
    if isinstance(data, Mapping):
        if batch_size is None:
            raise ValueError("batch_size must be given for arrays in memory")
        columns = {str(name): np.asarray(column) for name, column in data.items()}
        data_.check(columns, batch_size=batch_size, values=seen(columns), missing=may_miss(columns))
        stream = data_.batches(columns, key=key, batch_size=batch_size, steps=steps, start=start)
        beginning = functools.partial(_positions, stream)
        return Source(columns, beginning, lambda: None, batch_size, True)
    if batch_size is not None:
        raise ValueError("batch_size is for arrays in memory; batches have a size of their own")
    stream: Any = iter(data) if isinstance(data, Iterable) else data
    pairs = data_.positions(stream)
    first = next(pairs)

    def opened(position):
        if position is None:
            return itertools.chain([first], pairs)
        # Where it can, the stream goes there itself; where not, it is drawn from its beginning.
        drawn = hasattr(stream, "__next__") and not hasattr(stream, "set_state")
        again = itertools.chain([first[0]], stream) if drawn else stream
        return data_.positions(again, position=position)

    def close():
        if stream is not data and hasattr(stream, "close"):
            # Threads and files that iterating has opened. A thread that has been stopped may still
            # draw its last batch: then whatever holds the stream last closes it.
            with contextlib.suppress(ValueError):
                stream.close()

    batch = first[0]
    data_.check(batch, values=seen(batch), missing=may_miss(batch))
    return Source(batch, opened, close, len(next(iter(batch.values()))), False)


def _positions(stream: Any, position: Any) -> Iterator[tuple[Batch, Any]]:
    return data_.positions(stream, position=position)


def seen(data: Batch) -> list[str]:
    """Columns that models see, looked at in every row; the objective looks at the others."""
    return [n for n in data if n in ("inputs", "teacher_inputs") or n.startswith(VIEW)]


def may_miss(model: Any, teachers: Mapping[str, Any], data: Batch) -> tuple[str, ...]:
    """Columns in which NaN is a missing value, to all that look at them."""
    seen_by_teachers = "teacher_inputs" if "teacher_inputs" in data else "inputs"
    own = [name for name in data if name == "inputs" or name.startswith(VIEW)]
    found = {**dict.fromkeys(own, getattr(model, "missing", False)), "teacher_inputs": True}
    if teachers and seen_by_teachers in found:
        found[seen_by_teachers] &= all(getattr(t, "missing", False) for t in teachers.values())
    return tuple(name for name, allowed in found.items() if allowed)


def named(teachers: Any) -> dict[str, Any]:
    if teachers is not None and not isinstance(teachers, Mapping):
        raise TypeError(
            f"teachers must be a dictionary of teachers by name, got {type(teachers).__name__}: "
            'pass teachers={"teacher": teacher}'
        )
    return dict(teachers or {})


def wrapped(model: Model, compute_dtype: Any, remat: bool) -> Model:
    """The student as the step computes it. Equal wraps of a model are equal."""
    if not isinstance(model, Model):
        return model  # ``step.check`` words the error
    if not isinstance(remat, bool):
        raise TypeError(f"remat must be True or False, got {remat!r}: see models.remat for more")
    if compute_dtype is not None:
        model = models.cast(model, compute_dtype)
    return models.remat(model) if remat else model


def keys(key: Array, order_key: Array | None) -> tuple[Array, Array]:
    """The keys of the start and of the order of rows."""
    key_init, key_order = jax.random.split(key)
    return key_init, key_order if order_key is None else order_key


def moving(decay: Any) -> Array | None:
    if decay is None:
        return None
    _checks.between(0.0, 1.0, average_decay=decay)
    return jnp.asarray(decay, jnp.float32)


WHOLE = 2**28
"""Bytes of a column up to which all of it is compared between runs; of larger ones, samples."""


def fingerprint(columns: Batch) -> dict[str, list[int]]:
    """Number of rows and a checksum, by column."""
    found = {}
    for name, column in columns.items():
        rows = column
        if column.nbytes > WHOLE:
            rows = column[np.linspace(0, len(column) - 1, 1000).astype(int)]
        found[name] = [len(column), zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data)]
    return found


def started(initial: Any) -> Any:
    """What of a state to go on from is compared between runs."""
    if initial is None:
        return None
    sums = jax.device_get([checksum(x) for x in jax.tree.leaves(initial)])
    return [int(initial.step), *(int(x) for x in sums)]


def at_least_one(**counts: Any) -> list[Any]:
    """The counts as Python integers; those that are None stay so."""
    found = []
    for name, value in counts.items():
        if value is not None:
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            value = operator.index(value)
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        found.append(value)
    return found
