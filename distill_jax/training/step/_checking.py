"""What can be known to be wrong before the first step, said by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import _batches, _checks, _programs
from distill_jax._fingerprints import leaves_by_path
from distill_jax.objectives import Objective, Term
from distill_jax.objectives.context import AVERAGE, Context
from distill_jax.teachers import Teacher
from distill_jax.training.step._freezing import SHOWN, shown
from distill_jax.training.step.recipe import Recipe, TrainState
from distill_jax.types import Batch, Model, Outputs


def check(recipe: Recipe, objective: Any, batch: Batch, teachers: Mapping[str, Any]) -> int:
    """Everything that can be known to be wrong before the first step, by name, but for values.

    ``batch`` may be the whole data set: only shapes and dtypes are looked at.

    Returns:
      The student's number of outputs.
    """
    if isinstance(objective, Term):
        raise TypeError("objective must be an Objective, got a Term: wrap it in weighted_sum(term)")
    kinds = (
        ("model", recipe.model, Model, "make one with distill_jax.models"),
        ("objective", objective, Objective, "make one with weighted_sum(term(...), ...)"),
    )
    for name, value, kind, advice in kinds:
        if not isinstance(value, kind):
            article = "an" if kind is Objective else "a"
            raise TypeError(
                f"{name} must be {article} {kind.__name__}, got {type(value).__name__}: {advice}"
            )
    if "inputs" not in batch:
        raise ValueError(f"the data must have a column 'inputs', got {sorted(batch)}")
    key = jax.random.key(0)
    row = _batches.mapped(lambda x: _programs.described(x, shape=(1, *x.shape[1:])), batch)
    columns = jax.eval_shape(lambda batch: recipe.columns(batch, key), row)
    model, inputs = recipe.model, columns["inputs"]
    student = jax.eval_shape(functools.partial(_untrained, model), inputs)
    made: dict[str, Any] = {}
    for name, teacher in teachers.items():
        if name == AVERAGE:
            raise ValueError(f"a teacher may not be named {AVERAGE!r}: that is the student's own")
        who = f"teachers[{name!r}]"
        if not isinstance(teacher, Teacher):
            raise TypeError(
                f"{who} must be a Teacher, got {type(teacher).__name__}: wrap it with "
                "teachers.teacher(model, params, state) or teachers.from_function"
            )
        _checks.same_outputs(model.outputs, teacher.outputs, who)
        _checks.class_order(model.classes, teacher.classes, who)
        seen = columns.get("teacher_inputs", inputs)
        taught = made[name] = jax.eval_shape(_taught, teacher, seen)
        if taught.shape[-1] != student.shape[-1] and model.outputs != "embedding":
            raise ValueError(
                f"{who} has {taught.shape[-1]} classes, the student {student.shape[-1]}: they "
                "must be the same classes"
            )
    for term in objective.terms:
        meant = getattr(term.loss, "outputs", None)
        if callable(dict(term.reads).get("student_logits")):
            meant = None  # the loss sees something else
        if meant is not None and model.outputs not in meant:
            raise ValueError(
                f"the loss of term {term.name!r}, {getattr(term.loss, '__name__', term.loss)}, is "
                f"meant for outputs={' or '.join(map(repr, meant))}, the student has "
                f"outputs={model.outputs!r}: make the student with the outputs that it has, or "
                "take a loss for them"
            )
        for option, value in term.options.items():
            kind = getattr(value, "outputs", None)
            if kind is not None and kind != model.outputs:
                raise ValueError(
                    f"the {option} of term {term.name!r} is about outputs={kind!r}, the student "
                    f"has outputs={model.outputs!r}: make the student with outputs={kind!r}, or "
                    f"change the {option}"
                )
            classes = getattr(value, "classes", None)
            if classes is not None and model.classes not in (None, tuple(classes)):
                raise ValueError(
                    f"the {option} of term {term.name!r} have the classes {list(classes)}, the "
                    f"student {list(model.classes)}: bind them to the student's classes, in its "
                    "order"
                )
        ours = str(getattr(term.loss, "__module__", None)).startswith("distill_jax.")
        if student.shape[-1] == 1 or not ours:
            _check_broadcasting(term, student, made, columns)
    return student.shape[-1]


def _check_broadcasting(
    term: Term, student: Any, taught: Mapping[str, Any], columns: Batch
) -> None:
    """Raises ValueError if a loss compares each prediction with the targets of all rows.

    Predictions ``[batch, 1]`` minus targets ``[batch]`` are ``[batch, batch]``, without an error.
    """
    columns = _batches.mapped(_with_rows, columns)
    arrays = _batches.arrays(columns)
    flat = [name for name, x in arrays.items() if x.shape == (_ROWS,) and x.dtype != bool]
    if term.coupled or term.init is not None or not flat:
        return
    logits: Any = _with_rows(student)
    shapes: dict[str, Any] = {name: _with_rows(x) for name, x in taught.items()}
    teachers = {name: Outputs(x) for name, x in shapes.items()}
    context = Context(Outputs(logits), teachers, columns, key=jax.random.key(0))
    try:
        program = jax.make_jaxpr(lambda context: term.rows(None, None, context)[0])(context)
    except Exception:  # it reads more than this, or fails where it is computed
        return
    pairs = student.shape[-1] == 1 and _programs.pairs_rows(program, _ROWS)
    if pairs or _ROWS in program.out_avals[0].shape[1:]:
        what = "predicts [batch, 1]" if pairs else f"has outputs {list(student.shape[1:])}"
        raise ValueError(
            f"the loss of term {term.name!r} compares each row with every other one: the student "
            f"{what}, and one of the columns {flat} is [batch], which broadcasts to "
            "[batch, batch]. Give the column an axis, column[:, None], or pass coupled=True if the "
            "loss is about pairs of rows"
        )


_ROWS = 7919
"""A number of rows that no other axis has."""


def _with_rows(x: Any) -> jax.ShapeDtypeStruct:
    return _programs.described(x, shape=(_ROWS, *x.shape[1:]))


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


def student_shapes(recipe: Recipe, row: Batch) -> tuple[Any, Any]:
    """Shapes and dtypes of the student's parameters and state; ``row`` is a first example."""

    def init(row: Batch, key: Any) -> Any:
        return recipe.model.init(key, recipe.columns(row, key)["inputs"])

    return jax.eval_shape(init, row, jax.random.key(0))


