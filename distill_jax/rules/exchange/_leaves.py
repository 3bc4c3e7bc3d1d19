"""Leaves of decision trees as rules: the path to a leaf implies its class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from distill_jax.rules.language import formulas as f


def leaf_rule(
    limits: Mapping[str, tuple[float, float]], label: str, name: str, strength: f.Strength
) -> f.Rule:
    """The rule of a leaf.

    Args:
      limits: ``low < column <= high`` for each column on the path, infinite for no limit.
      label: The leaf's class.
      name: The rule's name.
      strength: Its strength.
    """
    body = [_interval(column, *ends) for column, ends in limits.items()]
    head = f.Name(label)
    if not body:  # a tree without a split
        return f.Rule(head, name, strength)
    whole = body[0] if len(body) == 1 else f.And(tuple(body))
    return f.Rule(f.Implies(whole, head), name, strength)


def leaf_strength(counts: Sequence[float], smoothing: float) -> f.Strength:
    """The smoothed log-odds of a leaf's class against an average other class.

    Args:
      counts: Training examples of each class in the leaf, of two classes or more.
      smoothing: Count added to each class.
    """
    best = max(counts)
    other = (sum(counts) - best) / (len(counts) - 1)
    return f.Strength("w", round(math.log((best + smoothing) / (other + smoothing)), 4))


def check_smoothing(smoothing: float) -> None:
    """Raises a ``ValueError`` unless ``smoothing`` is a positive number."""
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ValueError(f"smoothing must be finite and > 0, got {smoothing}")


def _interval(name: str, low: float, high: float) -> f.Formula:
    """``low < name <= high``, without an infinite end."""
    if math.isinf(low):
        return f.Compare((f.Name(name), f.Number(high)), ("<=",))
    if math.isinf(high):
        return f.Compare((f.Name(name), f.Number(low)), (">",))
    return f.Compare((f.Number(low), f.Name(name), f.Number(high)), ("<", "<="))
