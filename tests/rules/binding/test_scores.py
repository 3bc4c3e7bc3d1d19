"""Points: scores of medicine against sums in pandas, and random ones against a reference."""

from __future__ import annotations

import itertools
import random
import warnings
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from distill_jax.models import from_function
from distill_jax.rules import (
    Column,
    RuleError,
    RuleWarning,
    Schema,
    at_most,
    bind,
    check,
    col,
    conflicts,
    encode,
    encourage,
    enforce,
    explain,
    fires,
    implies,
    label,
    parse,
    parse_formula,
    rule,
    score,
    teach,
    violation,
)
from distill_jax.rules.binding._scores import at_least, points_of
from distill_jax.rules.circuits._building import Builder, TooManyNodes
from distill_jax.rules.language.building import formula
from tests.rules.binding.test_groups import EXCLUSIVE, LABELS
from tests.rules.levels import problem
from tests.rules.reference import CLAUSES, holds, random_formula, random_rows
from tests.rules.small_books import quick

YES_NO = Schema((Column("age"), Column("a", "boolean"), Column("b", "boolean"),
                 Column("note", "text")), ("no", "yes"))  # fmt: skip


def booleans(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "boolean") for name in names)


# Each score of medicine: its columns, its conditions with their points as written and in pandas,
# and rules over it.

ATRIAL = (
    (Column("age"), Column("sex", "categorical", ("F", "M")))
    + booleans("failure", "hypertension", "diabetes", "stroke", "vascular"),
    {
        "failure": (1, lambda t: t.failure),
        "hypertension": (1, lambda t: t.hypertension),
        "age >= 75": (2, lambda t: t.age >= 75),
        "diabetes": (1, lambda t: t.diabetes),
        "stroke": (2, lambda t: t.stroke),
        "vascular": (1, lambda t: t.vascular),
        "65 <= age < 75": (1, lambda t: (t.age >= 65) & (t.age < 75)),
        "sex == 'F'": (1, lambda t: t.sex == "F"),
    },
    [(">= 2", lambda lo, hi: (lo >= 2, hi < 2)), ("== 1", lambda lo, hi: ((lo == 1) & (hi == 1),
     (lo > 1) | (hi < 1))), ("< 1", lambda lo, hi: (hi < 1, lo >= 1))],
)  # fmt: skip
EMBOLISM = (
    (Column("pulse"), *booleans("thrombosis", "likely", "still", "before", "blood", "cancer")),
    {
        "thrombosis": (3, lambda t: t.thrombosis),
        "likely": (3, lambda t: t.likely),
        "pulse > 100": (1.5, lambda t: t.pulse > 100),
        "still": (1.5, lambda t: t.still),
        "before": (1.5, lambda t: t.before),
        "blood": (1, lambda t: t.blood),
        "cancer": (1, lambda t: t.cancer),
    },
    [("> 4", lambda lo, hi: (lo > 4, hi <= 4)), (">= 4.5", lambda lo, hi: (lo >= 4.5, hi < 4.5)),
     ("between 2 and 6", lambda lo, hi: ((lo >= 2) & (hi <= 6), (lo > 6) | (hi < 2)))],
)  # fmt: skip
THROMBOSIS = (
    booleans("cancer", "paralysed", "bedridden", "tender", "swollen", "other"),
    {
        "cancer": (1, lambda t: t.cancer),
        "paralysed": (1, lambda t: t.paralysed),
        "bedridden": (1, lambda t: t.bedridden),
        "tender": (1, lambda t: t.tender),
        "swollen": (1, lambda t: t.swollen),
        "other": (-2, lambda t: t.other),
    },
    [(">= 2", lambda lo, hi: (lo >= 2, hi < 2)), ("<= 0", lambda lo, hi: (hi <= 0, lo > 0)),
     ("!= 1", lambda lo, hi: ((lo > 1) | (hi < 1), (lo == 1) & (hi == 1)))],
)  # fmt: skip
SEPSIS = (
    (Column("breaths"), Column("pressure"), Column("coma")),
    {
        "breaths >= 22": (1, lambda t: t.breaths >= 22),
        "pressure <= 100": (1, lambda t: t.pressure <= 100),
        "coma < 15": (1, lambda t: t.coma < 15),
    },
    [(">= 2", lambda lo, hi: (lo >= 2, hi < 2)), ("in [0, 3]", lambda lo, hi: (
        (lo == hi) & ((lo == 0) | (lo == 3)), (lo > 0) & (hi < 3)))],
)  # fmt: skip
VALUES = {
    "age": [40, 64.9, 65, 74, 75, 90], "pulse": [80, 100, 100.5, 120], "breaths": [15, 21, 22, 30],
    "pressure": [90, 100, 101, 140], "coma": [13, 14, 15], "sex": ["F", "M"],
}  # fmt: skip


