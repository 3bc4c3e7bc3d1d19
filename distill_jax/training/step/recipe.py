"""One optimizer step as a pure function; ``run`` and ``fit`` scan over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from distill_jax import teachers as teachers_
from distill_jax.objectives import Context, Objective
from distill_jax.teachers import Teacher
from distill_jax.training.step import _freezing, _updating
from distill_jax.training.step._forward import Augment, Forward, forward_passes, prepare_columns
from distill_jax.training.step._gradients import Gradients, gradients
from distill_jax.types import Batch, Model, Params, State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs. Teachers are never part of it.

    Attributes:
      step: Optimizer steps taken, an integer scalar (``[runs]`` where runs are vmapped).
      params: The student's parameters.
      state: The student's mutable state.
      term_params: Parameters that terms own, by term.
      term_state: State that terms own, by term.
      opt_state: The optimizer's.
      average: Moving average of ``(params, state)``, or None. It is evaluated as it is:
        ``evaluate(model, *state.average, data)``.
      key: A random key; each step uses ``fold_in(key, step)``.
    """

    step: Any
    params: Params
    state: State
    term_params: dict[str, PyTree]
    term_state: dict[str, PyTree]
    opt_state: PyTree
    average: PyTree
    key: Any

    @property
    def eval_params(self) -> Params:
        """The student's parameters to evaluate with: ``params``, for most optimizers.

        Optax's ``lookahead`` means its slow parameters, and ``contrib.schedule_free`` the average
        of its steps (``schedule_free_eval_params``): these are what such an optimizer optimises,
        while the step computes gradients at ``params``. Of vmapped runs, ask under ``vmap`` too.
        """
        return _updating.eval_params(self.params, self.term_params, self.opt_state)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed in a compiled step. Equal recipes share one program.

    Attributes:
      model: The student.
      optimizer: As ``_updating.accepted`` returns it.
      augment: ``(key, batch) -> batch``, or None.
      averaging: Whether a moving average of the student is kept.
      microbatches: Pieces in which a batch is computed.
      trains: Whether each of the student's parameters trains, in the order of the leaves; None if
        all do.
    """

    model: Model
    optimizer: Any
    augment: Augment | None = None
    averaging: bool = False
    microbatches: int = 1
    trains: tuple[bool, ...] | None = None

    def init(
        self,
        objective: Objective,
        batch: Batch,
        teachers: Mapping[str, Teacher],
        key: Array,
        weights: tuple[Params, State] | None = None,
    ) -> TrainState:
        """The state before the first step; of ``batch`` only shapes and dtypes matter.

        ``weights`` are the student's to start from, in place of those that its model makes.
        """
        key_model, key_terms, key_steps = jax.random.split(key, 3)
        columns = self.columns(batch, key)
        made = self.model.init(key_model, columns["inputs"]) if weights is None else weights
        params, state = made
        average = teachers_.start_average((params, state)) if self.averaging else None

        def first_context():
            forward, step = self.forward(teachers, average), jnp.zeros((), jnp.int32)
            student, _ = forward.student(params, state, columns, key)
            views = forward.views(params, state, columns)
            return Context(student, forward.teach(columns, key), columns, step, key, views)

        term_params, term_state = {}, {}
        if any(term.init is not None for term in objective.terms):
            term_params, term_state = objective.init(key_terms, jax.eval_shape(first_context))
        trainable = {"student": self.split(params)[0], "terms": term_params}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state=state,
            term_params=term_params,
            term_state=term_state,
            opt_state=_updating.start(self.optimizer, trainable),
            average=average,
            key=key_steps,
        )

    def columns(self, batch: Batch, key: Array) -> dict[str, Any]:
        """The batch as models and losses see it, augmented with ``key``."""
        return prepare_columns(batch, key, self.augment)

    def split(self, params: Params) -> tuple[Params, Params]:
        """The student's parameters that train, and the others; see ``_freezing``."""
        return _freezing.split(params, self.trains)

    def forward(
        self, teachers: Mapping[str, Teacher], average: PyTree, frozen: Params | None = None
    ) -> Forward:
        """The forward passes of the student and of its teachers, its moving average included.

        With ``frozen``, those of the student take the other parameters, from :meth:`split`.
        """
        average = average if self.averaging else None
        return forward_passes(self.model, teachers, average, frozen)

    def step(
        self,
        train: TrainState,
        batch: Batch,
        objective: Objective,
        teachers: Mapping[str, Teacher],
        decay: Float[Array, ""] | Partial | None = None,
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """One step: a new state, and ``loss`` with each term's mean by name.

        ``decay`` is that of the moving average, or a function of the steps taken before.
        """
        key, key_augment = jax.random.split(jax.random.fold_in(train.key, train.step))
        columns = self.columns(batch, key_augment)
        trained, frozen = self.split(train.params)
        trainable = {"student": trained, "terms": train.term_params}
        forward = self.forward(teachers, train.average, frozen)

        def at(trainable: Mapping[str, PyTree]) -> Gradients:
            own = train.state, train.term_state
            return gradients(
                forward, objective, trainable, *own, columns, train.step, key,
                microbatches=self.microbatches,
            )  # fmt: skip

        found, average = at(trainable), train.average
        with jax.named_scope("update"):
            trainable, opt_state = _updating.update(
                self.optimizer, at, found, train.opt_state, trainable
            )
            params = _freezing.join(trainable["student"], frozen)
            if decay is not None:
                new = params, found.state
                now = decay(train.step) if callable(decay) else decay
                average = teachers_.update_average(average, new, now)
        train = TrainState(
            step=train.step + 1,
            params=params,
            state=found.state,
            term_params=trainable["terms"],
            term_state=found.term_state,
            opt_state=opt_state,
            average=average,
            key=train.key,
        )
        return train, {"loss": found.loss} | {n: part.mean for n, part in found.parts.items()}
