"""Knowledge distillation in JAX: what large models and people know, moved into small models.

``losses`` compare a student with a teacher or with labels, ``rules`` are what people wrote down,
``models`` and ``teachers`` are pure functions with their variables, ``objectives`` join all of it
into one scalar, ``training`` minimises it, ``evaluation`` measures, and ``report`` shows.
"""

from distill_jax import (
    data,
    evaluation,
    losses,
    models,
    objectives,
    optimizers,
    report,
    rules,
    teachers,
    training,
)
from distill_jax.logits import total, two_class
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Model, Outputs

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Outputs",
    "data",
    "evaluation",
    "losses",
    "models",
    "objectives",
    "optimizers",
    "report",
    "rules",
    "teachers",
    "term",
    "total",
    "training",
    "two_class",
    "weighted_sum",
]
