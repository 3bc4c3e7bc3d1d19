"""Linear constraints: what is written becomes matrices, and what cannot hold is refused by name."""

from __future__ import annotations

import pickle
from fractions import Fraction

import jax
import numpy as np
import pytest

from distill_jax.rules import (
    RuleError,
    from_requirements,
    label,
    linear_constraints,
    parse,
)

NAMES = ("total", "a", "b")


@pytest.mark.quick
def test_comparisons_become_rows_as_scipy_takes_them():
    found = linear_constraints(
        [
            "total >= a + b\n0 <= a <= 1\nb between -1 and total / 2",
            "[hard] (total - 2*b) / 3 == 0.1*a",
        ],
        NAMES,
    )
    want = [[-1, 1, 1], [0, -1, 0], [0, 1, 0], [0, 0, -1], [-0.5, 0, 1]]
    assert np.array_equal(found.a_ub, want) and np.array_equal(found.b_ub, [0, 0, 1, 1, 0])
    np.testing.assert_allclose(found.a_eq, [[1 / 3, -0.1, -2 / 3]], rtol=1e-15)
    assert np.array_equal(found.b_eq, [0.0])
    assert found.rows[-1].coefficients[1] == (1, Fraction(-1, 10))  # exact, as written
    assert found.texts[1:3] == ("0 <= a", "a <= 1") and len(found) == 6
    assert found.describe()["outputs"] == list(NAMES)


def test_equal_texts_are_equal_and_travel():
    found, same = (linear_constraints("total >= a + b", NAMES) for _ in range(2))
    assert found == same and hash(found) == hash(same)
    assert pickle.loads(pickle.dumps(found)) == found
    assert jax.tree.leaves(found) == []
    assert linear_constraints(parse("total >= a + b"), NAMES) == found
    assert linear_constraints(["total >= a + b"], NAMES) == found


def test_strict_comparisons_take_a_margin():
    with pytest.raises(RuleError, match="total > a is strict.*margin"):
        linear_constraints("total > a", NAMES)
    found = linear_constraints("total > a\nnot b >= 1", NAMES, margin=0.25)
    assert np.array_equal(found.b_ub, [-0.25, 0.75])
    with pytest.raises(ValueError, match="margin"):
        linear_constraints("total > a", NAMES, margin=-1.0)


def test_requirements_are_constraints():
    rules, order = from_requirements("ordering y_1 y_0\n2y_0 - y_1 >= 0.5\ny_0 + y_1 > 0")
    found = linear_constraints(rules, ["y_0", "y_1"], margin=0.0)
    assert np.array_equal(found.a_ub, [[-2, 1], [-1, -1]])
    assert np.array_equal(found.b_ub, [-0.5, 0.0])
    assert order == ("y_1", "y_0")


@pytest.mark.parametrize(
    "text, message",
    [
        ("total >= a or b >= 0", "not one convex set"),
        ("a >= 0 => b >= 0", "not one convex set"),
        ("not (a == b)", "not one convex set"),
        ("a != b", "not one convex set"),
        ("a * b >= 0", "a \\* b is not linear"),
        ("1 / a >= 0", "is not linear"),
        ("a / 0 >= 0", "divides by 0"),
        ("a - a >= 0", "always holds: leave it out"),
        ("a >= a + 1", "never holds"),
        ("tota >= a", "line 1, column 1: unknown name tota: did you mean total?"),
        ("a >= 'x'", "expected outputs and numbers"),
        ("a", "expected comparisons of outputs"),
        ("a is missing", "expected comparisons of outputs"),
        ("[w=2] a >= 0", "hard and stand alone"),
        ("[first=g] a >= 0", "hard and stand alone"),
        ("a :- b >= 0.", "hard and stand alone"),
        (
            "a >= 0\nb <= 3\na + b <= 1\nb >= 2",
            r"(?s)satisfy all.*a >= 0\n    a \+ b.*\n    b >= 2$",
        ),
        ("", "got none"),
    ],
)
def test_what_is_no_linear_constraint_is_refused(text, message):
    with pytest.raises(RuleError, match=message):
        linear_constraints(text, NAMES)


def test_outputs_are_distinct_names():
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="outputs must be distinct"):
            linear_constraints("a >= 0", wrong)
    with pytest.raises(RuleError, match="expected comparisons"):
        linear_constraints([label("a")], NAMES)
