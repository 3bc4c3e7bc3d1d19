r"""The nearest outputs that satisfy linear constraints: a small quadratic program per row.

.. math:: \min_y \tfrac12 \lVert y - z \rVert^2 \quad \text{with } A y \le b, \; E y = f

It is solved by the dual active-set method of Goldfarb and Idnani, which starts at z and adds the
most violated constraint, until none is violated; it ends after finitely many steps, and its answer
is that of the constraints that are active at the end, in closed form. So is its slope, the
orthogonal projection onto what they leave free: no iteration is differentiated.

References:
  Goldfarb and Idnani, `A Numerically Stable Dual Method for Solving Strictly Convex Quadratic
  Programs <https://doi.org/10.1007/BF02591962>`_, 1983; Amos and Kolter, `OptNet
  <https://arxiv.org/abs/1703.00443>`_, 2017, for slopes at the optimum.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distill_jax._arguments import checked
from distill_jax.rules.binding.linear import LinearConstraints
from distill_jax.rules.levels.linear import checked_predictions


@checked
def project_linear(
    constraints: LinearConstraints, predictions: Float[Any, "*batch outputs"]
) -> Float[Array, "*batch outputs"]:
    """The nearest outputs that satisfy the constraints, in the Euclidean distance.

    Outputs of different units should be scaled first, since a distance adds them.

    Args:
      constraints: From ``linear_constraints``.
      predictions: Predicted numbers, ``[..., outputs]``.

    Returns:
      ``[..., outputs]``, float32 or wider, which satisfy the constraints up to rounding: float32
      violates one by about 1e-6 times the size of its terms. Predictions that satisfy inequalities
      are returned unchanged. Rows that hold NaN or infinities, and any on which the method did not
      end because of rounding, are NaN. Gradients reach the predictions: along active constraints
      they pass, across them they are 0.

    Raises:
      TypeError: for predictions that are not floating point.
      ValueError: for another number of outputs.

    Example:
      >>> from distill_jax.rules import linear_constraints
      >>> parts = linear_constraints("total >= a + b", ["total", "a", "b"])
      >>> print(project_linear(parts, jnp.array([3.0, 2.0, 2.5])))
      [3.5 1.5 2. ]
    """
    y = checked_predictions(constraints, predictions=predictions)
    system = _system(constraints)
    rows = jax.vmap(lambda row: _projected(system, row))(y.reshape(-1, y.shape[-1]))
    return rows.reshape(y.shape)


class _System(NamedTuple):
    """Rows of length 1: ``a @ y = b`` for the first ``equalities`` rows, then ``a @ y <= b``."""

    a: np.ndarray
    b: np.ndarray
    equalities: int


@functools.lru_cache(maxsize=64)
def _system(constraints: LinearConstraints) -> _System:
    a_eq, b_eq = _independent(*_normalised(constraints.a_eq, constraints.b_eq))
    a_ub, b_ub = _normalised(constraints.a_ub, constraints.b_ub)
    return _System(np.concatenate([a_eq, a_ub]), np.concatenate([b_eq, b_ub]), len(b_eq))


def _normalised(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.linalg.norm(a, axis=1)
    return a / size[:, None], b / size


def _independent(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The equalities that do not follow from those before them; all hold, since some y does."""
    basis = np.zeros((0, a.shape[1]))
    kept = []
    for i, row in enumerate(a):
        rest = row - basis.T @ (basis @ row)
        rest -= basis.T @ (basis @ rest)
        if np.linalg.norm(rest) > 1e-9:
            basis = np.concatenate([basis, rest[None] / np.linalg.norm(rest)])
            kept.append(i)
    return a[kept], b[kept]


def _projected(system: _System, z: Array) -> Array:
    """The nearest point to one row, ``[outputs]``."""
    if not len(system.b):
        return z

    @jax.custom_jvp
    def nearest(z: Array) -> Array:
        active, ended = _active(system, z)
        y = z
        for _ in range(2):  # the second round removes the rounding of the first
            y = y - _across(system, active, _excess(system, y))
        unchanged = ~active.any()
        return jnp.where(ended, jnp.where(unchanged, z, y), jnp.nan)

    @nearest.defjvp
    def slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (z,), (dz,) = primals, tangents
        active, _ = _active(system, jax.lax.stop_gradient(z))
        a = jnp.asarray(system.a, dz.dtype)
        return nearest(z), dz - _across(system, active, _times(a, dz))

    return nearest(z)


