"""Exchange: reading and writing rules in files and tables, and rules learned by other libraries."""

from __future__ import annotations

from distill_jax.rules.exchange.files import from_table, read_rules, to_table, write_rules
from distill_jax.rules.exchange.mined import from_rule_frame, from_rule_strings, from_tree
from distill_jax.rules.exchange.requirements import Requirements, from_requirements

__all__ = [
    "Requirements",
    "from_requirements",
    "from_rule_frame",
    "from_rule_strings",
    "from_table",
    "from_tree",
    "read_rules",
    "to_table",
    "write_rules",
]
