"""``run``: training as one pure function. ``fit``: training as a loop that one can watch.

Both scan over the same step. With the same key and the same batches they give the same bits.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax import data as data_
from distill_jax.objectives import Objective
from distill_jax.teachers import Teacher
from distill_jax.training.progress import Progress
from distill_jax.training.step import VIEW, Augment, Recipe, TrainState, check, check_initial
from distill_jax.types import Batch, Model

Metrics = dict[str, Float[Array, " steps"]]


class NonFiniteLoss(FloatingPointError):
    """Training has met NaN or inf; ``step``, ``terms`` and the ``history`` so far are attached."""

    def __init__(self, message: str, step: int, terms: list[str], history: dict[str, np.ndarray]):
        super().__init__(message)
        self.step, self.terms, self.history = step, terms, history


def run(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    data: Batch,
    *,
    key: Array,
    steps: int,
    batch_size: int,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    average_decay: float | Float[Array, ""] | None = None,
    augment: Augment | None = None,
    unroll: int = 1,
    per_step: bool | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains a student on arrays in memory: one compiled program, no host in between.

    Pure, and made to be vmapped: over keys, weights and options of terms, teachers, or what goes
    into the optimizer. ``jax.vmap(lambda key: run(..., key=key))(keys)`` trains one student a key,
    with the data shared. Data and teachers are arguments of the program, never constants in it.

    A program is compiled once for each ``model``, ``optimizer`` and ``augment`` object: make them
    once and keep them. An optimizer made inside a vmapped function, around a traced learning rate,
    is fine too.

    Args:
      model: The student.
      objective: What to minimise.
      optimizer: Any Optax optimizer. It sees ``{"student": params, "terms": parameters of terms}``.
      data: Named arrays with one leading axis: ``inputs``, and what the terms read. Teachers look
        at ``teacher_inputs`` where the data has them.
      key: Decides start, order of rows, dropout, and what augmentation and terms draw.
      steps: Optimizer steps.
      batch_size: Rows a step, cut from one stream of shuffled epochs (``data.batches``).
      teachers: Teachers by name.
      initial: A state to go on from. Its own key and step count on; the order of rows is that of
        ``key``, from where that many steps end: pass the key of the run before.
      average_decay: If given, a moving average of the student is kept with this decay, and teaches
        under the name "average".
      augment: ``(key, batch) -> batch``, run inside the step.
      unroll: Steps unrolled in the scan.
      per_step: Whether to run one program a step in place of a scan over all. Scans are slow on
        CPU where the step holds a convolution; None finds out. Under ``jit`` or ``vmap`` it is
        always a scan.

    Returns:
      The state after the last step, and metrics, each ``[steps]``: ``loss`` and every term's mean.

    Raises:
      ValueError: before the first step, for data, teachers or terms that do not fit; see
        ``data.check``. Values that are traced are not looked at.
    """
    teachers = _named(teachers)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    data = {name: jnp.asarray(column) for name, column in data.items()}
    data_.check(
        data, batch_size=batch_size, values=_seen(data), missing=_may_miss(model, teachers, data)
    )
    key_init, key_order = _keys(key)
    recipe = Recipe(model, optimizer, augment, average_decay is not None)
    decay = _decay(average_decay)
    batch = {name: column[:1] for name, column in data.items()}
    check(recipe, objective, data, teachers)
    first = _first(recipe, objective, batch, teachers, key_init, initial)
    start = 0 if initial is None else initial.step
    index = data_.batch_indices(key_order, len(data["inputs"]), batch_size, steps, start=start)
    arguments = (first, index, data, objective, teachers, decay)
    if per_step is None:
        per_step = _per_step(recipe, *arguments)
    if not per_step or _traced(arguments):
        return _run(recipe, unroll, *arguments)
    history = []
    state = jax.tree.map(jnp.copy, first)
    for i in range(steps):
        rows = data_.take(data, index[i])
        state, metrics = _steps(recipe, 1, state, [rows], objective, teachers, decay)
        history.append(metrics)
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), *history)


