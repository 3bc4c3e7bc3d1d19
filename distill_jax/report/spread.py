"""The confidence interval of a mean over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scipy import special

from distill_jax._arguments import checked
from distill_jax._statistics import sample


@checked
def interval95(values: Sequence[float] | Any) -> dict[str, Any]:
    r"""A 95% confidence interval of the mean, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n`.

    From Student's t: valid for independent runs whose results are roughly normally distributed,
    even if there are few of them.

    Args:
      values: One number per run, ``[runs]``, two or more.

    Returns:
      A dictionary of ``mean``, ``low``, ``high`` and ``n``.

    Raises:
      ValueError: if there are fewer than two values, or ``values`` has more than one axis.

    Example:
      >>> found = interval95([1.0, 2.0, 3.0])
      >>> round(found["low"], 3), round(found["high"], 3)
      (-0.484, 4.484)
    """
    x = sample(values)
    if len(x) < 2:
        raise ValueError(f"values must be two or more for an interval, got {len(x)}")
    mean = float(x.mean())
    quantile = float(special.stdtrit(len(x) - 1, 0.975))  # of Student's t
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(x)}
