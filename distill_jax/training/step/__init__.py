"""One optimizer step as a pure function, and the programs made of it."""

from distill_jax.training.step.recipe import Recipe, TrainState

__all__ = ["Recipe", "TrainState"]
