"""Watching a run: its metrics, where they are logged, a progress bar, and a profile."""

from distill_jax.training.watching.history import NonFiniteLoss
from distill_jax.training.watching.logs import json_lines, tensorboard

__all__ = ["NonFiniteLoss", "json_lines", "tensorboard"]
