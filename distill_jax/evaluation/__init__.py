"""How accurate a model is, how close to its teacher, and what it costs."""

from __future__ import annotations

from distill_jax.evaluation.costs import compression, cost
from distill_jax.evaluation.evaluators import evaluator
from distill_jax.evaluation.metrics import evaluate, evaluate_many, sums

__all__ = ["compression", "cost", "evaluate", "evaluate_many", "evaluator", "sums"]
