"""Losses against what the data say: labels, target distributions, or numbers.

They return one unreduced value per row, ``[...]``, in float32 or wider: nats, or the unit of the
numbers. Over several labels or numbers of a row they are summed, not averaged, as losses against a
teacher are over its classes: divide a term's weight by their number for a mean.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.logits import rows
from distill_jax.losses import _cores
from distill_jax.losses._meaning import meant_for

Scalar = float | Float[Array, ""]

_NO_CLASSES = ", that of student_logits without its last axis"


@checked
@meant_for("softmax", label_values=lambda classes: classes)
def cross_entropy(
    student_logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    label_smoothing: Scalar = 0.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Negative log-probability of integer labels.

    .. math:: -(1 - \epsilon) \log q_y - \frac{\epsilon}{K} \sum_k \log q_k

    Args:
      student_logits: ``[..., classes]``. A class at ``-inf`` has probability 0; if it is the label,
        the loss is infinite.
      labels: ``[...]``, 0 to classes - 1. Traced values cannot raise an error, so a label outside
        that range gives NaN, unless ``where`` masks its row.
      label_smoothing: :math:`\epsilon` in [0, 1], distributed evenly over the K classes that the
        student allows: those at ``-inf`` (a padded vocabulary) get none.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits are not floating or labels are not integers.
      ValueError: if shapes differ, or labels or smoothing known at trace time are out of range.

    Example:
      >>> print(f"{cross_entropy(jnp.array([0.0, 0.0]), jnp.array(1)):.4f}")
      0.6931

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
      2016, section 7, for the smoothing.
    """
    _checks.floating(student_logits=student_logits)
    _checks.classes_axis(student_logits=student_logits)
    _checks.integer(labels=labels)
    _checks.shape(student_logits.shape[:-1], hint=_NO_CLASSES, labels=labels)
    _checks.scalar(label_smoothing=label_smoothing)
    _checks.between(0.0, 1.0, label_smoothing=label_smoothing)
    classes = student_logits.shape[-1]
    kept = _kept(student_logits.shape[:-1], where)
    _check_labels(classes, labels, kept)
    if kept is not None:
        labels = jnp.where(kept, labels, 0)
    # A narrow integer type may be unable to hold the number of classes that labels are compared to.
    labels = jnp.asarray(labels).astype(_checks.wide_dtype(labels, least=jnp.int32))
    dtype = _checks.wide_dtype(student_logits)
    smoothing = jnp.asarray(label_smoothing, dtype)
    student = jnp.asarray(student_logits, dtype)
    if where is not None:
        student = jnp.where(where[..., None], student, 0.0)
    in_range = (labels >= 0) & (labels < classes)
    nats = -_cores.log_softmax(student)
    index = jnp.where(in_range, labels, 0)[..., None]
    value = jnp.take_along_axis(nats, index, axis=-1)[..., 0]
    if _checks.known(label_smoothing) is None or _checks.known(label_smoothing) != 0:
        allowed = ~jnp.isneginf(student)
        uniform = jnp.where(allowed, nats, 0.0).sum(-1) / allowed.sum(-1)
        infinite = jnp.isposinf(value)
        smooth = (1.0 - smoothing) * jnp.where(infinite, 0.0, value) + smoothing * uniform
        value = jnp.where(infinite & (smoothing < 1), value, smooth)
    value = jnp.where(in_range, value, jnp.nan)
    return value if where is None else jnp.where(where, value, 0.0)


