"""Training: one step, scanned. ``run`` is a pure function; ``fit`` logs, saves and resumes."""

from distill_jax.optimizers import max_norm
from distill_jax.training.averaging import warmed_up
from distill_jax.training.checkpoints import CheckpointError, Checkpoints, Loaded, load
from distill_jax.training.devices import (
    Layout,
    data_parallel,
    fsdp,
    replicate,
    shard_by_name,
    shard_by_size,
)
from distill_jax.training.ending import EarlyStopping
from distill_jax.training.fitting import fit
from distill_jax.training.profiling import Breakdown, breakdown
from distill_jax.training.running import run
from distill_jax.training.step import Recipe, TrainState
from distill_jax.training.sweeps import (
    best,
    integers,
    log_uniform,
    read_sweep,
    sampled,
    summary,
    sweep,
    uniform,
)
from distill_jax.training.watching import NonFiniteLoss, json_lines, tensorboard

__all__ = [
    "Breakdown",
    "CheckpointError",
    "Checkpoints",
    "EarlyStopping",
    "Layout",
    "Loaded",
    "NonFiniteLoss",
    "Recipe",
    "TrainState",
    "best",
    "breakdown",
    "data_parallel",
    "fit",
    "fsdp",
    "integers",
    "json_lines",
    "load",
    "log_uniform",
    "max_norm",
    "read_sweep",
    "replicate",
    "run",
    "sampled",
    "shard_by_name",
    "shard_by_size",
    "summary",
    "sweep",
    "tensorboard",
    "uniform",
    "warmed_up",
]
