"""Groups of rules that hide one another, against their meaning a row at a time in Python."""

from __future__ import annotations

import dataclasses
import itertools
import random
import warnings
from typing import Any

import jax
import numpy as np
import pytest

from distill_jax.models import from_function
from distill_jax.rules import (
    Column,
    RuleError,
    RuleWarning,
    Schema,
    bind,
    check,
    col,
    conflicts,
    encode,
    enforce,
    explain,
    fires,
    implies,
    label,
    otherwise,
    parse,
    project,
    rule,
    to_logistic_regression,
    to_network,
    violation,
)
from distill_jax.rules.binding import _ground
from distill_jax.rules.language import formulas as f
from tests.rules.reference import CLAUSES, FEATURES, holds, random_formula, random_rows
from tests.rules.small_books import quick

COLUMNS = (
    Column("x"),
    Column("y"),
    Column("flag", "boolean"),
    Column("sex", "categorical", ("F", "M")),
    Column("txt", "text"),
)
CLASSES = ("a", "b", "c")
EXCLUSIVE = Schema(COLUMNS, CLASSES)
LABELS = Schema(COLUMNS, CLASSES, exclusive=False)
AB = Schema((Column("x"), Column("y")), ("a", "b"))


def random_groups(draw: random.Random, atoms: tuple[str, ...]) -> str:
    """A text with a group in the order written, one by priority, one without a name, and rules."""
    lines = []
    for _ in range(9):
        body = random_formula(draw, FEATURES + atoms, draw.randrange(3))
        exception = f" unless {draw.choice(FEATURES)}" if draw.random() < 0.3 else ""
        tag = draw.choice(
            ("[first=t] ", "[w=2, first=t] ", "", f"[group=`p q`, priority={draw.randrange(3)}] ")
            + (f"[priority={draw.choice((-1, 0.5, 2))}] ",)
        )
        lines.append(f"{tag}({body}) => {draw.choice(CLASSES)}{exception}")
    return CLAUSES + "\n".join([*lines, "[first=t] else => b", "[priority=-9] else => c"])


def violated(rules: tuple[f.Rule, ...], row: Any, world: Any, clauses: Any) -> list[bool]:
    """Which rules are violated, by the definition of groups."""

    def value(tree: Any) -> Any:
        return True if isinstance(tree, f.Else) else holds(tree, row, world, clauses)

    found = []
    for i, own in enumerate(rules):
        if own.group is None:
            found.append(value(own.formula) is False)
            continue
        before = [
            other
            for j, other in enumerate(rules)
            if other.group == own.group
            and (j < i if own.priority is None else other.priority > own.priority)
        ]
        fired = value(own.formula.body) is True and all(
            value(other.formula.body) is False for other in before
        )
        found.append(fired and value(own.formula.head) is False)
    return found


def table(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], object) for name in rows[0]}


