"""Class scores against what is known of an example: labels, or target distributions.

Rows ``[...]`` in nats, not reduced, float32 or better; ``where`` as in ``divergences``.
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
      student_logits: ``[..., classes]``. A class at ``-inf`` has probability 0: infinite loss if it
        is the label.
      labels: ``[...]``, 0 to classes - 1. One outside that range gives NaN (traced values cannot
        raise), unless ``where`` leaves its row out.
      label_smoothing: :math:`\epsilon` in [0, 1], spread evenly over the K classes that the
        student allows: those at ``-inf`` (a padded vocabulary) get none.
      where: Rows to count, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      ``[...]``, nats.

    Raises:
      TypeError: if logits are not floating or labels not integers.
      ValueError: if shapes differ, or known labels or smoothing are out of range.

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
    # Narrow integers cannot hold the number of classes to compare with.
    labels = jnp.asarray(labels).astype(jnp.promote_types(jnp.result_type(labels), jnp.int32))
    dtype = jnp.promote_types(jnp.result_type(student_logits), jnp.float32)
    smoothing = jnp.asarray(label_smoothing, dtype)
    student = jnp.asarray(student_logits, dtype)
    if where is not None:
        student = jnp.where(where[..., None], student, 0.0)
    inside = (labels >= 0) & (labels < classes)
    surprise = -_cores.log_softmax(student)
    chosen = jnp.where(inside, labels, 0)[..., None]
    value = jnp.take_along_axis(surprise, chosen, axis=-1)[..., 0]
    if _checks.known(label_smoothing) is None or _checks.known(label_smoothing) != 0:
        live = ~jnp.isneginf(student)
        even = jnp.where(live, surprise, 0.0).sum(-1) / live.sum(-1)
        forbidden = jnp.isposinf(value)
        smooth = (1.0 - smoothing) * jnp.where(forbidden, 0.0, value) + smoothing * even
        value = jnp.where(forbidden & (smoothing < 1), value, smooth)
    value = jnp.where(inside, value, jnp.nan)
    return value if where is None else jnp.where(where, value, 0.0)


def cross_entropy_with_targets(
    student_logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with target probabilities, :math:`-\sum_k \pi_k \log q_k`.

    Its least value is the entropy of the targets, not 0: to compare a student with a teacher's
    distribution, ``forward_kl`` says how far apart they are. Rows of ``targets`` are taken as they
    are, normalised or not.

    Args:
      student_logits: ``[..., classes]``.
      targets: ``[..., classes]``, non-negative; a class with target 0 adds 0, at ``-inf`` too.
      where: Rows to count, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      ``[...]``, nats.

    Raises:
      TypeError: if logits or targets are not floating.
      ValueError: if shapes differ.
    """
    _checks.floating(targets=targets)
    _checks.same_shape(student_logits=student_logits, targets=targets)

    def core(student, targets):
        dead = jnp.isneginf(student)
        surprise = jnp.where(dead, 0.0, -_cores.log_softmax(student))
        forbidden = jnp.where(targets == 0, 0.0, jnp.inf)
        value = jnp.where(dead, forbidden, targets * surprise).sum(-1)
        return jnp.where(dead.all(-1), jnp.nan, value)

    return rows(core, student_logits, targets, where=where)
