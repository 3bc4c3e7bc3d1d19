"""Linear constraints between predicted numbers, as a penalty.

``linear_constraints`` reads them. Three levels take them, from soft to firm:

- ``encourage_linear``: a term that penalises violations;
- ``project_linear``: the nearest outputs that satisfy them;
- ``enforce_linear``: a model whose last layer satisfies them by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.objectives import Term, term
from distill_jax.rules.binding.linear import LinearConstraints, matrix
from distill_jax.rules.logic import _inputs

LinearKind = Literal["hinge", "squared"]


@checked
def linear_violation(
    constraints: LinearConstraints, predictions: Float[Any, "*batch outputs"]
) -> Float[Array, "*batch constraints"]:
    """By how much predictions violate each constraint, in the units that it is written in.

    Args:
      constraints: From ``linear_constraints``.
      predictions: Predicted numbers, ``[..., outputs]``.

    Returns:
      For ``left <= right``, ``max(left - right, 0)``; for an equality, the distance of its two
      sides; ``[..., constraints]``, float32 or wider.

    Raises:
      TypeError: for predictions that are not floating point.
      ValueError: for another number of outputs.

    Example:
      >>> from distill_jax.rules import linear_constraints
      >>> parts = linear_constraints("total >= a + b\\n0 <= a <= 1", ["total", "a", "b"])
      >>> print(linear_violation(parts, jnp.array([3.0, 2.0, 2.0])))
      [1. 0. 1.]
    """
    y = checked_predictions(constraints, predictions=predictions)
    a, b = matrix(constraints.rows, len(constraints.names))
    wide = (1,) * (y.ndim - 1) + b.shape
    equality = np.array([row.equality for row in constraints.rows]).reshape(wide)
    excess = jnp.matmul(y, jnp.asarray(a.T, y.dtype), precision=jax.lax.Precision.HIGHEST)
    excess = excess - jnp.asarray(b.reshape(wide), y.dtype)
    return jnp.where(equality, jnp.abs(excess), jnp.maximum(excess, 0.0))


@checked
def linear_penalty(
    student_logits: Float[Array, "*batch outputs"],
    *,
    constraints: LinearConstraints,
    kind: LinearKind = "hinge",
    weights: Float[Any, " constraints"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The penalty of each row: a weighted sum over the constraints of how much it violates them.

    Args:
      student_logits: Predicted numbers, ``[..., outputs]``.
      constraints: From ``linear_constraints``.
      kind: ``"hinge"``: the violation :math:`v`, whose gradient is as large near the boundary as
        far from it; ``"squared"``: :math:`\tfrac12 v^2`, scaled like ``squared_error``.
      weights: One weight per constraint, ``[constraints]``, >= 0; by default 1.
      where: Rows that count, ``[...]``; masked rows contribute neither value nor gradient.

    Returns:
      The penalty of each row, ``[...]``, float32 or wider.

    Raises:
      TypeError: for predictions that are not floating point.
      ValueError: for other shapes, an unknown kind, or a negative weight.

    Example:
      >>> from distill_jax.rules import linear_constraints
      >>> parts = linear_constraints("total >= a + b", ["total", "a", "b"])
      >>> print(linear_penalty(jnp.array([[3.0, 2.0, 2.0], [5.0, 2.0, 2.0]]), constraints=parts))
      [1. 0.]
    """
    _checks.choice(("hinge", "squared"), kind=kind)
    y = checked_predictions(constraints, student_logits=student_logits)
    if where is not None:
        _checks.boolean(where=where)
        _checks.shape(y.shape[:-1], where=where)
        y = jnp.where(jnp.asarray(where)[..., None], y, 0.0)
    violated = linear_violation(constraints, y)
    each = violated if kind == "hinge" else 0.5 * violated * violated
    if weights is not None:
        _checks.shape((len(constraints),), weights=weights)
        _checks.at_least(0.0, weights=weights)
        own = jnp.asarray(weights, each.dtype)
        each = each * own.reshape((1,) * (each.ndim - 1) + own.shape)
    rows = each.sum(-1)
    return rows if where is None else jnp.where(jnp.asarray(where), rows, 0.0)


@checked
def encourage_linear(
    name: str,
    weight: Any,
    constraints: LinearConstraints,
    *,
    kind: LinearKind = "hinge",
    weights: Any = None,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    """A term that penalises violations of linear constraints; see ``linear_penalty``.

    Args:
      name: The term's name.
      weight: The term's weight: a number, a traced value, or a schedule ``step -> value``.
      constraints: From ``linear_constraints``.
      kind: ``"hinge"`` or ``"squared"``, as in ``linear_penalty``.
      weights: One weight per constraint, ``[constraints]``, >= 0, or a schedule
        ``step -> [constraints]``.
      where: Rows that count, as in ``term``.
      reads: Where arguments are read from, as in ``term``.

    Returns:
      A term for ``Objective``.

    Raises:
      ValueError: for an unknown kind, or weights that do not fit the constraints.

    Example:
      >>> from distill_jax.rules import linear_constraints
      >>> parts = linear_constraints("total >= a + b", ["total", "a", "b"])
      >>> encourage_linear("parts", 0.5, parts).name
      'parts'
    """
    _checks.choice(("hinge", "squared"), kind=kind)
    if weights is not None and not callable(weights):
        _checks.shape((len(constraints),), weights=weights)
        _checks.at_least(0.0, weights=weights)
    options: dict[str, Any] = dict(constraints=constraints, kind=kind, weights=weights)
    return term(name, weight, linear_penalty, where=where, reads=reads, **options)


def checked_predictions(constraints: LinearConstraints, **predictions: Any) -> Array:
    """Predictions of the constraints' outputs, float32 or wider, passed by their name."""
    _checks.floating(**predictions)
    ((name, found),) = predictions.items()
    width = len(constraints.names)
    if jnp.ndim(found) < 1 or jnp.shape(found)[-1] != width:
        raise ValueError(
            f"{name} must have shape [..., {width}], the outputs of the constraints, got "
            f"{jnp.shape(found)}"
        )
    return _inputs.float32_or_wider(found)
