"""Inspection: what rules do to a table, and why one prediction came out as it did."""

from __future__ import annotations

from distill_jax.rules.inspection.checking import Check, check
from distill_jax.rules.inspection.explaining import Explanation, explain

__all__ = [
    "Check",
    "Explanation",
    "check",
    "explain",
]
