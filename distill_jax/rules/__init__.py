"""Rules: written once, bound to columns and classes, and compiled to what a user needs.

``parse`` reads a text, ``bind`` turns it into a ``Book`` for a ``Schema``, and ``encode`` a table
into the columns that the pure functions of this package take.
"""

from __future__ import annotations

from distill_jax.optimizers import pull_to_start
from distill_jax.rules.book import Book, RuleWarning, bind, encode
from distill_jax.rules.building import (
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
    rule,
)
from distill_jax.rules.checking import Check, check
from distill_jax.rules.conflicts import Conflict, conflicts
from distill_jax.rules.drifting import RuleModel, drift
from distill_jax.rules.enforcement import enforce, max_constraint_loss
from distill_jax.rules.exchange import from_table, read_rules, to_table, write_rules
from distill_jax.rules.explaining import Explanation, explain
from distill_jax.rules.formulas import Rule, RuleError
from distill_jax.rules.linear import to_logistic_regression
from distill_jax.rules.logic import energies, fires, forbidden, truth, violation
from distill_jax.rules.mined import from_rule_strings, from_tree
from distill_jax.rules.networks import to_network
from distill_jax.rules.penalties import dual_ascent, encourage, log_truth, penalty
from distill_jax.rules.posterior import (
    corrected,
    imitation,
    learned,
    posterior_kl,
    project,
    remainder,
    rule_teacher,
    teach,
)
from distill_jax.rules.printing import to_text
from distill_jax.rules.schema import Column, Schema, encode_columns, infer_schema
from distill_jax.rules.syntax import parse, parse_formula

__all__ = [
    "Book",
    "Check",
    "Column",
    "Conflict",
    "Explanation",
    "Rule",
    "RuleError",
    "RuleModel",
    "RuleWarning",
    "Schema",
    "all_of",
    "any_of",
    "at_least",
    "at_most",
    "bind",
    "check",
    "clause",
    "col",
    "conflicts",
    "corrected",
    "drift",
    "dual_ascent",
    "encode",
    "encode_columns",
    "encourage",
    "energies",
    "enforce",
    "exactly_one",
    "explain",
    "fires",
    "forbidden",
    "from_rule_strings",
    "from_table",
    "from_tree",
    "iff",
    "imitation",
    "implies",
    "infer_schema",
    "label",
    "learned",
    "log_truth",
    "max_constraint_loss",
    "parse",
    "parse_formula",
    "penalty",
    "posterior_kl",
    "project",
    "pull_to_start",
    "read_rules",
    "remainder",
    "rule",
    "rule_teacher",
    "teach",
    "to_logistic_regression",
    "to_network",
    "to_table",
    "to_text",
    "truth",
    "violation",
    "write_rules",
]
