"""Dual ascent: rule weights that adapt until the mean violations meet a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.objectives import Term, term
from distill_jax.rules.binding.book import Book
from distill_jax.rules.levels.penalties import each_penalty, weighted_sum
from distill_jax.rules.logic import _inputs
from distill_jax.types import Params, State


@checked
def dual_ascent(
    name: str,
    weight: Any,
    book: Book,
    *,
    budget: Any,
    step_size: Any,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    r"""A term that adapts the weight of each rule until its mean violation meets a budget.

    The penalty is Σ multiplier · violation. In each step, a rule's multiplier changes by
    ``step_size · (mean violation in the batch − budget)``, and is clipped at 0: it grows while the
    rule is violated more than the budget allows, and shrinks otherwise. (This is gradient ascent on
    the multipliers of the Lagrangian of "mean violation <= budget".)

    The multipliers are the term's state, ``{"multipliers": [rules]}``, and start at 0. No gradient
    passes to them. Since they depend on the mean over a batch, the term couples the examples: it
    cannot be computed on parts of a batch.

    Args:
      name: The term's name.
      weight: A factor for the penalty; usually 1.
      book: The rules. Their strengths are ignored.
      budget: The largest mean violation that is allowed, over all rows that count, in [0, 1]: a
        number, ``[rules]``, or a schedule. With 0, which is never reached exactly, the multipliers
        only grow.
      step_size: The step size of the multipliers, > 0: a number or a schedule.
      where: Rows that count, as in ``term``; the others are left out of the mean.
      reads: As in ``encourage``.

    Returns:
      A term for ``Objective``.

    Raises:
      ValueError: for a budget outside [0, 1] or of another shape, or a step size that is not
        positive.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> dual_ascent("rules", 1.0, book, budget=0.05, step_size=0.1).name
      'rules'

    References:
      Nandwani et al., `A Primal-Dual Formulation for Deep Learning with Constraints
      <https://papers.nips.cc/paper/2019/hash/cf708fc1decf0337aded484f8f4519ae-Abstract.html>`_,
      2019.
    """
    if not callable(budget):
        if jnp.ndim(budget) != 0:
            _checks.shape((len(book),), budget=budget)
        _checks.between(0.0, 1.0, budget=budget)
    if not callable(step_size):
        _checks.scalar(step_size=step_size)
        _checks.positive(step_size=step_size)
    options: dict[str, Any] = dict(rules=book, budget=budget, step_size=step_size)
    start = _Start(len(book))
    return term(
        name, weight, _ascend, where=where, init=start, coupled=True, reads=reads, **options
    )


@dataclasses.dataclass(frozen=True)
class _Start:
    rules: int

    def __call__(self, key: Array) -> tuple[Params, State]:
        return {}, {"multipliers": jnp.zeros(self.rules)}


def _ascend(
    params: Params,
    state: State,
    student_logits: Any,
    columns: Any,
    views: Any,
    *,
    rules: Book,
    budget: Any,
    step_size: Any,
    where: Any = None,
) -> tuple[Array, State]:
    """The penalty with the current multipliers, and the updated multipliers."""
    each = each_penalty(student_logits, columns, views, rules, "linear", where)
    multipliers = jax.lax.stop_gradient(state["multipliers"])
    rows = _inputs.masked(weighted_sum(each, multipliers[None, :]), where)
    keep = _inputs.rows_that_count(each, where)
    number = keep.sum(dtype=each.dtype)
    mean = jnp.where(keep[:, None], each, 0.0).sum(0) / jnp.maximum(number, 1.0)
    excess = jnp.where(number > 0, jax.lax.stop_gradient(mean) - budget, 0.0)
    return rows, {"multipliers": jnp.maximum(multipliers + step_size * excess, 0.0)}
