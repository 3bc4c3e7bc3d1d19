"""Rules from trees and strings say what these say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from distill_jax.rules.exchange.mined import from_rule_strings, from_tree
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.building import col, label
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.language.parsing import parse

INPUTS, LABELS = load_iris(return_X_y=True)
NAMES, CLASSES = ["sepal length (cm)", "sw", "pl", "pw"], ["setosa", "versicolor", "virginica"]
TREE = DecisionTreeClassifier(max_depth=3, random_state=0).fit(INPUTS, LABELS)


def holds(body: f.Formula, row: dict[str, Any]) -> bool:
    parts = body.parts if isinstance(body, f.And) else (body,)
    truth = []
    for part in parts:
        assert isinstance(part, f.Compare)
        values = [
            row[x.name] if isinstance(x, f.Name) else np.float32(x.value) for x in part.operands
        ]
        for left, sign, right in zip(values, part.operators, values[1:], strict=False):
            truth.append(
                left <= right if sign == "<=" else (left < right if sign == "<" else left > right)
            )
    return all(truth)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_leaf_s_rule_holds_and_it_says_the_tree_s_class(dtype: type) -> None:
    """Also for values at the thresholds and next to them, where rounding would show."""
    rules = from_tree(TREE, NAMES, CLASSES)
    assert parse("\n".join(map(str, rules))) == rules
    assert len(rules) == TREE.get_n_leaves()
    cuts = TREE.tree_.threshold[TREE.tree_.feature >= 0].astype(np.float32)
    near = np.concatenate([cuts, np.nextafter(cuts, -np.inf), np.nextafter(cuts, np.inf)])
    rows = np.random.default_rng(0).choice(near, (200, 4))
    rows = np.concatenate([rows, INPUTS]).astype(np.float32)  # as the tree itself rounds them
    for row, want, leaf in zip(rows, TREE.predict(rows), TREE.apply(rows), strict=True):
        values = dict(zip(NAMES, row.astype(dtype), strict=True))
        (fired,) = [rule for rule in rules if holds(rule.formula.body, values)]
        assert fired.formula.head == f.Name(CLASSES[want])
        assert fired.name == f"leaf_{leaf}"


def test_strengths_are_smoothed_log_odds_against_one_other_class() -> None:
    for smoothing in (0.5, 1.0):
        for rule in from_tree(TREE, NAMES, CLASSES, smoothing=smoothing):
            inside = [
                holds(rule.formula.body, dict(zip(NAMES, row, strict=True)))
                for row in INPUTS.astype(np.float32)
            ]
            counts = np.bincount(LABELS[inside], minlength=3) + smoothing
            best = CLASSES.index(rule.formula.head.name)
            others = np.delete(counts, best).mean()
            assert rule.strength.log_odds == pytest.approx(
                math.log(counts[best] / others), abs=1e-4
            )


def test_names_that_the_tree_knows() -> None:
    rules = from_tree(TREE, NAMES)
    assert {rule.formula.head.name for rule in rules} == {"0", "1", "2"}
    stump = DecisionTreeClassifier().fit(np.zeros((3, 1)), ["b", "a", "a"])
    # No split: it says a, always.
    assert from_tree(stump, ["x"]) == parse("[w=0.4055] leaf_0: a")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((DecisionTreeClassifier(), NAMES), TypeError, "fitted DecisionTreeClassifier"),
        ((DecisionTreeRegressor().fit(INPUTS, LABELS), NAMES), TypeError, "DecisionTreeRegressor"),
        (
            (RandomForestClassifier(1, max_depth=1).fit(INPUTS, LABELS), NAMES),
            TypeError,
            "RandomForest",
        ),
        ((TREE,), ValueError, "feature_names must hold 4 names, got none"),
        ((TREE, ["a"]), ValueError, "feature_names must hold 4 names, got 1"),
        ((TREE, NAMES, ["a", "b"]), ValueError, "3 classes, at least two, got"),
    ],
)
def test_wrong_trees(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_tree(*arguments)


def test_a_tree_of_two_outputs_and_a_wrong_smoothing() -> None:
    double = DecisionTreeClassifier(max_depth=1).fit(INPUTS, np.stack([LABELS, LABELS], 1))
    with pytest.raises(ValueError, match="one output, got 2"):
        from_tree(double, NAMES)
    with pytest.raises(ValueError, match="smoothing must be finite and > 0, got 0"):
        from_tree(TREE, NAMES, smoothing=0)


def test_strings() -> None:
    strings = ["a > 3.0 and b <= 4", "petal width (cm) <= 0.80 & a > -1e-3", "0 < a <= 5"]
    text = """[p=0.9] a > 3 and b <= 4 => y
    [p=0.5] `petal width (cm)` <= 0.8 and a > -0.001 => y
    [p=0.7] 0 < a <= 5 => y"""
    assert from_rule_strings(strings, "y", p=[0.9, 0.5, 0.7]) == parse(text)
    assert from_rule_strings(["a > 3"], ~label("y")) == parse("a > 3 => not y")
    # With spaces it is a difference; without them it may be a name.
    assert from_rule_strings(["a - b > 3"], "y") == parse("a - b > 3 => y")
    with pytest.raises(RuleError, match=r"a-b may be arithmetic or the name of a column"):
        from_rule_strings(["a-b > 3"], "y")


def test_known_names_come_first() -> None:
    names = [
        "income_<=50K",
        "income_",
        "x-1",
        "x",
        "a and b",
        "a",
        "b",
        "b > 3",
        "c & d",
        "",
        "é é",
    ]
    for string, text in [
        ("income_<=50K > 0.5", "`income_<=50K` > 0.5"),
        ("income_<=50K <= 0.5 and x-1 > 3", "`income_<=50K` <= 0.5 and `x-1` > 3"),
        ("x > 1 & a and b > 3 & b > 3", "x > 1 and `a and b` > 3 and b > 3"),
        ("b > 3 > 2 and c & d != -1e-3", "`b > 3` > 2 and `c & d` != -0.001"),
        ("  income_ <=   50  and é é == .5 ", "income_ <= 50 and `é é` == 0.5"),
    ]:
        (rule,) = from_rule_strings([string], "y", feature_names=names)
        assert rule.formula == parse(f"{text} => y")[0].formula
    for string in ("x - 1 > 3", "x-1 > 007", "x > 3 and", "x > inf", "x > 3 or a > 3", "", "z > 3"):
        with pytest.raises(
            RuleError, match=r"strings\[0\], expected comparisons of income_<=50K, "
        ):
            from_rule_strings([string], "y", feature_names=names)


def test_spaces_and_long_strings_are_read_once(library_errors: None) -> None:
    """Each would take hours if the time grew with the square."""
    space = " " * 300_000
    (rule,) = from_rule_strings([f"a{space}>{space}3{space}and b{space}c <= 4{space}"], "y")
    assert len(rule.formula.body.parts) == 2
    for string in (f"a{space}b", f"a >{space}", f"a > 3{space}b", "a " * 99_999, "<" * 99_999):
        for known in (None, ["a", "a b"]):
            with pytest.raises(RuleError) as found:
                from_rule_strings([string], "y", feature_names=known)
            assert len(str(found.value)) < 2_100


def test_precisions_of_1_are_smoothed() -> None:
    def strengths(p: list, **options: list) -> list:
        rules = from_rule_strings(["a > 3"] * len(p), "y", p=p, **options)
        return [rule.strength.number for rule in rules]

    assert strengths([0.0, 0.2, 1.0, 0.9999]) == [0.001, 0.2, 0.999, 0.999]
    assert strengths([1.0, 0.0, 0.5], support=[8, 8, 0]) == [0.9, 0.1, 0.5]
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"p must lie between 0 and 1, got .* strings\[0\]"):
            strengths([bad])
    with pytest.raises(
        ValueError, match=r"support must be finite and >= 0, got -1 for strings\[0\]"
    ):
        strengths([0.5], support=[-1])
    with pytest.raises(ValueError, match="support must hold 1 numbers"):
        strengths([0.5], support=[1, 2])
    with pytest.raises(ValueError, match="give p, too"):
        from_rule_strings(["a > 3"], "y", support=[1])


@pytest.mark.parametrize(
    ("string", "known", "message"),
    [
        ("a >", None, r"strings\[0\], column 4: expected a formula"),
        ("a b > c", None, r"strings\[0\], column 3"),
        ("a b > 1e999", None, r"strings\[0\], column"),
        (
            "c > 3",
            ["a", "b"],
            r"strings\[0\], expected comparisons of a, b with numbers, got c > 3",
        ),
    ],
)
def test_wrong_strings(string: str, known: list[str] | None, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        from_rule_strings([string], "y", feature_names=known)


def test_wrong_options(library_errors: None) -> None:
    with pytest.raises(TypeError, match="strings must be a list"):
        from_rule_strings("a > 3", "y")
    with pytest.raises(ValueError, match="p must hold 1 numbers, one per rule, got 2"):
        from_rule_strings(["a > 3"], "y", p=[0.1, 0.2])
    with pytest.raises(TypeError, match="a formula was expected"):
        from_rule_strings(["a > 3"], col("x") + 1)


def test_numbers_are_read_as_rules_read_them():
    (rule,) = from_rule_strings(["x y > 123456789012345679"], "yes", feature_names=["x y"])
    assert str(rule) == "`x y` > 123456789012345679 => yes"
    with pytest.raises(RuleError, match=r"expected comparisons of x y with numbers"):
        from_rule_strings(["x y > 1e-400"], "yes", feature_names=["x y"])
