"""Data sets cut into batches: shuffled streams for training, one ordered pass for evaluation.

Rows that are NumPy arrays stay on the host; ``jax.Array`` columns are gathered on their device.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from distill_jax.data.checking import check


def batch_indices(
    key: Array, n: int, batch_size: int, steps: int, *, start: Any = 0
) -> Int[Array, "steps batch"]:
    """Row numbers of ``steps`` batches of one long shuffled stream, the stream of :func:`batches`.

    The stream is ``permutation(fold_in(key, epoch), n)`` for epoch 0, 1, ... in a row, cut into
    consecutive pieces: batches straddle epochs, and no row is dropped.

    Args:
      key: Names the stream; the same key gives the same batches.
      n: Number of rows, a Python int.
      batch_size: Rows in a batch, 1 to ``n``, a Python int.
      steps: Number of batches, a Python int.
      start: Number of batches to leave out first: where a resumed run goes on. May be traced.

    Returns:
      ``[steps, batch]``, int32; also under ``jit`` and ``vmap`` over ``key`` and ``start``.

    Raises:
      TypeError: if a number is traced or not an int.
      ValueError: if a number is out of range.

    Example:
      >>> import jax
      >>> batch_indices(jax.random.key(0), n=5, batch_size=2, steps=5).shape
      (5, 2)
    """
    n = _at_least(1, n=n)
    batch_size, steps = _at_least(1, batch_size=batch_size), _at_least(0, steps=steps)
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} rows of the data, got {batch_size}")
    if steps == 0:
        return jnp.zeros((0, batch_size), jnp.int32)
    if isinstance(start, jax.core.Tracer):
        # In 32 bits, start * batch_size might not fit; and skip is anything below n.
        over = (start % n) * batch_size
        first, skip = (start // n) * batch_size + over // n, over % n
        epochs = -(-(n - 1 + steps * batch_size) // n)
    else:
        first, skip = divmod(_at_least(0, start=start) * batch_size, n)
        epochs = -(-(skip + steps * batch_size) // n)
    return _stream(key, first, skip, epochs, n, batch_size, steps)


@functools.partial(jax.jit, static_argnames=("epochs", "n", "batch_size", "steps"))
def _stream(
    key: Array, first: Any, skip: Any, epochs: int, n: int, batch_size: int, steps: int
) -> Array:
    # One epoch after another, as the host does it: some generators give other bits under vmap.
    order = jax.lax.map(lambda e: _order(key, e, n), first + jnp.arange(epochs, dtype=jnp.int32))
    stream = jax.lax.dynamic_slice_in_dim(order.reshape(-1), skip, steps * batch_size)
    return stream.reshape(steps, batch_size)


@functools.partial(jax.jit, static_argnames="n")
def _order(key: Array, epoch: Any, n: int) -> Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(n, dtype=jnp.int32))


def batches(
    data: Mapping[str, Array | np.ndarray],
    *,
    key: Array,
    batch_size: int,
    steps: int | None = None,
    start: int = 0,
) -> Iterator[dict[str, Array | np.ndarray]]:
    """Shuffled batches, epoch after epoch, without an end unless ``steps`` is given.

    Args:
      data: Named arrays with one leading axis.
      key: Names the stream; the rows are those of :func:`batch_indices` with the same key.
      batch_size: Rows in a batch, 1 to the number of rows.
      steps: Number of batches; None goes on for ever.
      start: Number of batches to leave out first: where a resumed run goes on.

    Raises:
      ValueError: if the data or a number is not sound; see :func:`check`.
    """
    check(data, batch_size=batch_size, values=())
    batch_size, start = operator.index(batch_size), _at_least(0, start=start)
    steps = None if steps is None else _at_least(0, steps=steps)
    return _batches(data, key, batch_size, steps, start)


def _batches(
    data: Mapping[str, Any], key: Array, batch_size: int, steps: int | None, start: int
) -> Iterator[dict[str, Any]]:
    n = _length(data)
    epoch, skip = divmod(start * batch_size, n)
    order, done = np.asarray(_order(key, epoch, n))[skip:], 0
    while steps is None or done < steps:
        while len(order) < batch_size:
            epoch += 1
            order = np.concatenate([order, np.asarray(_order(key, epoch, n))])
        yield take(data, order[:batch_size])
        order, done = order[batch_size:], done + 1


def padded_batches(
    data: Mapping[str, Array | np.ndarray], batch_size: int
) -> Iterator[dict[str, Array | np.ndarray]]:
    """One pass in order, every batch of the same size.

    The last batch is filled up with copies of the last row, so that one compiled program serves
    all batches. Each batch has a column ``where``: False for the copies, and otherwise the data's
    own ``where``, or True.

    Args:
      data: Named arrays with one leading axis.
      batch_size: Rows in a batch; more than the data has is allowed.

    Raises:
      ValueError: if the data or ``batch_size`` is not sound; see :func:`check`.

    Example:
      >>> import numpy as np
      >>> for batch in padded_batches({"inputs": np.arange(3)}, 2):
      ...     print(batch["inputs"], batch["where"])
      [0 1] [ True  True]
      [2 2] [ True False]
    """
    check(data, values=())
    return _padded_batches(data, _at_least(1, batch_size=batch_size))


def _padded_batches(data: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    n = _length(data)
    for start in range(0, n, batch_size):
        index = np.arange(start, start + batch_size)
        batch, real = take(data, np.minimum(index, n - 1)), index < n
        where = batch.get("where", np.ones(batch_size, bool))
        real = real.reshape(real.shape + (1,) * (where.ndim - 1))
        yield {**batch, "where": where & real}


def take(
    data: Mapping[str, Array | np.ndarray], index: np.ndarray | Array
) -> dict[str, Array | np.ndarray]:
    """The rows ``index`` of every column."""
    device = {name: x for name, x in data.items() if isinstance(x, jax.Array)}
    rows = _gather(device, index) if device else {}
    if len(device) < len(data):
        host = np.asarray(index)
        rows |= {name: np.asarray(x)[host] for name, x in data.items() if name not in device}
    return {name: rows[name] for name in data}


@jax.jit
def _gather(columns: dict[str, Array], index: Array) -> dict[str, Array]:
    return {name: x[index] for name, x in columns.items()}


def split(
    data: Mapping[str, Array | np.ndarray], parts: Sequence[int] | Sequence[float], *, key: Array
) -> tuple[dict[str, Array | np.ndarray], ...]:
    """Disjoint random parts of the data, in the order of ``parts``.

    Args:
      data: Named arrays with one leading axis.
      parts: The parts' sizes, either all ints (numbers of rows) or all floats (shares of the
        rows; the borders between parts are rounded). Rows beyond their sum are left out.
      key: Names the shuffle.

    Raises:
      TypeError: if ``parts`` mixes ints and floats.
      ValueError: if a part has no row, or the parts have more rows than the data.

    Example:
      >>> import jax, numpy as np
      >>> train, test = split({"inputs": np.arange(10)}, [0.8, 0.2], key=jax.random.key(0))
      >>> len(train["inputs"]), len(test["inputs"])
      (8, 2)
    """
    check(data, values=())
    n = _length(data)
    ends = _ends(parts, n)
    order = np.asarray(_order(key, 0, n))
    return tuple(take(data, order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True))


def _ends(parts: Sequence[int] | Sequence[float], n: int) -> list[int]:
    sizes = list(parts)
    if not sizes:
        raise ValueError("parts must name one part or more, got none")
    if all(isinstance(size, int | np.integer) for size in sizes):
        ends = [int(end) for end in np.cumsum(sizes)]
    elif all(isinstance(size, float | np.floating) for size in sizes):
        shares = np.cumsum(sizes)
        if not shares[-1] <= 1 + 1e-6:
            raise ValueError(f"parts must sum to 1 or less as shares, got {sizes}")
        ends = [min(n, round(share * n)) for share in shares.tolist()]
    else:
        raise TypeError(f"parts must be all ints (rows) or all floats (shares), got {sizes}")
    if min(np.diff([0, *ends])) < 1:
        raise ValueError(f"each of parts must have a row or more, got {sizes} of {n} rows")
    if ends[-1] > n:
        raise ValueError(f"parts must have at most the {n} rows of the data, got {sizes}")
    return ends


def _length(data: Mapping[str, Any]) -> int:
    return len(next(iter(data.values())))


def _at_least(low: int, **values: SupportsIndex) -> int:
    ((name, value),) = values.items()
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python int, not traced: name it in static_argnames")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < low:
        raise ValueError(f"{name} must be {low} or more, got {number}")
    return number