def random_table(columns: tuple[Column, ...], rows: int, missing: float) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    table = {}
    for column in columns:
        values = draw.choice(VALUES.get(column.name, [True, False]), rows)
        kind = {"numeric": "Float64", "boolean": "boolean"}.get(column.kind, "string")
        drawn = pd.Series(values).astype(kind)
        table[column.name] = drawn.mask(draw.random(rows) < missing)
    return pd.DataFrame(table)


@pytest.mark.quick
@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize(
    "clinical", [ATRIAL, EMBOLISM, THROMBOSIS, SEPSIS], ids="CHA2DS2-VASc PE DVT qSOFA".split()
)
def test_scores_of_medicine_as_sums_in_pandas(clinical: Any, missing: float) -> None:
    columns, conditions, comparisons = clinical
    table = random_table(columns, 400, missing)
    low, high = (pd.Series(0.0, table.index) for _ in range(2))
    for points, condition in conditions.values():
        held = condition(table).astype("boolean")
        worst, best = (held.fillna(points < 0), held.fillna(points > 0))
        low, high = low + points * worst.astype(float), high + points * best.astype(float)
    total = "score(" + ", ".join(f"{p}*({text})" for text, (p, _) in conditions.items()) + ")"
    lines = [f"{total} {sign} => yes" for sign, _ in comparisons]
    book = bind("\n".join(lines + [f"not ({x[:-7]}) => yes" for x in lines]),
                Schema(columns, ("no", "yes")))  # fmt: skip
    assert str(bind(str(book), book.schema)) == str(book)
    got = np.asarray(quick(fires)(book, encode(book, table)))
    lo, hi = low.to_numpy(), high.to_numpy()
    for i, (sign, decide) in enumerate(comparisons):
        holds_, fails = decide(lo, hi)
        np.testing.assert_array_equal(got[:, i], holds_, sign)
        np.testing.assert_array_equal(got[:, i + len(comparisons)], fails, sign)
        unknown = ~(got[:, i] | got[:, i + len(comparisons)])
        assert unknown.any() == (missing > 0)


SCORES = (
    "score(2*(x > 1), flag, -1*(sex == 'F')) >= 1",
    "1 <= score(2*(x > 1), flag, 0.5*(y > 0)) < 3",
    "score(x > 0, flag, known) == 1",
    "score(x > 0, 0.5*flag) != score(y > 0, 0.5*known)",
    "score(1.5*(x > 0 or flag), -0.5*known) + 1 <= 2 * score(y > 0) / 4",
    "score(3*(x is missing), -2*(not flag)) in [0, 3, 1]",
)
LABEL_SCORES = ("score(2*a, b, c) <= 2", "score(1.5*a, -1*b, 2*(x > 0)) > 0.5", "score(a, b) == 1")


