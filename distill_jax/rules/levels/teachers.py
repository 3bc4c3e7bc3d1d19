"""Rules as teachers: on their own, or correcting another teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book
from distill_jax.rules.levels.projection import project
from distill_jax.rules.logic import _inputs
from distill_jax.teachers import Teacher
from distill_jax.types import Outputs, Params, State


@checked
def rule_teacher(
    book: Book,
    *,
    prior: Float[Any, " classes"] | None = None,
    strengths: Float[Any, " rules"] | None = None,
    columns: Callable[[Any], Any] = _inputs.identity,
) -> Teacher:
    """A teacher made from rules alone, without training: the prior corrected by the rules.

    Args:
      book: Rules over exclusive classes, without views.
      prior: Probabilities of the classes where no rule fires, ``[classes]``; uniform if None.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``.
      columns: A function from the teacher's inputs to the encoded columns ``[batch, columns]``; by
        default the inputs themselves. Define it once, at module level, so that equal teachers
        compile once.

    Returns:
      A teacher with the book's classes; its logits ``[batch, classes]`` are log-probabilities, and
      its params ``{"prior": [classes], "strengths": [rules]}``, the prior as log-probabilities.

    Raises:
      ValueError: for label sets, views, other shapes, or a prior that does not sum to 1.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> rules = rule_teacher(bind("[p=0.9] age > 60 => sick", schema))
      >>> [f"{p:.3f}" for p in jnp.exp(rules(jnp.array([[70.0], [50.0]])).logits)[:, 1]]
      ['0.900', '0.500']
    """
    _check_book(book, "rule_teacher")
    classes = len(book.schema.classes)
    prior = jnp.full(classes, 1.0 / classes) if prior is None else _inputs.float32_or_wider(prior)
    _checks.shape((classes,), prior=prior)
    _checks.at_least(0.0, prior=prior)
    total = _checks.known(prior.sum())
    if total is not None and not abs(total - 1.0) < 1e-4:
        raise ValueError(f"prior must sum to 1, got {total}")
    params = {"prior": jnp.log(prior), "strengths": _strengths(book, strengths)}
    return Teacher(_RulesAlone(columns), params, {"book": book}, book.schema.classes, True, True)


@checked
def corrected(
    teacher: Teacher,
    book: Book,
    *,
    strengths: Float[Any, " rules"] | None = None,
    columns: Callable[[Any], Any] = _inputs.identity,
) -> Teacher:
    """A teacher whose predictions are corrected by rules, as by ``project``.

    Args:
      teacher: Any teacher of the book's classes, in the same order.
      book: Rules over exclusive classes, without views.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``.
      columns: A function from the teacher's inputs to the encoded columns, as in ``rule_teacher``.

    Returns:
      A teacher whose logits ``[batch, classes]`` are the corrected log-probabilities, with the
      features of ``teacher``. Its params are ``{"teacher": ..., "strengths": [rules]}``.

    Raises:
      ValueError: for label sets, views, other classes, or strengths of another shape.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> prior = rule_teacher(bind("age > 30 => sick", schema))
      >>> both = corrected(prior, bind("[hard] age > 60 => sick", schema))
      >>> print(jnp.exp(both(jnp.array([[70.0]])).logits))
      [[0. 1.]]
    """
    _check_book(book, "corrected")
    _checks.class_order(book.schema.classes, teacher.classes, "teacher")
    if teacher.outputs != book.outputs:
        raise ValueError(
            f"teacher has outputs={teacher.outputs!r}, the book is about outputs={book.outputs!r}"
        )
    return Teacher(
        _Corrected(teacher.predict, columns),
        {"teacher": teacher.params, "strengths": _strengths(book, strengths)},
        {"teacher": teacher.state, "book": book},
        book.schema.classes,
        teacher.missing,
        True,
    )


@dataclasses.dataclass(frozen=True)
class _RulesAlone:
    columns: Callable[[Any], Any]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        columns = self.columns(inputs)
        prior = jnp.broadcast_to(params["prior"], (columns.shape[0], *params["prior"].shape))
        return Outputs(project(state["book"], columns, prior, strengths=params["strengths"]))


@dataclasses.dataclass(frozen=True)
class _Corrected:
    predict: Callable[..., Outputs]
    columns: Callable[[Any], Any]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        outputs = self.predict(params["teacher"], state["teacher"], inputs)
        columns = self.columns(inputs)
        logits = project(state["book"], columns, outputs.logits, strengths=params["strengths"])
        return outputs._replace(logits=logits)


def _strengths(book: Book, strengths: Any) -> Array:
    """The given strengths, or the book's own, ``[rules]``."""
    strengths = book.strengths if strengths is None else _inputs.float32_or_wider(strengths)
    _checks.shape((len(book),), strengths=strengths)
    _checks.finite(strengths=strengths)
    return strengths


def _check_book(book: Book, who: str) -> None:
    """Raises for a book over label sets or with views."""
    _inputs.check_exclusive(book, who)
    _inputs.check_no_views(book, who)
