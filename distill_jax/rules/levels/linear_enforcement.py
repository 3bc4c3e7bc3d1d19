r"""Linear constraints that a model's outputs satisfy by construction, through its last layer.

Outputs are corrected one after the other, in a given order. Eliminating the later outputs from the
constraints (Fourier and Motzkin) leaves, for each output, bounds that only depend on the earlier
ones, and between which there always is room:

.. math:: y_i = \min(\max(z_i, l_i(y_1 \dots y_{i-1})), u_i(y_1 \dots y_{i-1}))

An equality determines the last of its outputs. Predictions that satisfy all constraints stay as
they are. The layer is differentiable almost everywhere, and not a projection: an output is moved no
further than the earlier ones demand, so the outputs to trust most come first.

References:
  Stoian, Dyrmishi, Cordy, Lukasiewicz and Giunchiglia, `How Realistic Is Your Synthetic Data?
  Constraining Deep Generative Models for Tabular Data <https://arxiv.org/abs/2402.04823>`_, 2024,
  section 3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.linear import LinearConstraints
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.levels.linear import checked_predictions
from distill_jax.types import Model, Outputs, Params, State

MOST_BOUNDS = 5_000
"""Inequalities that may be left while outputs are eliminated: each elimination may square them."""

_NONE_LEFT = (
    "no outputs satisfy all constraints exactly: some contradict each other by less than the 1e-7 "
    "that linear_constraints sees; write them with a common bound"
)

Row = tuple[dict[int, Fraction], Fraction]
"""``Σ coefficient · output ≤ bound``, or ``=``."""


@checked
def enforce_linear(
    model: Model, constraints: LinearConstraints, *, order: Sequence[str] | None = None
) -> Model:
    """A model whose outputs satisfy linear constraints by construction; see the module.

    It has the parameters and the state of ``model``, and is trained like any model.

    Args:
      model: A model with ``outputs="regression"``, and the constraints' outputs in their order.
      constraints: From ``linear_constraints``.
      order: All names of outputs in the order in which they are corrected, such as the ``ordering``
        that ``from_requirements`` reads: the first changes least. By default the order of the
        outputs.

    Returns:
      A model with logits ``[..., outputs]`` that satisfy the constraints up to rounding: float32
      violates one by about 1e-6 times the size of its terms. Models made from equal arguments are
      equal, and compile once.

    Raises:
      RuleError: if the bounds of the outputs are too many in this order, or constraints contradict
        each other by less than ``linear_constraints`` sees.
      ValueError: if the outputs differ, ``order`` does not name each output once, or ``model`` has
        outputs of another kind.

    Example:
      >>> from distill_jax.models import from_function
      >>> from distill_jax.rules import linear_constraints
      >>> parts = linear_constraints("total >= a + b\\na >= 0\\nb >= 0", ["total", "a", "b"])
      >>> model = from_function(lambda key, x: (), lambda params, x: x, outputs="regression")
      >>> safe = enforce_linear(model, parts)
      >>> print(safe.predict((), None, jnp.array([[3.0, 2.0, 2.0]])).logits)
      [[3. 2. 1.]]
    """
    _checks.class_order(constraints.names, model.classes, "model")
    if model.outputs != "regression":
        raise ValueError(
            f"model has outputs={model.outputs!r}, linear constraints are about numbers: make the "
            "model with outputs='regression'"
        )
    order = constraints.names if order is None else _checks.names("order", order)
    if sorted(order) != sorted(constraints.names):
        raise ValueError(
            f"order must name each output once, of {list(constraints.names)}, got {list(order)}"
        )
    layer(constraints, order)  # raises for too many bounds
    return dataclasses.replace(model, apply=_Enforced(model.apply, constraints, order))


class Layer(NamedTuple):
    """The bounds of the outputs that have any, in the order in which they are corrected.

    Attributes:
      output: The index of each output, ``[steps]``.
      slopes: Of lower and upper bounds in the earlier outputs, ``[steps, 2, most, outputs]``.
      starts: Of the bounds, ``[steps, 2, most]``: at least the first, and at most the second.
    """

    output: np.ndarray
    slopes: np.ndarray
    starts: np.ndarray


@functools.lru_cache(maxsize=64)
def layer(constraints: LinearConstraints, order: tuple[str, ...]) -> Layer:
    """The bounds of each output in terms of those before it.

    Raises:
      RuleError: if they are too many, or leave no room.
    """
    equal: list[Row] = []
    least: list[Row] = []
    for row in constraints.rows:
        (equal if row.equality else least).append((dict(row.coefficients), row.bound))
    found: list[tuple[int, list[Row], list[Row]]] = []
    for name in reversed(order):
        i = constraints.names.index(name)
        pivot = next((k for k, (coefficients, _) in enumerate(equal) if i in coefficients), None)
        if pivot is not None:
            solved = _solved(equal.pop(pivot), i)
            equal = [_substituted(row, i, solved) for row in equal]
            least = _tightest([_substituted(row, i, solved) for row in least])
            found.append((i, [solved], [solved]))
            continue
        lower = [_solved(row, i) for row in least if row[0].get(i, 0) < 0]
        upper = [_solved(row, i) for row in least if row[0].get(i, 0) > 0]
        least = [row for row in least if i not in row[0]]
        if len(lower) * len(upper) + len(least) > MOST_BOUNDS:
            raise RuleError(
                f"eliminating {name!r} leaves {len(lower) * len(upper) + len(least)} bounds of the "
                f"outputs before it, more than {MOST_BOUNDS}: put outputs that occur in many "
                "constraints first in order, or use project_linear"
            )
        least = _tightest([*least, *(_between(a, b) for a in lower for b in upper)])
        if lower or upper:
            found.append((i, lower, upper))
    if any(bound for _, bound in equal):
        raise RuleError(_NONE_LEFT)
    return _arrays(found[::-1], len(constraints.names))


def _solved(row: Row, i: int) -> Row:
    """The bound that a row sets on output ``i``: slopes in the other outputs, and a start."""
    coefficients, bound = row
    own = coefficients[i]
    return {j: -c / own for j, c in coefficients.items() if j != i}, bound / own


def _substituted(row: Row, i: int, solved: Row) -> Row:
    """The row with output ``i`` replaced by what it is equal to."""
    coefficients, bound = row
    if i not in coefficients:
        return row
    own = coefficients[i]
    rest = {j: c for j, c in coefficients.items() if j != i}
    return _without_zeros(_plus(rest, own, solved[0])), bound - own * solved[1]


def _between(lower: Row, upper: Row) -> Row:
    """That a lower bound is at most an upper one."""
    return _without_zeros(_plus(lower[0], Fraction(-1), upper[0])), upper[1] - lower[1]


def _plus(a: dict[int, Fraction], factor: Fraction, b: dict[int, Fraction]) -> dict[int, Fraction]:
    return {j: a.get(j, Fraction(0)) + factor * b.get(j, Fraction(0)) for j in {*a, *b}}


def _without_zeros(coefficients: dict[int, Fraction]) -> dict[int, Fraction]:
    return {j: c for j, c in sorted(coefficients.items()) if c}


def _tightest(rows: Sequence[Row]) -> list[Row]:
    """Of inequalities with proportional sides the tightest, in lowest terms."""
    found: dict[tuple[tuple[int, Fraction], ...], Fraction] = {}
    for coefficients, bound in rows:
        if not coefficients:  # a comparison of numbers is left
            if bound < 0:
                raise RuleError(_NONE_LEFT)
            continue
        size = max(abs(c) for c in coefficients.values())
        key = tuple(sorted((j, c / size) for j, c in coefficients.items()))
        found[key] = min(bound / size, found.get(key, bound / size))
    return [(dict(key), bound) for key, bound in found.items()]


def _arrays(found: Sequence[tuple[int, list[Row], list[Row]]], width: int) -> Layer:
    most = max((len(rows) for _, *both in found for rows in both), default=0)
    slopes = np.zeros((len(found), 2, most, width))
    starts = np.empty((len(found), 2, most))
    starts[:, 0], starts[:, 1] = -np.inf, np.inf
    for step, (_, *both) in enumerate(found):
        for side, rows in enumerate(both):
            for k, (coefficients, start) in enumerate(rows):
                starts[step, side, k] = float(start)
                for j, c in coefficients.items():
                    slopes[step, side, k, j] = float(c)
    return Layer(np.array([i for i, *_ in found], np.int32), slopes, starts)


def constrained(constraints: LinearConstraints, order: tuple[str, ...], z: Array) -> Array:
    """Outputs ``[..., outputs]`` that satisfy the constraints; see the module."""
    bounds = layer(constraints, order)
    if not len(bounds.output):
        return z
    free = np.ones(z.shape[-1], bool)
    free[bounds.output] = False
    # 0 until it is corrected, so that an infinite prediction does not make 0 times infinity.
    start = jnp.where(free, z, 0.0)

    def correct(y: Array, bound: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, slopes, starts = bound
        ends = jnp.einsum("skj,...j->...sk", slopes, y, precision=jax.lax.Precision.HIGHEST)
        ends = ends + starts.reshape((1,) * (y.ndim - 1) + starts.shape)
        own = jnp.take(z, i, axis=-1)
        own = jnp.minimum(jnp.maximum(own, ends[..., 0, :].max(-1)), ends[..., 1, :].min(-1))
        return jnp.where(jnp.arange(y.shape[-1]) == i, own[..., None], y), None

    arrays = (
        jnp.asarray(bounds.output),
        jnp.asarray(bounds.slopes, z.dtype),
        jnp.asarray(bounds.starts, z.dtype),
    )
    return jax.lax.scan(correct, start, arrays, unroll=len(bounds.output) <= 8)[0]


@dataclasses.dataclass(frozen=True)
class _Enforced:
    """An ``apply`` function that enforces linear constraints; equal for equal arguments, so that
    models made from them share compiled programs."""

    apply: Callable[..., tuple[Outputs, State]]
    constraints: LinearConstraints
    order: tuple[str, ...]

    def __call__(
        self, params: Params, state: State, inputs: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Outputs, State]:
        outputs, state = self.apply(params, state, inputs, key=key, train=train)
        z = checked_predictions(self.constraints, logits=outputs.logits)
        return outputs._replace(logits=constrained(self.constraints, self.order, z)), state
