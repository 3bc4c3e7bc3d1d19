"""Models: networks and logistic regressions initialised from rules, and their drift in training."""

from __future__ import annotations

from distill_jax.rules.models.drifting import RuleModel, drift
from distill_jax.rules.models.kbann import to_network
from distill_jax.rules.models.logistic import to_logistic_regression

__all__ = [
    "RuleModel",
    "drift",
    "to_logistic_regression",
    "to_network",
]
