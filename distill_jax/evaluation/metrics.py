r"""Accuracy, calibration and agreement with a teacher, in one pass over the data.

Every metric is a sum divided by a count. :func:`sums` computes the sums of a batch on the device;
they are added in double precision on the host, so that neither the batch size nor the padding of
the last batch changes a result.

- ``accuracy``, ``errors``, ``count``: the prediction is the class of the largest logit, the first
  of ties. A row that is not a distribution (NaN, ``+inf``, or ``-inf`` everywhere) is an error.
- ``nll``: mean of :math:`-\log q_y` in nats; ``inf`` where the model forbids a label, NaN where a
  row is not a distribution.
- ``ece``: expected calibration error, :math:`\sum_m \frac{n_m}{n} |acc_m - conf_m|` over bins of
  equal width of the largest probability, each closed on the right, :math:`((m-1)/M, m/M]`. Guo et
  al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
  section 2. NaN where a row is not a distribution.
- ``per_class``: ``{"class", "count", "errors"}`` for each class of the labels.
- ``agreement``: share of rows for which student and teacher predict the same class.
- ``top_k_overlap``: mean share of the teacher's k most likely classes that are among the student's
  k most likely, in any order; of ties, the first.
- ``kl_to_teacher``: mean forward KL, teacher to student, at temperature 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax.data import check, padded_batches
from distill_jax.data.batching import columns_of
from distill_jax.losses import cross_entropy, forward_kl
from distill_jax.teachers import Teacher
from distill_jax.types import Batch, Model, Outputs, Params, State

_COLUMNS = ("inputs", "teacher_inputs", "labels", "where", "teacher_logits")


def evaluate(
    model: Model,
    params: Params,
    state: State,
    data: Mapping[str, Array | np.ndarray],
    *,
    teacher: Teacher | None = None,
    batch_size: int = 512,
    top_k: int = 5,
    bins: int = 15,
) -> dict[str, Any]:
    """All metrics of one model on one data set.

    Args:
      model: Runs in evaluation mode; compiled once per model object.
      params: Its parameters.
      state: Its state.
      data: ``inputs`` (``[n, ...]``); ``labels`` (``[n, ...]``, integers), without which the
        metrics of labels are omitted; ``where`` (``[n]`` or the shape of the labels), False for
        rows that do not count; ``teacher_logits`` (``[n, ..., classes]``), used if no teacher is
        given; ``teacher_inputs``, if the teacher has inputs of its own.
      teacher: Compared with the model. Without one, and without ``teacher_logits``, the metrics
        of the teacher are omitted.
      batch_size: Rows per batch; changes memory and speed only.
      top_k: Classes in ``top_k_overlap``, at most all of them; the number used is reported.
      bins: Bins of the calibration error.

    Returns:
      Plain Python numbers and lists: ``count``; with labels ``errors``, ``accuracy``, ``nll``,
      ``ece``, ``per_class``; with a teacher ``agreement``, ``top_k``, ``top_k_overlap``,
      ``kl_to_teacher``. The module's docstring defines them.

    Raises:
      TypeError: if labels are not integers, or ``where`` is not boolean.
      ValueError: if the data are invalid (see ``distill_jax.data.check``), if no row counts, if
        the teacher has another order of classes, or if an option is below 1.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> model = logistic_regression(2)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> params = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([0.0])}
      >>> data = {"inputs": jnp.array([[-1.0], [2.0], [3.0]]), "labels": jnp.array([0, 1, 0])}
      >>> found = evaluate(model, params, state, data)
      >>> found["errors"], round(found["accuracy"], 3)
      (1, 0.667)
    """
    program = functools.partial(_batch_sums, model, params, state)
    return _as_numbers(_totals(program, model, data, teacher, batch_size, top_k, bins), model)


def evaluate_many(
    model: Model,
    params: Params,
    state: State,
    data: Mapping[str, Array | np.ndarray],
    *,
    teacher: Teacher | None = None,
    stacked_teacher: bool = False,
    batch_size: int = 512,
    top_k: int = 5,
    bins: int = 15,
) -> list[dict[str, Any]]:
    """The metrics of several models of one architecture in one pass, such as the seeds of a sweep.

    Args:
      model: As in :func:`evaluate`.
      params: Parameters stacked along a leading axis, ``[models, ...]``.
      state: State stacked likewise.
      data: As in :func:`evaluate`, the same for all.
      teacher: As in :func:`evaluate`.
      stacked_teacher: Whether the teacher's variables are stacked likewise: one teacher per model.
      batch_size: As in :func:`evaluate`.
      top_k: As in :func:`evaluate`.
      bins: As in :func:`evaluate`.

    Returns:
      A list with one result of :func:`evaluate` per model.

    Raises:
      ValueError: if params and state are not stacked along one axis; else as in :func:`evaluate`.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> model = logistic_regression(2)
      >>> data = {"inputs": jnp.array([[-1.0], [2.0]]), "labels": jnp.array([0, 1])}
      >>> params = {"kernel": jnp.array([[[1.0]], [[-1.0]]]), "bias": jnp.zeros((2, 1))}
      >>> [found["accuracy"] for found in evaluate_many(model, params, {}, data)]
      [1.0, 0.0]
    """
    lengths = {np.shape(x)[:1] for x in jax.tree.leaves((params, state))}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "params and state must be stacked along one leading axis, got leading sizes "
            f"{sorted(lengths)}"
        )
    program = functools.partial(_stacked_sums, stacked_teacher, model, params, state)
    totals = _totals(program, model, data, teacher, batch_size, top_k, bins)
    ((many,),) = lengths
    return [_as_numbers({name: x[i] for name, x in totals.items()}, model) for i in range(many)]


def sums(
    outputs: Outputs,
    batch: Batch,
    teacher_logits: Float[Array, "*batch classes"] | None = None,
    *,
    top_k: int = 5,
    bins: int = 15,
) -> dict[str, Array]:
    """Sums over the rows of a batch that count; pure, for use under ``jit`` and ``vmap``.

    Args:
      outputs: Of the model, with logits ``[batch, ..., classes]``.
      batch: Its columns ``labels`` (``[batch, ...]``) and ``where`` are read if it has them.
      teacher_logits: ``[batch, ..., classes]``.
      top_k: Classes in the overlap, at most all.
      bins: Bins of the calibration error.

    Returns:
      A dictionary of arrays, scalars unless a shape is given: ``count``; with labels ``correct``,
      ``nll``, ``bin_correct`` and ``bin_confidence`` (``[bins]``), ``class_count`` and
      ``class_correct`` (``[classes]``); with a teacher ``agree``, ``overlap`` (``[k]``: how often
      the teacher's class of that rank is among the student's top k) and ``kl``. Counts are int32,
      the others float32 or better.
    """
    logits = outputs.logits
    where = _where(batch, logits.shape[:-1])
    found = {"count": where.sum(dtype=jnp.int32)}
    if "labels" in batch:
        found |= _label_sums(logits, jnp.asarray(batch["labels"]), where, bins)
    if teacher_logits is not None:
        _checks.same_shape(student_logits=logits, teacher_logits=teacher_logits)
        found |= _teacher_sums(logits, teacher_logits, where, top_k)
    return found


def _where(batch: Batch, shape: tuple[int, ...]) -> Array:
    where = jnp.asarray(batch.get("where", jnp.ones(shape, bool)))
    _checks.boolean(where=where)
    if where.shape != shape[: where.ndim]:
        raise ValueError(
            f"where must have the shape of the rows or their leading axes, {shape}, got "
            f"{where.shape}"
        )
    return jnp.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - where.ndim)), shape)


def _label_sums(logits: Array, labels: Array, where: Array, bins: int) -> dict[str, Array]:
    predicted, valid = _predicted(logits)
    labels = labels.astype(_checks.wide_dtype(labels, least=jnp.int32))
    nll = jnp.where(where & ~valid, jnp.nan, cross_entropy(logits, labels, where=where))
    correct = valid & (predicted.astype(labels.dtype) == labels) & where
    wide = logits.astype(_checks.wide_dtype(logits))
    confidence = jnp.where(where, jax.nn.softmax(wide, axis=-1).max(axis=-1), 0.0)
    # Closed on the right. A row that is not a distribution goes to the first bin, and makes it NaN.
    place = jnp.where(valid, jnp.ceil(confidence * bins) - 1, 0).astype(jnp.int32)
    place = jnp.clip(place, 0, bins - 1)
    classes = logits.shape[-1]
    one = where.astype(jnp.int32)

    def by(index: Array, values: Array, length: int) -> Array:
        return jnp.zeros(length, values.dtype).at[index.reshape(-1)].add(values.reshape(-1))

    # The label of a masked row may be out of range.
    label = jnp.where(where, labels, 0)
    return {
        "correct": correct.sum(dtype=jnp.int32),
        "nll": nll.sum(),
        "bin_correct": by(place, correct.astype(jnp.int32), bins),
        "bin_confidence": by(place, confidence, bins),
        "class_count": by(label, one, classes),
        "class_correct": by(label, correct.astype(jnp.int32), classes),
    }


def _teacher_sums(logits: Array, teacher: Array, where: Array, top_k: int) -> dict[str, Array]:
    (ours, valid), (theirs, teacher_valid) = _predicted(logits), _predicted(teacher)
    where_valid = where & valid & teacher_valid
    k = min(top_k, logits.shape[-1])
    top, teacher_top = (jax.lax.top_k(x, k)[1] for x in (logits, teacher))
    shared = (teacher_top[..., :, None] == top[..., None, :]).any(-1) & where_valid[..., None]
    return {
        "agree": (where_valid & (ours == theirs)).sum(dtype=jnp.int32),
        "overlap": shared.reshape(-1, k).sum(0, dtype=jnp.int32),
        "kl": forward_kl(logits, teacher, where=where).sum(),
    }


def _predicted(logits: Array) -> tuple[Array, Array]:
    """The predicted class, and whether the row is a distribution."""
    valid = ~(jnp.isnan(logits) | jnp.isposinf(logits)).any(-1) & ~jnp.isneginf(logits).all(-1)
    return jnp.argmax(logits, axis=-1), valid


@functools.partial(jax.jit, static_argnames=("model", "top_k", "bins"))
def _batch_sums(
    model: Model,
    params: Params,
    state: State,
    batch: Batch,
    teacher: Teacher | None,
    *,
    top_k: int,
    bins: int,
) -> dict[str, Array]:
    outputs = model.predict(params, state, batch["inputs"])
    taught = (
        batch.get("teacher_logits")
        if teacher is None
        else teacher(batch.get("teacher_inputs", batch["inputs"])).logits
    )
    return sums(outputs, batch, taught, top_k=top_k, bins=bins)


@functools.partial(jax.jit, static_argnames=("stacked_teacher", "model", "top_k", "bins"))
def _stacked_sums(
    stacked_teacher: bool,
    model: Model,
    params: Params,
    state: State,
    batch: Batch,
    teacher: Teacher | None,
    *,
    top_k: int,
    bins: int,
) -> dict[str, Array]:
    def one(params: Params, state: State, teacher: Teacher | None) -> dict[str, Array]:
        return _batch_sums(model, params, state, batch, teacher, top_k=top_k, bins=bins)

    return jax.vmap(one, in_axes=(0, 0, 0 if stacked_teacher else None))(params, state, teacher)


def _totals(
    program: Any,
    model: Model,
    data: Mapping[str, Any],
    teacher: Teacher | None,
    batch_size: int,
    top_k: int,
    bins: int,
) -> dict[str, Any]:
    """The sums over all batches, in double precision."""
    batch_size = _checks.count("batch_size", batch_size)
    top_k, bins = _checks.count("top_k", top_k), _checks.count("bins", bins)
    if "inputs" not in data:
        raise ValueError(f"data must have a column inputs, got {list(data)}")
    if teacher is not None:
        _checks.class_order(model.classes, teacher.classes, "teacher")
    data = columns_of({name: data[name] for name in _COLUMNS if name in data})
    if teacher is not None:
        data.pop("teacher_logits", None)
    missing = ["inputs"] if model.missing else []
    if teacher is not None:  # it reads one of the two columns
        read = "teacher_inputs" if "teacher_inputs" in data else "inputs"
        missing = [name for name in missing if name != read or teacher.missing]
        missing += [read] if teacher.missing and read == "teacher_inputs" else []
    check(data, missing=missing)
    run = functools.partial(program, teacher=teacher, top_k=top_k, bins=bins)
    found = []
    for batch in padded_batches(data, min(batch_size, len(data["inputs"]))):
        found.append(run(batch))
        if len(found) == 1 and "labels" in data:
            check(data, num_classes=found[0]["class_count"].shape[-1], missing=missing)
    # Fetched together at the end, so that the device never waits for the host.
    found = jax.device_get(found)
    totals = {name: np.sum([x[name] for x in found], axis=0, dtype=np.float64) for name in found[0]}
    if not np.all(totals["count"] > 0):
        raise ValueError("data must have a row that counts, got where=False in all rows")
    return totals


def _as_numbers(totals: Mapping[str, Any], model: Model) -> dict[str, Any]:
    n = float(totals["count"])
    found: dict[str, Any] = {"count": int(n)}
    if "correct" in totals:
        names = model.classes or range(len(totals["class_count"]))
        counts = zip(names, totals["class_count"], totals["class_correct"], strict=True)
        gaps = np.abs(totals["bin_correct"] - totals["bin_confidence"])
        found |= {
            "errors": int(n - totals["correct"]),
            "accuracy": float(totals["correct"] / n),
            "nll": float(totals["nll"] / n),
            "ece": float(gaps.sum() / n),
            "per_class": [
                {"class": name, "count": int(count), "errors": int(count - correct)}
                for name, count, correct in counts
            ],
        }
    if "agree" in totals:
        found |= {
            "agreement": float(totals["agree"] / n),
            "top_k": len(totals["overlap"]),
            "top_k_overlap": float(totals["overlap"].mean() / n),
            "kl_to_teacher": float(totals["kl"] / n),
        }
    return found
