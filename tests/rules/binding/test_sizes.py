"""Binding large books takes steps and memory in proportion to their size, or says which limit."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.rules import Column, RuleError, Schema, bind, encode, fires
from distill_jax.rules.binding import _ground, contradictions
from distill_jax.rules.circuits._building import MOST_COUNTED, Builder, _conjunctions

SCHEMA = Schema((Column("x"), Column("y")), ("no", "yes"))


def labels(number: int) -> Schema:
    return Schema((Column("x"),), tuple(f"l{i}" for i in range(number)), exclusive=False)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the formulas that are lowered to nodes."""
    count, build = [0], _ground._Walk._build_node

    def counted(self, x, positive):
        count[0] += 1
        return build(self, x, positive)

    monkeypatch.setattr(_ground._Walk, "_build_node", counted)
    return count


THEORIES = {
    "clauses of one head": lambda n: [f"p :- x > {i}, y < {i}." for i in range(n)] + ["p => yes"],
    "rules that use a predicate": lambda n: (
        [f"p :- x > {i}." for i in range(n)] + [f"p and y > {i} => yes" for i in range(n)]
    ),
    "a chain": lambda n: (
        ["p0 :- x > 0."] + [f"p{i + 1} :- p{i}, y > {i}." for i in range(n)] + [f"p{n} => yes"]
    ),
    "a chain with labels": lambda n: (
        ["p0 :- yes."] + [f"p{i + 1} :- not p{i}." for i in range(n)] + [f"x > 0 => p{n}"]
    ),
    "a chain that is not used": lambda n: (
        ["x > 0 => yes", "p0 :- x > 0."] + [f"p{i + 1} :- not p{i}, y < {i}." for i in range(n)]
    ),
}


@pytest.mark.parametrize("theory", THEORIES.values(), ids=THEORIES)
def test_clauses_take_steps_in_proportion_to_their_number(theory, steps):
    taken = []
    for n in (60, 120):
        steps[0] = 0
        bind("\n".join(theory(n)), SCHEMA, conflicts="ignore")
        taken.append(steps[0])
    assert 120 < taken[1] < 2.2 * taken[0]


@pytest.mark.quick
def test_a_long_chain_means_what_its_clauses_say():
    text = "p0 :- x > 0.\n" + "\n".join(f"p{i + 1} :- not p{i}." for i in range(401))
    book = bind(text + "\np401 => yes", SCHEMA)
    got = np.asarray(fires(book, encode(book, {"x": [1, -1, None], "y": [0, 0, 0]})))[:, 0]
    assert got.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "p0 :- x > 0.\n" + "\n".join(f"p{i + 1} :- p{i}." for i in range(1000)) + "\np3 => yes",
            "line 1001, column 1: clauses use one another in a chain of more than 1000",
        ),
        (
            "p0 :- x > 0.\n"
            + "\n".join(f"p{i + 1} :- p{i}, y > {i}.\np{i + 1} :- y < {i}." for i in range(120))
            + "\n[hard] p120 => yes",
            "240 levels of conjunctions and disjunctions, with the clauses that it uses, at most 2",
        ),
        (
            "p0 :- p299.\n" + "\n".join(f"p{i + 1} :- p{i}." for i in range(299)) + "\np3 => yes",
            "clauses may not go in a circle: p",
        ),
    ],
)
def test_limits_are_said(text, message):
    with pytest.raises(RuleError, match=message):
        bind(text, SCHEMA)


def test_counts_are_limited_before_anything_is_built():
    names = ", ".join(labels(1000).classes)
    with pytest.raises(RuleError, match="at_least of 1000 formulas is made of more than 200000"):
        bind(f"[hard] at_least(500, {names})", labels(1000))
    for n, k in [(1, 1), (9, 4), (64, 30), (100, 2), (100, 99), (301, 7)]:
        builder = Builder(0)
        made = [0]
        join = builder.all

        def counted(parts, made=made, join=join):
            made[0] += 1
            return join(parts)

        builder.all = counted
        builder.at_least(k, [builder.label(i, False) for i in range(n)])
        assert made[0] / 2 - 2 <= _conjunctions(k, n) <= 2 * made[0] + 2
    assert _conjunctions(2, 20_000) < MOST_COUNTED and _conjunctions(19_999, 20_000) < MOST_COUNTED


def test_label_sets_that_are_tried_take_bounded_memory(monkeypatch):
    tried = []
    with_labels = contradictions._with_labels

    def remembered(book, sets):
        tried.append(sets.shape)
        return with_labels(book, sets)

    monkeypatch.setattr(contradictions, "_with_labels", remembered)
    monkeypatch.setattr(contradictions, "MOST_TRIED", 100_000)
    schema = labels(500)
    book = bind("[hard] any_of(" + ", ".join(schema.classes) + ")", schema)
    ((sets, number),) = tried
    assert number == 500 and 4 <= sets and sets * (number + book.circuit.number_of_nodes) < 200_000


def test_a_rule_that_mentions_many_classes_says_its_limit(monkeypatch):
    schema = Schema((Column("x"),), tuple(f"c{i}" for i in range(90)))
    text = "x > 0 => " + " or ".join(f"c{i}" for i in range(40))
    (table,) = np.asarray(bind(text, schema).pieces.table)
    assert table[:40].sum() == 0 and table[40:].all()
    monkeypatch.setattr(_ground, "MOST_WALKS", 1_000)
    with pytest.raises(RuleError, match="it mentions 40 classes in a formula that is too large"):
        bind(text, schema)
