"""What can be known to be wrong before the first step, said by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from distill_jax import _checks
from distill_jax.objectives import Objective, Term
from distill_jax.objectives.context import AVERAGE
from distill_jax.rules import Book
from distill_jax.teachers import Teacher
from distill_jax.training.step.recipe import Recipe, TrainState
from distill_jax.types import Batch, Model


def check(recipe: Recipe, objective: Any, batch: Batch, teachers: Mapping[str, Any]) -> None:
    """Everything that can be known to be wrong before the first step, by name.

    ``batch`` may be the whole data set: values are looked at where they are known.
    """
    if isinstance(objective, Term):
        raise TypeError("objective must be an Objective, got a Term: wrap it in weighted_sum(term)")
    kinds = (
        ("model", recipe.model, Model, "make one with distill_jax.models"),
        ("objective", objective, Objective, "make one with weighted_sum(term(...), ...)"),
        ("optimizer", recipe.optimizer, optax.GradientTransformation, "call it: optax.adam(1e-3)"),
    )
    for name, value, kind, advice in kinds:
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be a {kind.__name__}, got {type(value).__name__}: {advice}"
            )
    if "inputs" not in batch:
        raise ValueError(f"the data must have a column 'inputs', got {sorted(batch)}")
    key = jax.random.key(0)
    row = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    columns = jax.eval_shape(lambda batch: recipe.columns(batch, key), row)
    model, inputs = recipe.model, columns["inputs"]
    student = jax.eval_shape(lambda x: model.predict(*model.init(key, x), x), inputs).logits
    for name, teacher in teachers.items():
        if name == AVERAGE:
            raise ValueError(f"a teacher may not be named {AVERAGE!r}: that is the student's own")
        who = f"teachers[{name!r}]"
        if not isinstance(teacher, Teacher):
            raise TypeError(
                f"{who} must be a Teacher, got {type(teacher).__name__}: wrap it with "
                "teachers.teacher(model, params, state) or teachers.from_function"
            )
        _checks.class_order(model.classes, teacher.classes, who)
        seen = columns.get("teacher_inputs", inputs)
        taught = jax.eval_shape(lambda t, x: t(x), teacher, seen).logits
        if taught.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"{who} has {taught.shape[-1]} classes, the student {student.shape[-1]}: they "
                "must be the same classes"
            )
    for term in objective.terms:
        for value in term.options.values():
            if isinstance(value, Book):
                _rules_fit(model, value, f"the rules of term {term.name!r}")
    if recipe.augment is None:  # or else columns may come from it
        objective.check(batch, student.shape[-1])


def _rules_fit(model: Model, book: Book, who: str) -> None:
    classes = book.schema.classes
    if model.classes is not None and model.classes != classes:
        raise ValueError(
            f"{who} have the classes {list(classes)}, the student {list(model.classes)}: bind them "
            "to a schema with the student's classes, in its order"
        )


def check_initial(initial: Any, fresh: Any) -> None:
    """A state to go on from must be one of this model, objective and optimizer."""
    if not isinstance(initial, TrainState):
        raise TypeError(f"initial must be a TrainState, got {type(initial).__name__}")
    for field in dataclasses.fields(TrainState):
        ours, theirs = getattr(fresh, field.name), getattr(initial, field.name)
        for what, of in (("structure", jax.tree.structure), ("shapes", _shapes)):
            if of(ours) != of(theirs):
                raise ValueError(
                    f"initial.{field.name} must have the {what} that model, objective and "
                    f"optimizer make: expected {of(ours)}, got {of(theirs)}"
                )


def _shapes(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
