"""What a step computes before its losses: a batch's columns, and the forward passes on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from distill_jax import teachers as teachers_
from distill_jax.objectives.context import AVERAGE
from distill_jax.teachers import Teacher
from distill_jax.training.step._freezing import join
from distill_jax.types import Batch, Model, Outputs, Params, State

VIEW = "inputs:"
"""The prefix of columns that hold the inputs of another view of the examples."""

_TEACHERS = 0x7EAC4E55
"""Separates the draws of teachers from those of students, terms and pieces, numbered from 0."""

Augment = Callable[[Array, dict[str, Any]], dict[str, Any]]
"""``(key, batch) -> batch``."""


class Forward(NamedTuple):
    """The forward passes of a step, on all rows of a batch or some.

    Attributes:
      teach: ``(columns, key) -> outputs by teacher``.
      student: ``(params, state, columns, key) -> (outputs, state)``, in training mode.
      views: ``(params, state, columns) -> outputs by view``, without gradient.
    """

    teach: Callable[[Batch, Array], dict[str, Outputs]]
    student: Callable[[Params, State, Batch, Array], tuple[Outputs, State]]
    views: Callable[[Params, State, Batch], dict[str, Outputs]]


def _joined(frozen: Params, params: Params) -> Params:
    return join(params, frozen)


def is_input(column: str) -> bool:
    """Whether models, and not only losses, read a column of this name."""
    return column in ("inputs", "teacher_inputs") or column.startswith(VIEW)


def prepare_columns(batch: Batch, key: Array, augment: Augment | None) -> dict[str, Any]:
    """The batch as models and losses see it: augmented, with masked rows of inputs replaced.

    They may hold NaN, which would survive the product with a gradient of 0; and of zeros a model
    may make NaN (it divides by their norm), which would survive it as well. So they hold what a row
    that counts holds.
    """
    # Whatever cuts the batch out of its array stays out of the step's arithmetic, so that run
    # and fit, which cut differently, give the same bits.
    columns = jax.lax.optimization_barrier(dict(batch))
    if augment is not None:
        made = augment(key, columns)
        if not isinstance(made, Mapping):
            raise TypeError(
                "augment must return the batch, a dictionary of arrays by name, got "
                f"{type(made).__name__}"
            )
        columns = dict(made)
    if "where" in columns:
        keep = columns["where"].reshape(len(columns["where"]), -1).any(1)
        for name, x in columns.items():
            if is_input(name):
                columns[name] = jax.tree.map(functools.partial(_filled, keep), x)
    return columns


def _filled(keep: Array, x: Array) -> Array:
    """``x`` with its first row that is kept in place of those that are not; 0 if none is kept."""
    first = keep & (jnp.arange(len(keep)) == keep.argmax())
    first, keep = (m.reshape(-1, *[1] * (x.ndim - 1)) for m in (first, keep))
    # A sum of zeros and that row: rows may lie on several devices, which indexing would gather.
    zero = jnp.zeros((), x.dtype)
    row = jnp.where(first, x, zero).sum(0, dtype=x.dtype, keepdims=True)
    return jnp.where(keep, x, row)


def forward_passes(
    model: Model, teachers: Mapping[str, Teacher], average: PyTree, frozen: Params | None = None
) -> Forward:
    """The forward passes of a student, its views and its teachers.

    Args:
      model: The student.
      teachers: Teachers by name.
      average: The student's moving average, ``(params, state)``, which teaches too; or None.
      frozen: The student's parameters that do not train, where its forward passes are given the
        others; see ``_freezing``.
    """
    whole = (lambda params: params) if frozen is None else functools.partial(_joined, frozen)
    if average is not None:
        teachers = {**teachers, AVERAGE: teachers_.teacher(model, *average)}

    def teach(columns, key):
        inputs = columns.get("teacher_inputs", columns["inputs"])
        own = jax.random.fold_in(key, _TEACHERS) if any(t.draws for t in teachers.values()) else key
        taught = {}
        with jax.named_scope("teacher"):
            for number, name in enumerate(sorted(teachers)):
                teacher = teachers[name]
                drawn = jax.random.fold_in(own, number) if teacher.draws else None
                taught[name] = teacher(inputs, key=drawn)
        return taught

    def student(params, state, columns, key):
        with jax.named_scope("student"):
            return model.apply(whole(params), state, columns["inputs"], key=key, train=True)

    def views(params, state, columns):
        params = whole(params)
        with jax.named_scope("student"):
            return {
                name.removeprefix(VIEW): jax.lax.stop_gradient(model.predict(params, state, x))
                for name, x in columns.items()
                if name.startswith(VIEW)
            }

    return Forward(teach, student, views)
