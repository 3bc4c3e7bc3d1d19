"""The language of rules: formulas parsed from text, built in Python, and printed."""

from __future__ import annotations

from distill_jax.rules.language.building import (
    all_of,
    any_of,
    at_least,
    at_most,
    clause,
    col,
    exactly_one,
    iff,
    implies,
    label,
    otherwise,
    rule,
    score,
)
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.language.formulas import Rule
from distill_jax.rules.language.parsing import parse, parse_formula
from distill_jax.rules.language.printing import to_text

__all__ = [
    "Rule",
    "RuleError",
    "all_of",
    "any_of",
    "at_least",
    "at_most",
    "clause",
    "col",
    "exactly_one",
    "iff",
    "implies",
    "label",
    "otherwise",
    "parse",
    "parse_formula",
    "rule",
    "score",
    "to_text",
]
