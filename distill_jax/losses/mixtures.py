"""Divergences from student and teacher to a mixture of both: Jensen-Shannon and skewed KL.

Between the two KL divergences, and bounded unless at an end of their range. What ``divergences``
says about accuracy, ``-inf``, masks, gradients and errors holds here too.
"""

from __future__ import annotations

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.logits import rows
from distill_jax.losses import _cores
from distill_jax.losses._meaning import meant_for
from distill_jax.losses.divergences import Logits, Rows, Scalar, Where


@checked
@meant_for("softmax")
def jensen_shannon(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""Generalised Jensen-Shannon divergence, in the convention of GKD: beta weights the teacher.

    .. math:: \beta\, KL(p \,\|\, m) + (1-\beta)\, KL(q \,\|\, m), \qquad m = \beta p + (1-\beta) q

    Bounded by the entropy of ``(beta, 1 - beta)``, at most log 2. By definition it is 0 at ``beta``
    0 and 1: near 0 it is ``beta`` times the forward KL, near 1 it is ``1 - beta`` times the reverse
    KL. For the KLs themselves at those ends, use ``scaled_jensen_shannon``. Swapping student and
    teacher is the same as replacing ``beta`` by ``1 - beta``.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      beta: Weight of the teacher, in [0, 1].
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``beta`` is out of range.

    Example:
      >>> student, teacher = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{jensen_shannon(student, teacher):.4f}")  # log 2, the maximum
      0.6931

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, 2024, section 2.
    """
    _checks.scalar(beta=beta)
    _checks.between(0.0, 1.0, beta=beta)
    return rows(_cores.jensen_shannon, student_logits, teacher_logits, beta, where=where)


@checked
@meant_for("softmax")
def scaled_jensen_shannon(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""``jensen_shannon`` divided by :math:`\beta (1-\beta)`: forward KL at 0, reverse KL at 1.

    Continuous in ``beta`` on the closed interval [0, 1], so a schedule can run from one KL to the
    other. At 1/2 it is four times ``jensen_shannon``.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      beta: Position between the forward KL (0) and the reverse KL (1).
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``beta`` is out of range.

    Example:
      >>> student, teacher = jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(f"{scaled_jensen_shannon(student, teacher, beta=0.0):.4f}")  # the forward KL
      0.1109

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, 2024, section 2, for the limits.
    """
    _checks.scalar(beta=beta)
    _checks.between(0.0, 1.0, beta=beta)
    return rows(_cores.scaled_jensen_shannon, student_logits, teacher_logits, beta, where=where)


@checked
@meant_for("softmax")
def skew_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.1,
    where: Where = None,
) -> Rows:
    r"""Forward KL to a mixture, :math:`KL(p \| \alpha p + (1-\alpha) q)`: mostly student.

    For ``alpha > 0`` finite for any supports, at most :math:`-\log \alpha`; at ``alpha = 0`` the
    forward KL.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      alpha: Share of the teacher in the mixture, in [0, 1].
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``alpha`` is out of range.

    References:
      Ko et al., `DistiLLM <https://arxiv.org/abs/2402.03898>`_, 2024, section 3.1.
    """
    _checks.scalar(alpha=alpha)
    _checks.between(0.0, 1.0, alpha=alpha)
    return rows(
        lambda s, t, a: _cores.kl_to_mixture(t, s, a, 1.0 - a),
        student_logits,
        teacher_logits,
        alpha,
        where=where,
    )


@checked
@meant_for("softmax")
def skew_reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.1,
    where: Where = None,
) -> Rows:
    r"""Reverse KL to a mixture, :math:`KL(q \| \alpha q + (1-\alpha) p)`: mostly teacher.

    For ``alpha > 0`` finite for any supports, at most :math:`-\log \alpha`; at ``alpha = 0`` the
    reverse KL.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      alpha: Share of the student in the mixture, in [0, 1].
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``alpha`` is out of range.

    References:
      Ko et al., `DistiLLM <https://arxiv.org/abs/2402.03898>`_, 2024, section 3.1.
    """
    _checks.scalar(alpha=alpha)
    _checks.between(0.0, 1.0, alpha=alpha)
    return rows(
        lambda s, t, a: _cores.kl_to_mixture(s, t, a, 1.0 - a),
        student_logits,
        teacher_logits,
        alpha,
        where=where,
    )
