"""Mean and standard deviation of a sample, for sweeps and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked


@checked
def mean_std(values: Sequence[float] | Any) -> dict[str, Any]:
    """Mean and standard deviation of a sample.

    Args:
      values: One number per run, ``[runs]``.

    Returns:
      A dictionary of ``mean``, ``std`` and ``n``. The standard deviation has ddof 1 (squares are
      divided by n - 1). It is None for a single value.

    Raises:
      ValueError: if ``values`` is empty or has more than one axis.

    Example:
      >>> mean_std([1.0, 2.0, 3.0])
      {'mean': 2.0, 'std': 1.0, 'n': 3}
    """
    x = sample(values)
    with np.errstate(invalid="ignore"):  # the spread of infinities is NaN
        std = float(x.std(ddof=1)) if len(x) > 1 else None
    return {"mean": float(x.mean()), "std": std, "n": len(x)}


def sample(values: Any) -> np.ndarray:
    """The values as float64, ``[runs]``."""
    x = _checks.numbers("values", values)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values must be one number per run, [runs], got shape {x.shape}")
    return x
