"""What the losses should be: float64 NumPy, from the papers' formulas, sharing no library code.

All take NumPy logits ``[..., classes]``, student first, and give float64 rows. They are plain and
slow, and exact enough: in float64 the textbook formulas hold to 1e-9 where float32 has lost them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp, softmax


def _float64(reference: Callable) -> Callable:
    """Inputs in float64, and no warnings where a class has probability 0."""

    @functools.wraps(reference)
    def wrapped(student, against, **options):
        against = np.asarray(against)
        if against.dtype.kind not in "iu":
            against = against.astype(np.float64)
        options = {name: float(option) for name, option in options.items()}
        with np.errstate(all="ignore"):
            return reference(np.asarray(student).astype(np.float64), against, **options)

    return wrapped


def _kl(log_a, log_b):
    """KL(a || b), where 0 log(0 / b) is 0."""
    return np.where(np.isneginf(log_a), 0.0, np.exp(log_a) * (log_a - log_b)).sum(-1)


def _kl_to_mixture(share, log_a, log_b):
    """KL(a || m), m = share a + (1 - share) b, from log(m / a): exact also where m is close to a,
    for which log a - log m is not, not even in float64."""
    ratio = np.where(np.isneginf(log_a), 0.0, log_b - log_a)
    near = np.abs(ratio) < 1
    close = np.log1p((1 - share) * np.expm1(np.where(near, ratio, 0.0)))
    far = np.logaddexp(np.log(share), np.log1p(-share) + ratio)
    terms = np.exp(log_a) * np.where(near, close, far)
    return -np.where(np.isneginf(log_a), 0.0, terms).sum(-1)


def _logs(student, teacher):
    return log_softmax(teacher, axis=-1), log_softmax(student, axis=-1)


def _times(weight, value):
    return np.where(weight == 0, 0.0, weight * value)


@_float64
def forward_kl(student, teacher):
    """Kullback and Leibler 1951."""
    p, q = _logs(student, teacher)
    return _kl(p, q)


@_float64
def reverse_kl(student, teacher):
    p, q = _logs(student, teacher)
    return _kl(q, p)


@_float64
def symmetric_kl(student, teacher):
    """Jeffreys 1946: the sum of both."""
    p, q = _logs(student, teacher)
    return _kl(p, q) + _kl(q, p)


@_float64
def jensen_shannon(student, teacher, beta):
    """Agarwal et al. 2024 (GKD), section 2: beta KL(p || m) + (1 - beta) KL(q || m)."""
    p, q = _logs(student, teacher)
    first, second = _kl_to_mixture(beta, p, q), _kl_to_mixture(1 - beta, q, p)
    return _times(beta, first) + _times(1 - beta, second)


@_float64
def scaled_jensen_shannon(student, teacher, beta):
    """The same, divided by beta (1 - beta); by continuity the two KLs at the ends."""
    p, q = _logs(student, teacher)
    if beta in (0.0, 1.0):
        return _kl(p, q) if beta == 0 else _kl(q, p)
    return _kl_to_mixture(beta, p, q) / (1 - beta) + _kl_to_mixture(1 - beta, q, p) / beta


@_float64
def skew_kl(student, teacher, alpha):
    """Ko et al. 2024 (DistiLLM), section 3.1: KL(p || alpha p + (1 - alpha) q)."""
    p, q = _logs(student, teacher)
    return _kl_to_mixture(alpha, p, q)


@_float64
def skew_reverse_kl(student, teacher, alpha):
    """Ko et al. 2024 (DistiLLM), section 3.1: KL(q || alpha q + (1 - alpha) p)."""
    p, q = _logs(student, teacher)
    return _kl_to_mixture(alpha, q, p)


@_float64
def total_variation(student, teacher):
    p, q = _logs(student, teacher)
    return 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(-1)


@_float64
def alpha_beta(student, teacher, alpha, beta):
    """Cichocki et al. 2011, equations 19 and 20 (the latter: the limits on the axes).

    The released code of Wang et al. 2025 (ABKD) agrees off the axes; on them it has 1 / alpha where
    equation 20 has 1 / alpha**2.
    """
    log_p, log_q = _logs(student, teacher)
    if beta == 0 or alpha == 0:
        power = max(alpha, beta)
        log_a, log_b = (log_p, log_q) if beta == 0 else (log_q, log_p)
        log_ratio = np.where(np.isneginf(log_a) & np.isneginf(log_b), 0.0, log_a - log_b)
        a, b = np.exp(power * log_a), np.exp(power * log_b)
        terms = np.where(a == 0, 0.0, a * power * log_ratio) - a + b
        return terms.sum(-1) / power**2
    p, q, both = np.exp(log_p), np.exp(log_q), alpha + beta
    terms = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -terms.sum(-1) / (alpha * beta)


@_float64
def renyi(student, teacher, alpha):
    """van Erven and Harremoës 2014, definition 1 and, at order 1, theorem 5."""
    p, q = _logs(student, teacher)
    if alpha == 1:
        return _kl(p, q)
    # 0 / 0 is 0 by their convention, and x / 0 infinite.
    terms = np.where(np.isneginf(p), -np.inf, alpha * p + (1 - alpha) * q)
    return logsumexp(terms, axis=-1) / (alpha - 1)


@_float64
def soft_targets(student, teacher, temperature):
    """Hinton et al. 2015, section 2, less the teacher's entropy."""
    p, q = _logs(student / temperature, teacher / temperature)
    return temperature**2 * _kl(p, q)


