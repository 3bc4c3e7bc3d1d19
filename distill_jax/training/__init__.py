"""Training: one step, scanned; ``run`` is pure, ``fit`` is watched."""

from distill_jax.training.constraints import max_norm
from distill_jax.training.logs import json_lines, tensorboard
from distill_jax.training.loops import NonFiniteLoss, fit, run
from distill_jax.training.step import Recipe, TrainState

__all__ = [
    "NonFiniteLoss",
    "Recipe",
    "TrainState",
    "fit",
    "json_lines",
    "max_norm",
    "run",
    "tensorboard",
]
