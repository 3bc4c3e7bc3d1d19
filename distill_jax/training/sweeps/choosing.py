"""From the rows of a sweep to a choice: spread over seeds, and the best configuration."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax._statistics import mean_std

Row = dict[str, Any]


@checked
def summary(rows: Sequence[Mapping[str, Any]], *, over: str | Sequence[str] = "seed") -> list[Row]:
    """One row per configuration: mean and spread of every metric that is a number.

    Args:
      rows: From :func:`sweep`: the columns before ``seed`` are the configuration, those after it
        metrics.
      over: The columns averaged over: "seed", or several, with names of hyper-parameters.

    Returns:
      Rows of the configuration and ``{"mean", "std", "n"}`` for each metric, which ``report.show``,
      ``report.bars`` and ``report.heat_map`` can show. The standard deviation is that of a sample
      (ddof 1), None for a single value.

    Raises:
      ValueError: if ``over`` names a column that rows do not have.

    Example:
      >>> rows = [{"rate": 0.1, "seed": s, "accuracy": a} for s, a in enumerate([0.8, 0.9, 1.0])]
      >>> [row] = summary(rows)
      >>> row["rate"], {name: round(x, 3) for name, x in row["accuracy"].items()}
      (0.1, {'mean': 0.9, 'std': 0.1, 'n': 3})
    """
    averaged = (over,) if isinstance(over, str) else tuple(over)
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        names = list(row)
        if "seed" not in row:
            raise ValueError(f"rows must have a column 'seed', as sweep gives them, got {names}")
        design = names[: names.index("seed") + 1]
        if lacking := [name for name in averaged if name not in design]:
            raise ValueError(f"over names {lacking}, which rows do not have: they have {design}")
        kept = tuple((name, row[name]) for name in design if name not in averaged)
        groups.setdefault(kept, []).append(row)
    made = []
    for kept, members in groups.items():
        first = list(members[0])
        metrics = [
            name
            for name in first[first.index("seed") + 1 :]
            if all(_is_number(row.get(name)) for row in members)
        ]
        made.append(dict(kept) | {n: mean_std([row[n] for row in members]) for n in metrics})
    return made


@checked
def best(rows: Sequence[Mapping[str, Any]], *, by: str, better: Literal["higher", "lower"]) -> Row:
    """The configuration whose mean over seeds is best, as a row of :func:`summary`.

    Choose by a validation metric: a test result chosen by test data is biased upwards. A mean that
    is not finite never wins.

    Args:
      rows: From :func:`sweep`, or from :func:`summary`.
      by: The metric. A name that begins with "test", or contains it as a word, is refused.
      better: Whether "higher" or "lower" values are better.

    Returns:
      One row, ``{name: value}`` with ``{"mean", "std", "n"}`` for each metric.

    Raises:
      ValueError: if the metric is one of test data, there is no row, a row lacks the metric, or no
        mean is finite.

    Example:
      >>> rows = [{"rate": r, "seed": 0, "loss": r**2} for r in (-1.0, 0.5, 2.0)]
      >>> best(rows, by="loss", better="lower")["rate"]
      0.5
    """
    _checks.choice(("higher", "lower"), better=better)
    if re.search(r"^test|(?<![a-z])test(?![a-z])", by.lower()):
        raise ValueError(
            f"by={by!r} is a metric of test data: choose by one of validation data, and report the "
            "test metric of the configuration chosen"
        )
    rows = list(rows)
    if not rows:
        raise ValueError("rows must be one or more, got none: nothing to choose from")
    if any("seed" in row for row in rows):
        rows = summary(rows)
    if lacking := [row for row in rows if by not in row]:
        raise ValueError(
            f"by must be a metric that all rows have as a number, got {by!r}: a row has "
            f"{sorted(lacking[0])}"
        )
    means = [row[by]["mean"] if isinstance(row[by], Mapping) else row[by] for row in rows]
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    if not finite:
        raise ValueError(f"no configuration has a finite mean of {by!r}, of {len(rows)}")
    choose = max if better == "higher" else min
    return dict(rows[choose(finite, key=lambda i: means[i])])


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | np.bool_)
