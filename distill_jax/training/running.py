"""``run``: training as one pure function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import _batches, _checks
from distill_jax import data as data_
from distill_jax._arguments import checked
from distill_jax.data.batching import columns_of
from distill_jax.objectives import Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _preparing
from distill_jax.training.averaging import Decay
from distill_jax.training.step import TrainState
from distill_jax.training.step._compiled import scanned, steps_of
from distill_jax.training.step._forward import Augment
from distill_jax.training.step._freezing import Trainable
from distill_jax.training.step._updating import Optimizer
from distill_jax.training.watching.history import History
from distill_jax.types import Batch, Model, Params, State

Metrics = dict[str, Float[Array, " steps"]]


@checked
def run(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    data: Batch,
    *,
    key: Array,
    steps: int,
    batch_size: int,
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
    unroll: int = 1,
    per_step: bool | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains a student on arrays in memory: one compiled program, no host in between.

    A pure function that can be vmapped over keys, weights and options of terms, teachers, and
    hyper-parameters of the optimizer. ``jax.vmap(lambda key: run(..., key=key))(keys)`` trains one
    student per key on shared data; ``training.sweep`` does so for grids. Data and teachers are
    arguments of the program, never constants in it.

    A program is compiled once for each ``model``, ``optimizer``, ``augment`` and loss: make them
    once and keep them. The programs of the last 32 combinations are kept, and others freed. An
    optimizer made inside a vmapped function, with a traced learning rate, works too.

    Vmapped keys must be of ``threefry2x32``, JAX's default, for a run to start as it does alone:
    of a batch of ``rbg`` or ``unsafe_rbg`` keys JAX draws everything from the first key.

    Args:
      model: The student.
      objective: What to minimise.
      optimizer: Any Optax optimizer, those that ask for the loss among them (``optax.lbfgs``,
        ``polyak_sgd``, ``contrib.reduce_on_plateau``, ``contrib.sam``): it is computed on the same
        batch, with the same key. It sees the student's parameters, or, if terms own parameters,
        ``{"student": ..., "terms": ...}``. A mapping ``{"student": optimizer, "terms": optimizer}``
        trains them apart, and each sees its own tree. With ``optax.lookahead`` or
        ``contrib.schedule_free``, evaluate with the ``eval_params`` of the state.
      data: Named columns with one leading axis, arrays ``[rows, ...]`` or trees of them
        (dictionaries, tuples, registered dataclasses): ``inputs``, and what the terms read.
        Teachers read ``teacher_inputs`` if the data has that column.
      key: Determines initial parameters, order of rows, dropout, and the draws of augmentation and
        terms.
      steps: Optimizer steps.
      batch_size: Rows per step, taken from one stream of shuffled epochs (``data.batches``).
      teachers: Teachers by name.
      initial: A state to continue from. Its own key and step are kept; the order of rows is that of
        ``key``, after the steps taken so far: pass the key of the run before.
      start: Weights to start from in place of the model's own, ``(params, state)``: those of a
        stage before, ``(before.params, before.state)``, an average, ``before.average``, or what
        ``training.load`` read. Optimizer, terms and the count of steps start anew.
      trainable: Which of the student's parameters train: a function ``(path, leaf) -> bool``, with
        paths such as "layers/0/kernel" and leaves that have a shape and a dtype; or a tree of
        booleans in the structure of the parameters, or above it: ``{"base": False, "head": True}``.
        The others stay as they are, bit for bit, no gradient is computed for them, and the
        optimizer sees and holds only what trains: a norm that it clips is the norm of that. Masks
        and labels of Optax may be trees of all parameters still. The student's state, batch
        statistics for example, is not chosen from: build a layer frozen for that.
      average_decay: If given, a moving average of the student's parameters and state is kept with
        this decay, a number or a schedule ``step -> decay``, and teaches under the name "average".
        It starts at the initial parameters, of which ``decay ** steps`` remain:
        ``training.warmed_up(0.9999)`` forgets them. ``state.average`` is a pair:
        ``evaluate(model, *state.average, data)``.
      augment: ``(key, batch) -> batch``, run inside the step.
      order_key: Determines the order of rows in place of ``key``: vmapped students that share it
        see the same batches, which are then gathered once for all of them.
      microbatches: Number of pieces in which a step's batch is computed, to save memory; must
        divide its rows. The gradient is that of the whole batch.
      compute_dtype: What the student computes in, bfloat16 for example; parameters stay as they
        are, and losses float32. See ``models.cast``.
      remat: Whether the student's forward pass is computed again in the backward pass, to save
        memory. See ``models.remat``.
      unroll: Steps unrolled in the scan.
      per_step: Whether to run one program per step in place of a scan over all steps. On CPU scans
        are slow if the step holds a convolution; None decides by that. Under ``jit`` or ``vmap`` it
        is always a scan.

    Returns:
      The state after the last step, and metrics, each ``[steps]``: ``loss`` and every term's mean.

    Raises:
      NonFiniteLoss: if a loss, or a parameter at the end, is NaN or infinite; names step and terms.
        Inside another program (``jit``, ``vmap``) nothing is raised: look at the metrics.
      ValueError: before the first step, for data, teachers or terms that do not fit together; see
        ``data.check``. Traced values are not checked.
    """
    steps = _checks.count("steps", steps)
    data = columns_of(data)  # checked as the host has it, before it is cast
    ready = _preparing.prepared(
        model,
        objective,
        optimizer,
        _preparing.InMemory(data, batch_size),
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
    )
    data = _batches.mapped(jnp.asarray, data)
    state = ready.start(copied=False)
    index = data_.batch_indices(
        ready.key_order, _batches.rows(data), batch_size, steps, start=ready.steps_before
    )
    rest = ready.objective, ready.teachers, ready.decay
    if per_step is None:
        per_step = ready.is_slow_in_a_scan()
    if not per_step or _preparing.has_tracers((state, index, data, rest)):
        state, metrics = scanned(ready.recipe, unroll, state, index, data, *rest)
        return _finite(ready, state, metrics)
    history = []
    state = jax.tree.map(jnp.copy, state)  # the first step takes its memory
    for rows in index:
        batch = data_.take(data, rows)
        state, metrics = steps_of(ready.recipe, 1, None, state, [batch], *rest)
        history.append(metrics)
    return _finite(ready, state, jax.tree.map(lambda *x: jnp.concatenate(x), *history))


def _finite(
    ready: _preparing.Prepared, state: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The same, or NonFiniteLoss where a value is known and not finite."""
    if not _preparing.has_tracers((state, metrics)):
        watch = History(ready.steps_before, (), ready.objective)
        watch.add(metrics)
        watch.settle()
        watch.check(int(state.step), (state.params, state.term_params))
    return state, metrics
