"""Training: one step, scanned; ``run`` is pure, ``fit`` is watched."""

from distill_jax.training._history import NonFiniteLoss
from distill_jax.training.checkpoints import CheckpointError, Checkpoints
from distill_jax.training.constraints import max_norm
from distill_jax.training.fitting import fit
from distill_jax.training.layout import (
    Layout,
    by_name,
    by_size,
    data_parallel,
    fsdp,
    replicated,
)
from distill_jax.training.logs import json_lines, tensorboard
from distill_jax.training.running import run
from distill_jax.training.step import Recipe, TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Layout",
    "NonFiniteLoss",
    "Recipe",
    "TrainState",
    "by_name",
    "by_size",
    "data_parallel",
    "fit",
    "fsdp",
    "json_lines",
    "max_norm",
    "replicated",
    "run",
    "tensorboard",
]
