"""Models: a pair of pure functions around any network, and the networks that come along."""

from distill_jax.models.functions import from_function
from distill_jax.models.networks import logistic_regression, mlp

__all__ = ["from_function", "logistic_regression", "mlp"]
