"""Association rules say of a basket what they say where they were mined."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas
import pytest

from distill_jax.rules.binding import Column, Schema, bind, encode, infer_schema
from distill_jax.rules.exchange import from_association_rules
from distill_jax.rules.language import RuleError, parse
from distill_jax.rules.logic import fires

# As mlxtend returns it.
FRAME = pandas.DataFrame(
    {
        "antecedents": [frozenset({"milk", "bread"}), frozenset({"butter"}), frozenset({"egg"})],
        "consequents": [frozenset({"butter"}), frozenset({"bread"}), frozenset({"milk", "bread"})],
        "antecedent support": [0.4, 0.5, 0.05],
        "consequent support": [0.5, 0.8, 0.4],
        "support": [0.32, 0.375, 0.05],
        "confidence": [0.8, 0.75, 1.0],
        "lift": [1.6, 0.9375, 2.5],
        "zhangs_metric": [np.nan, 1.0, 0.0],
    }
)
WANT = """[p=0.8] bread and milk => `+butter`
[p=0.75] butter => `+bread`
[p=0.999] egg => `+bread` and `+milk`"""


@pytest.mark.quick
def test_an_item_is_a_column_before_the_arrow_and_a_label_behind_it() -> None:
    rules = from_association_rules(FRAME, label="+{}")
    assert rules == parse(WANT)
    baskets = {"bread": [1, 1, 0], "milk": [1, 0, 0], "butter": [0, 1, 1], "egg": [0, 0, 1]}
    schema = infer_schema(baskets, [f"+{x}" for x in baskets], exclusive=False)
    book = bind(rules, schema)
    got = np.asarray(fires(book, encode(book, baskets)))
    np.testing.assert_array_equal(got, [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    with pytest.raises(RuleError, match=r"\['bread', 'butter', 'milk'\] are columns in some rules"):
        from_association_rules(FRAME)
    assert from_association_rules(FRAME.iloc[:1]) == parse("[p=0.8] bread and milk => butter")


def test_from_csv_and_from_arules() -> None:
    text = io.StringIO()
    FRAME.to_csv(text, index=False)
    text.seek(0)
    assert from_association_rules(pandas.read_csv(text), label="+{}") == parse(WANT)
    sides = {
        "LHS": ["{bread,milk}", "{butter}", "{}"],
        "RHS": ["{butter}", "{bread}", "{bread, milk}"],
        "confidence": [0.8, 0.75, 0.4],
    }
    want = parse(WANT)[:2] + parse("[p=0.4] `+bread` and `+milk`")
    assert from_association_rules(sides, label="+{}") == want
    one = {
        "rules": [f"{a} => {b}" for a, b in zip(sides["LHS"], sides["RHS"], strict=True)],
        "confidence": sides["confidence"],
    }
    assert from_association_rules(one, label="+{}") == want


def test_items_that_are_values() -> None:
    frame = {
        "lhs": ["{sex=F,age=[20,30)}", "{age=[-Inf,20]}", "{age=(30, Inf],sex=M}"],
        "rhs": ["{disease=yes}", "{disease=no}", "{disease=no}"],
        "confidence": [0.8, 0.75, 0.5],
    }
    rules = from_association_rules(frame, items="values")
    assert rules == parse(
        """[p=0.8] 20 <= age < 30 and sex == 'F' => disease == 'yes'
        [p=0.75] age <= 20 => disease == 'no'
        [p=0.5] age > 30 and sex == 'M' => disease == 'no'"""
    )
    columns = (Column("age"), Column("sex", categories=("F", "M")))
    bind(rules, Schema(columns, ("no", "yes"), target="disease"))
    labelled = from_association_rules(frame, items="values", label="has {}")
    assert str(labelled[1]) == "[p=0.75] age <= 20 => `has disease=no`"


def test_strengths() -> None:
    counted = from_association_rules(FRAME, label="+{}", transactions=200)
    assert [rule.strength.number for rule in counted] == pytest.approx(
        [(0.8 * 80 + 1) / 82, (0.75 * 100 + 1) / 102, 11 / 12]
    )
    arules = FRAME.assign(count=[64, 75, 10])
    assert from_association_rules(arules, label="+{}") == counted
    relative = from_association_rules(FRAME, label="+{}", relative=True)
    odds = [math.log(p / (1 - p)) for p in (0.8, 0.75, 0.999, 0.5, 0.8, 0.4)]
    want = np.subtract(odds[:3], odds[3:])
    assert [rule.strength.log_odds for rule in relative] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "how", "error", "message"),
    [
        (
            {"confidence": [0.5, "x", 1]},
            {},
            RuleError,
            "row 2, column 'confidence': expected a",
        ),
        (
            {"confidence": [0.5, 1.5, 1]},
            {},
            RuleError,
            "row 2: confidence must lie between 0 and 1",
        ),
        ({"antecedents": ["a", 3, "b"]}, {}, RuleError, "row 2: expected a set of items, got 3"),
        ({"antecedents": ["a", "frozenset({f()})", "b"]}, {}, RuleError, "row 2: expected"),
        ({"antecedents": ["a", "{a,,b}", "b"]}, {}, RuleError, "row 2: expected items between"),
        ({"consequents": [["a"], [], ["b"]]}, {}, RuleError, "row 2: a rule needs a consequent"),
        ({}, {"items": "values"}, RuleError, "row 1: expected an item column=value, got 'bread'"),
        ({}, {"label": "x"}, ValueError, "label must have one {}"),
        ({}, {"transactions": 0}, ValueError, "transactions must be >= 1"),
        (
            {"lift": [1.6, 0.9, 1.0]},
            {"relative": True},
            RuleError,
            "row 3: with the confidence 1.0",
        ),
        ({"confidence": None}, {}, ValueError, "frame must have the columns antecedents"),
        ({"lift": None}, {"relative": True}, ValueError, "relative=True needs the column 'lift'"),
    ],
)
def test_tables_that_cannot_be_read(
    change: dict, how: dict, error: type[Exception], message: str
) -> None:
    table = {name: x for name, x in (FRAME.to_dict("list") | change).items() if x is not None}
    how = {"label": "+{}"} | how if how.get("items") is None else how
    with pytest.raises(error, match=message):
        from_association_rules(table, **how)
