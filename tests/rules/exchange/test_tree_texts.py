"""Printed trees say what the trees themselves say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, export_text

from distill_jax.rules.exchange import from_tree, from_tree_text
from distill_jax.rules.language import RuleError, parse

INPUTS, LABELS = load_iris(return_X_y=True)
NAMES = ["sepal length (cm)", "sw <= 1", "pl", "class: pw"]
TREE = DecisionTreeClassifier(max_depth=4, random_state=0).fit(INPUTS, LABELS)
WEIGHED = DecisionTreeClassifier(
    max_depth=3, random_state=0, class_weight={0: 1.5, 1: 1, 2: 0.25}
).fit(INPUTS, LABELS)


@pytest.mark.quick
@pytest.mark.parametrize("tree", [TREE, WEIGHED])
@pytest.mark.parametrize("spacing", [1, 3])
def test_the_rules_are_those_of_the_tree(tree: DecisionTreeClassifier, spacing: int) -> None:
    text = export_text(tree, feature_names=NAMES, decimals=4, show_weights=True, spacing=spacing)
    got = from_tree_text(text, {"0": "setosa"}, smoothing=0.5)
    want = from_tree(tree, NAMES, ["setosa", "1", "2"], smoothing=0.5)
    assert {re.sub(r"leaf_\d+", "", str(x)) for x in got} == {
        re.sub(r"leaf_\d+", "", str(x)) for x in want
    }
    assert [rule.name for rule in got] == [f"leaf_{i}" for i in range(1, len(want) + 1)]
    assert parse("\n".join(map(str, got))) == got


def test_without_weights_and_without_a_split() -> None:
    text = export_text(TREE, class_names=["a", "b <= 2", "weights: [1] class: c"], decimals=4)
    rules = from_tree_text(text)
    assert {rule.strength.kind for rule in rules} == {""}
    assert {rule.formula.head.name for rule in rules} == {"a", "b <= 2", "c"} or len(rules) > 3
    stump = DecisionTreeClassifier().fit(np.zeros((3, 1)), ["b", "a", "a"])
    assert from_tree_text(export_text(stump, show_weights=True)) == parse("[w=0.4055] leaf_1: a")
    one = DecisionTreeClassifier().fit(INPUTS[:3], LABELS[:3])
    assert from_tree_text(export_text(one, show_weights=True)) == parse("leaf_1: `0`")


SPLIT = "|--- x <= 3.00\n|   |--- class: a\n|--- x >  3.00\n|   |--- class: b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (export_text(TREE, max_depth=1), r"line 5, column 14: a branch is missing"),
        (
            export_text(DecisionTreeRegressor(max_depth=1, random_state=0).fit(INPUTS, LABELS)),
            "regression tree",
        ),
        (
            "|--- x <= 1\n|   |--- x <= 1\n|   |   |--- class: a\n|   |--- x >  1\n"
            "|   |   |--- class: b\n|--- x >  1\n|   |--- class: a\n",
            "line 5, .*no value of x leads here",
        ),
        ("x <= 3 => a", "line 1, column 1: expected a line of export_text"),
        ("\n", "the text holds no tree"),
        (SPLIT.replace(">  3.00", ">  4.00"), "line 3.*expected x <= 4.00 before this"),
        (SPLIT.replace("|   |--- class: b\n", ""), "line 3.*expected the other side"),
        ("\n".join(SPLIT.split("\n")[:2]), "line 2.*the tree ends here"),
        (SPLIT + "|   |--- class: c\n", "line 5.*expected the other side of a split"),
        (SPLIT + "|--- class: c\n", "line 5.*expected the other side of a split"),
        (SPLIT.replace("class: a", "klass: a"), "line 2.*or class: name"),
        (SPLIT.replace("3.00", "nan"), "line 1.*a threshold must be finite"),
        (SPLIT.replace("class: a", "weights: [1.-2] class: a"), "weights must be numbers"),
    ],
)
def test_texts_that_are_no_whole_tree(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        from_tree_text(text)
