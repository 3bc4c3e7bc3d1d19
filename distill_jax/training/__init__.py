"""Training: one step, scanned; ``run`` is pure, ``fit`` is watched."""

from distill_jax.optimizers import max_norm
from distill_jax.training._history import NonFiniteLoss
from distill_jax.training._records import read_sweep
from distill_jax.training.checkpoints import CheckpointError, Checkpoints
from distill_jax.training.choosing import best, summary
from distill_jax.training.fitting import fit
from distill_jax.training.grids import integers, log_uniform, sampled, uniform
from distill_jax.training.layout import (
    Layout,
    by_name,
    by_size,
    data_parallel,
    fsdp,
    replicated,
)
from distill_jax.training.logs import json_lines, tensorboard
from distill_jax.training.profiling import Breakdown, breakdown
from distill_jax.training.running import run
from distill_jax.training.step import Recipe, TrainState
from distill_jax.training.sweeps import sweep

__all__ = [
    "Breakdown",
    "CheckpointError",
    "Checkpoints",
    "Layout",
    "NonFiniteLoss",
    "Recipe",
    "TrainState",
    "best",
    "breakdown",
    "by_name",
    "by_size",
    "data_parallel",
    "fit",
    "fsdp",
    "integers",
    "json_lines",
    "log_uniform",
    "max_norm",
    "read_sweep",
    "replicated",
    "run",
    "sampled",
    "summary",
    "sweep",
    "tensorboard",
    "uniform",
]
