"""Where the time of a step goes: a breakdown from one profiled step.

The compiler reorders and fuses operations, so the parts of a program cannot be timed one after
another. They carry names, though: ``Recipe.step`` computes under
``teacher``, ``student``, ``loss`` and ``update`` (``jax.named_scope``), the backward pass of a part
keeps its name, and a profile says when each operation ran.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.objectives import Context, Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _preparing
from distill_jax.training.averaging import Decay
from distill_jax.training.devices import Layout
from distill_jax.training.step import Recipe, TrainState
from distill_jax.training.step._compiled import steps_of
from distill_jax.training.step._forward import Augment
from distill_jax.training.step._freezing import Trainable
from distill_jax.training.step._gradients import gradients
from distill_jax.training.step._updating import Optimizer
from distill_jax.training.watching._profiles import profiled
from distill_jax.types import Batch, Model, Params, State

PARTS = ("input", "teacher", "student", "loss", "update", "other")


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Seconds of one step by part.

    Attributes:
      seconds: ``input`` (drawing a batch and moving it to the device), ``teacher``, ``student`` and
        ``loss`` (forward and backward), ``update`` (optimizer and moving average) and ``other``
        (operations without a name, and idle time of the device), in that order.
      method: ``"profile"``, or ``"parts"`` if the profile of this device does not show operations:
        then the parts were compiled and timed alone, and differences taken.
    """

    seconds: dict[str, float]
    method: str

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())

    def rows(self) -> list[dict[str, Any]]:
        """``{"part", "ms", "share"}`` for each part and for the step, for ``report.show``."""
        parts = {**self.seconds, "step": self.step}
        return [
            {"part": name, "ms": 1e3 * seconds, "share": seconds / self.step}
            for name, seconds in parts.items()
        ]


@checked
def breakdown(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]],
    *,
    key: Array,
    batch_size: int | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    start: tuple[Params, State] | None = None,
    trainable: Trainable | None = None,
    average_decay: Decay | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    compute_dtype: Any = None,
    remat: bool = False,
    layout: Layout | None = None,
) -> Breakdown:
    """Where the time of a step goes, from one step run under the profiler.

    Takes what ``fit`` takes, and runs three steps of the same program; the state is thrown away.
    Every instant of the third is attributed to the operations that run on the first device then,
    in equal shares if there are several. A fused operation belongs to the part of its result, a
    collective to the part that needs it. The input is timed separately, although ``fit`` can draw
    batches ahead while the device computes.

    Args:
      model, objective, optimizer, key, batch_size, teachers, initial, start, trainable,
        average_decay, augment, microbatches, compute_dtype, remat, layout: As in ``fit``.
      data: As in ``fit``; of a stream, two batches are drawn.

    Returns:
      Seconds per part.

    Raises:
      TypeError, ValueError: as in ``fit``, if the arguments do not fit together.
      ValueError: under ``jax_disable_jit``.

    Example::

        found = training.breakdown(model, objective, optimizer, data, key=key, batch_size=128)
        report.show(found.rows())
    """
    _checks.compiles("breakdown", "time run or fit, which do not need it")
    with _preparing.opened(data, batch_size) as source:
        ready = _preparing.prepared(
            model,
            objective,
            optimizer,
            source,
            key=key,
            teachers=teachers,
            initial=initial,
            start=start,
            trainable=trainable,
            average_decay=average_decay,
            augment=augment,
            microbatches=microbatches,
            compute_dtype=compute_dtype,
            remat=remat,
            layout=layout,
        )
        batches = (batch for batch, _ in source.batches(None, ready))
        state, batch = ready.start(), ready.put(next(batches))
        rest = ready.objective, ready.teachers, ready.decay
        step = steps_of.lower(ready.recipe, 1, layout, state, [batch], *rest).compile()
        for _ in range(2):
            state, _ = jax.block_until_ready(step(state, [batch], *rest))
        started = time.perf_counter()
        second = jax.block_until_ready(ready.put(next(batches, source.columns)))
        seconds = {"input": time.perf_counter() - started}
    if jax.tree.map(jnp.shape, second) == jax.tree.map(jnp.shape, batch):
        batch = second  # otherwise it is a shorter one, or there is none
    (state, _), whole, found = profiled(lambda: step(state, [batch], *rest), step.as_text() or "")
    method = "profile"
    if not found:
        found = _alone(ready.recipe, whole, state, batch, ready.objective, ready.teachers)
        method = "parts"
    seconds |= {name: found.get(name, 0.0) for name in PARTS[1:-1]}
    seconds["other"] = max(0.0, whole - sum(found.values()))
    return Breakdown(seconds, method)


def _alone(
    recipe: Recipe, whole: float, state: TrainState, batch: Any, objective: Any, teachers: Any
) -> dict[str, float]:
    """Seconds per part of a step, each compiled and timed alone; the rest of ``whole``: update."""
    trained, frozen = recipe.split(state.params)
    trainable = {"student": trained, "terms": state.term_params}

    @jax.jit
    def teach(state, batch, teachers):
        columns = recipe.columns(batch, state.key)
        return recipe.forward(teachers, state.average).teach(columns, state.key)

    @jax.jit
    def student(state, batch):
        columns = recipe.columns(batch, state.key)
        forward = recipe.forward({}, state.average)
        views = forward.views(state.params, state.state, columns)
        return forward.student(state.params, state.state, columns, state.key)[0], views

    @jax.jit
    @functools.partial(jax.grad, allow_int=True)
    def loss(student, views, taught, state, batch, objective):
        columns = recipe.columns(batch, state.key)
        context = Context(student, taught, columns, state.step, state.key, views)
        return objective(state.term_params, state.term_state, context)[0]

    @jax.jit
    def gradient(trainable, frozen, state, batch, objective, teachers):
        columns = recipe.columns(batch, state.key)
        arguments = objective, trainable, state.state, state.term_state, columns, state.step
        forward = recipe.forward(teachers, state.average, frozen)
        return gradients(forward, *arguments, state.key, microbatches=recipe.microbatches)

    taught = teach(state, batch, teachers)
    outputs = student(state, batch)
    before_update = _least(gradient, trainable, frozen, state, batch, objective, teachers)
    found = {
        "teacher": _least(teach, state, batch, teachers) if teachers or recipe.averaging else 0.0,
        "loss": _least(loss, *outputs, taught, state, batch, objective),
        "update": max(0.0, whole - before_update),
    }
    found["student"] = max(0.0, before_update - found["teacher"] - found["loss"])
    return found


def _least(call: Callable[..., Any], *arguments: Any, times: int = 3) -> float:
    """The shortest time of a few calls in seconds, after one that may compile."""
    jax.block_until_ready(call(*arguments))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
