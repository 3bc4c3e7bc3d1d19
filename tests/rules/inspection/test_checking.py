"""What check and explain say, against rules taken a row at a time in plain Python."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from distill_jax.rules import (
    Book,
    Check,
    Column,
    Schema,
    bind,
    check,
    encode,
    explain,
    project,
    violation,
)
from distill_jax.rules.inspection import checking as checking_module
from tests.rules.reference import holds

COLUMNS = (
    Column("age", mean=50.0, std=10.0),
    Column("smoker", "boolean"),
    Column("sex", "categorical", ("F", "M")),
)
CLASSES = Schema(COLUMNS, ("a", "b", "c"))
LABELS = Schema(COLUMNS, ("a", "b", "c"), exclusive=False)
VIEWS = Schema(COLUMNS, ("a", "b", "c"), target="y", views=("half",))

EXCLUSIVE = """
[w=2]   old: age > 60 => a
[hard]  clean: not smoker => not a
        age > 40 and sex == 'F' => b
[learn] both: (age > 60 => not c) and (smoker => not b)
[w=-1]  iff: smoker <=> c
        never: age > 500 => c
        certain: age > 99 or age < 20 => a
        many: (age > 10 => not a) and (age > 20 => not b) and (smoker => not c)
"""
SETS = """
[w=2] a => b
      age > 50 and b => c or a
      exactly_one(a, b, c)
      silent: sex == 'M' => not a
