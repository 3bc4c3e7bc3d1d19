"""Binds rules to columns and classes: the result is a ``Book`` of arrays."""

from __future__ import annotations

from distill_jax.rules.binding.binding import RuleWarning, bind
from distill_jax.rules.binding.book import Book, encode
from distill_jax.rules.binding.contradictions import Conflict, conflicts
from distill_jax.rules.binding.coverage import Gap, Overlap, gaps, overlaps
from distill_jax.rules.binding.linear import LinearConstraints, linear_constraints
from distill_jax.rules.binding.schema import Column, Schema, encode_columns, infer_schema
from distill_jax.rules.binding.schema_files import read_schema, write_schema

__all__ = [
    "Book",
    "Column",
    "Conflict",
    "Gap",
    "LinearConstraints",
    "Overlap",
    "RuleWarning",
    "Schema",
    "bind",
    "conflicts",
    "encode",
    "encode_columns",
    "gaps",
    "infer_schema",
    "linear_constraints",
    "overlaps",
    "read_schema",
    "write_schema",
]
