"""Fuzzy logics: how the truth of a formula follows from the truth of its parts.

A new logic is one more ``Logic`` here, with its name in ``LogicName`` and ``LOGICS``. Everything
else (evaluation in tiles with its gradient, penalties, reports) follows from its algebra.

- ``"product"``: and ``a b``, or ``a + b − a b``; the implication ``1 − a + a b`` (Reichenbach). Its
  gradient to one part vanishes where another part determines the value; a disjunction of many
  parts saturates at 1.
- ``"lukasiewicz"``: and ``max(0, a + b − 1)``, or ``min(1, a + b)``; the implication
  ``min(1, 1 − a + b)``. No gradient at all where it is 0 or 1: a conjunction of many parts gets
  none until they are nearly true.
- ``"godel"``: and ``min``, or ``max``; the implication ``max(1 − a, b)`` (Kleene-Dienes). Only one
  part gets a gradient; equal parts of one node share it.
- ``"sigmoidal"``: product logic with the sigmoidal implication on top, which moves the gradient to
  where a rule is undecided: a rule's truth ``t`` becomes a rescaled ``sigmoid(9 (t − ½))``.

At truths 0 and 1 all four agree with Boolean logic.

References:
  van Krieken et al., `Analyzing Differentiable Fuzzy Logic Operators
  <https://arxiv.org/abs/2002.06100>`_, 2022.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.rules.circuits._algebra import Algebra, Folded
from distill_jax.rules.circuits._log_pairs import LOG_PAIRS

LogicName = Literal["product", "lukasiewicz", "godel", "sigmoidal"]

Pair = Callable[[Array, Array], Array]
Elementwise = Callable[[Array], Array]

STEEPNESS = 9.0
"""The steepness of the sigmoidal implication, as in van Krieken et al. 2022, section 7."""


@dataclasses.dataclass(frozen=True, repr=False)
class Logic:
    """A fuzzy logic. Logics of equal name and functions are equal, and share compiled programs.

    Define the functions once, at module level: a fresh lambda is a new function each time.

    Attributes:
      name: Its name in books, checkpoints and messages.
      algebra: Conjunction and disjunction of truths from 0 to 1, arrays ``[n, batch]``; negation is
        ``1 − a``.
      rescale: An elementwise function applied to a rule's violation; it must map 0 to 0 and 1 to 1.
        None for the violation itself.
      logarithm: The same logic over pairs (log t, log(1 − t)), for truths that would underflow;
        None if it has no such form.
    """

    name: str
    algebra: Algebra
    rescale: Elementwise | None = None
    logarithm: Algebra | None = None

    @classmethod
    def from_t_norm(
        cls,
        name: str,
        t_norm: Pair,
        t_conorm: Pair | None = None,
        *,
        rescale: Elementwise | None = None,
    ) -> Logic:
        """The logic of a t-norm, with ``1 − a`` as negation.

        Args:
          name: Its name in books, checkpoints and messages.
          t_norm: The conjunction of two truths, elementwise over arrays: associative, commutative,
            with 1 as its neutral element. Its gradient must be finite at truths 0 and 1.
          t_conorm: The disjunction of two truths; None for the dual,
            ``1 − t_norm(1 − a, 1 − b)``.
          rescale: See ``Logic``.

        Returns:
          A logic for ``bind(..., logic=)``.

        Raises:
          TypeError: if a t-norm, a t-conorm or ``rescale`` is not a function.
          ValueError: if ``name`` is empty, or the name of one of the four logics.

        Example:
          >>> from distill_jax import rules
          >>> einstein = rules.Logic.from_t_norm(
          ...     "einstein", lambda a, b: a * b / (1 + (1 - a) * (1 - b))
          ... )
          >>> schema = rules.Schema((), ("a", "b"), exclusive=False)
          >>> book = rules.bind("not (a and b)", schema, logic=einstein)
          >>> rules.violation(book, jnp.zeros((1, 0)), jnp.array([[0.5, 0.5]]))
          Array([[0.2]], dtype=float32)
        """
        if not isinstance(name, str) or not name or name in LOGICS:
            raise ValueError(
                f"name must be a non-empty string other than {sorted(LOGICS)}, got {name!r}"
            )
        given = {"t_norm": t_norm, "t_conorm": t_conorm, "rescale": rescale}
        for argument, function in given.items():
            if not callable(function) and (argument == "t_norm" or function is not None):
                raise TypeError(f"{argument} must be a function, got {function!r}")
        return cls(
            name,
            Algebra(
                Folded(t_norm),
                _Dual(Folded(t_norm)) if t_conorm is None else Folded(t_conorm),
                _complement,
            ),
            rescale,
        )

    def __repr__(self) -> str:
        return f"<Logic {self.name}>"


def find_logic(logic: Logic | str) -> Logic:
    """A logic by its name, or the logic itself.

    Raises:
      ValueError: if no logic has that name.
    """
    if isinstance(logic, Logic):
        return logic
    if not isinstance(logic, str) or logic not in LOGICS:
        raise ValueError(f"logic must be one of {tuple(LOGICS)}, or a Logic, got {logic!r}")
    return LOGICS[logic]


@dataclasses.dataclass(frozen=True)
class Squared:
    """The square of an elementwise function (None: of the value); equal for equal functions."""

    function: Elementwise | None

    def __call__(self, x: Array) -> Array:
        return jnp.square(x if self.function is None else self.function(x))


def _complement(a: Array) -> Array:
    return 1.0 - a


@dataclasses.dataclass(frozen=True)
class _Dual:
    """The De Morgan dual of a conjunction, a disjunction."""

    conjunction: Callable[[Sequence[Array]], Array]

    def __call__(self, parts: Sequence[Array]) -> Array:
        return 1.0 - self.conjunction([1.0 - part for part in parts])


_multiplied = Folded(operator.mul)


def _bounded_difference(parts: Sequence[Array]) -> Array:
    # Summing 1 − a loses no digits near 1, where truths usually are.
    return _positive_part(1.0 - functools.reduce(operator.add, [1.0 - part for part in parts]))


def _bounded_sum(parts: Sequence[Array]) -> Array:
    return jnp.minimum(functools.reduce(operator.add, parts), 1.0)


@jax.custom_jvp
def _positive_part(x: Array) -> Array:
    """max(x, 0), with half of the gradient at 0."""
    return jnp.maximum(x, 0.0)


_positive_part.defjvps(lambda t, out, x: t * (0.5 + 0.5 * jnp.sign(x)))


@jax.custom_jvp
def _least(*parts: Array) -> Array:
    """The minimum, whose gradient is shared by all parts that attain it."""
    return functools.reduce(jnp.minimum, parts)


def _least_jvp(parts: Any, tangents: Any) -> tuple[Array, Any]:
    least = _least(*parts)
    attained = [(part == least).astype(least.dtype) for part in parts]
    number = functools.reduce(operator.add, attained)
    zero = jax.custom_derivatives.SymbolicZero
    terms = [a * t for a, t in zip(attained, tangents, strict=True) if not isinstance(t, zero)]
    return least, functools.reduce(operator.add, terms) / number


_least.defjvp(_least_jvp, symbolic_zeros=True)


def _minimum(parts: Sequence[Array]) -> Array:
    return _least(*parts)


def _maximum(parts: Sequence[Array]) -> Array:
    return -_least(*(-part for part in parts))


def _sigmoidal(violated: Array) -> Array:
    """The sigmoidal implication, from the violation in product logic."""
    low, high = jax.nn.sigmoid(-STEEPNESS / 2), jax.nn.sigmoid(STEEPNESS / 2)
    return (jax.nn.sigmoid(STEEPNESS * (violated - 0.5)) - low) / (high - low)


PRODUCT = Logic(
    "product", Algebra(_multiplied, _Dual(_multiplied), _complement), logarithm=LOG_PAIRS
)
LUKASIEWICZ = Logic("lukasiewicz", Algebra(_bounded_difference, _bounded_sum, _complement))
GODEL = Logic("godel", Algebra(_minimum, _maximum, _complement))
SIGMOIDAL = Logic("sigmoidal", PRODUCT.algebra, rescale=_sigmoidal)

LOGICS = {logic.name: logic for logic in (PRODUCT, LUKASIEWICZ, GODEL, SIGMOIDAL)}
