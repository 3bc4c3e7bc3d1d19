"""Logic: where the rules of a book fire, how true they are, and which classes they forbid."""

from __future__ import annotations

from distill_jax.rules.logic.evaluation import energies, fires, forbidden, truth, violation
from distill_jax.rules.logic.logarithms import log_truth

__all__ = [
    "energies",
    "fires",
    "forbidden",
    "log_truth",
    "truth",
    "violation",
]
