"""Overlaps and gaps are where brute force finds them, and their examples lie there."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from distill_jax.rules.binding import (
    Column,
    RuleWarning,
    Schema,
    bind,
    coverage,
    encode,
    gaps,
    overlaps,
)
from distill_jax.rules.language import RuleError, parse
from distill_jax.rules.logic import fires

AGES = (17, 18, 19, 30, 31, 60, 61)
SEXES = ("F", "M", "D")


def applies(text: str, rows: list[dict]) -> np.ndarray:
    """Which rules apply to which rows, ``[rows, rules]``, by binding them."""
    schema = Schema(
        (Column("age"), Column("sex", categories=("F", "M")), Column("smoker", "boolean")),
        tuple("abc"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        book = bind(text, schema)
    table = {name: [row[name] for row in rows] for name in rows[0]}
    return np.asarray(fires(book, encode(book, table)))


TEXTS = [
    "age < 18 => a\nage >= 30 and sex == 'F' => b\nage between 18 and 30 => c",
    "age <= 30 and smoker => a\nage > 30 => b\nnot smoker and sex in ['F', 'M'] => c",
    "not (age in [18, 19]) and sex != 'F' => a\nage < 60 or smoker => b\nsex == 'F' => c",
]


@pytest.mark.quick
@pytest.mark.parametrize("text", TEXTS)
def test_overlaps_and_gaps_are_those_of_brute_force(text: str) -> None:
    grid = [
        dict(zip(("age", "sex", "smoker"), values, strict=True))
        for values in itertools.product(AGES, SEXES, (False, True))
    ]
    hit = applies(text, grid)
    found = overlaps(text)
    want = [(i, j) for i, j in itertools.combinations(range(3), 2) if (hit[:, i] & hit[:, j]).any()]
    assert [x.indices for x in found] == want
    for x in found:
        assert applies(text, [{"age": 5, "sex": "F", "smoker": False} | x.example])[0][
            list(x.indices)
        ].all()
    holes = gaps(text)
    assert bool(holes) == bool((~hit.any(1)).any())
    inside = [f"{x.region} => a" for x in holes]
    if holes:
        union = applies("\n".join(inside), grid)
        np.testing.assert_array_equal(union.any(1), ~hit.any(1))
        assert (union.sum(1) <= 1).all()
    for x in holes:
        assert not applies(text, [{"age": 5, "sex": "F", "smoker": False} | x.example]).any()


def test_what_a_schema_says_of_the_columns() -> None:
    text = "severity <= 'mild' => a\nseverity >= 'severe' => b\nsex == 'F' => a"
    grades = ("none", "mild", "moderate", "severe")
    schema = Schema(
        (Column("severity", categories=grades, ordered=True), Column("sex", categories=("F", "M"))),
        ("a", "b"),
    )
    with pytest.raises(RuleError, match="order of the categories of 'severity' is not known"):
        gaps(text)
    (gap,) = gaps(text, schema)
    assert gap.region == "severity == 'moderate' and sex == 'M'"
    assert gap.example == {"severity": "moderate", "sex": "M"}
    assert gaps("sex == 'F' => a\nsex == 'M' => b", schema) == []
    (other,) = gaps("sex == 'F' => a\nsex == 'M' => b")  # nobody says that there are no others
    assert other.region == "sex not in ['F', 'M']"
    others = "sex != 'F' => a\nsex != 'M' => b"
    assert overlaps(others, schema) == [] and gaps(others, schema) == []
    assert [x.example for x in overlaps(others)] == [{"sex": "other"}]
    assert [x.indices for x in overlaps(text, schema)] == [(0, 2), (1, 2)]
    assert [x.same_head for x in overlaps(text, schema)] == [True, False]


def test_groups_and_else() -> None:
    text = "[first=t] age < 30 => a\n[first=t] age < 40 => b\n[first=t] else => c"
    assert [x.indices for x in overlaps(text)] == [(0, 1)]
    assert gaps(text) == []
    assert [x.region for x in gaps(parse(text)[:2])] == ["age >= 40"]


def test_times_and_texts() -> None:
    text = """at < date '2024-02-01' and contains(s, 'x') => a
    at > date '2024-02-01' or not contains(s, 'x') => b"""
    (gap,) = gaps(text)
    assert gap.region == "at == date '2024-02-01' and contains(s, 'x')"
    assert gap.example == {"at": np.datetime64("2024-02-01"), "s": "x"}
    (overlap,) = overlaps("s == 'a' => a\nstarts_with(s, 'b') => b")
    assert overlap.example is None and "may both apply" in str(overlap)


def test_a_search_that_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MOST_STEPS", 3)
    with pytest.warns(RuleWarning, match="too many cases for all gaps"):
        gaps(TEXTS[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age > 3", "rules body => head"),
        ("x :- age > 3.", "rules body => head"),
        ("age > 3 => a\nage == 'x' => b", "the column 'age' is categorical here, and numeric"),
    ],
)
def test_rules_without_a_body_over_columns(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        overlaps(text)
