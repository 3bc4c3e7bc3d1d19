r"""Divergences between two categorical distributions, from logits.

All take ``student_logits`` and ``teacher_logits`` of one shape ``[..., classes]`` and return rows
``[...]`` in nats, not reduced, float32 or better. Below, *p* is the teacher's distribution and *q*
the student's. Every value is a sum of terms that are each non-negative, which is what keeps it
exact near equality: 0 where the logits are equal, and right to 1e-5 where the divergence is 4e-7,
with ten classes or with 128 thousand.

- A class at ``-inf`` has probability 0 and adds 0. A row with all classes at ``-inf`` is no
  distribution: NaN. What is infinite by definition is ``inf``, with a finite gradient.
- ``where``, booleans ``[...]``, says which rows count; the others get loss 0 and gradient 0,
  whatever they hold.
- Gradients reach both logits and the scalar options, in forward and reverse mode and to second
  order. Options may be traced; those known beforehand are checked.
- All raise ``ValueError`` for shapes that differ or an option out of its range, and ``TypeError``
  for integer logits.
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.logits import rows, two_class
from distill_jax.losses import _cores

Logits = Float[Array, "*batch classes"]
Where = Bool[Array, "*batch"] | None
Rows = Float[Array, "*batch"]
Scalar = float | Float[Array, ""]


def forward_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Kullback-Leibler divergence from teacher to student, :math:`\sum_k p_k \log(p_k / q_k)`.

    Infinite where the student forbids a class that the teacher allows. The gradient with respect
    to the student's logits is :math:`q - p`.

    Example:
      >>> print(f"{forward_kl(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0])):.4f}")
      0.1109

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return rows(_cores.kl, student_logits, teacher_logits, where=where)


def reverse_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Kullback-Leibler divergence from student to teacher, :math:`\sum_k q_k \log(q_k / p_k)`.

    Mode-seeking: the student is not asked to cover what it has no room for. Infinite where the
    student allows a class that the teacher forbids.

    References:
      Gu et al., `MiniLLM <https://arxiv.org/abs/2306.08543>`_, 2024, section 2.1.
    """
    return rows(lambda s, t: _cores.kl(t, s), student_logits, teacher_logits, where=where)


