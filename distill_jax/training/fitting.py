"""``fit``: training as a loop that one can watch, stop, resume, and spread over devices."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from distill_jax import data as data_
from distill_jax._fingerprints import rows_and_checksum
from distill_jax.data.batching import pad
from distill_jax.objectives import Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _preparing as _input
from distill_jax.training.checkpoints import Checkpoints
from distill_jax.training.checkpoints._configuration import configuration
from distill_jax.training.checkpoints.saving import Saver
from distill_jax.training.devices import Layout, _hosts
from distill_jax.training.devices._preemption import EXIT_CODE, stopping
from distill_jax.training.step import Recipe, TrainState
from distill_jax.training.step._checking import check, check_initial
from distill_jax.training.step._compiled import init, steps_of
from distill_jax.training.step._forward import Augment
from distill_jax.training.step._gradients import divides
from distill_jax.training.watching import logs as logs_
from distill_jax.training.watching._progress import Progress
from distill_jax.training.watching._tracing import tracing
from distill_jax.training.watching.history import History
from distill_jax.types import Batch, Model


def fit(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]],
    *,
    key: Array,
    steps: int,
    batch_size: int | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    average_decay: float | Float[Array, ""] | None = None,
    augment: Augment | None = None,
    order_key: Array | None = None,
    microbatches: int = 1,
    compute_dtype: Any = None,
    remat: bool = False,
    layout: Layout | None = None,
    checkpoints: Checkpoints | None = None,
    steps_per_call: int | None = None,
    unroll: int = 1,
    prefetch: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callable[[TrainState, Mapping[str, np.ndarray]], None]] = (),
    log: logs_.Log | Sequence[logs_.Log] = (),
    trace: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains a student from a stream of batches, with a progress bar and a watch on the loss.

    The same step as ``run``, in calls of a few steps. Metrics are read one call late, so that the
    device is never waited for.

    With ``checkpoints``, the same call again goes on where the last one was cut off, and ends in
    the same bits, on the same devices. SIGTERM saves, and leaves by ``SystemExit`` with code 143.

    With several processes (``jax.distributed``) each calls ``fit`` alike, with one ``layout`` over
    the devices of all. Arrays in memory are the same in all of them; a stream gives each process
    rows of its own. See docs/scaling.md.

    Args:
      model, objective, optimizer, key, teachers, initial, average_decay, augment, order_key,
        microbatches, compute_dtype, remat, unroll: As in ``run``.
      data: Arrays in memory, cut as ``run`` cuts them; or a stream of batches, as
        ``data.positions`` takes it: an iterable, Grain's among them, or a function of the number
        of batches to leave out. Batches shorter than the first are filled up with rows that
        ``where`` leaves out; where the student has a state (a batch norm would see those rows, as
        zeros) only if a layout or microbatches need it. With ``initial``, a stream must begin
        where the run before stopped.
      steps: Optimizer steps, those before a resumption included; fewer are taken, with a warning,
        if batches end.
      batch_size: Rows a step, for arrays in memory only.
      layout: What lies on which device, ``training.data_parallel()`` or ``training.fsdp()`` for
        example; None takes JAX's default device.
      checkpoints: Where and when to save, and to resume from; by whole calls, and at the end.
      steps_per_call: Steps in one compiled call. None takes 16, or somewhat less where that
        divides ``steps``, ``evaluate_every`` and the steps between checkpoints, or 1 where the
        step holds a convolution on CPU.
      prefetch: Batches that a thread draws ahead and brings to the device. None takes 2 for a
        stream, and 0, no thread, for arrays in memory.
      evaluate: Called with the state, gives numbers to add to the history.
      evaluate_every: Steps between evaluations, rounded up to whole calls; the last state is
        evaluated in any case.
      callbacks: Called after each call with the state and that call's metrics, each ``[steps]``:
        they wait for the device. The state's arrays are given to the next step: copy what is to
        be kept.
      log: Called with ``(step, metrics)`` for each step, a call late: ``training.json_lines``,
        ``training.tensorboard``, or any function, or several.
      trace: A folder for a ``jax.profiler`` trace of a few calls after the first ones.
      progress: Whether to show a bar, on a terminal.

    Returns:
      The state after the last step, and the history of the steps taken by this call of ``fit``:
      ``loss`` and each term's mean, ``[steps]``, and what ``evaluate`` gave, with
      ``evaluated_at``, the steps at which it did.

    Raises:
      NonFiniteLoss: as soon as a loss is NaN or inf; names step and terms. With checkpoints, also
        where a state to be saved is not finite.
      CheckpointError: if a checkpoint cannot be written or read.
      ValueError: before the first step, as in ``run``; if the checkpoints are those of another
        configuration, if processes disagree, or if ``layout`` does not divide the batch.
    """
    logs = logs_.listed(log)
    teachers = _input.named(teachers)
    model = _input.wrapped(model, compute_dtype, remat)
    steps, steps_per_call, microbatches = _input.at_least_one(
        steps=steps, steps_per_call=steps_per_call, microbatches=microbatches
    )
    if prefetch is not None and prefetch < 0:
        raise ValueError(f"prefetch must be 0 or more, got {prefetch}")
    if callable(callbacks):
        raise TypeError("callbacks must be a list of functions, got one: pass callbacks=[function]")
    _check_checkpoints(checkpoints, layout, evaluate)
    if evaluate_every is not None and (evaluate is None or evaluate_every < 1):
        raise ValueError(
            f"evaluate_every must be 1 or more, and go with evaluate, got {evaluate_every}"
        )
    key_init, key_order = _input.keys(key, order_key)
    if initial is not None and not isinstance(initial, TrainState):
        raise TypeError(f"initial must be a TrainState, got {type(initial).__name__}")
    start = 0 if initial is None else int(initial.step)
    may_miss = functools.partial(_input.may_miss, model, teachers)
    source = _input.source(data, key_order, batch_size, steps, start, may_miss)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        recipe = Recipe(model, optimizer, augment, average_decay is not None, microbatches)
        check(recipe, objective, source.seen, teachers)
        decay = _input.moving(average_decay)
        rows = source.rows
        if layout is not None:
            rows *= 1 if source.whole else layout.processes
            layout.check(rows, microbatches=microbatches)
        if augment is None:  # or else it may change the number of rows
            divides(microbatches, rows)

        row = {name: column[:1] for name, column in source.seen.items()}
        expected = jax.eval_shape(recipe.init, objective, row, teachers, key_init)
        if initial is not None:
            check_initial(initial, expected)
        put: Callable[[Batch], Any] = jax.device_put
        if layout is not None:
            layout.check_params(expected.params, expected.term_params, teachers)
            put = layout.whole_batch if source.whole else layout.local_batch
        given: dict[str, Any] = {}
        if checkpoints is not None or jax.process_count() > 1:
            given = configuration(
                recipe,
                objective,
                teachers,
                {n: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for n, x in row.items()},
                key=key,
                decay=decay,
                order_key=None if order_key is None else jax.random.key_data(order_key).tolist(),
                microbatches=microbatches,
                compute_dtype=None if compute_dtype is None else str(jnp.dtype(compute_dtype)),
                remat=remat,
                data=rows_and_checksum(source.seen) if source.whole else None,
                initial=_input.started(initial),
            )
            if layout is not None:
                _hosts.agree(configuration=given, steps=steps, rows=rows)
                stack.enter_context(_hosts.together())
        if layout is not None:
            expected = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                expected,
                layout.shardings(expected),
            )
            teachers = layout.place_teachers(teachers)
            objective, decay, key_init = Layout(layout.mesh, batch=layout.batch).place(
                (objective, decay, key_init)
            )

        saver = None if checkpoints is None else stack.enter_context(checkpoints.open(given))
        found = None if saver is None else saver.restore(expected)
        position = None
        if found is not None:
            state, position = found
        elif initial is None:
            state = init(recipe, layout, objective, row, teachers, key_init)
        else:  # calls give their state's memory away
            state = jax.tree.map(jnp.copy, initial)
            state = state if layout is None else layout.place(state)
        done = int(state.step) - start
        if done > steps:
            raise ValueError(
                f"steps must be {done} or more, as many as the last checkpoint has taken, "
                f"got {steps}: steps count those before a resumption"
            )
        if steps_per_call is None:
            batch = {n: np.broadcast_to(x, (rows, *x.shape[1:])) for n, x in row.items()}
            slow = jax.default_backend() == "cpu" and recipe.convolves(
                state, batch, objective, teachers, decay
            )
            whole = (evaluate_every, checkpoints and checkpoints.every)
            steps_per_call = 1 if slow else _call_length(steps, *whole)

        pairs: Iterator[tuple[Batch, Any]] = iter(())
        if done < steps:
            pairs = itertools.islice(source.open(position), steps - done)
            if not source.whole:
                # A batch norm would see the rows that fill up: then only where sizes must be equal.
                even = layout is not None or microbatches > 1
                pairs = _filled(pairs, source.rows, even, even or not jax.tree.leaves(state.state))
            ahead = prefetch if prefetch is not None else 0 if source.whole else 2
            if layout is not None or ahead:
                pairs = data_.prefetch(pairs, put, ahead)
                stack.callback(pairs.close)
        tracer = stack.enter_context(tracing(trace))
        history = History(start + done, logs)
        shown = progress and jax.process_index() == 0
        bar = stack.enter_context(Progress(steps, shown=shown))
        stop = stack.enter_context(stopping(saver is not None))
        bar.update(done, {})
        evaluated = -1
        if done == steps and evaluate is not None:  # finished before
            history.evaluated(start + done, _floats(evaluate(state)))
        for group, position in _groups(pairs, steps_per_call):
            call = functools.partial(steps_of, recipe, unroll, layout)
            state, metrics = tracer.call(
                start + done, call, state, group, objective, teachers, decay
            )
            before, done = done, done + len(group)
            history.add(metrics)
            bar.update(done, history.latest)
            for callback in callbacks:
                callback(state, history.settle())
            values = None
            due = evaluate_every is not None and done // evaluate_every > before // evaluate_every
            if evaluate is not None and (due or done == steps):
                history.settle()
                values, evaluated = _floats(evaluate(state)), done
                history.evaluated(start + done, values)
            if saver is None:
                continue
            stopped = stop(start + done)
            best = checkpoints is not None and checkpoints.best is not None and values is not None
            if saver.due(start + done) or best or stopped or done == steps:
                _save(saver, history, start + done, state, position, values)
            if stopped:
                saver.wait()
                raise SystemExit(EXIT_CODE)
        history.settle()
        bar.update(done, history.latest)
        if done < steps:
            warnings.warn(f"data ended after {done} of {steps} steps", stacklevel=2)
            values = None
            if evaluate is not None and evaluated != done:
                values = _floats(evaluate(state))
                history.evaluated(start + done, values)
            if saver is not None:
                _save(saver, history, start + done, state, position, values)
    return state, history.arrays()