"""
random = np.random.default_rng(0)
N = 90
TABLE = {
    "age": np.where(random.random(N) < 0.15, np.nan, random.integers(0, 100, N).astype(float)),
    "smoker": random.choice([True, False, None], N, p=[0.4, 0.4, 0.2]),
    "sex": random.choice(["F", "M", "other", None], N),
}
LOGITS = random.normal(size=(N, 3)).astype(np.float32) * 2
VIEW = random.normal(size=(N, 3)).astype(np.float32)
ONE = random.integers(0, 3, N)
ONE[np.nan_to_num(TABLE["age"], nan=50) > 99] = 0
ONE[np.nan_to_num(TABLE["age"], nan=50) < 20] = 0
MANY = random.integers(0, 2, (N, 3))
KNOWN = random.random(N) < 0.7


def raw(i: int) -> dict[str, Any]:
    row = {name: values[i] for name, values in TABLE.items()}
    return row | {"age": None if np.isnan(row["age"]) else row["age"]}


def worlds(book: Book, i: int) -> list[dict]:
    names = book.schema.classes
    if not book.schema.exclusive:
        sets = itertools.product([False, True], repeat=len(names))
        return [{(None, n): x for n, x in zip(names, held, strict=True)} for held in sets]
    target = book.schema.target or ""
    half = names[VIEW[i].argmax()]
    return [{"target": target, None: name, "half": half} for name in names]


def of_label(book: Book, i: int, label: Any) -> dict:
    if book.schema.exclusive:
        return worlds(book, i)[int(label)]
    return {(None, n): bool(x) for n, x in zip(book.schema.classes, label, strict=True)}


def fires_on(book: Book, r: int, row: dict, i: int) -> bool:
    return any(holds(book.rules[r].formula, row, w) is False for w in worlds(book, i))


def brute(book: Book, labels: np.ndarray, known: np.ndarray) -> list[dict[str, Any]]:
    """Counts by loops over rules, rows and labels."""
    out = []
    hard = np.flatnonzero(np.asarray(book.hard))
    for r, rule in enumerate(book.rules):

        def right(i: int, label: Any, formula: Any = rule.formula) -> bool:
            return holds(formula, raw(i), of_label(book, i, label)) is not False

        fired = [i for i in range(N) if fires_on(book, r, raw(i), i)]
        counted = [i for i in fired if known[i]]
        precision = np.mean([right(i, labels[i]) for i in counted]) if counted else None
        drawn = [np.mean([right(i, labels[j]) for j in np.flatnonzero(known)]) for i in counted]
        predicted = LOGITS.argmax(1) if book.schema.exclusive else LOGITS > 0
        against = None
        if book.schema.exclusive and fired:
            against = np.mean(
                [
                    not any(
                        holds(rule.formula, raw(i), w) is not False
                        and all(holds(book.rules[h].formula, raw(i), w) is not False for h in hard)
                        for w in worlds(book, i)
                    )
                    for i in fired
                ]
            )
        out.append(
            {
                "fires": len(fired),
                "coverage": len(fired) / N,
                "precision": precision,
                "lift": precision / np.mean(drawn) if counted and np.mean(drawn) else None,
                "always_holds": None if precision is None else bool(precision == 1),
                "violated": sum(not right(i, predicted[i]) for i in fired),
                "contradicts_hard": against,
                "rows": set(fired),
            }
        )
    return out


def silent(book: Book, r: int, fired: set[int]) -> int:
    """Rows where some completion of the missing values fires the rule, and the row does not."""
    values = {"age": [-1.0, 15.0, 30.0, 45.0, 70.0, 600.0], "smoker": [True, False],
              "sex": ["F", "M", "other"]}  # fmt: skip
    count = 0
    for i in set(range(N)) - fired:
        row = raw(i)
        gaps = [name for name, x in row.items() if x is None]
        full = itertools.product(*(values[name] for name in gaps))
        count += any(
            fires_on(book, r, row | dict(zip(gaps, x, strict=True)), i) for x in full if gaps
        )
    return count


def compare(found: Check, book: Book, labels: np.ndarray, known: np.ndarray) -> None:
    want = brute(book, labels, known)
    for row, expected in zip(found.rows, want, strict=True):
        for name in set(expected) - {"rows"}:
            assert row[name] == pytest.approx(expected[name], abs=1e-6), (row["rule"], name)
    index = {name: i for i, name in enumerate(book.names)}
    for pair in found.pairs:
        a, b = index[pair["rule"]], index[pair["other"]]
        rows, others = want[a]["rows"], want[b]["rows"]
        assert pair["together"] == len(rows & others)
        assert pair["jaccard"] == pytest.approx(len(rows & others) / len(rows | others))
        if book.schema.exclusive:
            assert pair["clash"] == sum(
                not any(
                    holds(book.rules[a].formula, raw(i), w) is not False
                    and holds(book.rules[b].formula, raw(i), w) is not False
                    for w in worlds(book, i)
                )
                for i in rows & others
            ), pair
    json.dumps([found.rows, found.pairs, found.summary])


@pytest.fixture(scope="module")
def exclusive() -> Book:
    return bind(EXCLUSIVE, CLASSES)


@pytest.fixture(scope="module")
def sets() -> Book:
    return bind(SETS, LABELS)


@pytest.fixture(scope="module")
def checked(exclusive: Book) -> Check:
    return check(exclusive, TABLE, labels=ONE, where=KNOWN, logits=LOGITS, most_pairs=99)


def test_exclusive_classes_as_by_loops(exclusive: Book, checked: Check) -> None:
    compare(checked, exclusive, ONE, KNOWN)
    rows = {row["rule"]: row for row in checked.rows}
    fired = {row["rule"]: x["rows"] for row, x in zip(
        checked.rows, brute(exclusive, ONE, KNOWN), strict=True)}  # fmt: skip
    for i, name in enumerate(exclusive.names):
        # Completing the values one by one can be stricter: `smoker <=> c` fires for any.
        if name in ("old", "clean", "never", "age > 40 and sex == 'F' => b"):
            assert rows[name]["silent"] == silent(exclusive, i, fired[name]), name
    assert rows["never"]["precision"] is None and rows["never"]["fires"] == 0
    assert rows["certain"]["always_holds"] and rows["clean"]["strength"] == "hard"
    assert checked.summary["never_fire"] == 1 and checked.summary["always_hold"] == 1
    assert checked.summary["silent"] == sum(row["silent"] for row in checked.rows)
    assert rows["old"]["contradicts_hard"] > 0 and all(r["head"] != 0 for r in checked.rows)
    p = softmax(LOGITS.astype(np.float64), axis=1)
    old = [i for i in range(N) if not np.isnan(TABLE["age"][i]) and TABLE["age"][i] > 60]
    assert rows["old"]["mean_violation"] == pytest.approx(1 - p[old, 0].mean(), abs=1e-5)
    clean = [i for i in range(N) if TABLE["smoker"][i] is False]
    assert checked.summary["hard_violated"] == (LOGITS[clean].argmax(1) == 0).sum()
    pairs = {(x["rule"], x["other"]): x for x in checked.pairs}
    assert pairs["old", "clean"]["clash"] == pairs["old", "clean"]["together"] > 0


def test_label_sets_as_by_loops(sets: Book) -> None:
    found = check(sets, TABLE, labels=MANY, where=KNOWN, logits=LOGITS)
    compare(found, sets, MANY, KNOWN)
    assert found.rows[3]["silent"] == silent(
        sets, 3, {i for i in range(N) if fires_on(sets, 3, raw(i), i)}
    )
    p = expit(LOGITS.astype(np.float64))
    assert found.rows[0]["mean_violation"] == pytest.approx(
        (p[:, 0] * (1 - p[:, 1])).mean(), abs=1e-5
    )
    # a => b: the body's derivative is 1 − b, the head's −a.
    body, head = (1 - p[:, 1]).sum(), p[:, 0].sum()
    assert found.rows[0]["body"] == pytest.approx(body / (body + head), rel=1e-4)
    assert found.rows[2]["body"] == 0 and found.rows[2]["head"] == 1
    assert found.summary["no_class_left"] is None


def test_views_count_as_what_they_predict() -> None:
    book = bind("[w=6] smoker => y == view(half).y\nage > 50 => a", VIEWS)
    found = check(book, TABLE, labels=ONE, where=KNOWN, logits=LOGITS, views={"half": VIEW})
    compare(found, book, ONE, KNOWN)
    smoking = [i for i in range(N) if TABLE["smoker"][i] is True]
    p, v = (softmax(x[smoking].astype(np.float64), axis=1) for x in (LOGITS, VIEW))
    assert found.rows[0]["mean_violation"] == pytest.approx(1 - (p * v).sum(1).mean(), abs=1e-5)


def test_chunks_change_nothing(
    exclusive: Book, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking_module, "CHUNK", 1)  # 64 rows
    again = check(exclusive, TABLE, labels=ONE, where=KNOWN, logits=LOGITS, most_pairs=99)
    assert again.pairs == checked.pairs and again.summary == checked.summary
    for row, before in zip(again.rows, checked.rows, strict=True):
        for name, x in row.items():
            assert x == (pytest.approx(before[name]) if isinstance(x, float) else before[name])


def test_columns_do_as_well_as_a_table_and_labels_may_be_left_out(exclusive: Book) -> None:
    from_table, from_columns = check(exclusive, TABLE), check(exclusive, encode(exclusive, TABLE))
    assert from_table == from_columns
    row = from_table.rows[0]
    assert row["precision"] is row["violated"] is row["lift"] is row["mean_violation"] is None
    empty = check(exclusive, {name: x[:0] for name, x in TABLE.items()})
    assert empty.summary["rows"] == 0 and all(row["fires"] == 0 for row in empty.rows)


def test_soft_comparisons_send_gradient_to_the_body() -> None:
    book = bind("age > 60 => a", CLASSES, widths={"age": 5.0})
    (row,) = check(book, {**TABLE, "age": np.full(N, 60.0)}).rows
    # Violation is sigmoid(z) · (1 − p_a), with z = 0, p_a = 1/3 and two violating classes.
    body, head = 0.25 * 2 / 3, 2 * 0.5
    assert row["body"] == pytest.approx(body / (body + head), rel=1e-3)
    (far,) = check(book, {**TABLE, "age": np.full(N, 90.0)}).rows
    assert far["body"] < row["body"] / 10


@pytest.mark.quick
def test_explain_leaves_one_out(exclusive: Book) -> None:
    columns = encode(exclusive, TABLE)
    strengths = np.array([2.0, 7.0, 1.0, 0.5, -1.0, 1.0, 1.0, 1.5], np.float32)
    q = np.exp(_project(exclusive, columns, LOGITS, strengths))
    v = np.stack([_violation(exclusive, columns, np.tile(x, (N, 1))) for x in np.eye(3, dtype="f")])
    for i in range(0, N, 9):
        made = explain(exclusive, columns[i], LOGITS[i], strengths=strengths)
        summary = made.summary
        best = q[i].argmax()
        assert summary["prediction"] == "abc"[best]
        np.testing.assert_allclose(list(summary["probabilities"].values()), q[i], atol=1e-5)
        assert summary["before"] == "abc"[LOGITS[i].argmax()]
        fired = [r for r in range(len(exclusive)) if fires_on(exclusive, r, raw(i), i)]
        shown = {row["rule"]: row for row in made.rows if not row["silent"]}
        assert set(shown) == {exclusive.names[r] for r in fired}
        rival = "abc".index(summary["next_best"])
        for r in fired:
            row = shown[exclusive.names[r]]
            assert row["violated"] == bool(v[LOGITS[i].argmax(), i, r])
            assert row["against"] == ["abc"[k] for k in range(3) if v[k, i, r]]
            assert row["probability"] == pytest.approx(q[i, best], abs=1e-5)
            assert row["change"] == pytest.approx(row["probability"] - row["without"])
            if not exclusive.hard[r]:
                moved = strengths[r] * (v[rival, i, r] - v[best, i, r])
                assert row["moved"] == pytest.approx(moved)
                zero = np.where(np.arange(len(exclusive)) == r, 0, strengths).astype(np.float32)
                without = np.exp(_project(exclusive, columns, LOGITS, zero))[i, best]
                assert row["without"] == pytest.approx(without, abs=1e-5)
            else:
                assert row["moved"] is None
        json.dumps([made.rows, made.summary])


_violation = jax.jit(violation)
_project = jax.jit(lambda book, x, z, s: project(book, x, z, strengths=s))


def test_a_hard_rule_that_changes_the_prediction() -> None:
    book = bind("[hard] clean: not smoker => not a", CLASSES)
    example = {"age": 30, "smoker": False, "sex": "F"}
    (row,) = explain(book, example, np.array([2.0, 1.0, 0.0], np.float32)).rows
    assert row["violated"] and row["against"] == ["a"] and row["strength"] == "hard"
    p = softmax([2.0, 1.0, 0.0])
    assert row["without"] == pytest.approx(p[1]) and row["change"] > 0.4
    made = explain(book, {**example, "smoker": None}, np.array([2.0, 1.0, 0.0], np.float32))
    assert made.rows[0]["silent"] and made.rows[0]["change"] == 0
    assert made.summary["prediction"] == "a"


def test_explain_holds_hard_rules_as_project_does_however_soft_comparisons_are() -> None:
    schema = Schema((Column("x"), Column("y")), ("well", "sick"))
    book = bind("[hard] x > 1 and y > 1 => sick", schema, widths={"x": 2.0, "y": 2.0})
    columns, logits = np.array([[1.1, 1.1]], np.float32), np.array([1.0, 0.0], np.float32)
    found = explain(book, columns, logits)
    assert found.summary["probabilities"] == {"well": 0.0, "sick": 1.0}
    assert found.rows[0]["violated"] is True
    np.testing.assert_array_equal(np.exp(project(book, columns, logits[None])), [[0.0, 1.0]])


def test_explain_label_sets(sets: Book) -> None:
    logits = np.array([1.0, -1.0, 0.5], np.float32)
    made = explain(sets, {"age": 70.0, "smoker": True, "sex": None}, logits)
    rows = {row["rule"]: row for row in made.rows}
    assert made.summary["prediction"] == ["a", "c"]
    p = expit(logits.astype(np.float64))
    row = rows["a => b"]
    assert row["violated"] and row["violation"] == pytest.approx(p[0] * (1 - p[1]), rel=1e-5)
    pushes = 2 * np.array([-p[0] * (1 - p[0]) * (1 - p[1]), p[0] * p[1] * (1 - p[1]), 0])
    assert row["label"] == "ab"[np.abs(pushes).argmax()]
    assert row["moved"] == pytest.approx(pushes[np.abs(pushes).argmax()], rel=1e-4)
    assert rows["silent"]["silent"] and rows["silent"]["label"] is None
    assert rows["exactly_one(a, b, c)"]["violated"]
    assert jnp.all(sets.strengths == np.array([2, 1, 1, 1]))
