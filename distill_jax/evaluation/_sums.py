"""The sums behind every metric, of one batch, on the device: pure functions.

``where`` and ``weights`` have the shape of the rows, ``[batch, ...]``; ``weights`` are 0 where
``where`` is False, and otherwise the column ``weights``, or 1.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax.losses import (
    binary_cross_entropy,
    cross_entropy,
    forward_kl,
    soft_targets_multilabel,
)
from distill_jax.types import Batch, OutputKind, Outputs

INSIDE_90 = 1.6448536269514722
"""Standard deviations on either side of the mean that hold 90% of a normal distribution."""


def rows_that_count(batch: Batch, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """``where`` and ``weights`` of the rows, whose shape is ``shape``."""
    where = jnp.asarray(batch.get("where", jnp.ones(shape, bool)))
    _checks.boolean(where=where)
    where = _over_rows(shape, "where", where)
    weights = jnp.asarray(batch.get("weights", 1.0))
    weights = weights.astype(_checks.wide_dtype(weights))
    if weights.ndim:
        weights = _over_rows(shape, "weights", weights)
    return where, jnp.where(where, weights, 0.0)


def _over_rows(shape: tuple[int, ...], name: str, x: Array) -> Array:
    if x.shape != shape[: x.ndim]:
        raise ValueError(
            f"{name} must have the shape of the rows or their leading axes, {shape}, got {x.shape}"
        )
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)


def class_sums(
    outputs: Outputs, batch: Batch, where: Array, weights: Array, bins: int
) -> dict[str, Array]:
    """Of classes that exclude each other, against ``labels``."""
    logits, labels = outputs.logits, _on_device("labels", batch["labels"], where)
    nll = cross_entropy(logits, labels, where=where)
    labels = labels.astype(_checks.wide_dtype(labels, least=jnp.int32))
    predicted, valid = _predicted(logits)
    nll = jnp.where(valid, nll, jnp.nan)
    correct = valid & (predicted.astype(labels.dtype) == labels) & where
    confidence = jnp.where(where, jax.nn.softmax(_wide(logits), axis=-1).max(axis=-1), 0.0)
    # Closed on the right. A row that is not a distribution goes to the first bin, and makes it NaN.
    place = jnp.where(valid, jnp.ceil(confidence * bins) - 1, 0).astype(jnp.int32)
    place = jnp.clip(place, 0, bins - 1)
    classes = logits.shape[-1]

    def by(index: Array, values: Array, length: int) -> Array:
        return jnp.zeros(length, values.dtype).at[index.reshape(-1)].add(values.reshape(-1))

    label = jnp.where(where, labels, 0)  # that of a masked row may be out of range
    right = _times(weights, correct)
    return {
        "errors": (where & ~correct).sum(dtype=jnp.int32),
        "correct": right.sum(),
        "nll": _times(weights, nll).sum(),
        "bin_correct": by(place, right, bins),
        "bin_confidence": by(place, _times(weights, confidence), bins),
        "class_count": by(label, where.astype(jnp.int32), classes),
        "class_errors": by(label, (where & ~correct).astype(jnp.int32), classes),
        "class_weight": by(label, weights, classes),
        "class_correct": by(label, right, classes),
        "class_predicted": by(predicted, _times(weights, valid), classes),
    }


def answer_sums(outputs: Outputs, batch: Batch, where: Array, weights: Array) -> dict[str, Array]:
    """Of labels that do not exclude each other, against ``labels`` of 0 and 1."""
    logits, labels = outputs.logits, _on_device("labels", batch["labels"], where)
    known = jnp.asarray(batch.get("known", jnp.ones(logits.shape, bool)))
    nll = binary_cross_entropy(logits, labels, known, where=where)
    known &= where[..., None]
    holds = labels if labels.dtype == jnp.bool_ else labels == 1
    truth, valid = holds & known, ~jnp.isnan(logits)
    yes = valid & (logits > 0) & known
    right = known & valid & (yes == truth)
    axes = tuple(range(logits.ndim - 1))

    def by_label(x: Array) -> Array:
        return _times(weights[..., None], x).sum(axes)

    return {
        "exact": _times(weights, (right | ~known).all(-1)).sum(),
        "nll": _times(weights, nll).sum(),
        "label_count": truth.sum(axes, dtype=jnp.int32),
        "label_weight": by_label(known),
        "label_true": by_label(truth),
        "label_predicted": by_label(yes),
        "label_hits": by_label(yes & truth),
        "label_correct": by_label(right),
    }


def error_sums(outputs: Outputs, batch: Batch, where: Array, weights: Array) -> dict[str, Array]:
    """Of predicted numbers, against ``targets``."""
    predicted = _wide(outputs.logits)
    targets = _wide(_on_device("targets", _targets(batch, predicted.shape), where))
    axes = tuple(range(predicted.ndim - 1))
    error = predicted - targets

    def by_output(x: Array) -> Array:
        return _times(weights[..., None], x).sum(axes)

    found = {"absolute": by_output(jnp.abs(error)), "squared": by_output(error**2)}
    variance = _variance(outputs)
    if variance is None:
        return found
    z = error / jnp.sqrt(variance)
    nll = 0.5 * (jnp.log(2 * math.pi * variance) + z**2)
    inside = jnp.where(jnp.isnan(z), jnp.nan, jnp.abs(z) <= INSIDE_90)
    return found | {
        "z_squared": by_output(z**2),
        "inside": by_output(inside),
        "nll": _times(weights, nll.sum(-1)).sum(),
    }


def _on_device(name: str, x: Any, where: Array) -> Array:
    """A column that was looked at before its cast, in the rows that count, if it is known."""
    kept = _checks.known(where)
    if isinstance(x, np.ndarray) and kept is not None:
        _checks.fits_device(**{name: x[kept]})
    return jnp.asarray(x)


def _targets(batch: Batch, shape: tuple[int, ...]) -> Any:
    """The column ``targets`` in the shape of the predictions."""
    targets = batch["targets"]
    _checks.floating(targets=targets)
    if shape[-1] == 1 and targets.shape == shape[:-1]:
        targets = targets[..., None]
    _checks.shape(shape, targets=targets)
    return targets


def _variance(outputs: Outputs) -> Array | None:
    """The variances that a model predicts, by the names of its features."""
    features = outputs.features
    names = [name for name in ("log_variance", "variance") if name in features]
    if not names:
        return None
    if len(names) == 2:
        raise ValueError("a model may have the feature 'log_variance' or 'variance', not both")
    (name,) = names
    named: dict[str, Any] = {f"the feature {name!r}": features[name]}
    _checks.shape(outputs.logits.shape, **named)
    found = _wide(features[name])
    return jnp.exp(found) if name == "log_variance" else found


def teacher_sums(
    logits: Array, teacher: Array, where: Array, weights: Array, kind: OutputKind, top_k: int
) -> dict[str, Array]:
    """How close a model is to its teacher."""
    if kind == "softmax":
        return _class_agreement(logits, teacher, where, weights, top_k)
    ours, theirs = _wide(logits), _wide(teacher)
    if kind == "multi_label":
        valid = ~jnp.isnan(ours) & ~jnp.isnan(theirs)
        same = (valid & ((ours > 0) == (theirs > 0))).mean(-1)
        kl = soft_targets_multilabel(logits, teacher, where=where)
        return {"agree": _times(weights, same).sum(), "kl": _times(weights, kl).sum()}
    distance = ours - theirs
    found = {
        "absolute_to_teacher": _times(weights, jnp.abs(distance).mean(-1)).sum(),
        "squared_to_teacher": _times(weights, (distance**2).mean(-1)).sum(),
    }
    if kind == "embedding":
        sizes = [jnp.linalg.norm(x, axis=-1) for x in (ours, theirs)]
        both = sizes[0] * sizes[1]
        cosine = (ours * theirs).sum(-1) / jnp.where(both == 0, 1.0, both)
        found["cosine"] = _times(weights, cosine).sum()
    return found


def _class_agreement(
    logits: Array, teacher: Array, where: Array, weights: Array, top_k: int
) -> dict[str, Array]:
    (ours, valid), (theirs, teacher_valid) = _predicted(logits), _predicted(teacher)
    counted = jnp.where(valid & teacher_valid, weights, 0.0)
    k = min(top_k, logits.shape[-1])
    # top_k orders -0.0 before 0.0; argmax, of agreement, takes them for equal.
    top, teacher_top = (jax.lax.top_k(jnp.where(x == 0, 0.0, x), k)[1] for x in (logits, teacher))
    shared = (teacher_top[..., :, None] == top[..., None, :]).any(-1)
    kl = forward_kl(logits, teacher, where=where)
    return {
        "agree": _times(counted, ours == theirs).sum(),
        "overlap": _times(counted[..., None], shared).reshape(-1, k).sum(0),
        "kl": _times(weights, kl).sum(),
    }


def scores(outputs: Outputs, kind: OutputKind) -> Array:
    """What a model ranks the rows by, for each class or label: ``[batch, ..., outputs]``."""
    logits = _wide(outputs.logits)
    return _log_odds(logits) if kind == "softmax" else logits


def _log_odds(logits: Array) -> Array:
    """The log-odds of each class, ``[..., classes]``; NaN where a row is not a distribution.

    They order the rows as the probabilities do, which round to 1 where a model is sure.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    valid = ~jnp.isnan(log_p).any(-1, keepdims=True)
    if logits.shape[-1] == 2:  # exactly, so that rows of equal margin are ties
        return jnp.where(valid, logits - logits[..., ::-1], jnp.nan)
    top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    others = jnp.where(top, -jnp.inf, logits)
    of_top = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    # All others are at most half of the whole, so that nothing cancels.
    rest = jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jnp.log1p(-jnp.exp(log_p))
    return jnp.where(valid, logits - jnp.where(top, of_top, rest), jnp.nan)


def _predicted(logits: Array) -> tuple[Array, Array]:
    """The predicted class, and whether the row is a distribution."""
    valid = ~(jnp.isnan(logits) | jnp.isposinf(logits)).any(-1) & ~jnp.isneginf(logits).all(-1)
    return jnp.argmax(logits, axis=-1), valid


def _times(weights: Array, x: Array) -> Array:
    """A row of weight 0 adds nothing, whatever it holds."""
    if x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(weights.dtype)
    return jnp.where(weights > 0, weights * x, 0.0)


def _wide(x: Array) -> Array:
    return x.astype(_checks.wide_dtype(x))
