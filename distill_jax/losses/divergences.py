r"""Divergences between two categorical distributions, from logits.

All take ``student_logits`` and ``teacher_logits`` of the same shape ``[..., classes]`` and return
one unreduced value per row, ``[...]``, in float32 or wider. Below, *p* is the teacher's
distribution and *q* the student's.

Every value is computed as a sum of non-negative terms, which keeps it accurate near equality, for
ten classes as for 128 thousand. In float32 the relative error is about 1e-6, also where the
divergence is 4e-7; the worst measured is 1e-5, for the skewed and Jensen-Shannon family 2e-5 (where
the share of the other side is small), and for ``renyi`` of order 100 4e-5. Where the logits are
equal, value and gradients are exactly 0. Gradients with respect to logits have a relative error
below 1e-5 of the row's largest, down to divergences of 1e-11. One exception: where the side over
which a KL divergence takes the expectation is all but certain of a class, the gradient to its logit
of that class is accurate in absolute terms only, to about 1e-7 times the log-ratio.

- A class at ``-inf`` has probability 0 and contributes 0. A row with all classes at ``-inf`` is not
  a distribution and gives NaN. Where a divergence is infinite by definition, the value is ``inf``
  and the gradient finite.
- ``where``, booleans ``[...]``, selects rows; masked rows contribute neither loss nor gradient,
  even if they hold NaN.
- Gradients reach both logits and the scalar options, in forward and reverse mode and to second
  order. At an end of an option's range the slope is the one-sided one. A derivative that is
  infinite, or beyond the range of the dtype, is returned as 0. Options may be traced; values known
  at trace time are checked.
- All raise ``ValueError`` if shapes differ or an option is out of range, and ``TypeError`` if
  logits are integers.
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.logits import rows, two_class
from distill_jax.losses import _cores
from distill_jax.losses._meaning import meant_for

Logits = Float[Array, "*batch classes"]
Where = Bool[Array, "*batch"] | None
Rows = Float[Array, "*batch"]
Scalar = float | Float[Array, ""]


@checked
@meant_for("softmax")
def forward_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Kullback-Leibler divergence from teacher to student, :math:`\sum_k p_k \log(p_k / q_k)`.

    Mode-covering. Infinite where the student excludes a class that the teacher allows. The gradient
    with respect to the student's logits is :math:`q - p`.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Example:
      >>> print(f"{forward_kl(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0])):.4f}")
      0.1109

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return rows(_cores.kl, student_logits, teacher_logits, where=where)


@checked
@meant_for("softmax")
def reverse_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Kullback-Leibler divergence from student to teacher, :math:`\sum_k q_k \log(q_k / p_k)`.

    Mode-seeking: the student need not cover every mode of the teacher. Infinite where the student
    allows a class that the teacher excludes.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Example:
      >>> student = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
      >>> teacher = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
      >>> [f"{x:.4f}" for x in reverse_kl(student, teacher)]
      ['0.5108', '0.0000']

    References:
      Gu et al., `MiniLLM <https://arxiv.org/abs/2306.08543>`_, 2024, section 2.1.
    """
    return rows(lambda s, t: _cores.kl(t, s), student_logits, teacher_logits, where=where)


@checked
@meant_for("softmax")
def symmetric_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Jeffreys' divergence: forward plus reverse KL (their sum, not their mean).

    Infinite where one side alone excludes a class.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    References:
      Jeffreys, An Invariant Form for the Prior Probability in Estimation Problems, 1946.
    """
    return rows(_cores.symmetric_kl, student_logits, teacher_logits, where=where)


@checked
@meant_for("softmax")
def total_variation(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Half the absolute difference, :math:`\tfrac12 \sum_k |p_k - q_k|`; symmetric, at most 1.

    Not differentiable where a class has the same probability on both sides, up to the rounding of
    the row: the slope of its :math:`|p_k - q_k|` is taken to be 0, for both sides.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row in [0, 1], ``[...]``, float32 or wider.

    Example:
      >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
      >>> print(f"{total_variation(student, teacher):.2f}")
      0.40

    References:
      Wen et al., `f-Divergence Minimization for Sequence-Level Knowledge Distillation
      <https://arxiv.org/abs/2307.15190>`_, 2023, section 3.
    """
    return rows(_cores.total_variation, student_logits, teacher_logits, where=where)