@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "labels"])
def test_random_rules_with_scores(exclusive: bool) -> None:
    schema, draw = (EXCLUSIVE if exclusive else LABELS), random.Random(0)
    atoms = (*SCORES, *LABEL_SCORES, "x > 1", "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        lines = [f"y > 0 or {random_formula(draw, atoms, i % 3)}" for i in range(15)]
        book = bind(CLAUSES + "\n".join(lines), schema)
    sets = list(itertools.product((False, True), repeat=3))
    worlds = [[k == j for k in range(3)] for j in range(3)] if exclusive else sets
    rows = [row for row in random_rows(draw, 12) for _ in worlds]
    every = worlds * 12
    table = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
    got = quick(violation)(book, encode(book, table), np.array(every, np.float32))
    want = [
        [
            holds(own.formula, row, dict(zip(((None, k) for k in "abc"), world, strict=True)),
                  book.info.definitions) is False
            for own in book.rules
        ]
        for row, world in zip(rows, every, strict=True)
    ]  # fmt: skip
    np.testing.assert_array_equal(got, np.array(want, float))


def fired(text: str, **columns: Any) -> list[bool]:
    rows = len(next(iter(columns.values())))
    table = {"age": [50] * rows, "a": [0] * rows, "b": [0] * rows, "note": [""] * rows} | columns
    book = bind(text, YES_NO)
    return np.asarray(fires(book, encode(book, table)))[:, 0].tolist()


def test_decimal_points_are_exact() -> None:
    assert fired("score(0.1*a, 0.2*b) >= 0.3 => yes", a=[1], b=[1]) == [True]
    with pytest.warns(RuleWarning, match="can never be violated"):
        assert fired("score(0.1*a, 0.2*b) > 0.1 + 0.2 => yes", a=[1], b=[1]) == [False]
    assert fired("score(1e-9*a, 1e9*b) > 1e9 => yes", a=[1, 0], b=[1, 1]) == [True, False]
    assert fired(f"score({10**30}*a, b) > {10**30} => yes", a=[1, 1], b=[1, 0]) == [True, False]
    total = points_of(parse_formula("score(0.5*a, 1.5*b) - 1 > 0").operands[0])
    a, b = (parse_formula(name) for name in "ab")
    assert total == ({a: Fraction(1, 2), b: Fraction(3, 2)}, -1)
    assert at_least(total) == ({a: 1, b: 3}, 2) and at_least(total, strict=True).least == 3


def test_a_condition_that_occurs_twice_counts_once() -> None:
    assert fired("score(a, a) >= 2 => yes", a=[1, 0]) == [True, False]
    # Its two occurrences are not unknown apart from each other.
    assert fired("score(a, b) >= score(a) => yes", a=[None], b=[0]) == [True]
    assert fired("score(a) >= score(b) => yes", a=[None, 1], b=[0, None]) == [True, True]


def test_silent_scores_are_counted_and_explained() -> None:
    book = bind("[w=2] risk: score(2*(age >= 75), a, 0.5*b) >= 2 => yes", YES_NO)
    table = {"age": [80, None, None, 50], "a": [0, 1, 0, None], "b": [0, 1, 0, 1], "note": [""] * 4}
    (row,) = check(book, table).rows
    assert (row["fires"], row["silent"]) == (1, 2)
    example = {"age": 80.0, "a": None, "b": None, "note": ""}
    (row,) = explain(book, example, np.zeros(2, np.float32)).rows
    assert row["moved"] == 2.0 and not row["silent"]
    assert row["points"] == {"score(2*(age >= 75), a, 0.5*b)": [2.0, 3.5]}
    (row,) = explain(book, {**example, "age": None, "a": 1, "b": 1}, np.zeros(2, np.float32)).rows
    assert row["silent"] and list(row["points"].values()) == [[1.5, 3.5]]
    (row,) = explain(book, {**example, "a": 1, "b": 0}, np.zeros(2, np.float32)).rows
    assert list(row["points"].values()) == [3.0]
    of_labels = bind("score(yes, a) < 2", YES_NO)
    (row,) = explain(of_labels, {**example, "a": 1}, np.zeros(2, np.float32)).rows
    assert row["points"] is None


def test_over_labels_a_score_is_a_cardinality_with_factors() -> None:
    schema = Schema((), ("a", "b", "c"), exclusive=False)
    p, nothing = np.random.default_rng(0).random((5, 3)), np.zeros((5, 0), np.float32)
    for logic in ("product", "godel"):
        weighted = bind("score(2*a, 2*b, 2*c) <= 2", schema, logic=logic)
        counted = bind([at_most(1, *map(label, "abc"))], schema, logic=logic)
        np.testing.assert_allclose(
            violation(weighted, nothing, p), violation(counted, nothing, p), rtol=1e-6
        )
    book = bind("[hard] score(2*a, b, c) <= 2\n[hard] a\n[hard] b", schema, conflicts="ignore")
    (found,) = conflicts(book)
    assert found.indices == (0, 1, 2)
    # Gradients push the probabilities down.
    slope = jax.grad(lambda p: violation(weighted, nothing, p).sum())(jnp.asarray(p, jnp.float32))
    assert (slope >= 0).all() and (slope > 0).any()


def test_a_score_is_enforced_where_it_means_implications() -> None:
    schema = Schema((), ("a", "b", "c"), exclusive=False)
    flat = from_function(
        lambda key, x: {}, lambda params, x: x, classes=("a", "b", "c"), outputs="multi_label"
    )
    options = {"columns": lambda x: x[:, :0]}
    safe = enforce(flat, bind("[hard] score(2*a, b) >= 2 => c", schema), **options)
    logits = safe.predict({}, {}, np.array([[3.0, 0, -1], [-1, 3, -1]], np.float32)).logits
    np.testing.assert_array_equal(logits, [[3, 0, 3], [-1, 3, -1]])
    with pytest.raises(RuleError, match="enforced as implications"):
        enforce(flat, bind("[hard] score(2*a, b, c) <= 2", schema), **options)


def test_soft_comparisons_in_a_score_have_a_gradient() -> None:
    book = bind("score(2*(age >= 75), a) >= 2 => yes", YES_NO, widths={"age": 2.0})
    p = np.array([[1.0, 0.0]], np.float32)

    def at(age: Any) -> Any:
        columns = jnp.stack([age, jnp.float32(0), jnp.float32(0)])[None]
        return violation(book, columns, p)[0, 0]

    value, slope = jax.value_and_grad(at)(jnp.float32(76))
    want = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose([value, slope], [want, want * (1 - want) / 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score() > 1 => yes", "column 7: score needs at least one argument"),
        ("score(3) > 1 => yes", "column 7: a score counts conditions, got the value 3: write"),
        ("score(a*2) > 1 => yes", "a score counts conditions, got the value a \\* 2"),
        ("score(2*3) > 1 => yes", "a score counts conditions, got the value 3"),
        ("score(-a) > 1 => yes", "a score counts conditions, got the value -a"),
        ("score(1e999*a) > 1 => yes", "column 7: this number is too large: numbers must be finite"),
        ("score(inf*a) > 1 => yes", "a score counts conditions, got the value inf \\* a"),
        ("score(2*not a) > 1 => yes", "put parentheses around not and its operand"),
        (
            "score(2*(age > 3) > 1 => yes",
            "column 19: expected , or \\) after",
        ),
        ("score(a) => yes", "expected a formula, got the value score\\(a\\)"),
        ("score(note) > 1 => yes", "column 7: column 'note' is text.*test it with note matches"),
        ("score(2*note) > 1 => yes", "column 9: column 'note' is text"),
        ("score(age) > 1 => yes", "column 'age' is numeric.*compare it with a value"),
        ("score(a) > age => yes", "a score is compared with numbers and other scores, got age"),
        ("score(a) == 'high' => yes", "compared with numbers and other scores, got 'high'"),
        ("score(a) + note > 1 => yes", "compared with numbers and other scores, got note"),
        ("score(a) * score(b) > 1 => yes", "is no sum of points"),
        ("score(a) / 0 > 1 => yes", "is no sum of points"),
        ("days(score(a)) > 1 => yes", "compared with numbers and other scores, got days"),
        ("score(a) is missing => yes", "is never missing itself"),
        ("score(a) matches 'x' => yes", "holds no text"),
        ("score(nobody) > 1 => yes", "unknown name nobody"),
    ],
)
def test_bad_scores(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        bind(text, YES_NO)


def test_scores_built_in_python() -> None:
    built = score(
        2 * (col("age") >= 75), col("stroke"), 0.5 * col("diabetes"), -(~col("a")), -col("b")
    )
    text = "score(2*(age >= 75), stroke, 0.5*diabetes, -1*(not a), -1*b) >= 2 => yes"
    assert (rule(implies(built >= 2, label("yes"))),) == parse(text)
    assert formula(1 <= score(col("a") * 2)) == parse_formula("score(2*a) >= 1")
    for wrong, error, message in [
        (lambda: score(), ValueError, "at least one condition"),
        (lambda: score(col("x") + 1), TypeError, "score takes conditions"),
        (lambda: float("nan") * (col("x") > 1), ValueError, "finite, got nan"),
        (lambda: score(float("inf") * col("x")), ValueError, "finite, got inf"),
        (lambda: "2" * (col("x") > 1), TypeError, "number of points, got '2'"),
        (lambda: True * (col("x") > 1), TypeError, "got True"),
        (lambda: (2 * (col("x") > 1)) & col("a"), TypeError, "a formula was expected"),
    ]:
        with pytest.raises(error, match=message):
            wrong()


@pytest.mark.parametrize(
    "text",
    [
        "score(2*(age >= 75), stroke, 0.5*hypertension) >= 2 => treat",
        "score(2 * age >= 75, -1*(not a), 2*at_least(1, a, b), a => b) < 3",
        "score(2 * (age + 1) > 3, a => b unless c) == score(-0.5*view(v).a) / 2",
        "1 <= score(`a b`, 3*(score(a) > 1)) < 3 and score(a) in [1, 2]",
        "p :- score(p-1=c, 2*x) >= 1, a.".replace("p-1=c", "(`p-1` == 'c')").replace(
            "(`p-1` == 'c')", "a"
        ),
    ],
)
def test_scores_stay_as_people_write_them(text: str) -> None:
    (own,) = parse(text)
    assert str(own) == text and parse(str(own)) == (own,)


def test_weighted_sums_of_nodes() -> None:
    draw = random.Random(0)
    for _ in range(20):
        weights = [draw.choice([1, 1, 2, 3, 5]) for _ in range(draw.randrange(1, 6))]
        builder = Builder(0)
        parts = [builder.label(i, False) for i in range(len(weights))]

        def value(node: int, world: Any, builder: Builder = builder) -> bool:
            kind, inner = builder.children(node)
            if not kind:
                return bool(node) if node < 2 else world[builder.nodes[node][1]]
            return (all if kind == "and" else any)(value(x, world) for x in inner)

        for number in range(-1, sum(weights) + 2):
            node = builder.weighted_at_least(number, parts, weights)
            for world in itertools.product((False, True), repeat=len(weights)):
                total = sum(w for w, held in zip(weights, world, strict=True) if held)
                assert value(node, world) == (total >= number)


def test_sizes_are_limited_with_a_remedy() -> None:
    schema = Schema(tuple(Column(f"c{i}") for i in range(40)), ("no", "yes"))
    points = ", ".join(f"{2**i}*(c{i} > 0)" for i in range(20))
    with pytest.raises(RuleError, match="a score of 20 conditions with 20 different factors is"):
        bind(f"score({points}) > 12345 => yes", schema)
    builder = Builder(0)
    nodes = [builder.label(i, False) for i in range(1000)]
    with pytest.raises(TooManyNodes):
        builder.weighted_at_least(750, nodes, [1 + i % 2 for i in range(1000)])
    many = ", ".join(f"{1 + i % 3}*(c{i} > 0)" for i in range(40))
    book = bind(f"score({many}) >= 30 => yes", schema)
    assert book.circuit.number_of_nodes < 6_000 and len(book.circuit.levels) < 30


def test_points_and_groups_are_trained() -> None:
    text = """
    [w=6] risk: score(2*(x > 1), y > 0, 0.5*(x > 0)) >= 1.5 => yes
    [w=6, first=t] low: x < -1 => no
    [w=6, first=t] else => yes
    """
    book = bind(text, problem.SCHEMA)
    terms = encourage("rules", 4.0, book), teach("teach", 4.0, book)
    end, _ = problem.train(problem.LABELS, *terms)
    without, _ = problem.violated(book, problem.trained_without_rules())
    with_rules, corrected = problem.violated(book, end)
    assert with_rules.sum() < 0.5 * without.sum() and (corrected < with_rules).all()
