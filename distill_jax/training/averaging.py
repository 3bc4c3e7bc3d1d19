"""How fast the moving average of a student forgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from distill_jax import _checks
from distill_jax._arguments import checked

Decay = float | Float[Array, ""] | Callable[[Any], Any]
"""A number in [0, 1], or a schedule of them, ``step -> decay``."""


@checked
def warmed_up(decay: float | Float[Array, ""]) -> Partial:
    r"""A decay of the moving average that starts small: :math:`\min(d, (1 + t) / (10 + t))`.

    An average with a constant decay starts at the initial parameters, and keeps a share
    :math:`d^t` of them after ``t`` steps: 99% after 100 steps for ``decay=0.9999``. With this one
    it is 1e-5 after 10 steps and 2e-13 after 100, and until ``decay`` is reached the average is
    roughly one over the last tenth of all steps. A student that starts from given weights needs no
    warm-up: its initial parameters are worth averaging.

    Args:
      decay: The decay that is reached in the end, in [0, 1], after about ``9 / (1 - decay)`` steps;
        may be traced.

    Returns:
      ``step -> decay``, for ``average_decay`` of ``run`` and ``fit``; ``step`` is the number of
      steps taken before.

    Example:
      >>> schedule = warmed_up(0.999)
      >>> [round(float(schedule(step)), 3) for step in (0, 90, 100_000)]
      [0.1, 0.91, 0.999]

    References:
      ``num_updates`` of TensorFlow's `ExponentialMovingAverage
      <https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage>`_.
    """
    _checks.scalar(decay=decay)
    _checks.between(0.0, 1.0, decay=decay)
    return Partial(_warmed_up, decay)


def _warmed_up(decay: Float[Array, ""] | float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def as_argument(average_decay: object) -> Array | Partial | None:
    """A decay as an argument of the step's program: an array, a ``Partial`` of the step, or None.

    A number in either may be traced or changed without another program.

    Raises:
      TypeError, ValueError: for what is neither a number in [0, 1] nor a schedule of them.
    """
    if average_decay is None:
        return None
    if not callable(average_decay):
        _checks.scalar(average_decay=average_decay)
        _checks.between(0.0, 1.0, average_decay=average_decay)
        return jnp.asarray(average_decay, jnp.float32)
    if isinstance(average_decay, type):
        raise TypeError(
            f"average_decay must not be a class, got {average_decay.__name__}: pass a number, or a "
            "schedule step -> decay"
        )
    schedule = average_decay if isinstance(average_decay, Partial) else Partial(average_decay)
    schedule = jax.tree.map(jnp.asarray, schedule)
    _checks.takes("(step)", average_decay=schedule)
    first = {"average_decay at step 0": schedule(jnp.zeros((), jnp.int32))}
    _checks.scalar(**first)
    _checks.between(0.0, 1.0, **first)
    return schedule
