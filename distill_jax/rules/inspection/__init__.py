"""Inspection: statistics of rules on a table, and explanations of single predictions."""

from __future__ import annotations

from distill_jax.rules.inspection.checking import Check, check
from distill_jax.rules.inspection.explaining import Explanation, explain

__all__ = [
    "Check",
    "Explanation",
    "check",
    "explain",
]