@checked
@meant_for("softmax", probabilities=("targets",))
def cross_entropy_with_targets(
    student_logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with target probabilities, :math:`-\sum_k \pi_k \log q_k`.

    Its minimum is the entropy of the targets, not 0; use ``forward_kl`` to measure how far a
    student is from a teacher. ``targets`` are used as given, normalised or not.

    Args:
      student_logits: ``[..., classes]``.
      targets: ``[..., classes]``, non-negative; a class with target 0 contributes 0, even at
        ``-inf``.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits or targets are not floating.
      ValueError: if shapes differ.

    Example:
      >>> logits, votes = jnp.array([0.0, 0.0]), jnp.array([0.75, 0.25])
      >>> print(f"{cross_entropy_with_targets(logits, votes):.4f}")
      0.6931
    """
    _checks.floating(targets=targets)
    _checks.same_shape(student_logits=student_logits, targets=targets)

    def core(student, targets):
        excluded = jnp.isneginf(student)
        nats = jnp.where(excluded, 0.0, -_cores.log_softmax(student))
        if_excluded = jnp.where(targets == 0, 0.0, jnp.inf)
        value = jnp.where(excluded, if_excluded, targets * nats).sum(-1)
        return jnp.where(excluded.all(-1), jnp.nan, value)

    return rows(core, student_logits, targets, where=where)


@checked
@meant_for("multi_label", label_values=lambda labels: 2)
def binary_cross_entropy(
    student_logits: Float[Array, "*batch labels"],
    labels: Integer[Array, "*batch labels"] | Bool[Array, "*batch labels"],
    known: Bool[Array, "*batch labels"] | None = None,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Negative log-probability of labels that do not exclude each other: a sigmoid for each.

    .. math:: \sum_k \log(1 + e^{-z_k}) \text{ where } y_k = 1,
        \; \log(1 + e^{z_k}) \text{ where } y_k = 0

    A sum over a row's labels, as in ``soft_targets_multilabel``, its counterpart with a teacher.

    Args:
      student_logits: Log-odds ``[..., labels]``, one label or more. At ``-inf`` a label is absent
        with certainty; if it is there, the loss is infinite.
      labels: ``[..., labels]``, 1 or True where a label holds, 0 or False where it does not. Traced
        values cannot raise an error, so any other number gives NaN, unless it is masked.
      known: Labels to include, ``[..., labels]``; those that nobody looked at (False) add nothing,
        whatever ``labels`` holds there.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits are not floating, labels not integers or booleans, or a mask not boolean.
      ValueError: if shapes differ, or labels known at trace time are neither 0 nor 1.

    Example:
      >>> logits, labels = jnp.array([0.0, 0.0, 9.0]), jnp.array([1, 0, 1])
      >>> print(f"{binary_cross_entropy(logits, labels):.4f}")
      1.3864
    """
    _checks.floating(student_logits=student_logits)
    _checks.classes_axis(least=1, student_logits=student_logits)
    _checks.integer_or_boolean(labels=labels)
    _checks.same_shape(student_logits=student_logits, labels=labels)
    kept = _kept(student_logits.shape[:-1], where)
    if known is not None:
        _checks.boolean(known=known)
        _checks.same_shape(student_logits=student_logits, known=known)
    if kept is not None:
        kept = jnp.broadcast_to(kept[..., None], student_logits.shape)
    if known is not None:
        kept = jnp.asarray(known) if kept is None else kept & known
    _check_labels(2, labels, kept)
    labels = _whole(labels)
    if kept is not None:
        labels = jnp.where(kept, labels, 0)
    logits = _wide(student_logits)
    if kept is not None:
        logits = jnp.where(kept, logits, 0.0)
    nats = _nats(logits, labels == 1)
    nats = jnp.where((labels == 0) | (labels == 1), nats, jnp.nan)
    return (nats if kept is None else jnp.where(kept, nats, 0.0)).sum(-1)


@checked
@meant_for("multi_label", label_values=lambda levels: levels + 1)
def ordinal_cross_entropy(
    student_logits: Float[Array, "*batch levels"],
    labels: Integer[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Negative log-likelihood of ranks, one yes-or-no question per level: is it above level k?

    .. math:: \sum_{k=0}^{K-2} \log(1 + e^{-z_k}) \text{ where } y > k,
        \; \log(1 + e^{z_k}) \text{ where } y \le k

    K ranks, for example ratings, have K - 1 levels between them, and ``z_k`` are the log-odds that
    the rank is above level k. A prediction that is off by more ranks costs more, unlike in
    ``cross_entropy``. The student has K - 1 outputs of kind ``"multi_label"``; the rank that it
    predicts is the number of its logits above 0. Logits that share one score and differ by learned
    thresholds, ``score - thresholds``, are ordered like the ranks (the paper's CORAL); free logits
    need not be. The value is the ``binary_cross_entropy`` of the K - 1 answers; the paper's weights
    of levels are all 1. ``evaluate`` takes the answers too, as ``labels[:, None] > arange(K - 1)``.

    Args:
      student_logits: ``[..., levels]``, one level or more.
      labels: Ranks ``[...]``, from 0 to ``levels``. Traced values cannot raise an error, so a rank
        outside that range gives NaN, unless ``where`` masks its row.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits are not floating or labels are not integers.
      ValueError: if shapes differ, or ranks known at trace time are out of range.

    Example:
      >>> logits = jnp.array([4.0, -4.0])  # above level 0, not above level 1: rank 1 of 0, 1, 2
      >>> losses = [ordinal_cross_entropy(logits, jnp.array(rank)) for rank in (0, 1, 2)]
      >>> [f"{x:.2f}" for x in losses]
      ['4.04', '0.04', '4.04']

    References:
      Cao et al., `Rank Consistent Ordinal Regression <https://arxiv.org/abs/1901.07884>`_, 2020,
      equation 4.
    """
    _checks.floating(student_logits=student_logits)
    _checks.classes_axis(least=1, student_logits=student_logits)
    _checks.integer(labels=labels)
    _checks.shape(student_logits.shape[:-1], hint=_NO_CLASSES, labels=labels)
    levels = student_logits.shape[-1]
    kept = _kept(student_logits.shape[:-1], where)
    _check_labels(levels + 1, labels, kept)
    labels = _whole(labels)
    if kept is not None:
        labels = jnp.where(kept, labels, 0)
    logits = _wide(student_logits)
    if kept is not None:
        logits = jnp.where(kept[..., None], logits, 0.0)
    level = jnp.arange(levels).reshape((1,) * labels.ndim + (levels,))
    value = _nats(logits, labels[..., None] > level).sum(-1)
    value = jnp.where((labels >= 0) & (labels <= levels), value, jnp.nan)
    return value if kept is None else jnp.where(kept, value, 0.0)


@checked
@meant_for("regression", "embedding")
def squared_error_with_targets(
    student_logits: Float[Array, "*batch outputs"],
    targets: Float[Array, "*batch outputs"] | Float[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Half the squared distance from target numbers, :math:`\tfrac12 \sum_k (s_k - y_k)^2`.

    The least-squares loss of a regression, scaled like ``squared_error``, its counterpart with a
    teacher: the gradient is :math:`s - y`.

    Args:
      student_logits: Predicted numbers ``[..., outputs]``.
      targets: Same shape; for one output also ``[...]``.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if predictions or targets are not floating.
      ValueError: if shapes differ.

    Example:
      >>> print(squared_error_with_targets(jnp.array([[3.0]]), jnp.array([1.0])))
      [2.]
    """
    return _of_differences(lambda d: 0.5 * d * d, student_logits, targets, where)


@checked
@meant_for("regression", "embedding")
def absolute_error(
    student_logits: Float[Array, "*batch outputs"],
    targets: Float[Array, "*batch outputs"] | Float[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The distance from target numbers, :math:`\sum_k |s_k - y_k|`.

    The gradient is the sign of :math:`s - y`, and 0 where they are equal.

    Args:
      student_logits: Predicted numbers ``[..., outputs]``.
      targets: Same shape; for one output also ``[...]``.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if predictions or targets are not floating.
      ValueError: if shapes differ.

    Example:
      >>> print(absolute_error(jnp.array([3.0, 1.0]), jnp.array([1.0, 1.5])))
      2.5
    """
    return _of_differences(_size, student_logits, targets, where)


@checked
@meant_for("regression", "embedding")
def huber(
    student_logits: Float[Array, "*batch outputs"],
    targets: Float[Array, "*batch outputs"] | Float[Array, "*batch"],
    *,
    delta: Scalar = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Squared error where a prediction is near its target, absolute error where it is far.

    .. math:: \sum_k \tfrac12 d_k^2 \text{ if } |d_k| \le \delta,
        \; \delta (|d_k| - \tfrac12 \delta) \text{ otherwise}, \quad d = s - y

    Args:
      student_logits: Predicted numbers ``[..., outputs]``.
      targets: Same shape; for one output also ``[...]``.
      delta: Where the two meet, > 0, in the unit of the targets.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if predictions or targets are not floating.
      ValueError: if shapes differ, or ``delta`` is not positive.

    Example:
      >>> print(huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])))
      2.625

    References:
      Huber, `Robust Estimation of a Location Parameter <https://doi.org/10.1214/aoms/1177703732>`_,
      1964.
    """
    _checks.scalar(delta=delta)
    _checks.positive(delta=delta)

    def each(d: Array) -> Array:
        limit = jnp.asarray(delta, d.dtype)
        near = jnp.abs(d) <= limit
        close = jnp.where(near, d, 0.0)  # or the square of a far one would overflow
        return jnp.where(near, 0.5 * close * close, limit * (_size(d) - 0.5 * limit))

    return _of_differences(each, student_logits, targets, where)


def _of_differences(
    each: Callable[[Array], Array], predicted: Array, targets: Array, where: Array | None
) -> Array:
    """The sum over outputs of a function of prediction minus target."""
    _checks.floating(student_logits=predicted, targets=targets)
    _checks.classes_axis(least=1, student_logits=predicted)
    if predicted.shape[-1] == 1 and targets.shape == predicted.shape[:-1]:
        targets = targets[..., None]
    _checks.same_shape(student_logits=predicted, targets=targets)

    def core(predicted: Array, targets: Array) -> Array:
        return each(predicted - targets).sum(-1)

    return rows(core, predicted, targets, where=where, least=1)


def _size(d: Array) -> Array:
    """``|d|`` with derivative 0 at 0."""
    return jnp.where(d == 0, 0.0, jnp.abs(d))


def _nats(logits: Array, holds: Array) -> Array:
    """-log of the probability of an answer, from its log-odds."""
    return jax.nn.softplus(jnp.where(holds, -logits, logits))


def _check_labels(number: int, labels: Array, kept: Array | None) -> None:
    """Raises ValueError for labels that count and are out of range, before any cast of theirs."""
    values, counted = _checks.known(labels), None if kept is None else _checks.known(kept)
    if values is not None and (kept is None or counted is not None):
        _checks.labels_below(number, labels=values if counted is None else values[counted])


def _kept(shape: tuple[int, ...], where: Array | None) -> Array | None:
    if where is None:
        return None
    _checks.boolean(where=where)
    _checks.shape(shape, where=where)
    return jnp.asarray(where)


def _whole(labels: Array) -> Array:
    """Labels as int32 or wider, for strict dtype promotion too."""
    return jnp.asarray(labels).astype(_checks.wide_dtype(labels, least=jnp.int32))


def _wide(x: Array) -> Array:
    return jnp.asarray(x, _checks.wide_dtype(x))
