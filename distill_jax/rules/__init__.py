"""Rules: written once, bound to columns and classes, and compiled to what a user needs.

``parse`` reads a text, ``bind`` turns it into a ``Book`` for a ``Schema``, and ``encode`` a table
into the columns that the pure functions of this package take. Later folders build on earlier ones:

- ``language``: rules as text and as formulas; parsing, printing, building in Python;
- ``circuits``: formulas as graphs of arrays, evaluated in any algebra; the fuzzy logics;
- ``binding``: schemas of columns and classes, their files; ``bind``, ``encode``; hard rules that
  clash;
- ``exchange``: rules in files, and rules that other libraries have learned;
- ``logic``: where rules fire, how true they are, and which classes they forbid;
- ``levels``: rules in training and prediction, from soft to firm: penalties, budgets, teachers,
  corrected predictions, hard constraints;
- ``models``: networks and logistic regressions that start from rules;
- ``inspection``: what rules do on a table, and why a prediction came out as it did.
"""

from __future__ import annotations

from distill_jax.optimizers import pull_to_start
from distill_jax.rules.binding import (
    Book,
    Column,
    Conflict,
    Gap,
    Overlap,
    RuleWarning,
    Schema,
    bind,
    conflicts,
    encode,
    encode_columns,
    gaps,
    infer_schema,
    overlaps,
    read_schema,
    write_schema,
)
from distill_jax.rules.circuits import Logic
from distill_jax.rules.exchange import (
    from_association_rules,
    from_decision_table,
    from_pmml,
    from_rule_frame,
    from_rule_strings,
    from_table,
    from_tree,
    from_tree_text,
    read_rules,
    to_decision_table,
    to_table,
    write_rules,
)
from distill_jax.rules.inspection import (
    Check,
    Explanation,
    check,
    explain,
)
from distill_jax.rules.language import (
    Rule,
    RuleError,
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
    parse,
    parse_formula,
    rule,
    score,
    to_text,
)
from distill_jax.rules.levels import (
    corrected,
    dual_ascent,
    encourage,
    enforce,
    imitation,
    learned,
    max_constraint_loss,
    penalty,
    posterior_kl,
    project,
    remainder,
    rule_teacher,
    teach,
)
from distill_jax.rules.logic import (
    energies,
    fires,
    forbidden,
    log_truth,
    truth,
    violation,
)
from distill_jax.rules.models import (
    RuleModel,
    drift,
    to_logistic_regression,
    to_network,
)

__all__ = [
    "Book",
    "Check",
    "Column",
    "Conflict",
    "Explanation",
    "Gap",
    "Logic",
    "Overlap",
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
    "from_association_rules",
    "from_decision_table",
    "from_pmml",
    "from_rule_frame",
    "from_rule_strings",
    "from_table",
    "from_tree",
    "from_tree_text",
    "gaps",
    "iff",
    "imitation",
    "implies",
    "infer_schema",
    "label",
    "learned",
    "log_truth",
    "max_constraint_loss",
    "otherwise",
    "overlaps",
    "parse",
    "parse_formula",
    "penalty",
    "posterior_kl",
    "project",
    "pull_to_start",
    "read_rules",
    "read_schema",
    "remainder",
    "rule",
    "rule_teacher",
    "score",
    "teach",
    "to_decision_table",
    "to_logistic_regression",
    "to_network",
    "to_table",
    "to_text",
    "truth",
    "violation",
    "write_rules",
    "write_schema",
]