def _check_checkpoints(checkpoints: Any, layout: Layout | None, evaluate: Any) -> None:
    if checkpoints is None:
        return
    if not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"checkpoints must be Checkpoints, got {type(checkpoints).__name__}: pass "
            "training.Checkpoints(folder)"
        )
    if checkpoints.best is not None and evaluate is None:
        raise ValueError(
            f"checkpoints are to be best by {checkpoints.best!r}, and there is no evaluate that "
            "gives it: pass evaluate= and evaluate_every="
        )
    if layout is None and jax.process_count() > 1:
        raise ValueError(
            "checkpoints of several processes need a layout over the devices of all: pass "
            "layout=training.data_parallel()"
        )


def _save(saver: Saver, history: History, step: int, state: TrainState, position, values) -> None:
    """Saves a state, unless training has failed: a run that goes on from that would fail again."""
    history.settle()
    if not _finite((state.params, state.term_params)):
        history.refuse(step)
    saver.save(step, state, position, values)


@jax.jit
def _finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floats]).all()


def _floats(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"evaluate must return a dictionary of numbers, got {type(values).__name__}"
        )
    for name, x in values.items():
        if np.ndim(x):
            raise TypeError(f"evaluate must give numbers, got {name!r} of shape {np.shape(x)}")
    return {name: float(x) for name, x in values.items()}


