"""Models: adapters that make a pair of pure functions of any network, and small networks."""

from distill_jax.models.functions import from_function
from distill_jax.models.images import convnet, resnet
from distill_jax.models.linen import from_linen
from distill_jax.models.networks import logistic_regression, mlp
from distill_jax.models.nnx import from_nnx
from distill_jax.models.precision import cast
from distill_jax.models.recomputing import remat

__all__ = [
    "cast",
    "convnet",
    "from_function",
    "from_linen",
    "from_nnx",
    "logistic_regression",
    "mlp",
    "remat",
    "resnet",
]
