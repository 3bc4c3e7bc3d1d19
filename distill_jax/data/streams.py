"""Streams of batches: their positions, resumption from a position, and batches of one size.

A stream is one of three things:

- anything whose iterator has ``get_state`` and ``set_state``: :func:`~distill_jax.data.batches`,
  and every Grain dataset and loader (``pip install 'distill_jax[stream]'``). It resumes at any
  position without cost;
- any other iterable of batches. It resumes by drawing and discarding the batches that were taken
  before. Its iterator must start where it started in the earlier run;
- a function ``(start: int) -> iterable`` that skips ``start`` batches in its own way.

Each batch must have arrays of its own: a buffer that is refilled for the next batch would change a
batch that was drawn before. A source that can be iterated repeatedly is iterated anew in each run;
for more epochs within a run, repeat it (``repeat()`` in Grain; a generator function with a loop
elsewhere).
"""

from __future__ import annotations

import base64
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distill_jax import _batches, _checks
from distill_jax._arguments import checked
from distill_jax.data.batching import columns_of, pad
from distill_jax.types import Batch

Position = Mapping[str, Any]
"""Where a stream resumes, as JSON values: ``batches`` counts those taken; ``state`` is what the
iterator's ``get_state`` returned, if it has one."""

_END = object()
_MANY_SHAPES = 8


