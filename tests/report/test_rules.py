"""Tables of what rules do."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from distill_jax.report import show_check, show_explanation
from distill_jax.rules import Check, Column, Explanation, RuleWarning, Schema, bind, check, explain

SCHEMA = Schema((Column("age"), Column("smoker", "boolean")), ("well", "sick"))
TABLE = {"age": [70.0, 65.0, 50.0, None], "smoker": [1, 0, 0, 1]}
LABELS = [1, 0, 0, 1]


def printed(what: Check | Explanation, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    show = show_check if isinstance(what, Check) else show_explanation
    show(what, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.quick
def test_a_line_for_each_rule_and_no_column_that_says_nothing() -> None:
    book = bind("old: age > 60 => sick\n[hard] clean: age < 0 => well", SCHEMA)
    text = printed(check(book, TABLE, labels=LABELS))
    assert re.search(r"old +│ 1.000 +│ +0.5000 +│ +1 │ +0.5000 +│ +1.000 │", text)
    assert re.search(r"clean +│ hard +│ +0 │.*never fires", text)
    assert "silent" in text and "mean violation" not in text and "body" not in text
    with_model = printed(check(book, TABLE, logits=np.zeros((4, 2), np.float32)))
    assert "mean violation" in with_model and "precision" not in with_model


def test_pairs() -> None:
    book = bind("old: age > 60 => sick\nyoung: age > 55 => well", SCHEMA)
    found = check(book, TABLE)
    assert re.search(r"old +│ young +│ +2 │ +1.000 │ +2 │", printed(found))
    assert "both fire" not in printed(found, pairs=False)


def test_rule_names_are_no_markup() -> None:
    book = bind("age in [70, 65] => sick", SCHEMA)
    assert "age in [70, 65] => sick" in printed(check(book, TABLE))


def test_explanation() -> None:
    book = bind("[w=2] old: age > 60 => sick\nsmoker => sick", SCHEMA)
    text = printed(explain(book, {"age": 70, "smoker": None}, np.array([1.0, 0.0], np.float32)))
    assert "prediction: sick (before the rules: well)" in text
    assert re.search(r"old +│ +2.000 │ +yes │ +2.000 │ +0.7311 │ +0.2689 │ +0.4621 │", text)
    assert re.search(r"smoker => sick .*a value is missing", text)
    labels = Schema(SCHEMA.columns, ("a", "b"), exclusive=False)
    book = bind("[w=2] a => b", labels)
    text = printed(explain(book, {"age": 70, "smoker": 1}, np.array([-1.0, -1.0], np.float32)))
    assert "prediction: no label" in text and "violation" in text
    none = explain(bind("age > 99 => a", labels), {"age": 1, "smoker": 1}, np.zeros(2, np.float32))
    assert none.rows == []
    assert "no label" in printed(none) and "no rule says anything here" in printed(none)


def test_what_hides_a_rule_is_told() -> None:
    text = (
        "[first=t] old: age > 60 => sick\n[first=t] late: age > 65 => well\n[first=t] else => well"
    )
    with pytest.warns(RuleWarning, match="in their group hide them"):
        book = bind(text, SCHEMA)
    told = printed(check(book, TABLE))
    assert re.search(r"late .*never fires: always hidden", told)
    assert "hidden" in told and "stops" in told
    logits = np.zeros(2, np.float32)
    assert "hidden by old" in printed(explain(book, {"age": 70, "smoker": 1}, logits))
    told = printed(explain(book, {"age": None, "smoker": 1}, logits))
    assert re.search(r"else => well .*stopped by old: a value is missing", told)


def test_points_are_told() -> None:
    book = bind("score(2*(age > 60), 0.5*smoker) >= 2 => sick", SCHEMA)
    logits = np.zeros(2, np.float32)
    assert re.search(r"│ 2.5 +│", printed(explain(book, {"age": 70, "smoker": 1}, logits)))
    told = printed(explain(book, {"age": None, "smoker": 1}, logits))
    assert re.search(r"│ 0.5 to 2.5 +│.*a value is missing", told)
