"""``fit``: training as a loop that logs, saves, resumes, and runs on several devices."""

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
from jaxtyping import Array

from distill_jax import _batches, _checks
from distill_jax import data as data_
from distill_jax._arguments import checked
from distill_jax.data.batching import pad
from distill_jax.objectives import Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _preparing
from distill_jax.training._between_calls import BetweenCalls
from distill_jax.training._preparing import Prepared
from distill_jax.training.averaging import Decay
from distill_jax.training.checkpoints import Checkpoints
from distill_jax.training.checkpoints.saving import Saver
from distill_jax.training.devices import Layout, _hosts
from distill_jax.training.devices._preemption import Stopping, stopping
from distill_jax.training.ending import EarlyStopping
from distill_jax.training.step import TrainState
from distill_jax.training.step._compiled import steps_of
from distill_jax.training.step._forward import Augment
from distill_jax.training.step._freezing import Trainable
from distill_jax.training.step._updating import Optimizer
from distill_jax.training.watching import logs as logs_
from distill_jax.training.watching._counting import CountedTerms
from distill_jax.training.watching._progress import Progress
from distill_jax.training.watching._tracing import tracing
from distill_jax.training.watching.history import History
from distill_jax.types import Batch, Model, Params, State


@checked
def fit(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]],
    *,
    key: Array,
    steps: int,
    batch_size: int | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    start: tuple[Params, State] | None = None,
    trainable: Trainable | None = None,
    average_decay: Decay | None = None,
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
    stop: EarlyStopping | None = None,
    callbacks: Sequence[Callable[[TrainState, Mapping[str, np.ndarray]], None]] = (),
    log: logs_.Log | Sequence[logs_.Log] = (),
    trace: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains a student from batches: logs, saves, resumes, and stops on a non-finite loss.

    The same step as ``run``, in compiled calls of a few steps. Metrics are read one call late, so
    that the host never waits for the device.

    With ``checkpoints``, the same call again resumes where the last one was interrupted, bit for
    bit on the same devices. On SIGTERM the state is saved and ``SystemExit`` raised, with code 143;
    after Ctrl-C, or an error of the data, a callback or ``evaluate``, it is saved as well before
    that error is raised. (Several processes save on SIGTERM only.)

    With several processes (``jax.distributed``), all make the same call, with one ``layout`` over
    the devices of all. Arrays in memory are the same in all of them; a stream gives each process
    its own rows. See docs/scaling.md.

    Args:
      model, objective, optimizer, key, teachers, initial, start, trainable, average_decay, augment,
        order_key, microbatches, compute_dtype, remat, unroll: As in ``run``.
      data: Arrays in memory, cut as ``run`` cuts them; or a stream of batches, as
        ``data.positions`` takes it: an iterable, Grain's among them, or a function of the number
        of batches to skip. Batches shorter than the first are padded with masked rows; if the
        student has state (a batch norm would see those rows), only where a layout or
        microbatches need it. With ``initial``, a stream must begin where the run before stopped.
      steps: Optimizer steps, including those before a resumption. If the data ends earlier, fewer
        are taken, with a warning.
      batch_size: Rows per step, for arrays in memory only.
      layout: Which device holds what, for example ``training.data_parallel()`` or
        ``training.fsdp()``; None uses JAX's default device.
      checkpoints: Where to save and to resume from, and how often: after whole calls, and at the
        end.
      steps_per_call: Steps in one compiled call. None takes 16, or a number from 4 to 16 that
        divides ``steps``, ``evaluate_every`` and the steps between checkpoints; on CPU 1 if the
        step holds a convolution.
      prefetch: Batches that a thread draws and transfers ahead. None takes 2 for a stream, and 0,
        no thread, for arrays in memory.
      evaluate: ``state -> {name: number}``, added to the history; for example
        ``evaluation.evaluator(model, validation)``. Arrays of numbers are allowed too, and what
        ``evaluation.evaluate`` returns: its list ``per_class`` becomes "per_class/errors" and so
        on, ``[classes]``. Logs get each entry of an array by its place, "per_class/errors/0".
      evaluate_every: Steps between evaluations, rounded up to whole calls; the last state is
        always evaluated.
      stop: Ends training once a number that ``evaluate`` returns stops improving, and may return
        the best state in place of the last one; see ``training.EarlyStopping``.
      callbacks: Called after each call with the state and that call's metrics, each ``[steps]``:
        this waits for the device. The state's arrays are donated to the next call: copy what you
        keep.
      log: Called with ``(step, metrics)`` for each step, one call late: ``training.json_lines``,
        ``training.tensorboard``, any function, or several.
      trace: A folder for a ``jax.profiler`` trace of a few calls after the first ones.
      progress: Whether to show a progress bar on a terminal.

    Returns:
      The state after the last step (with ``restore_best`` of ``stop``, the best one), and the
      history of the steps that this call took: ``loss`` and each term's mean, ``[steps]``; what
      ``evaluate`` returned, ``[evaluations, ...]`` per name, and ``evaluated_at``, the steps at
      which it did.

    Raises:
      NonFiniteLoss: as soon as a loss is NaN or infinite, naming step and terms; also for
        parameters that are not finite before an evaluation, a save, and at the end.
      CheckpointError: if a checkpoint cannot be written or read.
      ValueError: before the first step, as in ``run``; for a label out of range or a number that is
        not finite in a stream, with column, batch and row (in NumPy columns: what is on an
        accelerator already is not looked at); if the checkpoints belong to another
        configuration, processes disagree, or the devices of ``layout`` do not divide the batch.
    """
    logs = logs_.listed(log)
    steps = _checks.count("steps", steps)
    if steps_per_call is not None:
        steps_per_call = _checks.count("steps_per_call", steps_per_call)
    if prefetch is not None:
        prefetch = _checks.count("prefetch", prefetch, least=0)
    _check_what_watches(checkpoints, layout, evaluate, evaluate_every, callbacks)
    _check_stop(stop, evaluate_every, checkpoints)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_preparing.opened(data, batch_size))
        ready = _preparing.prepared(
            model,
            objective,
            optimizer,
            source,
            key=key,
            order_key=order_key,
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
        configuration: dict[str, Any] = {}
        if checkpoints is not None or jax.process_count() > 1:
            configuration = ready.configuration(
                key,
                order_key=None if order_key is None else jax.random.key_data(order_key).tolist(),
                compute_dtype=None if compute_dtype is None else str(jnp.dtype(compute_dtype)),
                microbatches=ready.recipe.microbatches,
                remat=remat,
            )
        if layout is not None:
            _hosts.agree(configuration=configuration, steps=steps, rows=ready.rows)
            stack.enter_context(_hosts.together())

        # Around the folder, whose closing waits for the last save.
        ending = stack.enter_context(stopping(checkpoints is not None))
        saver = (
            None if checkpoints is None else stack.enter_context(checkpoints.open(configuration))
        )
        with ending.at_once():
            found = None if saver is None else saver.restore(ready.expected)
        state, position = (ready.start(), None) if found is None else found
        done = int(state.step) - ready.steps_before
        if done > steps:
            raise ValueError(
                f"steps must be {done} or more, as many as the last checkpoint has taken, "
                f"got {steps}: steps count those before a resumption"
            )
        if steps_per_call is None and ready.is_slow_in_a_scan():
            steps_per_call = 1
        elif steps_per_call is None:
            steps_per_call = _call_length(steps, evaluate_every, checkpoints and checkpoints.every)
        # Masks may come from augmentation, and another process may hold the rows that count.
        looked_at = not source.in_memory and augment is None and jax.process_count() == 1
        counted = CountedTerms(objective.terms if looked_at else ())
        batches = stack.enter_context(
            _drawn(ready, state, position, steps - done, prefetch, counted)
        )
        tracer = stack.enter_context(tracing(trace))
        shown = progress and jax.process_index() == 0
        bar = stack.enter_context(Progress(steps, shown=shown))
        watch = BetweenCalls(
            first=ready.steps_before,
            steps=steps,
            history=History(ready.steps_before + done, logs, objective),
            bar=bar,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            callbacks=callbacks,
            saver=saver,
            save_evaluated=checkpoints is not None and checkpoints.best is not None,
            stop=ending,
            early=stop,
            **_evaluated_before(stop, None if found is None else saver, done),
        )
        watch.begin(done, state, position)
        call = functools.partial(steps_of, ready.recipe, unroll, layout)
        rest = ready.objective, ready.teachers, ready.decay
        with watch.saving():
            groups = _groups(_waited_for(batches, ending), steps_per_call)
            for group, position in () if watch.ended else groups:
                # Compiling may take minutes, and before the first call there is nothing to lose.
                with ending.at_once() if watch.last is None else contextlib.nullcontext():
                    state, metrics = tracer.call(watch.step + 1, call, state, group, *rest)
                watch.after_call(len(group), state, metrics, position)
                if watch.ended:
                    break
            if watch.done < steps and not watch.ended:
                watch.history.settle()  # a loss that is not finite comes first
                warnings.warn(f"data ended after {watch.done} of {steps} steps", stacklevel=2)
            counted.warn(watch.done - done)
            watch.end(state, position)
            state = watch.returned(state, ready.expected)
    return state, watch.history.arrays()


def _check_what_watches(
    checkpoints: Any, layout: Layout | None, evaluate: Any, evaluate_every: Any, callbacks: Any
) -> None:
    if callable(callbacks):
        raise TypeError("callbacks must be a list of functions, got one: pass callbacks=[function]")
    for i, callback in enumerate(callbacks):
        _checks.takes("(state, metrics)", **{f"callbacks[{i}]": callback})
    if evaluate is not None:
        _checks.takes("(state)", evaluate=evaluate)
    if evaluate_every is not None:
        _checks.count("evaluate_every", evaluate_every)
        if evaluate is None:
            raise ValueError(
                f"evaluate_every is {evaluate_every}, and there is nothing to evaluate: pass "
                "evaluate="
            )
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


def _check_stop(stop: Any, evaluate_every: Any, checkpoints: Checkpoints | None) -> None:
    if stop is None:
        return
    if not isinstance(stop, EarlyStopping):
        raise TypeError(
            f"stop must be an EarlyStopping, got {type(stop).__name__}: pass "
            f"{EarlyStopping.made_by}"
        )
    if evaluate_every is None:
        raise ValueError(
            f"stop watches {stop.metric!r}, and nothing is evaluated before the end: pass "
            "evaluate= and evaluate_every="
        )
    kept = checkpoints and (checkpoints.best, checkpoints.better)
    if stop.restore_best and checkpoints is not None and kept != (stop.metric, stop.better):
        raise ValueError(
            "stop is to restore the best state, which must be among the checkpoints: pass "
            f"Checkpoints(folder, best={stop.metric!r}, better={stop.better!r}), got "
            f"best={checkpoints.best!r}, better={checkpoints.better!r}"
        )


def _evaluated_before(stop: EarlyStopping | None, saver: Saver | None, done: int) -> dict[str, Any]:
    """What the runs before have evaluated, for ``BetweenCalls``."""
    watched: dict[str, Any] = {} if saver is None else saver.watched() or {"evaluated": done}
    found: dict[str, Any] = {"evaluated": int(watched["evaluated"])} if watched else {}
    if stop is not None and watched.get("metric") == stop.metric:
        found["watched"] = [(int(step), float(figure)) for step, figure in watched["figures"]]
    return found


def _call_length(*steps: int | None) -> int:
    """Steps per call, a divisor where possible: a shorter last call needs another program."""
    whole = math.gcd(*[n for n in steps if n])
    return next((n for n in range(16, 3, -1) if whole % n == 0), 16)


@contextlib.contextmanager
def _drawn(
    ready: Prepared,
    state: TrainState,
    position: Any,
    count: int,
    prefetch: int | None,
    counted: CountedTerms,
) -> Iterator[Iterator[tuple[Batch, Any]]]:
    """The next ``count`` batches, each with the position after it, drawn ahead by a thread."""
    if not count:
        yield iter(())
        return
    pairs: Iterator[tuple[Batch, Any]]
    pairs = itertools.islice(ready.batches(position), count)
    if not ready.source.in_memory:
        # A batch norm would see the rows that fill a batch up: then only if sizes must be equal.
        even = ready.layout is not None or ready.recipe.microbatches > 1
        fill = even or not jax.tree.leaves(state.state)
        pairs = _filled(pairs, ready.source.rows, even, fill)
        pairs = counted.watched(pairs)
    ahead = prefetch if prefetch is not None else 0 if ready.source.in_memory else 2
    if ready.layout is None and not ahead:
        yield pairs
        return
    with contextlib.closing(data_.prefetch(pairs, ready.put, ahead)) as drawn:
        yield drawn


def _filled(
    pairs: Iterable[tuple[Batch, Any]], rows: int, even: bool, fill: bool
) -> Iterator[tuple[Batch, Any]]:
    """The batches; those with fewer rows than the first are padded with masked rows.

    Args:
      even: Whether a batch with more rows than the first is an error.
      fill: Whether to pad.
    """
    for i, (batch, position) in enumerate(pairs):
        length = _batches.rows(batch)
        if even and length > rows:
            raise ValueError(
                f"a batch has {length} rows, {i} after the first to be drawn, and the first had "
                f"{rows}: with a layout or microbatches none may have more"
            )
        yield (pad(batch, rows) if fill and length < rows else batch), position


def _waited_for(pairs: Iterator[tuple[Batch, Any]], stop: Stopping) -> Iterator[tuple[Batch, Any]]:
    """The batches; a signal to end is acted on while the next one is waited for."""
    while True:
        with stop.at_once():
            pair = next(pairs, None)
        if pair is None:
            return
        yield pair


def _groups(
    pairs: Iterable[tuple[Batch, Any]], size: int
) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Groups of up to ``size`` consecutive batches of equal shapes, and the position after each."""
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
