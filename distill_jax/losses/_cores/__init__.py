"""The numerics of the losses: cores over unmasked float blocks ``[..., classes]``, student first.

All cores share a scheme. The log-ratio of the two distributions is a difference of differences of
logits, and a divergence is a sum of non-negative terms. Near equality, where the closed forms
cancel, those terms are series in the log-ratio. Infinite derivatives are returned as 0.

Derivatives are closed forms in a few quantities per class (``pair_of``, ``_mixture``), whose own
derivatives are closed forms in the same quantities. So they hold to any order, and no order divides
by a probability that may underflow. What is differentiated by JAX itself replaces the argument of
the branch of a ``where`` that is not taken, since its derivative would be NaN otherwise.
"""

from distill_jax.losses._cores.distances import squared_error, total_variation
from distill_jax.losses._cores.mixtures import (
    jensen_shannon,
    kl_to_mixture,
    scaled_jensen_shannon,
)
from distill_jax.losses._cores.powers import alpha_beta, renyi
from distill_jax.losses._cores.relative_entropy import kl, soft_targets, symmetric_kl
from distill_jax.losses._cores.softmax import log_softmax

__all__ = [
    "alpha_beta",
    "jensen_shannon",
    "kl",
    "kl_to_mixture",
    "log_softmax",
    "renyi",
    "scaled_jensen_shannon",
    "soft_targets",
    "squared_error",
    "symmetric_kl",
    "total_variation",
]
