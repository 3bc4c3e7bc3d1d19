"""Checks of a data set, on the host, once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import _batches, _checks
from distill_jax._arguments import checked
from distill_jax.types import Batch, OutputKind


@checked
def check(
    data: Batch,
    *,
    batch_size: int | None = None,
    num_classes: int | None = None,
    values: Sequence[str] | None = None,
    missing: Sequence[str] = ("columns",),
    outputs: OutputKind = "softmax",
) -> None:
    """Raises an error that names the column, and the path in it, if data cannot be trained on.

    Rows whose ``where`` is False may hold anything. Of a traced column only shape and dtype are
    checked, since its values are not known.

    Args:
      data: Named arrays, or trees of arrays, with one leading axis. Pass those of the host as they
        are: once cast, a label of 2**32 + 1 would be 1.
      batch_size: Rows per batch; must lie between 1 and the number of rows.
      num_classes: Labels must be below it.
      values: The columns whose values are checked; None checks all.
      missing: Columns in which NaN stands for a missing value.
      outputs: What the numbers mean in columns whose name ends with ``logits``, an
        :data:`~distill_jax.types.OutputKind`.

    Raises:
      TypeError: if ``labels`` are not integers (or booleans, of labels that hold or not), or
        ``where`` is not boolean.
      ValueError: if there is no column or no row, if arrays differ in length, if a floating
        column has NaN or infinite rows, if a number does not fit in the type in which JAX holds it,
        or if labels or ``batch_size`` are out of range. In columns whose name ends with ``logits``,
        ``-inf`` is allowed: it forbids a class, but not every class of a row; or it excludes a
        label.

    Example:
      >>> check({"inputs": np.ones((3, 2)), "labels": np.array([0, 1, 2])}, num_classes=2)
      Traceback (most recent call last):
        ...
      ValueError: labels must lie in 0 ... 1 for 2 classes, got values from 0 to 2
    """
    n = _rows(data)
    if num_classes is not None:
        num_classes = _checks.count("num_classes", num_classes)
    if batch_size is not None and _checks.count("batch_size", batch_size) > n:
        raise ValueError(f"batch_size must lie between 1 and the {n} rows, got {batch_size}")
    for name in {"where", "labels"} & data.keys():
        if not jax.tree_util.all_leaves([data[name]]):
            raise TypeError(
                f"{name} must be one array, got a tree of {[*_batches.arrays({name: data[name]})]}"
            )
    if "where" in data:
        _checks.boolean(where=data["where"])
    where = _checks.known(data.get("where", np.ones(n, bool)))
    if "labels" in data:
        _checks.integer_or_boolean(labels=data["labels"])
    if where is None:  # which rows count is not known yet
        return
    looked_at = data.keys() if values is None else data.keys() & set(values)
    for column_name, name, x in [
        (column, name, x)
        for column in sorted(looked_at)
        for name, x in _batches.named(column, data[column])
    ]:
        column = _checks.known(x)
        if column is None:
            continue
        own = name.endswith("logits") and where.shape == column.shape[: where.ndim]
        counted = where if own else where.reshape(n, -1).any(axis=1)
        if not counted.all():
            column = column[counted]
        _checks.fits_device(**{name: column})
        if jnp.issubdtype(column.dtype, jnp.floating):
            _finite(name, column, column_name in missing, outputs)
    if "labels" in data and "labels" in looked_at:
        _labels(_checks.known(data["labels"]), where, num_classes)


def _rows(data: Batch) -> int:
    arrays = _batches.arrays(data)
    if not arrays:
        raise ValueError("data must have a column or more, such as inputs, got none")
    for name, x in arrays.items():
        if jnp.ndim(x) < 1:
            raise ValueError(f"{name} in data must have a leading axis of rows, got a scalar")
    lengths = {name: jnp.shape(x)[0] for name, x in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of data must have one length, got {lengths}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError(f"data must have a row or more, got none in {list(data)}")
    return n


def _finite(name: str, values: np.ndarray, missing: bool, outputs: OutputKind) -> None:
    bad = np.isinf(values) if missing else ~np.isfinite(values)
    if not bad.any():
        return
    if name.endswith("logits") and outputs in ("softmax", "multi_label"):
        excluded = np.isneginf(values)
        bad &= ~excluded
        empty = excluded.all(axis=-1).reshape(len(values), -1).any(axis=1)
        if outputs == "softmax" and empty.any():
            raise ValueError(
                f"{name} must leave a class possible, got -inf for every class in {empty.sum()} of "
                f"{len(values)} rows: fix or remove them, or mask them with where=False"
            )
    rows = int(bad.reshape(len(values), -1).any(axis=1).sum())
    if rows:
        excluded = "inputs" not in name and np.isneginf(values[bad]).all()
        advice = "; if -inf excludes a class, end the column's name with 'logits'"
        raise ValueError(
            f"{name} must be finite{' or NaN (missing)' if missing else ''}, got "
            f"{'inf' if missing else 'NaN or inf'} in {rows} of {len(values)} rows: fix or remove "
            "them, or mask them with where=False" + (advice if excluded else "")
        )


def _labels(labels: np.ndarray | None, where: np.ndarray, num_classes: int | None) -> None:
    if labels is None:
        return
    if where.shape != labels.shape[: where.ndim]:
        raise ValueError(
            f"where must have the shape of labels or its leading axes, {labels.shape}, got "
            f"{where.shape}"
        )
    counted = labels[where]
    if num_classes is not None:
        _checks.labels_below(num_classes, labels=counted)
    elif counted.size and counted.min() < 0:
        raise ValueError(
            f"labels must be 0 or more, got {counted.min()}: leave rows without a label out with a "
            "boolean column, where=labels >= 0"
        )