def bound(text: Any, schema: Schema, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        return bind(text, schema, **options)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_groups_over_classes(seed: int) -> None:
    draw = random.Random(seed)
    book = bound(random_groups(draw, ("a", "b") if seed % 2 else ()), EXCLUSIVE)
    rows = random_rows(draw, 30)
    columns = np.repeat(encode(book, table(rows)), 3, 0)
    got = quick(violation)(book, columns, np.tile(np.eye(3, dtype=np.float32), (30, 1)))
    want = [
        violated(book.rules, row, {"target": "-", None: k}, book.info.definitions)
        for row in rows
        for k in CLASSES
    ]
    np.testing.assert_array_equal(got, np.array(want, float))


def test_random_groups_over_label_sets() -> None:
    draw = random.Random(7)
    book = bound(random_groups(draw, ("a", "b", "c")), LABELS)
    worlds = list(itertools.product((False, True), repeat=3)) * 3
    rows = random_rows(draw, len(worlds))
    got = quick(violation)(book, encode(book, table(rows)), np.array(worlds, np.float32))
    want = [
        violated(
            book.rules, row, {(None, k): x for k, x in zip(CLASSES, world, strict=True)},
            book.info.definitions,
        )
        for row, world in zip(rows, worlds, strict=True)
    ]  # fmt: skip
    np.testing.assert_array_equal(got, np.array(want, float))


IRIS = """
[first=iris]      short: length < 2.5 => setosa
[w=2, first=iris] narrow: width < 1.75 => versicolor
[first=iris]      rest: else => virginica
"""
FLOWERS = Schema((Column("length"), Column("width")), ("setosa", "versicolor", "virginica"))
ROWS = {"length": [1, 1, 3, 3, None, None, 3], "width": [1, 2, 1, 2, 1, 2, None]}


@pytest.mark.quick
def test_only_the_first_rule_that_applies_fires() -> None:
    book = bind(IRIS, FLOWERS)
    want = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(quick(fires)(book, encode(book, ROWS)), np.array(want, bool))
    assert str(bind(str(book), FLOWERS)) == str(book)


def test_check_counts_what_hides_what_and_what_stops_a_group() -> None:
    found = check(bind(IRIS, FLOWERS), ROWS)
    columns = {key: [row[key] for row in found.rows] for key in ("hidden", "hidden_by", "stops")}
    assert columns == {
        "hidden": [0, 1, 3],
        "hidden_by": [{}, {"short": 1}, {"short": 2, "narrow": 1}],
        "stops": [2, 1, 0],  # length is missing twice; once length is long, and width missing
    }
    assert found.summary["stopped"] == 3
    assert [row["silent"] for row in found.rows] == [2, 2, 2]
    alone = check(bind("length < 2.5 => setosa", FLOWERS), ROWS)
    assert alone.rows[0]["hidden"] is alone.rows[0]["hidden_by"] is alone.rows[0]["stops"] is None
    assert alone.summary["stopped"] is None


def test_counts_of_random_groups() -> None:
    draw = random.Random(3)
    book = bound(random_groups(draw, ()), EXCLUSIVE)
    rows = random_rows(draw, 50)
    found = check(book, table(rows))
    names = book.names
    for i, own in enumerate(book.rules):
        if own.group is None:
            continue
        by: dict[str, int] = {}
        stops = 0
        for row in rows:
            body = [
                True if isinstance(r.formula.body, f.Else) else
                holds(r.formula.body, row, {"target": "-"}, book.info.definitions)
                if r.group == own.group else False
                for r in book.rules
            ]  # fmt: skip
            rank = [
                (-r.priority if r.priority is not None else j) for j, r in enumerate(book.rules)
            ]
            reached = [
                not any(body[k] is not False and rank[k] < rank[j] for k in range(len(book)))
                for j in range(len(book))
            ]
            for j in range(len(book)):
                hides = rank[j] < rank[i] and body[j] is True and reached[j]
                if book.rules[j].group == own.group and body[i] is True and hides:
                    by[names[j]] = by.get(names[j], 0) + 1
            later = any(
                r.group == own.group and rank[j] > rank[i] for j, r in enumerate(book.rules)
            )
            stops += body[i] is None and reached[i] and later
        assert found.rows[i]["hidden_by"] == by
        assert found.rows[i]["stops"] == stops


def test_explain_names_the_rule_that_hides() -> None:
    book, logits = bind(IRIS, FLOWERS), np.zeros(3, np.float32)
    rows = explain(book, {"length": 1.0, "width": 1.0}, logits).rows
    assert [(r["rule"], r["hidden_by"], r["moved"]) for r in rows] == [
        ("short", None, 1.0), ("narrow", "short", 0.0), ("rest", "short", 0.0)
    ]  # fmt: skip
    rows = explain(book, {"length": None, "width": 2.0}, logits).rows
    assert [(r["rule"], r["silent"], r["stopped_by"]) for r in rows] == [
        ("short", True, None), ("rest", True, "short")
    ]  # fmt: skip


def test_unless_is_and_not() -> None:
    text = "[p=0.9] x > 3 and y > 3 => a unless x > 5 or y is missing"
    (written,) = parse(text)
    assert str(written) == text and isinstance(written.formula.body, f.And)
    twin = bind("x > 3 and y > 3 and not (x > 5 or y is missing) => a", AB)
    book = bind(text, AB)
    columns = encode(book, {"x": [4, 4, 6, None, 4], "y": [4, 2, 4, 4, None]})
    np.testing.assert_array_equal(fires(book, columns), fires(twin, columns))
    assert to_network(twin.rules[:0] or "x > 3 => a unless y > 3", AB).layout
    built = implies((col("x") > 3) & (col("y") > 3), label("a"))
    built = built.unless(col("x") > 5).unless(col("y").is_missing())
    assert rule(built, p=0.9) == written
    with pytest.raises(TypeError, match="unless is for a rule made by implies"):
        col("x").unless(col("y") > 2)
    with pytest.raises(TypeError, match="otherwise.* takes no exception"):
        otherwise(label("a")).unless(col("y") > 2)


def test_groups_built_in_python() -> None:
    built = [
        rule(implies(col("length") < 2.5, label("setosa")), name="short", first="iris"),
        rule(implies(col("width") < 1.75, label("versicolor")), name="narrow", w=2, first="iris"),
        rule(otherwise(label("virginica")), name="rest", first="iris"),
    ]
    assert tuple(built) == parse(IRIS)
    assert [(r.group, r.priority) for r in built] == [("iris", None)] * 3
    ranked = rule(implies(col("x") > 1, label("a")), priority=2.5, group="t")
    assert str(ranked) == "[group=t, priority=2.5] x > 1 => a"
    assert str(rule(implies(col("x") > 1, label("a")), priority=-1)) == "[priority=-1] x > 1 => a"
    counted = rule(implies(col("x") > 1, label("a")), priority=np.int64(3))
    assert str(counted) == "[priority=3] x > 1 => a"
    # One rule object twice is two rules.
    book = bound([ranked, ranked, "[group=t, priority=1] x > 0 => b"], AB)
    assert fires(book, np.array([[2, 0]], np.float32)).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first": "t", "priority": 1}, ValueError, "leave out group and priority"),
        ({"group": "t"}, ValueError, "group needs a priority"),
        ({"first": ""}, ValueError, "must not be empty"),
        ({"group": "", "priority": 1}, ValueError, "must not be empty"),
        ({"priority": float("nan")}, ValueError, "priority must be finite, got nan"),
        ({"priority": 10**400}, ValueError, "priority must be finite"),
        ({"priority": True}, TypeError, "priority must be a number, got True"),
        ({"first": 3}, TypeError, "first must be a string or None, got 3"),
    ],
)
def test_tags_that_no_rule_can_have(library_errors: None, options, error, message) -> None:
    with pytest.raises(error, match=message):
        rule(implies(col("x") > 1, label("a")), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[first=t] x > 1 => a\n[group=t, priority=1] y > 1 => b", "line 2.*name two groups"),
        ("[first=t] else => a\n[first=t] x > 1 => b", "line 1.*else must be last in its group"),
        ("[priority=1] else => a\n[priority=1] x > 1 => b", "of the lowest priority, and alone"),
        ("[first=t] p :- x > 1.\np => a", "clause that defines a predicate is in no group"),
        ("[first=t] a or x > 1", "line 1, column 1: a rule of a group says body => head"),
    ],
)
def test_groups_without_a_meaning(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        bind(text, AB)


def test_an_else_built_in_python_stands_in_a_group() -> None:
    with pytest.raises(RuleError, match="else is for the last rule of a group"):
        bind([otherwise(label("a"))], AB)
    (last,) = parse("[first=t] else => a")
    with pytest.raises(RuleError, match="else is for the last rule of a group"):
        bind([dataclasses.replace(last, group=None)], AB)
    with pytest.raises(RuleError, match="else stands alone as the body"):
        bind([f.Rule(f.Implies(f.Not(f.Else()), f.Name("a")), group="t")], AB)


def test_a_rule_that_others_always_hide_is_told() -> None:
    with pytest.warns(RuleWarning, match="1 of 2 rules.*in their group hide them: line 2"):
        bind("[first=t] x > 3 => a\n[first=t] x > 5 => b", AB)


def test_hard_rules_of_one_group_never_meet() -> None:
    rows = "\n".join(
        f"[hard, first=t] x > {i} and y < {i * 7 % 13} => {'ab'[i % 2]}" for i in range(12, 0, -1)
    )
    assert conflicts(bound(rows + "\n[hard, first=t] else => a", AB)) == []
    book = bound("[hard, first=t] x > 3 => a\n[hard, first=t] x > 2 => b\n[hard] x > 1 => b", AB,
                 conflicts="ignore")  # fmt: skip
    (found,) = conflicts(book)
    assert found.indices == (0, 2) and found.certain
    ranked = "[hard, priority=2] x > 3 => a\n[hard, priority=2] x > 2 => b"
    with pytest.raises(RuleError, match="forbid everything"):
        bind(ranked, AB)


def test_a_long_group_takes_nodes_in_proportion_to_its_rules() -> None:
    schema = Schema(tuple(Column(f"c{i}") for i in range(9)), ("a", "b"))
    sizes, levels = [], []
    for n in (60, 120):
        text = [
            f"[first=t] c{i % 9} > {i} and c{(i + 1 + i % 7) % 9} < {-i} => a" for i in range(n)
        ] + ["[first=t] else => b"]  # fmt: skip
        book = bound(text, schema, conflicts="ignore")
        made = jax.tree.leaves([(x.ands, x.ors) for x in book.circuit.levels])
        sizes.append(sum(x.size for x in made))
        levels.append(len(made))
    assert sizes[1] < 2.4 * sizes[0] and levels[1] <= levels[0] + 4
    # The last of many fires where none before does.
    columns = np.zeros((2, 9), np.float32)
    columns[1, 70 % 9], columns[1, (71 + 70 % 7) % 9] = 70.5, -71
    got = np.asarray(quick(fires)(book, columns))
    assert np.flatnonzero(got[0]).tolist() == [120]
    held = [columns[1, i % 9] > i and columns[1, (i + 1 + i % 7) % 9] < -i for i in range(120)]
    assert np.flatnonzero(got[1]).tolist() == [held.index(True)]


def test_hard_groups_are_enforced_over_classes_and_label_sets() -> None:
    text = "[hard, first=t] x > 3 => a\n[hard, first=t] x > 1 => b\n[hard, first=t] else => a"
    columns = np.array([[4, 0], [2, 0], [0, 0], [np.nan, 0]], np.float32)
    flat = from_function(lambda key, x: {}, lambda params, x: x * 0.0, classes=("a", "b"))
    safe = enforce(flat, bind(text, AB))
    logits = safe.predict({}, {}, columns).logits
    assert np.isneginf(logits).tolist() == [
        [False, True],
        [True, False],
        [False, True],
        [False] * 2,
    ]
    sets = Schema(AB.columns, ("a", "b"), exclusive=False)
    low = from_function(
        lambda key, x: {}, lambda params, x: x * 0.0 - 5.0, classes=("a", "b"),
        outputs="multi_label",
    )  # fmt: skip
    safe = enforce(low, bind(text, sets))
    logits = np.asarray(safe.predict({}, {}, columns[:3]).logits)
    assert (logits > 0).tolist() == [[True, False], [False, True], [True, False]]


def test_models_from_rules_know_groups_or_say_so() -> None:
    with pytest.raises(RuleError, match="a network of clauses has no order"):
        to_network("[first=t] x > 3 => a", AB)
    with pytest.raises(RuleError, match="atoms alone cannot represent the order of a group"):
        to_logistic_regression("[first=t] x > 3 => a", AB, features="atoms")
    book = bind("[w=2, first=t] x > 3 => a\n[first=t] x > 1 => b\n[first=t] else => a", AB)
    model = to_logistic_regression(book)
    columns = encode(book, {"x": [4, 2, 0, None], "y": [0, 0, 0, 0]})
    logits = model.predict(*model.init(jax.random.key(0), columns), columns).logits
    np.testing.assert_allclose(logits[:, 1], [-2, 1, -1, 0])


def test_bodies_over_classes_take_steps_in_proportion_to_the_rules(monkeypatch) -> None:
    count, build = [0], _ground._Walk._build_node

    def counted(self: Any, x: Any, positive: bool) -> int:
        count[0] += 1
        return build(self, x, positive)

    monkeypatch.setattr(_ground._Walk, "_build_node", counted)
    taken = []
    for n in (30, 60):
        count[0] = 0
        text = [f"[first=t] x > {n - i} and not (y > {i} and a) => b" for i in range(n)]
        bound(text, AB, conflicts="ignore")
        taken.append(count[0])
    assert 60 < taken[1] < 2.2 * taken[0]


def test_groups_whose_bodies_are_predictions_are_not_counted() -> None:
    schema = Schema(AB.columns, ("a", "b", "c"), exclusive=False)
    book = bind("[first=t] a and x > 1 => b\n[first=t] x > 0 => c", schema)
    rows = {"x": [2.0, 0.5], "y": [0.0, 0.0]}
    assert [row["hidden"] for row in check(book, rows).rows] == [None, None]
    p = np.array([[0.25, 0.5, 0.5]] * 2, np.float32)
    # x > 0 => c is hidden with the probability of a, where x > 1.
    got = quick(violation)(book, encode(book, rows), p)
    np.testing.assert_allclose(got, [[0.125, 0.375], [0, 0.5]])


def test_soft_comparisons_hide_in_part() -> None:
    book = bind("[w=1, first=t] x > 1 => a\n[w=1, first=t] else => b", AB, widths={"x": 0.5})
    half = 1 / (1 + np.exp(-2.0))  # one is two widths above the threshold
    columns = np.array([[2.0, 0.0]], np.float32)
    got = quick(violation)(book, columns, np.array([[0.25, 0.75]], np.float32))
    np.testing.assert_allclose(got, [[half * 0.75, (1 - half) * 0.25]], rtol=1e-5)


def test_what_is_hidden_moves_no_prediction() -> None:
    text = (
        "[w=2, priority=2] x > 3 => a\n[w=5, priority=1] x > 1 => b\n[w=3, priority=1] y > 1 => a"
    )
    book = bind(text, AB)
    columns = encode(book, {"x": [4, 2, 2, None], "y": [2, 0, 2, 2]})
    corrected = project(book, columns, np.zeros((4, 2), np.float32))
    np.testing.assert_allclose(corrected[:, 0] - corrected[:, 1], [2, -5, -2, 0], atol=1e-5)
