"""Levels of firmness at which rules act on a model: penalties, budgets, teachers, constraints."""

from __future__ import annotations

from distill_jax.rules.levels.budgets import dual_ascent
from distill_jax.rules.levels.enforcement import enforce, max_constraint_loss
from distill_jax.rules.levels.linear import encourage_linear, linear_penalty, linear_violation
from distill_jax.rules.levels.linear_enforcement import enforce_linear
from distill_jax.rules.levels.linear_projection import project_linear
from distill_jax.rules.levels.penalties import encourage, penalty
from distill_jax.rules.levels.projection import project
from distill_jax.rules.levels.teachers import corrected, rule_teacher
from distill_jax.rules.levels.teaching import (
    imitation,
    learned,
    posterior_kl,
    remainder,
    teach,
)

__all__ = [
    "corrected",
    "dual_ascent",
    "encourage",
    "encourage_linear",
    "enforce",
    "enforce_linear",
    "imitation",
    "learned",
    "linear_penalty",
    "linear_violation",
    "max_constraint_loss",
    "penalty",
    "posterior_kl",
    "project",
    "project_linear",
    "remainder",
    "rule_teacher",
    "teach",
]