@_float64
def soft_targets_multilabel(student, teacher, temperature):
    """Yang et al. 2023, equation 2, with temperature: a sum of Bernoulli divergences."""
    student, teacher = student / temperature, teacher / temperature
    p = np.stack([log_expit(teacher), log_expit(-teacher)], -1)
    q = np.stack([log_expit(student), log_expit(-student)], -1)
    return temperature**2 * _kl(p, q).sum(-1)


@_float64
def squared_error(student, teacher):
    """Ba and Caruana 2014, equation 1."""
    return 0.5 * (np.where(student == teacher, 0.0, student - teacher) ** 2).sum(-1)


@_float64
def cross_entropy(student, labels, label_smoothing):
    """Szegedy et al. 2016, section 7, with K the number of classes that the student allows."""
    log_q = log_softmax(student, axis=-1)
    chosen = np.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
    live = ~np.isneginf(student)
    even = np.where(live, log_q, 0.0).sum(-1) / live.sum(-1)
    return -_times(1 - label_smoothing, chosen) - label_smoothing * even


@_float64
def cross_entropy_with_targets(student, targets):
    return -np.where(targets == 0, 0.0, targets * log_softmax(student, axis=-1)).sum(-1)


def _bernoulli(logits, answers):
    return -np.where(answers, log_expit(logits), log_expit(-logits)).sum(-1)


@_float64
def binary_cross_entropy(student, labels):
    return _bernoulli(student, labels == 1)


@_float64
def ordinal_cross_entropy(student, labels):
    """Cao et al. 2020 (CORAL), equation 4: one question per level, is the rank above it?"""
    levels = np.arange(student.shape[-1])
    return _bernoulli(student, np.asarray(labels)[..., None] > levels)


@_float64
def squared_error_with_targets(student, targets):
    return 0.5 * ((student - targets) ** 2).sum(-1)


@_float64
def absolute_error(student, targets):
    return np.abs(student - targets).sum(-1)


@_float64
def huber(student, targets, delta):
    """Huber 1964."""
    d = np.abs(student - targets)
    return np.where(d <= delta, 0.5 * d**2, delta * (d - 0.5 * delta)).sum(-1)


def _if_confident(value, teacher, threshold):
    return np.where(softmax(teacher, axis=-1).max(-1) < threshold, 0.0, value)


@_float64
def pseudo_labels(student, teacher, threshold):
    """Sohn et al. 2020 (FixMatch), equation 4, a row."""
    label = teacher.argmax(-1)[..., None]
    nats = -np.take_along_axis(log_softmax(student, axis=-1), label, axis=-1)[..., 0]
    return _if_confident(nats, teacher, threshold)


@_float64
def sharpened_targets(student, teacher, temperature, threshold):
    """Xie et al. 2020 (UDA), section 3, a row."""
    value = _kl(*_logs(student, teacher / temperature))
    return _if_confident(value, teacher, threshold)
