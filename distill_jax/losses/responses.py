"""Losses on class scores: against integer labels, or against target distributions.

They return one unreduced value per row in nats, ``[...]``, in float32 or wider.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from distill_jax import _checks
from distill_jax.logits import rows
from distill_jax.losses import _cores

Scalar = float | Float[Array, ""]


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
    _checks.shape(student_logits.shape[:-1], labels=labels)
    _checks.scalar(label_smoothing=label_smoothing)
    _checks.between(0.0, 1.0, label_smoothing=label_smoothing)
    classes = student_logits.shape[-1]
    if where is None:
        _checks.labels_below(classes, labels=labels)
    else:
        _checks.boolean(where=where)
        _checks.shape(student_logits.shape[:-1], where=where)
        labels = jnp.where(where, labels, 0)
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
