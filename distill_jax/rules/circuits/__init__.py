"""Circuits: formulas as arrays, one evaluator for all of them, and the fuzzy logics."""

from __future__ import annotations

from distill_jax.rules.circuits.fuzzy_logics import Logic

__all__ = ["Logic"]
