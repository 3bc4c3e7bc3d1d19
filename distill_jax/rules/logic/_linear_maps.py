"""Linear functions with a transpose of their own, differentiated in both modes.

A ``custom_vjp`` function cannot be differentiated forwards. A ``custom_jvp`` rule can be
differentiated in both modes, if the tangent is a linear function that JAX can transpose. The
transposes that JAX derives of loops over tiles store an array of rows times rules, so here they are
written by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax._programs import vary_alike


def linear_map(
    forward: Callable[[Array], Array], transpose: Callable[[Array], Array], operand: Array
) -> Array:
    """``forward(operand)``, whose transpose is ``transpose``.

    It is the second part of the solution (x, y) of ``x = operand, y - forward(x) = 0``, a linear
    system, since JAX takes a solver and its transpose of one under every transformation.

    Args:
      forward: A linear function of an array.
      transpose: Its transpose.
      operand: The array.
    """
    shape = jax.eval_shape(forward, operand)
    zero = 0.0 * operand.sum().astype(shape.dtype)  # depends on the operand, as JAX expects
    right = operand, jnp.broadcast_to(zero, shape.shape)
    right = vary_alike(right)

    def solve(_: Callable, right: tuple[Array, Array]) -> tuple[Array, Array]:
        return vary_alike((right[0], forward(right[0])))

    def transposed_solve(_: Callable, right: tuple[Array, Array]) -> tuple[Array, Array]:
        back = right[0] + transpose(right[1])
        return vary_alike((back, jnp.zeros_like(right[1])))

    # The matrix itself is never used: only the two solvers are.
    return jax.lax.custom_linear_solve(lambda x: x, right, solve, transposed_solve)[1]