@checked
def positions(
    data: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    *,
    start: int = 0,
    position: Position | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The batches of a stream, each with the position after it.

    A position is taken before the next batch is drawn. The same position gives the same batches,
    in another process too, if the source itself is deterministic.

    Args:
      data: A stream, as this module describes them.
      start: Number of batches to skip first.
      position: Where to resume, from an earlier run, in place of ``start``.

    Yields:
      ``(batch, position)``. Columns are arrays or trees of arrays, and lists become NumPy arrays.
      Batches may differ in their number of rows, and in the sizes of other axes (each combination
      compiles a program of its own: a warning says so after a few), but in nothing else.

    Raises:
      TypeError: if ``data`` is not a stream, or a batch not a mapping of names to arrays of
        numbers.
      ValueError: if ``position`` does not fit such a source; if the source has no batch, or
        ends among those to be skipped; if a batch has no row, columns of different lengths, or
        other columns, dtypes or numbers of axes than the first. The message names batch and
        column.

    Example:
      >>> source = [{"inputs": np.full(2, i)} for i in range(3)]
      >>> (_, position), *rest = positions(source)
      >>> position
      {'batches': 1}
      >>> [batch["inputs"].tolist() for batch, _ in positions(source, position=position)]
      [[1, 1], [2, 2]]
    """
    taken = _checks.count("start", start, least=0)
    state: Any = _END
    if position is not None:
        if taken:
            raise ValueError(f"start must be 0 where a position is given, got {start}")
        taken, state = _read(position)
    if isinstance(data, Mapping):
        raise TypeError(
            "data must be a stream of batches, got named arrays: split them with "
            "data.batches(arrays, key=key, batch_size=32)"
        )
    skip = taken
    if callable(data) and not hasattr(data, "__iter__"):
        iterator, skip, stateful = iter(_called(data, taken)), 0, False
    else:
        iterator = _iter(data)
        stateful = _has_state(iterator)
    name = type(iterator).__name__
    if state is not _END:
        if not stateful:
            raise ValueError(
                f"position holds the state of an iterator, and that of data, {name}, has no "
                "set_state: pass the kind of data that the position was taken from"
            )
        try:
            iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as error:
            raise ValueError(
                f"data cannot resume at this position ({name}.set_state): {error}"
            ) from error
        skip = 0
    elif stateful and position is not None:
        raise ValueError(
            f"position counts batches, and data, {name}, resumes from a state of its own: pass the "
            "kind of data that the position was taken from, or start in place of position"
        )
    return _positions(iterator, skip, taken, stateful, owned=iterator is not data)


def _positions(
    iterator: Any, skip: int, taken: int, stateful: bool, owned: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    try:
        for i in range(skip):
            if _draw(iterator, i) is _END:
                raise ValueError(
                    f"data ended after {i} of the {skip} batches to skip: it must start where it "
                    "started in the earlier run; an iterator that was drawn from cannot"
                )
        kinds, shapes = None, set()
        number = taken
        while (drawn := _draw(iterator, number)) is not _END:
            batch = _columns(drawn, number)
            kinds = kinds or _kinds(batch)
            _same_kinds(batch, kinds, number)
            _few_shapes(batch, shapes)
            number += 1
            position: dict[str, Any] = {"batches": number}
            if stateful:
                position["state"] = _to_json(iterator.get_state())
            yield batch, position
        if number == 0:
            raise ValueError(
                "data has no batch: it is empty, or an iterator that is already exhausted (pass a "
                "list, or make a new iterator)"
            )
    finally:
        if owned and hasattr(iterator, "close"):
            iterator.close()  # threads and files that were opened here, none of the caller's


@checked
def padded(data: Iterable[Batch], batch_size: int | None = None) -> Iterable[dict[str, Any]]:
    """The stream's batches, padded to one size, so that one compiled program serves all.

    What :func:`~distill_jax.data.padded_batches` does for arrays: copies of the last row, and in
    every batch a column ``where``, False for the copies and otherwise the batch's own, or True.
    The stream resumes at a position as its source does.

    Args:
      data: An iterable of batches.
      batch_size: Rows per batch; None takes those of the first.

    Returns:
      An iterable of batches, dictionaries of ``[batch_size, ...]`` arrays.

    Raises:
      TypeError: if ``data`` is not an iterable of mappings.
      ValueError: for a batch without rows, or with more than ``batch_size``.

    Example:
      >>> for batch in padded([{"inputs": np.arange(2)}, {"inputs": np.arange(1)}]):
      ...     print(batch["inputs"], batch["where"])
      [0 1] [ True  True]
      [0 0] [ True False]
    """
    if batch_size is not None:
        batch_size = _checks.count("batch_size", batch_size)
    if callable(data) and not hasattr(data, "__iter__"):
        raise TypeError(
            "data must be an iterable of batches, got a function: pad what it returns, "
            "lambda start: padded(function(start), batch_size)"
        )
    if isinstance(data, Mapping):
        raise TypeError(
            "data must be batches, got named arrays: split them with data.padded_batches"
        )
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(f"data must be an iterable of batches, got {type(data).__name__}")
    return _Padded(data, batch_size)


class _Padded(Iterable[dict[str, Any]]):
    def __init__(self, source: Iterable[Batch], batch_size: int | None):
        self._source, self._batch_size = source, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = _iter(self._source)
        kind = _StatefulPaddedIterator if _has_state(iterator) else _PaddedIterator
        return kind(iterator, self._batch_size, owned=iterator is not self._source)


class _PaddedIterator(Iterator[dict[str, Any]]):
    def __init__(self, iterator: Any, batch_size: int | None, owned: bool):
        self._iterator, self._size, self._owned = iterator, batch_size, owned
        self._number = 0

    def __next__(self) -> dict[str, Any]:
        batch = _columns(next(self._iterator), self._number)
        rows = _batches.rows(batch)
        size = self._size or rows
        if rows > size:
            raise ValueError(
                f"batch {self._number} of data has {rows} rows, more than the {size} to pad to: "
                "give padded the largest batch_size"
            )
        self._size = size
        self._number += 1
        return pad(batch, size)

    def close(self) -> None:
        if self._owned and hasattr(self._iterator, "close"):
            self._iterator.close()


class _StatefulPaddedIterator(_PaddedIterator):
    def get_state(self) -> dict[str, Any]:
        # With the size: a stream may resume at a short batch.
        state = self._iterator.get_state()
        return {"batches": self._number, "batch_size": self._size, "source": state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or "source" not in state:
            raise ValueError("the position comes from a stream that was not padded")
        if self._size is not None and state["batch_size"] not in (None, self._size):
            raise ValueError(
                f"the position comes from batches padded to {state['batch_size']} rows, "
                f"these are padded to {self._size}"
            )
        self._iterator.set_state(state["source"])
        self._number, self._size = state["batches"], state["batch_size"] or self._size


def _has_state(iterator: Any) -> bool:
    return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")


def _iter(source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise TypeError(
            "data must be a stream of batches: an iterable, or a function of the number of "
            f"batches to skip; got {type(source).__name__}"
        ) from None


def _called(source: Callable[..., Iterable[Batch]], start: int) -> Iterable[Batch]:
    try:
        inspect.signature(source).bind(start)
    except TypeError:
        raise TypeError(
            "data as a function must take the number of batches to skip: pass what it returns, "
            "function(), if it can only start from the beginning"
        ) from None
    except ValueError:  # written in C, without a signature
        pass
    return source(start)


def _draw(iterator: Iterator[Any], number: int) -> Any:
    try:
        return next(iterator, _END)
    except Exception as error:
        error.add_note(f"This was raised by data while drawing batch {number} (from 0).")
        raise


def _columns(batch: Any, number: int) -> dict[str, Any]:
    """The batch as arrays with one number of rows."""
    who = f"batch {number} (from 0) of data"
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{who} must be a mapping from names to arrays, such as "
            f'{{"inputs": x, "labels": y}}, got {type(batch).__name__}'
        )
    columns = columns_of(batch, who)
    if not columns:
        raise ValueError(f"{who} must have a column or more, such as inputs, got none")
    arrays = _batches.arrays(columns)
    for name, x in arrays.items():
        if x.ndim < 1:
            raise ValueError(f"{name} in {who} must have a leading axis of rows, got a scalar")
    lengths = {name: len(x) for name, x in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of {who} must have one length, got {lengths}")
    if not next(iter(lengths.values())):
        raise ValueError(f"{who} must have a row or more, got none: remove it")
    if "where" in columns and getattr(columns["where"], "dtype", None) != np.bool_:
        got = getattr(columns["where"], "dtype", "a tree of arrays")
        raise TypeError(f"where in {who} must be booleans (True counts), got {got}")
    return columns


def _kinds(batch: Mapping[str, Any]) -> dict[str, tuple[Any, int]]:
    return {name: (x.dtype, x.ndim) for name, x in _batches.arrays(batch).items()}


def _same_kinds(batch: Mapping[str, Any], first: dict[str, tuple[Any, int]], number: int) -> None:
    these = _kinds(batch)
    if these == first:
        return
    who = f"batch {number} (from 0) of data"
    if these.keys() != first.keys():
        raise ValueError(
            f"{who} must have the columns of the first one, {list(first)}, got {list(these)}"
        )
    for name, (dtype, ndim) in first.items():
        if these[name] != (dtype, ndim):
            raise ValueError(
                f"{name} in {who} must be {dtype} with {ndim} axes, as in the first one, got "
                f"{these[name][0]} with {these[name][1]}"
            )


def _few_shapes(batch: Mapping[str, Any], seen: set[Any]) -> None:
    seen_before = len(seen)
    if seen_before <= _MANY_SHAPES:
        seen.add(tuple(sorted((name, x.shape) for name, x in _batches.arrays(batch).items())))
    if seen_before == _MANY_SHAPES < len(seen):
        warnings.warn(
            f"the batches of data have had {len(seen)} different shapes so far, and each needs a "
            "compilation: pad rows with data.padded, and sequences to a few lengths",
            stacklevel=3,
        )


def _read(position: Any) -> tuple[int, Any]:
    """The number of batches taken, and the iterator's state or ``_END``."""
    if (
        not isinstance(position, Mapping)
        or not isinstance(position.get("batches"), int)
        or position["batches"] < 0
        or position.keys() - {"batches", "state"}
    ):
        raise ValueError(f"position must come from data.positions, got {position!r}")
    state = _from_json(position["state"]) if "state" in position else _END
    return position["batches"], state


def _to_json(x: Any) -> Any:
    """A copy of an iterator's state as JSON values."""
    if x is None or isinstance(x, str | int | float):
        return x
    if isinstance(x, list | tuple):
        return [_to_json(value) for value in x]
    if isinstance(x, bytes):
        return {_BYTES: base64.b64encode(x).decode("ascii")}
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, Mapping) and all(isinstance(name, str) for name in x):
        return {name: _to_json(value) for name, value in x.items()}
    raise TypeError(
        "get_state() of data's iterator must return JSON values (dictionaries with strings for "
        f"names, lists, numbers, strings) or bytes, got {type(x).__name__}: {x!r:.80}"
    )


def _from_json(x: Any) -> Any:
    if isinstance(x, Mapping):
        if x.keys() == {_BYTES}:
            return base64.b64decode(x[_BYTES])
        return {name: _from_json(value) for name, value in x.items()}
    return [_from_json(value) for value in x] if isinstance(x, list) else x


_BYTES = "bytes in base64"
