"""Evaluations of a training state, for ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.evaluation.metrics import evaluate
from distill_jax.teachers import Teacher
from distill_jax.training import TrainState
from distill_jax.types import Model


@checked
def evaluator(
    model: Model,
    data: Mapping[str, Array | np.ndarray],
    *,
    teacher: Teacher | None = None,
    average: bool = False,
    batch_size: int = 512,
    top_k: int = 5,
    bins: int = 15,
    rank: bool | None = None,
) -> Callable[[TrainState], dict[str, Any]]:
    """What ``fit`` takes as ``evaluate``: all metrics of a state on one data set.

    Args:
      model, data, teacher, batch_size, top_k, bins, rank: As in :func:`evaluate`.
      average: Whether to evaluate the moving average of the student in place of the student.

    Returns:
      ``state -> metrics``, those of :func:`evaluate` for ``state.eval_params`` and ``state.state``,
      or for ``state.average``. It raises ValueError for a state without an average.

    Raises:
      ValueError: if the data have no column ``inputs``, or a number is below 1.

    Example::

        training.fit(..., evaluate=evaluation.evaluator(model, validation), evaluate_every=100)
    """
    for name, value, kind in (("model", model, Model), ("teacher", teacher, Teacher | None)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {name.title()}, got {type(value).__name__}")
    if rank not in (None, True, False):
        raise TypeError(f"rank must be True, False or None, got {rank!r}")
    if "inputs" not in data:
        raise ValueError(f"data must have a column inputs, got {list(data)}")
    for name, value in (("batch_size", batch_size), ("top_k", top_k), ("bins", bins)):
        _checks.count(name, value)
    how = {"teacher": teacher, "batch_size": batch_size, "top_k": top_k, "bins": bins, "rank": rank}

    def evaluate_state(state: TrainState) -> dict[str, Any]:
        variables = state.average if average else (state.eval_params, state.state)
        if variables is None:
            raise ValueError(
                "average is True, and the state has no moving average: pass average_decay= to run "
                "or fit"
            )
        params, own_state = variables
        return evaluate(model, params, own_state, data, **how)

    return evaluate_state
