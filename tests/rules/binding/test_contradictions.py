"""Contradictions between hard rules, against every row of a small grid."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.rules import (
    Book,
    Column,
    RuleError,
    RuleWarning,
    Schema,
    bind,
    conflicts,
    encode,
    fires,
    forbidden,
)
from tests.rules.reference import holds

COLUMNS = (
    Column("age", mean=50.0, std=10.0),
    Column("weight"),
    Column("smoker", "boolean"),
    Column("sex", "categorical", ("F", "M")),
)
TWO = Schema(COLUMNS, ("well", "sick"))
THREE = Schema(COLUMNS, ("a", "b", "c"))
LABELS = Schema(COLUMNS, ("a", "b", "c", "d"), exclusive=False)
TEXT = Schema((Column("text", "text"), Column("kind", "categorical", ("call", "mail"))), ("x", "y"))

# Between and at all thresholds below, and missing.
GRID = {
    "age": [39.0, 40.0, 45.0, 60.0, 61.0, None],
    "weight": [1.0, 2.0, 2.5, None],
    "smoker": [False, True, None],
    "sex": ["F", "M", "other", None],
}
ROWS = [dict(zip(GRID, x, strict=True)) for x in itertools.product(*GRID.values())]
ATOMS = [
    *("age > 40", "age <= 40", "age < 60", "age >= 60", "age == 45", "age != 45", "age is missing"),
    *("weight > 1", "weight < 2.5", "1 < weight <= 2", "smoker", "not smoker", "sex == 'F'"),
    *("sex != 'M'", "sex in ['F', 'M']", "sex is not missing", "smoker is missing"),
]


def quiet(text: str, schema: Schema) -> Book:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        return bind(text, schema, conflicts="ignore")


def as_table(rows: list[dict]) -> dict[str, np.ndarray]:
    return {
        name: np.array([row[name] for row in rows], float if name in ("age", "weight") else object)
        for name in rows[0]
    }


def hopeless(book: Book, rows: list[dict]) -> list[set[int]]:
    """For each row where hard rules leave nothing, those that forbid something there."""
    classes = book.schema.classes
    if book.schema.exclusive:
        worlds = [{"target": "", None: name} for name in classes]
    else:
        sets = itertools.product([False, True], repeat=len(classes))
        worlds = [{(None, n): x for n, x in zip(classes, held, strict=True)} for held in sets]
    hard = np.flatnonzero(np.asarray(book.hard)).tolist()
    out = []
    for row in rows:
        forbids = [
            {i for i in hard if holds(book.rules[i].formula, row, world) is False}
            for world in worlds
        ]
        out.append(set().union(*forbids) if all(forbids) else set())
    return out


def agrees(book: Book, rows: list[dict]) -> None:
    """Each conflict is real, and each row without hope is explained by one."""
    found = conflicts(book)
    assert all(c.certain for c in found)
    examples = [c.example for c in found if c.example is not None]
    for conflict, rules in zip(found, hopeless(book, examples), strict=True):
        assert rules >= set(conflict.indices), str(conflict)
    for row, rules in zip(rows, hopeless(book, rows), strict=True):
        if rules:
            assert any(rules >= set(c.indices) for c in found), row


bodies = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=3, unique=True)
rule_lists = st.lists(st.tuples(bodies, st.integers(0, 11)), min_size=1, max_size=4)


def _text(rules: list[tuple[list[str], int]], heads: list[str]) -> str:
    return "\n".join(f"[hard] {' and '.join(body)} => {heads[i % len(heads)]}" for body, i in rules)


@settings(max_examples=60)
@given(rule_lists)
def test_exclusive_classes_as_by_brute_force(rules) -> None:
    agrees(quiet(_text(rules, ["a", "b", "c", "not a", "not b", "not c"]), THREE), ROWS)


@settings(max_examples=40)
@given(rule_lists)
def test_label_sets_as_by_brute_force(rules) -> None:
    heads = ["a", "not a", "b", "a and not b", "not b or c", "(a <=> b)", "exactly_one(a, b, c)"]
    agrees(quiet(_text(rules, heads), LABELS), ROWS[::7])


@pytest.mark.quick
def test_two_rules_and_where() -> None:
    book = quiet(
        "[hard] old: age > 60 => sick\n[hard] not smoker => well\n[w=3] age > 1 => well", TWO
    )
    (found,) = conflicts(book)
    assert found.rules == ("old", "not smoker => well") and found.indices == (0, 1)
    assert found.region == "age > 60 and not smoker"
    assert str(found) == (
        "the hard rules 'old', 'not smoker => well' together forbid everything where age > 60 and "
        "not smoker"
    )
    row = encode(book, as_table([found.example]))
    assert bool(forbidden(book, row).all())


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("age > 40 and sex == 'M' => sick; sex != 'F' and age <= 60.5 => well",
         "40 < age <= 60.5 and sex == 'M'"),
        ("age >= 40 => sick; age <= 40 => well", "age == 40"),
        ("age is missing => sick; smoker => well", "age is missing and smoker"),
        ("age is not missing => sick; sex is not missing => well",
         "age is not missing and sex is not missing"),
        ("sex != 'F' => sick; sex != 'M' => well", "sex not in ['F', 'M']"),
        ("weight > 0 => sick; weight < 0.1 => well", "0 < weight < 0.1"),
        ("age >= 0", "age < 0"),
        ("not sick; smoker => sick", "smoker"),
    ],
)  # fmt: skip
def test_regions_read_as_they_were_written(text: str, region: str) -> None:
    book = quiet("\n".join(f"[hard] {rule}" for rule in text.split("; ")), TWO)
    (found,) = conflicts(book)
    assert found.region == region and found.certain
    quiet(f"{found.region} => sick", TWO)  # a formula of the language


@pytest.mark.parametrize(
    "text",
    [
        "age > 60 => sick; age <= 60 => well",
        "age > 60 => sick; age < 60 => well; age == 60 => sick",
        "sex == 'F' => sick; sex == 'M' => well",
        "smoker => sick; not smoker => well",
        "smoker => sick; smoker is missing => well",
        "sex in ['F', 'M'] => sick; sex not in ['F', 'M'] => well",
        "age > 60 => sick; smoker => sick",
    ],
)
def test_no_false_alarm(text: str) -> None:
    book = quiet("\n".join(f"[hard] {rule}" for rule in text.split("; ")), TWO)
    assert conflicts(book) == []


def test_three_rules_together_and_none_that_is_superfluous() -> None:
    text = "[hard] age > 40 => not a\n[hard] weight > 1 => not b\n[hard] smoker => not c"
    (found,) = conflicts(quiet(text, THREE))
    assert found.indices == (0, 1, 2)
    more = f"{text}\n[hard] smoker and age > 40 => a\n[hard] weight > 2 => b"
    found = conflicts(quiet(more, THREE))
    assert [c.indices for c in found] == [(0, 1, 2), (0, 3), (1, 4), (3, 4)]


def test_arithmetic_is_certain_with_an_example_and_may_be_without() -> None:
    (found,) = conflicts(quiet("[hard] age / weight > 3 => sick\n[hard] age > 5 => well", TWO))
    assert found.certain and found.example is not None
    assert found.example["age"] / found.example["weight"] > 3 and found.example["age"] > 5
    text = "[hard] age - weight > 1 => sick\n[hard] weight - age > 1 => well"
    (found,) = conflicts(quiet(text, TWO))
    assert not found.certain and found.example is None
    assert found.region == "age - weight > 1 and weight - age > 1" and "may forbid" in str(found)


def test_patterns() -> None:
    text = "[hard] text matches r'\\bfree' => x\n[hard] text matches r'call' => y"
    book = quiet(text, TEXT)
    (found,) = conflicts(book)
    assert found.certain and found.region == r'text matches r"\bfree" and text matches r"call"'
    assert bool(forbidden(book, encode(book, as_table([found.example]))).all())
    text = "[hard] text matches r'free' => x\n[hard] not text matches r'free' => y"
    assert conflicts(quiet(text, TEXT)) == []
    text = "[hard] text is missing => x\n[hard] text matches r'free' => y"
    (found,) = conflicts(quiet(text, TEXT))
    assert not found.certain
    text = "[hard] kind matches r'^c' => x\n[hard] kind != 'call' => y"
    assert not any(c.certain for c in conflicts(quiet(text, TEXT)))


def test_disjunctions_are_expanded() -> None:
    text = "[hard] age > 60 or smoker => sick\n[hard] (weight > 1 or sex == 'F') => well"
    (found,) = conflicts(quiet(text, TWO))
    assert found.certain and found.indices == (0, 1)


def test_label_sets_without_features() -> None:
    (found,) = conflicts(quiet("[hard] a and b\n[hard] exactly_one(a, b)\n[hard] c => d", LABELS))
    assert found.indices == (0, 1) and found.region == "" and "everywhere" in str(found)
    assert conflicts(quiet("[hard] a => b\n[hard] b => c\n[hard] c => a", LABELS)) == []


def test_many_cases_say_that_they_are_not_all_compared() -> None:
    schema = Schema((), tuple(f"c{i}" for i in range(24)), exclusive=False)
    names = ", ".join(schema.classes)
    book = quiet(f"[hard] at_most(10, {names})\n[hard] at_least(11, {names})", schema)
    (found,) = conflicts(book)
    assert not found.certain and "too many cases" in str(found)
    with pytest.warns(RuleWarning, match="too many cases"):
        bind(str(book), schema)


def test_many_rules_are_searched_quickly_enough_and_stop_at_the_number_asked_for() -> None:
    schema = Schema((Column("x"), Column("y")), tuple(f"c{i}" for i in range(5)))
    text = "\n".join(f"[hard] {i} < x <= {i + 1} => c{i % 5}" for i in range(50))
    assert conflicts(quiet(text, schema)) == []
    book = quiet(text + "\n[hard] y > 1 => not c0\n[hard] y > 2 => c1", schema)
    assert len(conflicts(book)) == 10 + 40
    assert len(conflicts(book, most=7)) == 7
    assert conflicts(book, most=0) == []


def test_bind_names_conflicts_before_training() -> None:
    text = "[hard] old: age > 60 => sick\n\n[hard] not smoker => well"
    with pytest.raises(RuleError) as error:
        bind(text, TWO)
    for part in ("age > 60 and not smoker", "line 1: [hard] old", "line 3: [hard] not smoker"):
        assert part in str(error.value)
    with pytest.warns(RuleWarning, match="together forbid everything where age > 60"):
        assert len(bind(text, TWO, conflicts="warn")) == 2
    assert len(bind(text, TWO, conflicts="ignore")) == 2
    assert len(bind(text.replace("[hard]", "[w=9]"), TWO)) == 2


def test_bind_warns_of_what_only_may_happen() -> None:
    text = "[hard] age - weight > 1 => sick\n[hard] weight - age > 1 => well"
    with pytest.warns(RuleWarning, match="may forbid everything"):
        bind(text, TWO)


@pytest.mark.usefixtures("library_errors")
def test_bind_refuses_other_choices() -> None:
    with pytest.raises(ValueError, match="conflicts must be one of 'raise', 'warn', 'ignore'"):
        bind("smoker => sick", TWO, conflicts="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "[hard] x > 1 => yes\n[hard] y < -3.4e38 => no",
        "[hard] x >= 3.4e38 => yes\n[hard] s == 'u' => no",
        "[hard] t matches r'ab' => yes\n[hard] b and x is missing => no",
        "[hard] s not in ['u', 'v'] => yes\n[hard] x + y > 3 => no",
        "[hard] t is missing => yes\n[hard] not b => no",
    ],
)
def test_an_example_is_a_row_that_encode_takes(text):
    columns = Column("x"), Column("y"), Column("s", "categorical", ("u", "v"))
    schema = Schema((*columns, Column("b", "boolean"), Column("t", "text")), ("no", "yes"))
    book = bind(text, schema, conflicts="ignore")
    (found,) = conflicts(book)
    for row in (found.example, {name: [x] for name, x in found.example.items()}):
        assert np.asarray(forbidden(book, encode(book, row))).tolist() == [[True, True]]


TIMES = Schema((Column("x"), Column("d", "datetime"), Column("e", "datetime")), ("no", "yes"))


@pytest.mark.parametrize(
    "text",
    [
        "[hard] d < date '2024-01-31' and days(e - d) > 3 => no\n[hard] days(e - d) > 3 => yes",
        "[hard] d > date '1970-01-01' => no\n[hard] d < e and d != date '1970-01-02' => yes",
        "[hard] d > date '1970-01-01' => no\n[hard] d < e and d > date '1969-12-31' => yes",
        "[hard] d < date '1970-01-01' => no\n[hard] d > e => yes",
        "[hard] x >= 3.4028234663852886e38 => no\n[hard] x != 3.5e38 and x > 0 => yes",
    ],
)
def test_an_example_with_times_or_the_largest_numbers_can_be_encoded(text):
    book = bind(text, TIMES, conflicts="ignore")
    (found,) = conflicts(book)
    assert np.asarray(forbidden(book, encode(book, found.example))).tolist() == [[True, True]]


@pytest.mark.parametrize(
    "condition", ["x > 3.5e38", "x < -3.5e38", "x == 1e39", "x >= 10.0 * 1e38"]
)
def test_no_conflict_beyond_the_numbers_that_a_column_can_hold(condition):
    with pytest.warns(RuleWarning, match="1 of 2 rules can never be violated"):
        book = bind(f"[hard] {condition} => no\n[hard] x < 1e300 => yes", TIMES)
    fired = np.asarray(fires(book, encode(book, {"x": [-3.4e38, 3.4028234663852886e38, None],
        "d": [None] * 3, "e": [None] * 3})))  # fmt: skip
    assert fired.T.tolist() == [[False, False, False], [True, True, False]]
