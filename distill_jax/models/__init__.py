"""Models: a pair of pure functions around any network, and the networks that come along."""

from distill_jax.models.functions import from_function
from distill_jax.models.images import convnet, resnet
from distill_jax.models.linen import from_linen
from distill_jax.models.networks import logistic_regression, mlp
from distill_jax.models.nnx import from_nnx

__all__ = [
    "convnet",
    "from_function",
    "from_linen",
    "from_nnx",
    "logistic_regression",
    "mlp",
    "resnet",
]
