"""Data sets split into batches: shuffled streams for training, one ordered pass for evaluation.

Columns are arrays, or trees of arrays (dictionaries, tuples, registered dataclasses), with one
leading axis. NumPy arrays stay on the host; ``jax.Array`` is gathered on its device.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from distill_jax import _batches, _checks
from distill_jax._arguments import checked
from distill_jax.data.checking import check
from distill_jax.types import Batch


@runtime_checkable
class Examples(Protocol):
    """Single examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@checked
def batch_indices(
    key: Array, n: int, batch_size: int, steps: int, *, start: Any = 0
) -> Int[Array, "steps batch"]:
    """Row indices of ``steps`` batches of one long shuffled stream, the stream of :func:`batches`.

    The stream is the concatenation of ``permutation(fold_in(key, epoch), n)`` over epochs 0, 1,
    ..., split into consecutive batches: batches straddle epochs, and no row is dropped.

    Args:
      key: Determines the stream; the same key gives the same batches.
      n: Number of rows, a Python int.
      batch_size: Rows in a batch, 1 to ``n``, a Python int.
      steps: Number of batches, a Python int.
      start: Number of batches to skip first: where a resumed run continues. May be traced.

    Returns:
      ``[steps, batch]``, int32; also under ``jit`` and ``vmap`` over ``key`` and ``start``, except
      over keys of ``rbg`` and ``unsafe_rbg``, of which JAX draws a whole batch from the first.

    Raises:
      TypeError: if a number is traced or not an int.
      ValueError: if a number is out of range.

    Example:
      >>> import jax
      >>> batch_indices(jax.random.key(0), n=5, batch_size=2, steps=5).shape
      (5, 2)
    """
    n = _checks.count("n", n)
    batch_size = _checks.count("batch_size", batch_size)
    steps = _checks.count("steps", steps, least=0)
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} rows of the data, got {batch_size}")
    if steps == 0:
        return jnp.zeros((0, batch_size), jnp.int32)
    if isinstance(start, jax.core.Tracer):
        # start * batch_size might overflow 32 bits; skip may be any number below n.
        over = (start % n) * batch_size
        first, skip = (start // n) * batch_size + over // n, over % n
        epochs = -(-(n - 1 + steps * batch_size) // n)
    else:
        first, skip = divmod(_checks.count("start", start, least=0) * batch_size, n)
        epochs = -(-(skip + steps * batch_size) // n)
    return _stream(key, first, skip, epochs, n, batch_size, steps)


@functools.partial(jax.jit, static_argnames=("epochs", "n", "batch_size", "steps"))
def _stream(
    key: Array, first: Any, skip: Any, epochs: int, n: int, batch_size: int, steps: int
) -> Array:
    # One epoch after another, as on the host: some generators give different bits under vmap.
    order = jax.lax.map(lambda e: _order(key, e, n), first + jnp.arange(epochs, dtype=jnp.int32))
    stream = jax.lax.dynamic_slice_in_dim(order.reshape(-1), skip, steps * batch_size)
    return stream.reshape(steps, batch_size)


@functools.partial(jax.jit, static_argnames="n")
def _order(key: Array, epoch: Any, n: int) -> Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(n, dtype=jnp.int32))


@checked
def batches(
    data: Batch | Examples,
    *,
    key: Array,
    batch_size: int,
    steps: int | None = None,
    start: int = 0,
) -> Batches:
    """Shuffled batches, epoch after epoch; endless unless ``steps`` is given.

    Args:
      data: Named arrays, or trees of arrays, with one leading axis; or anything with a length whose
        items ``data[i]`` are single examples, each a mapping of names to arrays or trees without
        the leading axis: a list, a memory-mapped file, a Hugging Face dataset. Only the rows of a
        batch are read.
      key: Determines the stream; the rows are those of :func:`batch_indices` with the same key.
      batch_size: Rows per batch, 1 to the number of rows.
      steps: Number of batches; None for an endless stream.
      start: Number of batches to skip first: where a resumed run continues.

    Returns:
      An iterator over batches, dictionaries of ``[batch, ...]`` arrays or trees of them. Its
      ``get_state()`` gives its position, a small dictionary, and ``set_state`` moves it there at no
      cost.

    Raises:
      TypeError: if ``data`` is neither.
      ValueError: if the data or a number is invalid; see :func:`check`.

    Example:
      >>> import jax
      >>> stream = batches([{"inputs": i} for i in range(5)], key=jax.random.key(0), batch_size=2)
      >>> first, state = next(stream), stream.get_state()
      >>> second = next(stream)
      >>> stream.set_state(state)
      >>> bool((next(stream)["inputs"] == second["inputs"]).all())
      True
    """
    if isinstance(data, Mapping):
        check(data, batch_size=batch_size, values=())
        n, read = _batches.rows(data), functools.partial(take, data)
    else:
        n, read = _number_of_examples(data), functools.partial(_examples, data)
        if _checks.count("batch_size", batch_size) > n:
            raise ValueError(f"batch_size must lie between 1 and the {n} rows, got {batch_size}")
    start = _checks.count("start", start, least=0)
    end = None if steps is None else start + _checks.count("steps", steps, least=0)
    return Batches(read, n, key, operator.index(batch_size), start, end)


class Batches(Iterator[dict[str, Any]]):
    """The iterator that :func:`batches` returns."""

    def __init__(
        self,
        read: Callable[[np.ndarray], dict[str, Any]],
        n: int,
        key: Array,
        batch_size: int,
        start: int,
        end: int | None,
    ):
        self._read, self._n, self._key, self._batch_size = read, n, key, batch_size
        self._next, self._end = start, end
        self._epoch: tuple[int, np.ndarray] | None = None
        bits = np.asarray(jax.random.key_data(key)).tolist()
        self._stream = {"rows": n, "batch_size": batch_size, "key": bits}

    def __next__(self) -> dict[str, Any]:
        if self._end is not None and self._next >= self._end:
            raise StopIteration
        batch = self._read(self._rows())
        self._next += 1  # only now: no batch is lost if a row cannot be read
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, for ``set_state`` of a stream over the same data and key."""
        return {"next": self._next, **self._stream}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to the position of another stream.

        Raises:
          ValueError: if that stream had different data, another key or another batch size.
        """
        if not isinstance(state, Mapping) or state.keys() != self.get_state().keys():
            raise ValueError(f"state must come from get_state() of data.batches, got {state!r}")
        for name, ours in self._stream.items():
            if state[name] != ours:
                raise ValueError(
                    f"state must come from a stream of the same {name}, {ours}, got "
                    f"{state[name]}: its batches differ"
                )
        self._next = _checks.count("next", state["next"], least=0)

    def _rows(self) -> np.ndarray:
        low = self._next * self._batch_size
        high, n = low + self._batch_size, self._n
        return np.concatenate(
            [
                self._order_of(epoch)[max(low - epoch * n, 0) : high - epoch * n]
                for epoch in range(low // n, (high - 1) // n + 1)
            ]
        )

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.asarray(_order(self._key, epoch, self._n))
        return self._epoch[1]


def columns_of(data: Mapping[str, Any], who: str = "data") -> dict[str, Any]:
    """The columns with arrays that JAX can hold: its own as they are, all others in NumPy.

    Numbers in the other byte order, as some file formats store them, are brought to this machine's.

    Raises:
      TypeError: if an array holds neither numbers nor booleans; names its path in the column.
      ValueError: if a masked array has masked entries, or if a column has no array.
    """
    check_named(data, who)
    columns = {}
    for name, column in data.items():
        _check_keys(f"{name} in {who}", column)
        columns[str(name)] = _batches.mapped_by_name(
            functools.partial(_array, who), str(name), column
        )
        if not jax.tree.leaves(columns[str(name)]):
            raise ValueError(f"{name} in {who} must hold an array or several, got {column!r}")
    return columns


def check_named(data: Any, who: str = "data") -> None:
    """Raises TypeError for arrays without names, and for data frames.

    A frame may hold anything, and what of it are inputs has to be said.
    """
    named = "{'inputs': x, 'labels': y}"
    first = data[0] if isinstance(data, list | tuple) and data else None
    if isinstance(data, tuple) or hasattr(first, "dtype") or isinstance(first, list):
        raise TypeError(
            f"{who} must be arrays by name, got a {type(data).__name__} of {len(data)}: write "
            f"{named} with the names that the terms read"
        )
    if hasattr(data, "dtypes") or hasattr(data, "schema"):  # of pandas or Polars; of Arrow
        raise TypeError(
            f"{who} must be arrays by name, got a {type(data).__name__}: write {named} with "
            "x = frame[names].to_numpy(np.float32) and y = frame[name].to_numpy(), or, for rules, "
            "x = rules.encode(book, frame)"
        )
    if isinstance(data, np.ndarray | jax.Array):
        raise TypeError(
            f"{who} must be arrays by name, got one array of shape {data.shape}: write {named}"
        )


def _check_keys(who: str, column: Any) -> None:
    """Raises TypeError for a dictionary that JAX cannot put into an order."""
    try:
        jax.tree.structure(column)
    except ValueError as error:
        raise TypeError(
            f"{who} must be an array or a tree of arrays, got one that JAX cannot look into: the "
            "keys of a dictionary must be of one kind, strings best"
        ) from error


def _array(who: str, name: str, x: Any) -> Any:
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} in {who} has {np.ma.count_masked(x)} masked entries, which an array cannot "
            "hold: fill them, or leave their rows out with a column where"
        )
    try:
        found = np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{name} in {who} must be one array, got a {type(x).__name__} of parts of different "
            "shapes: pad them to one length; several arrays are a dictionary, or a tuple of arrays"
        ) from error
    if dataclasses.is_dataclass(x):
        raise TypeError(
            f"{name} in {who} must be an array or a tree of arrays, got {type(x).__name__}, a "
            "dataclass that JAX does not look into: make it with flax.struct.dataclass, or register"
            " it with jax.tree_util.register_dataclass"
        )
    if not (jnp.issubdtype(found.dtype, jnp.number) or found.dtype == np.bool_):
        raise TypeError(
            f"{name} in {who} must hold numbers or booleans, got {found.dtype}: encode it, or "
            f"remove it; if all of it is numbers of one shape, use {name}.astype(np.float32)"
        )
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


