"""Many trials of one function: grids, how they run, what is kept of them, and which is best."""

from distill_jax.training.sweeps.choosing import best, summary
from distill_jax.training.sweeps.grids import integers, log_uniform, sampled, uniform
from distill_jax.training.sweeps.records import read_sweep
from distill_jax.training.sweeps.sweeping import sweep

__all__ = [
    "best",
    "integers",
    "log_uniform",
    "read_sweep",
    "sampled",
    "summary",
    "sweep",
    "uniform",
]