@checked
@meant_for("softmax")
def alpha_beta(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""The alpha-beta divergence, a two-parameter family that contains most of the others.

    .. math:: -\frac{1}{\alpha\beta} \sum_k \Big( p_k^\alpha q_k^\beta
        - \frac{\alpha}{\alpha+\beta} p_k^{\alpha+\beta}
        - \frac{\beta}{\alpha+\beta} q_k^{\alpha+\beta} \Big)

    and its limits where ``alpha`` or ``beta`` is 0: (1, 0) is the forward KL, (0, 1) the reverse
    KL, (½, ½) is :math:`2 \sum_k (\sqrt{p_k} - \sqrt{q_k})^2` (Hellinger), and (1, 1) half the
    squared Euclidean distance. Swapping student and teacher is the same as swapping alpha and beta.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      alpha: Power of the teacher, >= 0.
      beta: Power of the student, >= 0; not both 0.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ, a power is negative, or both are 0.

    References:
      Cichocki et al., `Generalized Alpha-Beta Divergences <https://doi.org/10.3390/e13010134>`_,
      2011, equation 19; for distillation Wang et al., `ABKD <https://arxiv.org/abs/2505.04560>`_,
      2025.
    """
    _checks.scalar(alpha=alpha, beta=beta)
    _checks.at_least(0.0, alpha=alpha, beta=beta)
    a, b = _checks.known(alpha), _checks.known(beta)
    if a is not None and b is not None and a + b == 0:
        raise ValueError("alpha and beta must not both be 0")
    return rows(_cores.alpha_beta, student_logits, teacher_logits, alpha, beta, where=where)


@checked
@meant_for("softmax")
def renyi(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""Rényi divergence of order alpha.

    .. math:: \frac{1}{\alpha-1} \log \sum_k p_k^\alpha q_k^{1-\alpha}

    Continuous at ``alpha = 1``, where it is the forward KL. For ``alpha >= 1`` infinite where the
    student excludes a class that the teacher allows; for smaller orders only if the supports are
    disjoint.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      alpha: The order, > 0.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats, one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``alpha`` is not positive.

    References:
      van Erven and Harremoës, `Rényi Divergence and Kullback-Leibler Divergence
      <https://arxiv.org/abs/1206.2459>`_, 2014, definition 1.
    """
    _checks.scalar(alpha=alpha)
    _checks.positive(alpha=alpha)
    return rows(_cores.renyi, student_logits, teacher_logits, alpha, where=where)


@checked
@meant_for("softmax")
def soft_targets(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 1.0,
    where: Where = None,
) -> Rows:
    r"""KL divergence from the softened teacher to the softened student, times T².

    .. math:: T^2 \sum_k p_k \log(p_k / q_k), \; p \propto e^{t/T}, q \propto e^{s/T}

    Hinton's loss minus the teacher's entropy, which does not depend on the student, so 0 means
    "equal". The factor T² keeps the scale of the gradient as the temperature changes.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      temperature: Softening :math:`T > 0`.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats times T², one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``temperature`` is not positive.

    Example:
      >>> student, teacher = jnp.array([0.0, 0.0]), jnp.array([0.0, 2.0])
      >>> print(f"{soft_targets(student, teacher, temperature=2.0):.3f}")
      0.444

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
    """
    _checks.scalar(temperature=temperature)
    _checks.positive(temperature=temperature)
    return rows(_cores.soft_targets, student_logits, teacher_logits, temperature, where=where)


@checked
@meant_for("multi_label")
def soft_targets_multilabel(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 1.0,
    where: Where = None,
) -> Rows:
    r"""``soft_targets`` for labels that are not mutually exclusive: one sigmoid per class, summed.

    The sum over classes of T² times the KL divergence between two Bernoulli distributions. A logit
    at ``-inf`` means that the label is absent with probability 1.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      temperature: Softening :math:`T > 0`.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      Nats times T², one value per row, ``[...]``, float32 or wider.

    Raises:
      ValueError: if shapes differ or ``temperature`` is not positive.

    Example:
      >>> student, teacher = jnp.zeros((4, 3)), jnp.ones((4, 3))
      >>> soft_targets_multilabel(student, teacher).shape
      (4,)

    References:
      Yang et al., `Multi-Label Knowledge Distillation <https://arxiv.org/abs/2308.06453>`_, 2023,
      equation 2 (there without T).
    """
    _checks.scalar(temperature=temperature)
    _checks.positive(temperature=temperature)

    def core(student, teacher, t):
        two = two_class(student[..., None]), two_class(teacher[..., None])
        return _cores.soft_targets(*two, t).sum(-1)

    return rows(core, student_logits, teacher_logits, temperature, where=where, least=1)


@checked
@meant_for("softmax", "multi_label", "regression", "embedding")
def squared_error(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Half the squared distance of the logits, :math:`\tfrac12 \sum_k (s_k - t_k)^2`.

    A sum over classes, not a mean; the gradient is :math:`s - t`. Adding a constant to all logits
    of one side changes it, unlike the divergences between softmax distributions. A class at
    ``-inf`` on both sides contributes 0; on one side only, it makes the value infinite.

    Args:
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      where: Rows to include, ``[...]``; the others get loss 0 and gradient 0.

    Returns:
      One value per row, ``[...]``, float32 or wider.

    Example:
      >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])))
      2.5

    References:
      Ba and Caruana, `Do Deep Nets Really Need to be Deep? <https://arxiv.org/abs/1312.6184>`_,
      2014, equation 1.
    """
    return rows(_cores.squared_error, student_logits, teacher_logits, where=where, least=1)