def _times(a: Array, x: Array) -> Array:
    return jnp.matmul(a, x, precision=jax.lax.Precision.HIGHEST)


def _excess(system: _System, y: Array) -> Array:
    return _times(jnp.asarray(system.a, y.dtype), y) - jnp.asarray(system.b, y.dtype)


def _multipliers(system: _System, active: Array, right: Array) -> Array:
    """The solution of ``(A Aᵀ) x = right`` on the active rows; 0 on the others."""
    gram = jnp.asarray(system.a @ system.a.T, right.dtype)
    both = active[:, None] & active[None, :]
    gram = jnp.where(both, gram, jnp.eye(len(system.b), dtype=right.dtype))
    factor = jax.scipy.linalg.cho_factor(gram)
    return jax.scipy.linalg.cho_solve(factor, jnp.where(active, right, 0.0))


def _across(system: _System, active: Array, right: Array) -> Array:
    """The shortest step x with ``A x = right`` on the active rows."""
    a = jnp.asarray(system.a.T, right.dtype)
    return _times(a, _multipliers(system, active, right))


class _Search(NamedTuple):
    """Where the search is.

    Attributes:
      y: The current point.
      multiplier: Of each row, >= 0 for inequalities.
      active: Which rows hold with equality.
      entering: The row that is being made active, or -1.
      steps: How many steps were taken.
    """

    y: Array
    multiplier: Array
    active: Array
    entering: Array
    steps: Array


def _active(system: _System, z: Array) -> tuple[Array, Array]:
    """Which independent rows are active at the nearest point, and whether the search ended."""
    number = len(system.b)
    a, equality = jnp.asarray(system.a, z.dtype), np.arange(number) < system.equalities
    b = jnp.asarray(system.b, z.dtype)
    size = _times(jnp.abs(a), jnp.abs(z)) + jnp.abs(b)
    eps = float(jnp.finfo(z.dtype).eps)
    most = 10 * (number + z.shape[0]) + 20

    def excess(search: _Search) -> Array:
        """How far inactive inequalities are violated beyond rounding; else at most 0."""
        allowed = 8 * eps * (size + _times(jnp.abs(a), jnp.abs(search.y)))
        return jnp.where(search.active, -jnp.inf, _excess(system, search.y) - allowed)

    def more(search: _Search) -> Array:
        left = (search.entering >= 0) | (excess(search) > 0).any()
        return left & (search.steps < most)

    def step(search: _Search) -> _Search:
        p = jnp.where(search.entering >= 0, search.entering, excess(search).argmax())
        # How multipliers of active rows, and the point, move as row p comes in.
        shares = _multipliers(system, search.active, _times(a, a[p]))
        direction = a[p] - _times(a.T, shares)
        length = _times(direction, direction)
        leaving = search.active & ~equality & (shares > 8 * eps)
        ratios = jnp.where(leaving, search.multiplier / jnp.where(leaving, shares, 1.0), jnp.inf)
        j = ratios.argmin()
        free = length > 100 * eps
        full = (_times(a[p], search.y) - b[p]) / jnp.where(free, length, 1.0)
        full = jnp.where(free, jnp.maximum(full, 0.0), jnp.inf)
        enters = full <= ratios[j]
        by = jnp.minimum(full, ratios[j])
        stuck = jnp.isinf(by)  # only by rounding: some point satisfies all rows
        by = jnp.where(stuck, 0.0, by)
        multiplier = search.multiplier - by * shares
        multiplier = multiplier.at[p].add(by)
        change = jnp.where(enters, p, j)
        return _Search(
            search.y - jnp.where(free, by, 0.0) * direction,
            jnp.where(enters, multiplier, multiplier.at[j].set(0.0)),
            search.active.at[change].set(enters),
            jnp.where(enters, -1, p),
            jnp.where(stuck, most, search.steps + 1),
        )

    start = jnp.asarray(equality)
    y = z - _across(system, start, _excess(system, z))
    none = jnp.zeros(number, z.dtype)
    search = _Search(y, none, start, jnp.array(-1), jnp.array(0))
    search = jax.lax.while_loop(more, step, search)
    return search.active, (search.steps < most) & jnp.isfinite(z).all()
