"""Losses: pure functions, student first, one unreduced value per example."""

from distill_jax.losses.consistency import pseudo_labels, sharpened_targets
from distill_jax.losses.divergences import (
    alpha_beta,
    forward_kl,
    renyi,
    reverse_kl,
    soft_targets,
    soft_targets_multilabel,
    squared_error,
    symmetric_kl,
    total_variation,
)
from distill_jax.losses.mixtures import (
    jensen_shannon,
    scaled_jensen_shannon,
    skew_kl,
    skew_reverse_kl,
)
from distill_jax.losses.responses import (
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    cross_entropy_with_targets,
    huber,
    ordinal_cross_entropy,
    squared_error_with_targets,
)

__all__ = [
    "absolute_error",
    "alpha_beta",
    "binary_cross_entropy",
    "cross_entropy",
    "cross_entropy_with_targets",
    "forward_kl",
    "huber",
    "jensen_shannon",
    "ordinal_cross_entropy",
    "pseudo_labels",
    "renyi",
    "reverse_kl",
    "scaled_jensen_shannon",
    "sharpened_targets",
    "skew_kl",
    "skew_reverse_kl",
    "soft_targets",
    "soft_targets_multilabel",
    "squared_error",
    "squared_error_with_targets",
    "symmetric_kl",
    "total_variation",
]