def symmetric_kl(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Jeffreys' divergence: forward plus reverse KL (their sum, not their mean).

    References:
      Jeffreys, An Invariant Form for the Prior Probability in Estimation Problems, 1946.
    """
    return rows(
        lambda s, t: _cores.kl(s, t) + _cores.kl(t, s), student_logits, teacher_logits, where=where
    )


def jensen_shannon(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""Generalised Jensen-Shannon divergence, in the convention of GKD: beta weights the teacher.

    .. math:: \beta\, KL(p \,\|\, m) + (1-\beta)\, KL(q \,\|\, m), \qquad m = \beta p + (1-\beta) q

    Bounded by the entropy of beta, at most log 2. It is 0 at ``beta`` 0 and 1, by definition: it
    falls off like ``beta`` times the forward KL at one end, like ``1 - beta`` times the reverse KL
    at the other. Where those ends should be the KLs themselves, take ``scaled_jensen_shannon``.
    Swapping student and teacher is the same as ``1 - beta``.

    Args:
      beta: Weight of the teacher, in [0, 1].

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, 2024, section 2.
    """
    _checks.scalar(beta=beta)
    _checks.between(0.0, 1.0, beta=beta)
    return rows(_cores.jensen_shannon, student_logits, teacher_logits, beta, where=where)


def scaled_jensen_shannon(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""``jensen_shannon`` divided by :math:`\beta (1-\beta)`: forward KL at 0, reverse KL at 1.

    Continuous in ``beta`` over the whole of [0, 1], ends included, so that a schedule may run from
    one KL to the other. Four times ``jensen_shannon`` in the middle.

    Args:
      beta: Where to stand between the forward KL (0) and the reverse KL (1).

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, 2024, section 2, for the limits.
    """
    _checks.scalar(beta=beta)
    _checks.between(0.0, 1.0, beta=beta)
    return rows(_cores.scaled_jensen_shannon, student_logits, teacher_logits, beta, where=where)


def skew_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.1,
    where: Where = None,
) -> Rows:
    r"""Forward KL to a mixture, :math:`KL(p \| \alpha p + (1-\alpha) q)`: mostly student.

    Finite whatever the supports for ``alpha > 0``, at most :math:`-\log \alpha`; the forward KL at
    ``alpha = 0``.

    Args:
      alpha: Share of the teacher in the mixture, in [0, 1].

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


def skew_reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.1,
    where: Where = None,
) -> Rows:
    r"""Reverse KL to a mixture, :math:`KL(q \| \alpha q + (1-\alpha) p)`: mostly teacher.

    Finite whatever the supports for ``alpha > 0``; the reverse KL at ``alpha = 0``.

    Args:
      alpha: Share of the student in the mixture, in [0, 1].

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


def total_variation(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Half the absolute difference, :math:`\tfrac12 \sum_k |p_k - q_k|`; symmetric, at most 1.

    Not smooth where a class has the same probability on both sides; the gradient there is 0.

    References:
      Wen et al., `f-Divergence Minimization for Sequence-Level Knowledge Distillation
      <https://arxiv.org/abs/2307.15190>`_, 2023, section 3.
    """
    return rows(_cores.total_variation, student_logits, teacher_logits, where=where)


def alpha_beta(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""The alpha-beta divergence, a plane that holds most of the others.

    .. math:: -\frac{1}{\alpha\beta} \sum_k \Big( p_k^\alpha q_k^\beta
        - \frac{\alpha}{\alpha+\beta} p_k^{\alpha+\beta}
        - \frac{\beta}{\alpha+\beta} q_k^{\alpha+\beta} \Big)

    and its limits where ``alpha`` or ``beta`` is 0: (1, 0) is the forward KL, (0, 1) the reverse
    KL, (½, ½) is :math:`2 \sum_k (\sqrt{p_k} - \sqrt{q_k})^2` (Hellinger), and (1, 1) half the
    squared Euclidean distance. Swapping student and teacher is the same as swapping alpha and beta.

    Args:
      alpha: Power of the teacher, >= 0.
      beta: Power of the student, >= 0; not both 0.

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


def renyi(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    alpha: Scalar = 0.5,
    where: Where = None,
) -> Rows:
    r"""Rényi divergence of order alpha.

    .. math:: \frac{1}{\alpha-1} \log \sum_k p_k^\alpha q_k^{1-\alpha}

    Continuous through ``alpha = 1``, where it is the forward KL. Infinite for ``alpha >= 1`` where
    the student forbids what the teacher allows; for smaller orders only if nothing is shared.

    Args:
      alpha: The order, > 0.

    References:
      van Erven and Harremoës, `Rényi Divergence and Kullback-Leibler Divergence
      <https://arxiv.org/abs/1206.2459>`_, 2014, definition 1.
    """
    _checks.scalar(alpha=alpha)
    _checks.positive(alpha=alpha)
    return rows(_cores.renyi, student_logits, teacher_logits, alpha, where=where)


def soft_targets(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 1.0,
    where: Where = None,
) -> Rows:
    r"""KL divergence from the softened teacher to the softened student, times T².

    .. math:: T^2 \sum_k p_k \log(p_k / q_k), \; p \propto e^{t/T}, q \propto e^{s/T}

    Hinton's loss less the teacher's entropy, which no student can change, so that 0 means "equal".
    T² keeps the size of the gradient as the temperature moves.

    Args:
      temperature: Softening :math:`T > 0`.

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


def soft_targets_multilabel(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 1.0,
    where: Where = None,
) -> Rows:
    r"""``soft_targets`` for labels that do not exclude each other: one sigmoid a class, summed.

    The sum over classes of T² times the KL divergence between two Bernoulli distributions. A logit
    at ``-inf`` is a label that is surely absent.

    Args:
      temperature: Softening :math:`T > 0`.

    References:
      Yang et al., `Multi-Label Knowledge Distillation <https://arxiv.org/abs/2308.06453>`_, 2023,
      equation 2 (there without T).
    """
    _checks.scalar(temperature=temperature)
    _checks.positive(temperature=temperature)

    def core(student, teacher, t):
        two = two_class(student[..., None]), two_class(teacher[..., None])
        return _cores.soft_targets(*two, t).sum(-1)

    return rows(core, student_logits, teacher_logits, temperature, where=where)


def squared_error(student_logits: Logits, teacher_logits: Logits, *, where: Where = None) -> Rows:
    r"""Half the squared distance of the logits, :math:`\tfrac12 \sum_k (s_k - t_k)^2`.

    A sum over classes, not a mean; the gradient is :math:`s - t`. Unlike every divergence here, it
    is moved by a constant added to the logits. A class at ``-inf`` on both sides adds 0.

    References:
      Ba and Caruana, `Do Deep Nets Really Need to be Deep? <https://arxiv.org/abs/1312.6184>`_,
      2014, equation 1.
    """
    return rows(_cores.squared_error, student_logits, teacher_logits, where=where)