def _call_length(*steps: int | None) -> int:
    """Steps in a call: a shorter call at the end would be a program of its own."""
    whole = math.gcd(*[n for n in steps if n])
    return next((n for n in range(16, 3, -1) if whole % n == 0), 16)


def _filled(
    pairs: Iterable[tuple[Batch, Any]], rows: int, even: bool, fill: bool
) -> Iterator[tuple[Batch, Any]]:
    """Batches of fewer rows than the first, filled up with rows that ``where`` leaves out."""
    for i, (batch, position) in enumerate(pairs):
        length = len(next(iter(batch.values())))
        if even and length > rows:
            raise ValueError(
                f"a batch has {length} rows, {i} after the first to be drawn, and the first had "
                f"{rows}: with a layout or microbatches none may have more"
            )
        yield (pad(batch, rows) if fill and length < rows else batch), position


def _groups(
    pairs: Iterable[tuple[Batch, Any]], size: int
) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Up to ``size`` batches of equal shapes, with the position after them.

    Another shape begins a group of its own.
    """
    group: list[dict[str, Any]] = []
    shapes, last = None, None
    for batch, position in pairs:
        batch = dict(batch)
        these = jax.tree.map(np.shape, batch)
        if group and these != shapes:
            yield group, last
            group = []
        shapes, last = these, position
        group.append(batch)
        if len(group) == size:
            yield group, last
            group = []
    if group:
        yield group, last