def fit(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    data: Batch | Iterable[Batch],
    *,
    key: Array,
    steps: int,
    batch_size: int | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    average_decay: float | Float[Array, ""] | None = None,
    augment: Augment | None = None,
    steps_per_call: int | None = None,
    unroll: int = 1,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callable[[TrainState, Mapping[str, np.ndarray]], None]] = (),
    progress: bool = True,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains a student from a stream of batches, with a progress bar and a watch on the loss.

    The same step as ``run``, in calls of a few steps. Metrics are read one call late, so that the
    device is never waited for.

    Args:
      model, objective, optimizer, key, teachers, initial, average_decay, augment, unroll: As in
        ``run``.
      data: Batches, in order; or arrays in memory, cut as ``run`` cuts them. With ``initial``, a
        stream of batches must begin where the run before stopped.
      steps: Optimizer steps; fewer are taken, with a warning, if batches end.
      batch_size: Rows a step, for arrays in memory only.
      steps_per_call: Steps in one compiled call. None takes 16, or somewhat less where that
        divides ``steps`` and ``evaluate_every``, or 1 where the step holds a convolution on CPU.
      evaluate: Called with the state, gives numbers to add to the history.
      evaluate_every: Steps between evaluations, rounded up to whole calls; the last state is
        evaluated in any case.
      callbacks: Called after each call with the state and that call's metrics, each ``[steps]``.
        The state's arrays are given to the next step: copy what is to be kept.
      progress: Whether to show a bar, on a terminal.

    Returns:
      The state after the last step, and the history: ``loss`` and each term's mean, ``[steps]``,
      and what ``evaluate`` gave, with ``evaluated_at``, the steps at which it did.

    Raises:
      NonFiniteLoss: as soon as a loss is NaN or inf; names step and terms.
      ValueError: before the first step, as in ``run``; for batches, of the first one.
    """
    teachers = _named(teachers)
    for name, value in (("steps", steps), ("steps_per_call", steps_per_call)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if evaluate_every is not None and (evaluate is None or evaluate_every < 1):
        raise ValueError(
            f"evaluate_every must be 1 or more, and go with evaluate, got {evaluate_every}"
        )
    key_init, key_order = _keys(key)
    start = 0 if initial is None else int(initial.step)
    may_miss = functools.partial(_may_miss, model, teachers)
    seen, stream = _stream(data, key_order, batch_size, steps, start, may_miss)
    recipe = Recipe(model, optimizer, augment, average_decay is not None)
    check(recipe, objective, seen, teachers)
    decay = _decay(average_decay)
    example = {name: column[:1] for name, column in seen.items()}
    state = _first(recipe, objective, example, teachers, key_init, initial)
    if initial is not None:
        state = jax.tree.map(jnp.copy, state)  # calls give their state's memory away
    if steps_per_call is None:
        slow = jax.default_backend() == "cpu" and recipe.convolves(
            state, example, objective, teachers, decay
        )
        steps_per_call = 1 if slow else _call_length(steps, evaluate_every)

    history = _History(start)
    done, evaluated = 0, 0
    with Progress(steps, shown=progress) as bar:
        for group in _groups(stream, steps_per_call):
            state, metrics = _steps(recipe, unroll, state, group, objective, teachers, decay)
            done += len(group)
            history.add(metrics)
            bar.update(done, history.latest)
            for callback in callbacks:
                callback(state, history.settle())
            due = evaluate_every is not None and done - evaluated >= evaluate_every
            if evaluate is not None and (due or done == steps):
                history.settle()
                evaluated = done
                history.evaluated(start + done, evaluate(state))
        history.settle()
        bar.update(done, history.latest)
        if done < steps:
            warnings.warn(f"data ended after {done} of {steps} steps", stacklevel=2)
            if evaluate is not None and evaluated != done:
                history.evaluated(start + done, evaluate(state))
    return state, history.arrays()


def _stream(
    data: Batch | Iterable[Batch],
    key: Array,
    batch_size: int | None,
    steps: int,
    start: int,
    may_miss: Callable[[Batch], tuple[str, ...]],
) -> tuple[Batch, Iterator[Batch]]:
    """What can be looked at before the first step (all rows, or a batch), and the batches."""
    if isinstance(data, Mapping):
        if batch_size is None:
            raise ValueError("batch_size must be given for arrays in memory")
        columns = {str(name): np.asarray(column) for name, column in data.items()}
        data_.check(
            columns, batch_size=batch_size, values=_seen(columns), missing=may_miss(columns)
        )
        return columns, data_.batches(
            columns, key=key, batch_size=batch_size, steps=steps, start=start
        )
    if batch_size is not None:
        raise ValueError("batch_size is for arrays in memory; batches have a size of their own")
    stream = itertools.islice(iter(data), steps)
    first = next(stream, None)
    if first is None:
        raise ValueError("data has no batch")
    data_.check(first, values=_seen(first), missing=may_miss(first))
    return first, itertools.chain([first], stream)


def _seen(data: Batch) -> list[str]:
    """Columns that models see, looked at in every row; the objective looks at the others."""
    return [n for n in data if n in ("inputs", "teacher_inputs") or n.startswith(VIEW)]


def _may_miss(model: Any, teachers: Mapping[str, Any], data: Batch) -> tuple[str, ...]:
    """Columns in which NaN is a missing value, to all that look at them."""
    seen_by_teachers = "teacher_inputs" if "teacher_inputs" in data else "inputs"
    own = [name for name in data if name == "inputs" or name.startswith(VIEW)]
    found = {**dict.fromkeys(own, getattr(model, "missing", False)), "teacher_inputs": True}
    if teachers and seen_by_teachers in found:
        found[seen_by_teachers] &= all(getattr(t, "missing", False) for t in teachers.values())
    return tuple(name for name, allowed in found.items() if allowed)


def _named(teachers: Any) -> dict[str, Any]:
    if teachers is not None and not isinstance(teachers, Mapping):
        raise TypeError(
            f"teachers must be a dictionary of teachers by name, got {type(teachers).__name__}: "
            'pass teachers={"teacher": teacher}'
        )
    return dict(teachers or {})


def _first(recipe: Recipe, objective, batch, teachers, key, initial: Any) -> TrainState:
    if initial is None:
        return _init(recipe, objective, batch, teachers, key)
    check_initial(initial, jax.eval_shape(recipe.init, objective, batch, teachers, key))
    return initial


def _keys(key: Array) -> tuple[Array, Array]:
    key_init, key_order = jax.random.split(key)
    return key_init, key_order


def _decay(decay: Any) -> Array | None:
    if decay is None:
        return None
    _checks.between(0.0, 1.0, average_decay=decay)
    return jnp.asarray(decay, jnp.float32)


def _traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _per_step(recipe: Recipe, first, index, data, objective, teachers, decay) -> bool:
    if jax.default_backend() != "cpu" or _traced((first, index, data, objective, teachers)):
        return False
    rows = {name: column[:1] for name, column in data.items()}
    return recipe.convolves(first, rows, objective, teachers, decay)


@functools.partial(jax.jit, static_argnums=0)
def _init(recipe: Recipe, objective, batch, teachers, key) -> TrainState:
    return recipe.init(objective, batch, teachers, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(recipe: Recipe, unroll: int, state, index, data, objective, teachers, decay):
    def body(state, rows):
        batch = {name: column[rows] for name, column in data.items()}
        return recipe.step(state, batch, objective, teachers, decay)

    return jax.lax.scan(body, state, index, unroll=unroll)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _steps(recipe: Recipe, unroll: int, state, group, objective, teachers, decay):
    def body(state, batch):
        return recipe.step(state, batch, objective, teachers, decay)

    if len(group) == 1:
        state, metrics = body(state, group[0])
        return state, jax.tree.map(lambda x: x[None], metrics)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *group)
    return jax.lax.scan(body, state, stacked, unroll=unroll)


def _call_length(steps: int, evaluate_every: int | None) -> int:
    """Steps in a call: a shorter call at the end would be a program of its own."""
    whole = math.gcd(steps, evaluate_every or steps)
    return next((n for n in range(16, 3, -1) if whole % n == 0), 16)


def _groups(stream: Iterable[Batch], size: int) -> Iterator[list[dict[str, Any]]]:
    """Up to ``size`` batches of equal shapes: another shape begins a group of its own."""
    group: list[dict[str, Any]] = []
    shapes = None
    for batch in stream:
        batch = dict(batch)
        these = jax.tree.map(np.shape, batch)
        if group and (these != shapes or len(group) == size):
            yield group
            group = []
        shapes = these
        group.append(batch)
    if group:
        yield group


class _History:
    """Metrics by step. The newest call's are left on the device until the next one is under way."""

    def __init__(self, start: int):
        self.start = start
        self.calls: list[dict[str, np.ndarray]] = []
        self.pending: Any = None
        self.evaluations: list[tuple[int, dict[str, float]]] = []

    @property
    def latest(self) -> dict[str, float]:
        return {n: float(x[-1]) for n, x in self.calls[-1].items()} if self.calls else {}

    def add(self, metrics: Any) -> None:
        self.settle()
        self.pending = metrics

    def settle(self) -> dict[str, np.ndarray]:
        """Reads the pending metrics; raises if one of them is not finite."""
        if self.pending is not None:
            metrics = {name: np.asarray(x) for name, x in self.pending.items()}
            self.pending = None
            self.calls.append(metrics)
            bad = ~np.isfinite(np.stack(list(metrics.values()))).all(0)
            if bad.any():
                self._refuse(metrics, int(bad.argmax()))
        return self.calls[-1] if self.calls else {}

    def _refuse(self, metrics: dict[str, np.ndarray], i: int) -> None:
        step = self.start + sum(len(c["loss"]) for c in self.calls[:-1]) + i
        values = {name: float(x[i]) for name, x in metrics.items()}
        terms = [n for n, x in values.items() if n != "loss" and not np.isfinite(x)]
        rest = ", ".join(f"{n} {x:.4g}" for n, x in values.items() if n not in (*terms, "loss"))
        if terms:
            what = " and ".join(f"term {n!r} is {values[n]:g}" for n in terms)
        else:
            what = f"every term is finite and the loss is {values['loss']:g}: look at the weights"
        raise NonFiniteLoss(
            f"training stopped at step {step}: {what}" + (f" ({rest})" if rest else "")
            + ". Try a smaller learning rate or clipped gradients, and look for invalid rows",
            step, terms, self.arrays(),
        )  # fmt: skip

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        taken = {"evaluated_at", *self.calls[0]} & values.keys()
        if taken:
            raise ValueError(f"evaluate must give names of its own, got {sorted(taken)}")
        if self.evaluations and self.evaluations[0][1].keys() != values.keys():
            raise ValueError(
                f"evaluate must give the same names each time: {sorted(values)} after "
                f"{sorted(self.evaluations[0][1])}"
            )
        self.evaluations.append((step, dict(values)))

    def arrays(self) -> dict[str, np.ndarray]:
        out = {}
        if self.calls:
            out = {n: np.concatenate([c[n] for c in self.calls]) for n in self.calls[0]}
        if self.evaluations:
            out["evaluated_at"] = np.array([step for step, _ in self.evaluations])
            for name in self.evaluations[0][1]:
                out[name] = np.array([values[name] for _, values in self.evaluations])
        return out
