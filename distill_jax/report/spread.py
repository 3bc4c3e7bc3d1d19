"""How sure a mean over runs is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special


def mean_std(values: Sequence[float] | Any) -> dict[str, Any]:
    """Mean and standard deviation of a sample.

    Args:
      values: One number a run.

    Returns:
      ``mean``, ``std`` and ``n``. The standard deviation is that of a sample: squares are divided
      by n - 1 (ddof 1). It is None for one value, which has no spread.

    Raises:
      ValueError: if there is no value, or ``values`` has more than one axis.

    Example:
      >>> mean_std([1.0, 2.0, 3.0])
      {'mean': 2.0, 'std': 1.0, 'n': 3}
    """
    x = _sample(values)
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    return {"mean": float(x.mean()), "std": std, "n": len(x)}


def interval95(values: Sequence[float] | Any) -> dict[str, Any]:
    r"""A 95% confidence interval of the mean, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n`.

    Student's t: right for independent runs whose results are about normally distributed, also if
    there are few of them.

    Args:
      values: One number a run, two or more.

    Returns:
      ``mean``, ``low``, ``high`` and ``n``.

    Raises:
      ValueError: if there are fewer than two values, or ``values`` has more than one axis.

    Example:
      >>> found = interval95([1.0, 2.0, 3.0])
      >>> round(found["low"], 3), round(found["high"], 3)
      (-0.484, 4.484)
    """
    x = _sample(values)
    if len(x) < 2:
        raise ValueError(f"values must be two or more for an interval, got {len(x)}")
    mean = float(x.mean())
    quantile = float(special.stdtrit(len(x) - 1, 0.975))  # of Student's t
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(x)}


def _sample(values: Any) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values must be one number a run, [runs], got shape {x.shape}")
    return x
