"""Rules as teachers: alone, or correcting another teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax.rules.binding.book import Book
from distill_jax.rules.levels.projection import project
from distill_jax.rules.logic import _inputs
from distill_jax.teachers import Teacher
from distill_jax.types import Outputs, Params, State


def rule_teacher(
    book: Book,
    *,
    prior: Float[Any, " classes"] | None = None,
    strengths: Float[Any, " rules"] | None = None,
    columns: Callable[[Any], Any] = _inputs.identity,
) -> Teacher:
    """Rules alone, as a teacher: it predicts from the columns, and has seen no data.

    Args:
      book: Rules over exclusive classes, without views.
      prior: Probabilities of the classes where no rule fires, ``[classes]``; equal where None.
      strengths: In place of the book's own, ``[rules]``.
      columns: A function from the teacher's inputs to the encoded columns; define it once, at
        module level. By default they are the inputs.

    Returns:
      A teacher with the book's classes. Its params are ``{"prior": logits, "strengths": ...}``.

    Raises:
      ValueError: for label sets, views, or a prior that is no distribution.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> rules = rule_teacher(bind("[p=0.9] age > 60 => sick", schema))
      >>> [f"{p:.3f}" for p in jnp.exp(rules(jnp.array([[70.0], [50.0]])).logits)[:, 1]]
      ['0.900', '0.500']
    """
    _teaches(book, "rule_teacher")
    classes = len(book.schema.classes)
    prior = jnp.full(classes, 1.0 / classes) if prior is None else _inputs.float32_or_wider(prior)
    _checks.shape((classes,), prior=prior)
    _checks.at_least(0.0, prior=prior)
    total = _checks.known(prior.sum())
    if total is not None and not abs(total - 1.0) < 1e-4:
        raise ValueError(f"prior must sum to 1, got {total}")
    params = {"prior": jnp.log(prior), "strengths": _own(book, strengths)}
    return Teacher(_RulesAlone(columns), params, {"book": book}, book.schema.classes, True, True)


def corrected(
    teacher: Teacher,
    book: Book,
    *,
    strengths: Float[Any, " rules"] | None = None,
    columns: Callable[[Any], Any] = _inputs.identity,
) -> Teacher:
    """A teacher whose predictions the rules correct.

    Args:
      teacher: Any teacher of the book's classes.
      book: Rules over exclusive classes, without views.
      strengths: In place of the book's own, ``[rules]``.
      columns: A function from the teacher's inputs to the encoded columns, as in ``rule_teacher``.

    Returns:
      A teacher with the same features. Its params are ``{"teacher": ..., "strengths": ...}``.

    Raises:
      ValueError: for label sets, views, or other classes.
    """
    _teaches(book, "corrected")
    _checks.class_order(book.schema.classes, teacher.classes, "teacher")
    return Teacher(
        _Corrected(teacher.predict, columns),
        {"teacher": teacher.params, "strengths": _own(book, strengths)},
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


def _own(book: Book, strengths: Any) -> Array:
    strengths = book.strengths if strengths is None else _inputs.float32_or_wider(strengths)
    _checks.shape((len(book),), strengths=strengths)
    _checks.finite(strengths=strengths)
    return strengths


def _teaches(book: Book, who: str) -> None:
    _inputs.check_exclusive(book, who)
    _inputs.check_no_views(book, who)
