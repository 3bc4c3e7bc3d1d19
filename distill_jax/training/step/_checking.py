"""What can be known to be wrong before the first step, said by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax

from distill_jax import _checks
from distill_jax.objectives import Objective, Term
from distill_jax.objectives.context import AVERAGE
from distill_jax.teachers import Teacher
from distill_jax.training.step.recipe import Recipe, TrainState
from distill_jax.types import Batch, Model


def check(recipe: Recipe, objective: Any, batch: Batch, teachers: Mapping[str, Any]) -> int:
    """Everything that can be known to be wrong before the first step, by name.

    ``batch`` may be the whole data set: values are looked at where they are known.

    Returns:
      The number of the student's outputs.
    """
    if isinstance(objective, Term):
        raise TypeError("objective must be an Objective, got a Term: wrap it in weighted_sum(term)")
    kinds = (
        ("model", recipe.model, Model, "make one with distill_jax.models"),
        ("objective", objective, Objective, "make one with weighted_sum(term(...), ...)"),
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
    student = jax.eval_shape(functools.partial(_untrained, model), inputs)
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
        taught = jax.eval_shape(_taught, teacher, seen)
        if taught.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"{who} has {taught.shape[-1]} classes, the student {student.shape[-1]}: they "
                "must be the same classes"
            )
    for term in objective.terms:
        for option, value in term.options.items():
            classes = getattr(value, "classes", None)
            if classes is not None and model.classes not in (None, tuple(classes)):
                raise ValueError(
                    f"the {option} of term {term.name!r} have the classes {list(classes)}, the "
                    f"student {list(model.classes)}: bind them to the student's classes, in its "
                    "order"
                )
    if recipe.augment is None:  # otherwise columns may come from augmentation
        objective.check(batch, student.shape[-1])
    return student.shape[-1]


def check_initial(initial: TrainState, expected: TrainState) -> None:
    """Raises ValueError unless a state is one of this model, objective and optimizer."""
    for field in dataclasses.fields(TrainState):
        ours, theirs = getattr(expected, field.name), getattr(initial, field.name)
        for what, assert_equal in (
            ("structure", chex.assert_trees_all_equal_structs),
            ("shapes", chex.assert_trees_all_equal_shapes_and_dtypes),
        ):
            try:
                assert_equal(ours, theirs)
            except AssertionError as error:
                raise ValueError(
                    f"initial.{field.name} must have the {what} that model, objective and "
                    f"optimizer make (tree 0 here, initial is tree 1): {error}"
                ) from error


# Compiled functions, so that JAX keeps what it finds out: they are only ever asked for shapes.


@functools.partial(jax.jit, static_argnums=0)
def _untrained(model: Model, inputs: Any) -> Any:
    """Logits of a student before training, in evaluation mode."""
    return model.predict(*model.init(jax.random.key(0), inputs), inputs).logits


@jax.jit
def _taught(teacher: Teacher, inputs: Any) -> Any:
    return teacher(inputs).logits