@checked
def padded_batches(data: Batch, batch_size: int) -> Iterator[dict[str, Any]]:
    """One pass in order, every batch of the same size.

    The last batch is padded with copies of the last row, so that one compiled program serves all
    batches. Each batch has a column ``where``: False for the copies, and otherwise the data's own
    ``where``, or True.

    Args:
      data: Named arrays, or trees of arrays, with one leading axis.
      batch_size: Rows per batch; may exceed the number of rows.

    Yields:
      Dictionaries of ``[batch_size, ...]`` arrays, or trees of them.

    Raises:
      ValueError: if the data or ``batch_size`` is invalid; see :func:`check`.

    Example:
      >>> import numpy as np
      >>> for batch in padded_batches({"inputs": np.arange(3)}, 2):
      ...     print(batch["inputs"], batch["where"])
      [0 1] [ True  True]
      [2 2] [ True False]
    """
    data = columns_of(data)
    check(data, values=())
    return _padded_batches(data, _checks.count("batch_size", batch_size))


def _padded_batches(data: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    n = _batches.rows(data)
    for start in range(0, n, batch_size):
        yield pad(take(data, np.arange(start, min(start + batch_size, n))), batch_size)


def pad(batch: Batch, size: int) -> dict[str, Any]:
    """A batch of at most ``size`` rows, padded to ``size`` with copies of its last row.

    The column ``where`` is False for the copies, and otherwise the batch's own, or True.
    """
    n, index = _batches.rows(batch), np.arange(size)
    rows = take(batch, np.minimum(index, n - 1)) if n < size else dict(batch)
    where = rows.get("where", np.ones(size, bool))
    real = (index < n).reshape((size,) + (1,) * (where.ndim - 1))
    return {**rows, "where": where & real}


@checked
def take(data: Batch, index: np.ndarray | Array) -> dict[str, Any]:
    """The rows ``index`` of every column.

    Args:
      data: Named arrays, or trees of arrays, with one leading axis.
      index: Row indices, integers ``[batch]``.

    Returns:
      Columns of arrays ``[batch, ...]`` by name: on its device for a ``jax.Array``, otherwise
      NumPy.

    Example:
      >>> take({"inputs": np.array([5, 6, 7])}, np.array([2, 0]))["inputs"]
      array([7, 5])
    """
    if np.ndim(index) != 1:
        raise ValueError(f"index must have shape [batch], got {np.shape(index)}")
    _checks.integer(index=index)
    arrays = _batches.arrays(data)
    if flat := [name for name, x in arrays.items() if np.ndim(x) < 1]:
        raise ValueError(f"{flat[0]} in data must have a leading axis of rows, got a scalar")
    device = [x for x in arrays.values() if isinstance(x, jax.Array)]
    gathered = iter(_gather(device, index) if device else [])
    host = np.asarray(index) if len(device) < len(arrays) else None

    def of(x: Any) -> Any:
        return next(gathered) if isinstance(x, jax.Array) else np.asarray(x)[host]

    return _batches.mapped(of, data)


@jax.jit
def _gather(arrays: list[Array], index: Array) -> list[Array]:
    return [x[index] for x in arrays]


def _number_of_examples(data: Any) -> int:
    """The number of examples, after reading the first."""
    if not isinstance(data, Examples):
        raise TypeError(
            "data must be named arrays, or have a length and give an example as data[i], got "
            f"{type(data).__name__}: shuffle a stream where it is made"
        )
    n = len(data)
    if not 0 < n < 2**31:
        raise ValueError(f"data must have 1 to {2**31 - 1} rows, got {n}")
    _examples(data, np.zeros(1, np.int32))
    return n


def _examples(data: Any, index: np.ndarray) -> dict[str, Any]:
    rows = index.tolist()
    # Data sets that can read many rows at once have this method (PyTorch's convention).
    many = getattr(data, "__getitems__", None)
    examples = many(rows) if many is not None else [data[row] for row in rows]
    for row, example in zip(rows, examples, strict=True):
        if not isinstance(example, Mapping):
            raise TypeError(
                "data must be named arrays, or give an example as a mapping of names to arrays, "
                f"got {type(example).__name__} at row {row}"
            )
        if example.keys() != examples[0].keys():
            raise ValueError(
                f"data must have the same columns in every row, got {list(example)} in row {row} "
                f"and {list(examples[0])} in row {rows[0]}"
            )
    return {name: _stacked(name, [x[name] for x in examples], rows) for name in examples[0]}


def _stacked(name: str, values: list[Any], rows: list[int]) -> Any:
    """The column of a few examples, each of which gives an array or a tree of arrays."""
    trees = [_batches.arrays({name: _batches.plain(value)}) for value in values]
    for row, tree in zip(rows, trees, strict=True):
        if tree.keys() != trees[0].keys():
            raise ValueError(
                f"{name} must have the same arrays in every row, got {list(tree)} in row {row} "
                f"and {list(trees[0])} in row {rows[0]}"
            )
    found = iter([_stack(path, [tree[path] for tree in trees], rows) for path in trees[0]])
    return _batches.mapped_by_name(lambda _, x: next(found), name, values[0])


def _stack(name: str, values: list[Any], rows: list[int]) -> np.ndarray:
    for row, value in zip(rows, values, strict=True):
        if np.shape(value) != np.shape(values[0]):
            raise ValueError(
                f"{name} must have one shape in every row, got {np.shape(value)} in row {row} and "
                f"{np.shape(values[0])} in row {rows[0]}: pad it to one length"
            )
    return np.stack([np.asarray(value) for value in values])


@checked
def split(
    data: Batch, parts: Sequence[int] | Sequence[float], *, key: Array
) -> tuple[dict[str, Any], ...]:
    """Disjoint random parts of the data, in the order of ``parts``.

    Args:
      data: Named arrays, or trees of arrays, with one leading axis.
      parts: The parts' sizes, either all ints (numbers of rows) or all floats (fractions of the
        rows; the boundaries between parts are rounded). Rows beyond their sum are left out.
      key: Determines the shuffle.

    Returns:
      One dictionary of arrays per part.

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
    n = _batches.rows(data)
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
            raise ValueError(f"parts must sum to 1 or less as fractions, got {sizes}")
        ends = [min(n, round(share * n)) for share in shares.tolist()]
    else:
        raise TypeError(f"parts must be all ints (rows) or all floats (fractions), got {sizes}")
    if min(np.diff([0, *ends])) < 1:
        raise ValueError(f"each of parts must have a row or more, got {sizes} of {n} rows")
    if ends[-1] > n:
        raise ValueError(f"parts must have at most the {n} rows of the data, got {sizes}")
    return ends
