"""One optimizer step as a pure function; ``run`` and ``fit`` scan over it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from distill_jax import _checks
from distill_jax import teachers as teachers_
from distill_jax.objectives import Context, Objective, Term
from distill_jax.objectives.context import AVERAGE
from distill_jax.rules import Book
from distill_jax.teachers import Teacher
from distill_jax.training.accumulation import Forward, gradients
from distill_jax.types import Batch, Model, Params, State

VIEW = "inputs:"
"""How the names of columns begin that hold the inputs of another view of the examples."""

Augment = Callable[[Array, dict[str, Any]], dict[str, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs; never the teachers.

    Attributes:
      step: Optimizer steps taken, an integer scalar (one a run, where runs are vmapped).
      params: The student's parameters.
      state: The student's mutable state.
      term_params: Parameters that terms own, by term.
      term_state: State that terms own, by term.
      opt_state: The optimizer's, over ``{"student": params, "terms": term_params}``.
      average: Moving average of ``(params, state)``, or None.
      key: Every step's key is folded from it and ``step``.
    """

    step: Any
    params: Params
    state: State
    term_params: dict[str, PyTree]
    term_state: dict[str, PyTree]
    opt_state: PyTree
    average: PyTree
    key: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed in a compiled step. Equal recipes share one program."""

    model: Model
    optimizer: optax.GradientTransformation
    augment: Augment | None = None
    averaging: bool = False
    microbatches: int = 1

    def init(
        self, objective: Objective, batch: Batch, teachers: Mapping[str, Teacher], key: Array
    ) -> TrainState:
        """The state before the first step; of ``batch`` only shapes and dtypes matter."""
        key_model, key_terms, key_steps = jax.random.split(key, 3)
        columns = self._columns(batch, key)
        params, state = self.model.init(key_model, columns["inputs"])
        average = teachers_.start_average((params, state)) if self.averaging else None

        def first_context():
            forward, step = self._forward(teachers, average), jnp.zeros((), jnp.int32)
            student, _ = forward.student(params, state, columns, key)
            views = forward.views(params, state, columns)
            return Context(student, forward.teach(columns), columns, step, key, views)

        term_params, term_state = objective.init(key_terms, jax.eval_shape(first_context))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state=state,
            term_params=term_params,
            term_state=term_state,
            opt_state=self.optimizer.init({"student": params, "terms": term_params}),
            average=average,
            key=key_steps,
        )

    def _columns(self, batch: Batch, key: Array) -> dict[str, Any]:
        """The batch as models and losses see it."""
        # Whatever cuts the batch out of its array stays out of the step's arithmetic, so that run
        # and fit, which cut differently, give the same bits.
        columns = jax.lax.optimization_barrier(dict(batch))
        if self.augment is not None:
            columns = dict(self.augment(key, columns))
        if "where" in columns:
            # Rows that count nowhere may hold NaN, which a product with a gradient of 0 would keep.
            keep = columns["where"].reshape(len(columns["where"]), -1).any(1)
            for name, x in columns.items():
                if name in ("inputs", "teacher_inputs") or name.startswith(VIEW):
                    columns[name] = jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        return columns

    def _forward(self, teachers: Mapping[str, Teacher], average: PyTree) -> Forward:
        if self.averaging:
            teachers = {**teachers, AVERAGE: teachers_.teacher(self.model, *average)}

        def teach(columns):
            inputs = columns.get("teacher_inputs", columns["inputs"])
            with jax.named_scope("teacher"):
                return {name: teacher(inputs) for name, teacher in teachers.items()}

        def student(params, state, columns, key):
            with jax.named_scope("student"):
                return self.model.apply(params, state, columns["inputs"], key=key, train=True)

        def views(params, state, columns):
            with jax.named_scope("student"):
                return {
                    name.removeprefix(VIEW): jax.lax.stop_gradient(
                        self.model.predict(params, state, x)
                    )
                    for name, x in columns.items()
                    if name.startswith(VIEW)
                }

        return Forward(teach, student, views)

    def step(
        self,
        train: TrainState,
        batch: Batch,
        objective: Objective,
        teachers: Mapping[str, Teacher],
        decay: Float[Array, ""] | None = None,
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """One step: a new state, and ``loss`` with each term's mean by name."""
        key, key_augment = jax.random.split(jax.random.fold_in(train.key, train.step))
        columns = self._columns(batch, key_augment)
        trainable = {"student": train.params, "terms": train.term_params}
        found = gradients(
            self._forward(teachers, train.average),
            objective,
            trainable,
            train.state,
            train.term_state,
            columns,
            train.step,
            key,
            microbatches=self.microbatches,
        )
        average = train.average
        with jax.named_scope("update"):
            updates, opt_state = self.optimizer.update(found.grads, train.opt_state, trainable)
            trainable: Any = optax.apply_updates(trainable, updates)
            if decay is not None:
                new = trainable["student"], found.state
                average = teachers_.update_average(average, new, decay)
        train = TrainState(
            step=train.step + 1,
            params=trainable["student"],
            state=found.state,
            term_params=trainable["terms"],
            term_state=found.term_state,
            opt_state=opt_state,
            average=average,
            key=train.key,
        )
        return train, {"loss": found.loss} | {n: part.mean for n, part in found.parts.items()}

    def convolves(self, *arguments: Any) -> bool:
        """Whether a step holds a convolution, which XLA's CPU backend runs slowly in a scan, and
        may be a program of its own."""
        leaves, structure = jax.tree.flatten(arguments)
        return _convolves(self, structure, tuple(jax.typeof(x) for x in leaves))


@functools.lru_cache(maxsize=64)
def _convolves(recipe: Recipe, structure: Any, kinds: tuple[Any, ...]) -> bool:
    # Tracing a step takes as long as running a few: it is done once for each kind of arguments.
    leaves = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in kinds]
    arguments = jax.tree.unflatten(structure, leaves)
    program = jax.make_jaxpr(recipe.step)(*arguments)
    # A traced learning rate inside the optimizer: the step runs inside another program.
    traced = any(isinstance(x, jax.core.Tracer) for x in program.consts)
    return not traced and "conv_general_dilated" in str(program)


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
    columns = jax.eval_shape(lambda batch: recipe._columns(batch, key), row)
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
