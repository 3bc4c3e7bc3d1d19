"""Formulas built in Python are those that a text is read as."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.rules import Column, Schema, bind
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.building import (
    Built,
    all_of,
    any_of,
    at_least,
    at_most,
    clause,
    col,
    exactly_one,
    formula,
    iff,
    implies,
    label,
    rule,
)
from distill_jax.rules.language.parsing import parse, parse_formula

a, b, c, x, y = (col(name) for name in "abcxy")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("built", "text"),
    [
        (implies((col("ap_hi") >= 140) & (col("age") > 55), label("disease")),
         "ap_hi >= 140 and age > 55 => disease"),
        (a & b & c, "a and b and c"),
        (a | b | c, "a or b or c"),
        (a & b | c, "a and b or c"),
        (a & (b | c), "a and (b or c)"),
        (~a & ~(b & c), "not a and not (b and c)"),
        (implies(a, implies(b, c)), "a => b => c"),
        (implies(implies(a, b), c), "(a => b) => c"),
        (iff(a, ~b), "a <=> not b"),
        (x == 3, "x == 3"),
        (x != "cat", "x != 'cat'"),
        (3 < x, "x > 3"),
        (3 >= x, "x <= 3"),
        (x + 1 > 2 - y, "x + 1 > 2 - y"),
        (2 * x / 3 < 1 / y, "2 * x / 3 < 1 / y"),
        (1 + x - 2 == 3 * -y, "1 + x - 2 == 3 * -y"),
        (-(x + y) < -1.5, "-(x + y) < -1.5"),
        (x.is_in([1, "b", y]), "x in [1, 'b', y]"),
        (x.between(1, y + 1), "x between 1 and y + 1"),
        (~x.is_missing(), "not x is missing"),
        (x.matches(r"a\d"), r'x matches r"a\d"'),
        (label("mood") == label("mood", view="clause b"), "mood == view(`clause b`).mood"),
        (exactly_one(a, b & c), "exactly_one(a, b and c)"),
        (at_most(2, a, b, c), "at_most(2, a, b, c)"),
        (at_least(0, a), "at_least(0, a)"),
        (all_of(a, b), "all_of(a, b)"),
        (any_of(a, ~b), "any_of(a, not b)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_built_formula_is_the_one_of_its_text(built: Built, text: str) -> None:
    assert str(built) == text
    assert repr(built) == f"<{text}>"
    assert formula(built) == parse_formula(text)


def test_numpy_numbers_are_numbers() -> None:
    built = (x > np.float32(0.5)) & x.is_in(np.arange(2))
    assert str(built) == "x > 0.5 and x in [0, 1]"


def test_an_equal_sign_is_a_formula_and_so_built_ones_are_no_keys() -> None:
    assert isinstance(x == y, Built)
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


@pytest.mark.parametrize(
    "use",
    [
        lambda: a and b,
        lambda: a or b,
        lambda: not a,
        lambda: 0 < x < 3,
        lambda: 1 if a else 2,
        lambda: x in [y],
        lambda: max(x, y),
    ],
)
def test_a_formula_has_no_truth_value(use) -> None:
    with pytest.raises(TypeError, match="Write & for and, | for or, ~ for not"):
        use()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: (x + 1) & a, TypeError, "a comparison within|A comparison within"),
        (lambda: a & True, TypeError, "a formula was expected, got True"),
        (lambda: a & "b", TypeError, "a formula was expected, got 'b'"),
        (lambda: (x > 3) + 1, TypeError, "compares columns, numbers, strings and times"),
        (lambda: (x > 3) == (y > 3), TypeError, "iff"),
        (lambda: x > None, TypeError, "got None"),
        (lambda: x == True, TypeError, "got True"),  # noqa: E712
        (lambda: x > float("nan"), ValueError, "finite"),
        (lambda: x > [1], TypeError, r"got \[1\]"),
        (lambda: x.is_in([]), ValueError, "at least one choice"),
        (lambda: x.is_in("abc"), TypeError, "a list"),
        (lambda: x.matches("("), ValueError, "not a regular expression"),
        (lambda: exactly_one(), ValueError, "at least one formula"),
        (lambda: at_most(-1, a), ValueError, ">= 0, got -1"),
        (lambda: at_least(True, a), ValueError, "must be an integer >= 0"),
        (lambda: at_most(1.5, a), ValueError, "must be an integer >= 0"),
        (lambda: rule(a, w=1.0, hard=True), ValueError, "one strength at most"),
        (lambda: rule(a, w=float("inf")), ValueError, "hard"),
        (lambda: rule(a, p=1.0), ValueError, "between 0 and 1"),
        (lambda: rule(x + 1), TypeError, "a formula was expected"),
        (lambda: col(3), TypeError, "name must be a string, got 3"),
        (lambda: label(""), ValueError, "name must not be empty"),
    ],
)
def test_errors(library_errors: None, wrong, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()


def test_rules() -> None:
    text = "[w=2] n: a => b\n[p=0.9] a\n[hard] a\n[learn] a\na"
    built = (
        rule(implies(a, b), name="n", w=2),
        rule(a, p=0.9),
        rule(a, hard=True),
        rule(a, learn=True),
        rule(f.Name("a")),
    )
    assert built == parse(text)
    assert "\n".join(map(str, built)) == text


def test_a_long_conjunction_is_flat() -> None:
    many = a
    for _ in range(500):
        many = many & b
    assert len(formula(many).parts) == 501  # type: ignore[union-attr]
    assert f.depth(formula(many)) == 2


def test_clauses_and_texts_are_bound_together() -> None:
    schema = Schema((Column("age"), Column("smoker", "boolean")), ("well", "sick"))
    clauses = [clause("risky", col("smoker")), clause("risky", col("age") > 60, ~col("smoker"))]
    built = bind([*clauses, "[w=2] risky => sick"], schema)
    text = "risky :- smoker.\nrisky :- age > 60, not smoker.\n[w=2] risky => sick"
    assert str(built) == str(bind(text, schema)) == text
    with pytest.raises(ValueError, match="body must hold at least one formula"):
        clause("risky")


def test_numbers_without_end_are_refused():
    huge = 10**5000
    for build in (
        lambda: col("x") > huge,
        lambda: rule(col("x"), w=huge),
        lambda: rule(col("x"), p=huge),
        lambda: rule(col("x"), w=float("inf")),
        lambda: at_most(huge, col("x")),
        lambda: f.Number(-huge),
    ):
        with pytest.raises(ValueError, match="finite|between 0 and 1|of ten digits or more"):
            build()
