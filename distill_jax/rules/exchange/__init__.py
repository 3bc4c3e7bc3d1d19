"""Exchange: reading and writing rules in files and tables, and rules learned by other libraries."""

from __future__ import annotations

from distill_jax.rules.exchange.association import from_association_rules
from distill_jax.rules.exchange.decision_tables import from_decision_table
from distill_jax.rules.exchange.decision_writing import to_decision_table
from distill_jax.rules.exchange.files import from_table, read_rules, to_table, write_rules
from distill_jax.rules.exchange.mined import from_rule_strings, from_tree
from distill_jax.rules.exchange.pmml import from_pmml
from distill_jax.rules.exchange.requirements import Requirements, from_requirements
from distill_jax.rules.exchange.rule_frames import from_rule_frame
from distill_jax.rules.exchange.tree_texts import from_tree_text

__all__ = [
    "Requirements",
    "from_association_rules",
    "from_decision_table",
    "from_pmml",
    "from_requirements",
    "from_rule_frame",
    "from_rule_strings",
    "from_table",
    "from_tree",
    "from_tree_text",
    "read_rules",
    "to_decision_table",
    "to_table",
    "write_rules",
]
