"""Teachers: a prediction function with its variables, as one pytree.

A teacher passes through ``jit``, ``vmap`` and ``scan`` as an argument, so that its variables are
never constants of a compiled program. It always runs in evaluation mode and receives no gradient.
"""

from distill_jax.teachers.compact import Quantized, cast, quantize
from distill_jax.teachers.drawing import augmented, monte_carlo
from distill_jax.teachers.kinds import (
    Teacher,
    ensemble,
    from_function,
    precompute,
    reorder,
    start_average,
    teacher,
    update_average,
)

__all__ = [
    "Quantized",
    "Teacher",
    "augmented",
    "cast",
    "ensemble",
    "from_function",
    "monte_carlo",
    "precompute",
    "quantize",
    "reorder",
    "start_average",
    "teacher",
    "update_average",
]
