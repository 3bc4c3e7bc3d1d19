r"""Losses against a teacher where it is confident: pseudo-labels, and sharpened targets.

The teacher is often the student itself, which predicts another view of the same examples. A batch
whose ``inputs`` are strongly augmented has the weakly augmented ones as ``inputs:weak``, and the
term reads the student's own prediction on them, through which no gradient passes::

    term("consistency", 1.0, pseudo_labels, reads={"teacher_logits": "view:weak"})

Both return one unreduced value per row, ``[...]``, in float32 or wider, and exactly 0, with
gradient 0, in rows in which the teacher's largest probability is below ``threshold``. Whether these
rows are counted is ``over``:

- ``"all"``: they are, as in both papers. The mean is over all rows that ``where`` counts, so the
  term weighs little as long as the teacher is confident of few.
- ``"kept"``: they are not. Each value is multiplied by the number of rows that ``where`` counts
  over the number of those that are kept, so that their mean is that of the kept rows. Rows then
  depend on each other, and a term computes them on the whole batch, as with ``coupled=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.logits import rows
from distill_jax.losses import _cores
from distill_jax.losses._meaning import meant_for

Logits = Float[Array, "*batch classes"]
Where = Bool[Array, "*batch"] | None
Rows = Float[Array, "*batch"]
Scalar = float | Float[Array, ""]
Over = Literal["all", "kept"]


def _couples(settings: Mapping[str, Any]) -> bool:
    return settings.get("over") == "kept"


@checked
@meant_for("softmax", couples=_couples)
def pseudo_labels(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    threshold: Scalar = 0.95,
    over: Over = "all",
    where: Where = None,
) -> Rows:
    r"""Cross-entropy with the teacher's most probable class, where it is confident (FixMatch).

    .. math:: 1[\max_k p_k \ge \tau] \; (-\log q_{\hat y}), \quad \hat y = \arg\max_k p_k

    No gradient reaches the teacher's logits or the threshold. Of equal classes the first counts.

    Args:
      student_logits: On the strongly augmented view, ``[..., classes]``.
      teacher_logits: On the weakly augmented view, same shape.
      threshold: :math:`\tau` in [0, 1]: rows with a largest probability below it get 0.
      over: Which rows the mean counts: ``"all"`` as in the paper, or ``"kept"``; see above.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits are not floating.
      ValueError: if shapes differ, or a threshold known at trace time is out of range.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[0.0, 9.0], [0.0, 1.0]])
      >>> print(pseudo_labels(student, teacher, threshold=0.9))
      [0.6931472 0.       ]
      >>> print(pseudo_labels(student, teacher, threshold=0.9, over="kept"))  # times 2 / 1
      [1.3862944 0.       ]

    References:
      Sohn et al., `FixMatch <https://arxiv.org/abs/2001.07685>`_, 2020, equation 4; there
      ``threshold`` is 0.95 and the term's weight 1.
    """
    kept = _kept(student_logits, teacher_logits, threshold, where)

    def core(student: Array, teacher: Array) -> Array:
        label = jnp.argmax(teacher, axis=-1, keepdims=True)
        nats = -jnp.take_along_axis(_cores.log_softmax(student), label, axis=-1)[..., 0]
        none = jnp.isneginf(teacher).all(-1) | jnp.isnan(teacher).any(-1)
        return jnp.where(none, jnp.nan, nats)

    value = rows(core, student_logits, jax.lax.stop_gradient(teacher_logits), where=kept)
    return _mean_over(over, value, kept, where)


@checked
@meant_for("softmax", couples=_couples)
def sharpened_targets(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 0.4,
    threshold: Scalar = 0.8,
    over: Over = "all",
    where: Where = None,
) -> Rows:
    r"""KL divergence from the sharpened teacher to the student, where it is confident (UDA).

    .. math:: 1[\max_k p_k \ge \tau] \sum_k p^T_k \log(p^T_k / q_k), \quad p^T \propto e^{t/T}

    The teacher alone is divided by the temperature, and there is no factor T², unlike in
    ``soft_targets``. The threshold is for its probabilities before that. As the temperature falls
    to 0, this becomes ``pseudo_labels``. Gradients reach both logits and the temperature.

    Args:
      student_logits: On the strongly augmented view, ``[..., classes]``.
      teacher_logits: On the view as it is, same shape.
      temperature: :math:`T > 0`; below 1 it sharpens.
      threshold: :math:`\tau` in [0, 1]: rows with a largest probability below it get 0.
      over: Which rows the mean counts: ``"all"`` as in the paper, or ``"kept"``; see above.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      TypeError: if logits are not floating.
      ValueError: if shapes differ, ``temperature`` is not positive, or the threshold is out of
        range.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[0.0, 9.0], [0.0, 1.0]])
      >>> print(sharpened_targets(student, teacher).round(4))
      [0.6931 0.    ]

    References:
      Xie et al., `Unsupervised Data Augmentation <https://arxiv.org/abs/1904.12848>`_, 2020,
      section 3; temperature and threshold as there for CIFAR-10. ``threshold=0`` is consistency
      without a mask, and with ``temperature=1`` ``forward_kl``.
    """
    _checks.scalar(temperature=temperature)
    _checks.positive(temperature=temperature)
    kept = _kept(student_logits, teacher_logits, threshold, where)

    def core(student: Array, teacher: Array, t: Array) -> Array:
        impossible = jnp.isneginf(teacher)  # or -inf / t would give t a slope of NaN
        sharp = jnp.where(impossible, -jnp.inf, jnp.where(impossible, 0.0, teacher) / t)
        return _cores.kl(student, sharp)

    value = rows(core, student_logits, teacher_logits, temperature, where=kept)
    return _mean_over(over, value, kept, where)


def _kept(student: Any, teacher: Any, threshold: Any, where: Any) -> Array:
    """The rows that count and of which the teacher is confident; NaN is not left out."""
    _checks.floating(student_logits=student, teacher_logits=teacher)
    _checks.classes_axis(student_logits=student)
    _checks.same_shape(student_logits=student, teacher_logits=teacher)
    _checks.scalar(threshold=threshold)
    _checks.between(0.0, 1.0, threshold=threshold)
    dtype = _checks.wide_dtype(student, teacher)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher, dtype))
    if where is not None:
        _checks.boolean(where=where)
        _checks.shape(student.shape[:-1], where=where)
        teacher = jnp.where(jnp.asarray(where)[..., None], teacher, 0.0)
    confidence = jnp.exp(_cores.log_softmax(teacher).max(-1))
    kept = ~(confidence < jax.lax.stop_gradient(jnp.asarray(threshold, dtype)))
    return kept if where is None else kept & jnp.asarray(where)


def _mean_over(over: Over, value: Array, kept: Array, where: Any) -> Array:
    if over == "all":
        return value
    if over != "kept":
        raise ValueError(f'over must be "all" or "kept", got {over!r}')
    counted = kept.size if where is None else jnp.asarray(where).sum(dtype=value.dtype)
    return value * (counted / jnp.maximum(kept.sum(dtype=value.dtype), 1.0))