def starting(start: Any, own: tuple[Any, Any]) -> tuple[Any, Any]:
    """Weights to start from, in the structure and the dtypes of the student's own.

    Args:
      start: ``(params, state)``.
      own: Those of the student, or their shapes.

    Raises:
      TypeError: if it is no such pair.
      ValueError: if they are not those of this student, by path.
    """
    if isinstance(start, TrainState):
        raise TypeError(
            "start must be a pair (params, state), got a TrainState: pass start=(state.params, "
            "state.state) to start anew from its weights, or initial=state to continue"
        )
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise TypeError(
            "start must be a pair (params, state), as the model's init gives it, got "
            + (f"{len(start)} of them" if isinstance(start, tuple) else type(start).__name__)
        )
    pairs = zip(("params", "state"), start, own, strict=True)
    params, state = (_as_own(f"start's {who}", *pair) for who, *pair in pairs)
    return params, state


def _as_own(who: str, given: Any, own: Any) -> Any:
    found, wanted = (leaves_by_path(tree) for tree in (given, own))
    different = unlike(
        *({path: str(np.shape(x)) for path, x in t.items()} for t in (found, wanted))
    )
    if different:
        raise ValueError(f"{who} must be those of the model: {different}")
    made = []
    for path, x in wanted.items():
        leaf = jnp.asarray(found[path])
        floats = all(jnp.issubdtype(y.dtype, jnp.floating) for y in (leaf, x))
        if leaf.dtype != x.dtype and not floats:
            raise TypeError(f"{who} must have {x.dtype} at {path!r}, got {leaf.dtype}")
        # Of another precision: an average, for example, is kept in float32.
        made.append(leaf if leaf.dtype == x.dtype else leaf.astype(x.dtype))
    return jax.tree.unflatten(jax.tree.structure(own), made)


def unlike(given: Mapping[str, str], own: Mapping[str, str]) -> str:
    """How arrays, by path, differ from those of a model, for a message; empty if they do not."""
    lines = [
        f"{path!r} is {given[path]}, the model's is {x}"
        for path, x in own.items()
        if path in given and given[path] != x
    ]
    lacking, others = ([p for p in a if p not in b] for a, b in ((own, given), (given, own)))
    lines += [f"missing are {shown(lacking)}"] if lacking else []
    lines += [f"the model has no {shown(others)}"] if others else []
    rest = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join([*lines[:SHOWN], *rest])


# Compiled functions, so that JAX keeps what it finds out: they are only ever asked for shapes.


@functools.partial(jax.jit, static_argnums=0)
def _untrained(model: Model, inputs: Any) -> Any:
    """Logits of a student before training, in evaluation mode."""
    params, state = model.init(jax.random.key(0), inputs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} of the model must be floating point to be "
                f"trained, got {leaf.dtype}: what does not train belongs in its state"
            )
    return model.predict(params, state, inputs).logits


@jax.jit
def _taught(teacher: Teacher, inputs: Any) -> Any:
    return teacher(inputs, key=jax.random.key(0)).logits
