"""Losses: pure functions, student first, one unreduced value per example."""

from distill_jax.losses.divergences import (
    alpha_beta,
    forward_kl,
    jensen_shannon,
    renyi,
    reverse_kl,
    scaled_jensen_shannon,
    skew_kl,
    skew_reverse_kl,
    soft_targets,
    soft_targets_multilabel,
    squared_error,
    symmetric_kl,
    total_variation,
)
from distill_jax.losses.responses import cross_entropy, cross_entropy_with_targets

__all__ = [
    "alpha_beta",
    "cross_entropy",
    "cross_entropy_with_targets",
    "forward_kl",
    "jensen_shannon",
    "renyi",
    "reverse_kl",
    "scaled_jensen_shannon",
    "skew_kl",
    "skew_reverse_kl",
    "soft_targets",
    "soft_targets_multilabel",
    "squared_error",
    "symmetric_kl",
    "total_variation",
]
