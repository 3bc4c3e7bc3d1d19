"""Values of a stream's batches, checked on the host before the device sees them.

What is wrong in a late row, a label out of range or a NaN, would otherwise come out as a loss that
is not finite, a call later and without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from distill_jax import _batches
from distill_jax.objectives import Objective
from distill_jax.training.step._forward import is_input
from distill_jax.types import Batch

WEIGHTS = "weights of rows"
"""What a column is read as that is named in ``sample_weight``."""


def checked(
    pairs: Iterable[tuple[Batch, Any]],
    check: Callable[[Batch], None],
    objective: Objective | None,
    num_classes: int,
) -> Iterator[tuple[Batch, Any]]:
    """The same pairs of batch and position.

    Args:
      pairs: From ``data.positions``.
      check: Raises ValueError for a batch whose values are wrong in rows that count.
      objective: Its columns are looked at, besides inputs; None if augmentation makes them.
      num_classes: Labels are expected below it.

    Raises:
      ValueError: what ``check`` raises, with the number of the batch and of the row.
    """
    read = {} if objective is None else _columns(objective)
    for batch, position in pairs:
        # Nearly all batches are clean in all rows, and that costs one pass over the numbers.
        if not all(
            _is_clean(x, read.get(path, read.get(name)), num_classes)
            for name, column in batch.items()
            for path, x in _batches.named(name, column)
            if name in read or path in read or is_input(name)
        ):
            check_rows(batch, check, position["batches"] - 1)
        yield batch, position


def _columns(objective: Objective) -> dict[str, str]:
    """Columns that terms read, with the parameter that they are read as."""
    found: dict[str, str] = {}
    for t in objective.terms:
        if t.sample_weight is not None:
            found.setdefault(t.sample_weight, WEIGHTS)
        for parameter in t.parameters.all:
            name = dict(t.reads).get(parameter, parameter)
            if isinstance(name, str) and found.get(name) not in ("labels", WEIGHTS):
                found[name] = parameter
    return found


def _is_clean(x: Any, parameter: str | None, num_classes: int) -> bool:
    """Whether every number is fine in any row; True for what is on an accelerator already."""
    if isinstance(x, jax.Array):
        if any(device.platform != "cpu" for device in x.devices()):
            return True
        x = np.asarray(x)
    if not x.size or x.dtype.kind in "bc":
        return True
    if parameter == WEIGHTS and not x.min() >= 0:
        return False
    held = jax.dtypes.canonicalize_dtype(x.dtype)
    if x.dtype.kind in "iu":
        if parameter == "labels":
            return bool(x.min() >= 0 and x.max() < num_classes)
        bounds = np.iinfo(held)
        return held == x.dtype or bool(x.min() >= bounds.min and x.max() <= bounds.max)
    with np.errstate(all="ignore"):  # a sum that overflows is looked at more closely
        return bool(np.isfinite(x.sum(dtype=np.float32 if held.itemsize < 4 else held)))


def check_rows(batch: Batch, check: Callable[[Batch], None], number: int) -> None:
    """``check(batch)``, whose ValueError gets the number of the batch and of the row."""
    try:
        check(batch)
        return
    except ValueError as error:
        found, where = error, f"batch {number} (from 0) of data"
    for i in range(_batches.rows(batch)):
        try:
            check(_batches.mapped(lambda x, i=i: x[i : i + 1], batch))
        except ValueError as error:
            found, where = error, f"{where}, row {i}"
            break
    raise ValueError(f"{where}: {found}") from found
