"""The atoms of rules, as features of models."""

from __future__ import annotations

import dataclasses

import pytest

from distill_jax.rules import Column, RuleError, Schema, bind, parse_formula
from distill_jax.rules.language import formulas as f
from distill_jax.rules.models._features import atoms_in


@dataclasses.dataclass(frozen=True)
class Xor(f.Connective):
    """A connective that the library does not have."""

    left: f.Formula
    right: f.Formula


@pytest.mark.quick
def test_atoms_are_found_inside_any_connective() -> None:
    """One that is unknown is no atom: an atom over a label would take its columns with it."""
    a, label = parse_formula("a > 1"), parse_formula("sick")
    x = f.Implies(f.Not(Xor(a, f.And((f.Name("b"), label)))), f.Count("any_of", None, (label, a)))
    assert list(atoms_in(x, ("well", "sick"), None, {})) == [
        (a, False),
        (f.Name("b"), False),
        (a, True),
    ]


def test_a_connective_without_a_meaning_is_refused_by_name() -> None:
    schema = Schema((Column("a", "boolean"), Column("b", "boolean")), ("well", "sick"))
    rule = f.Rule(f.Implies(Xor(f.Name("a"), f.Name("b")), f.Name("sick")))
    with pytest.raises((RuleError, ValueError), match="Xor"):
        bind([rule], schema)


@pytest.mark.parametrize("text", ["not a", "a and b", "a or b", "a => b", "a <=> b"])
def test_operands_are_the_formulas_in_their_order(text: str) -> None:
    x = parse_formula(text)
    assert isinstance(x, f.Connective)
    assert [str(part) for part in f.operands(x)] == ["a", "b"][: 1 + ("b" in text)]
