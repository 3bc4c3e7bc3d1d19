"""Checkpoints of a run: a folder that ``fit`` saves into and resumes from."""

from distill_jax.training.checkpoints.loading import Loaded, load
from distill_jax.training.checkpoints.saving import CheckpointError, Checkpoints

__all__ = ["CheckpointError", "Checkpoints", "Loaded", "load"]
