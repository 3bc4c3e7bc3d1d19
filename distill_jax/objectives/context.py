"""What a loss may look at in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.types import Batch, Outputs

AVERAGE = "average"
"""The name under which the student's own moving average teaches it."""


class Context(NamedTuple):
    """What a loss may look at.

    Attributes:
      student: The student's outputs, in training mode.
      teachers: Outputs of the teachers by name; no gradient reaches them.
      batch: The batch.
      step: Number of optimizer steps taken so far, a scalar.
      key: A key of this step, for losses that draw random numbers, or None.
      views: The student's outputs on other views of the examples by name, in evaluation mode; no
        gradient reaches them.
    """

    student: Outputs
    teachers: Mapping[str, Outputs] = {}
    batch: Batch = {}
    step: Any = 0
    key: Any = None
    views: Mapping[str, Outputs] = {}
