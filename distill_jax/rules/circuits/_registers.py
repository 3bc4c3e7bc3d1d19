"""Registers of a circuit: columns, constants, and the results of arithmetic."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from distill_jax.rules.circuits._circuit import Circuit


def registers(
    circuit: Circuit, columns: Float[Any, "batch columns"]
) -> Float[Any, "registers batch"]:
    """All registers of a circuit; computed on the host for NumPy arrays.

    A quotient with divisor 0 is NaN, like a missing value.
    """
    xp: Any = np if isinstance(columns, np.ndarray) else jnp
    made = columns.T
    if circuit.constants.shape[0]:
        constants = circuit.constants.astype(made.dtype)[:, None]
        constants = xp.broadcast_to(constants, (constants.shape[0], made.shape[1]))
        made = xp.concatenate([made, constants])
    for step in circuit.arithmetic:
        a, b, op = made[step.left], made[step.right], step.operator[:, None]
        divides = (op == 3) & (b != 0)
        quotient = xp.where(b == 0, xp.nan, a / xp.where(divides, b, 1.0))
        result = xp.where(op == 2, a * b, quotient)
        result = xp.where(op == 1, a - b, result)
        made = xp.concatenate([made, xp.where(op == 0, a + b, result)])
    return made
