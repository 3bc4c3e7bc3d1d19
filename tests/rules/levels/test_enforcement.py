"""Models that cannot violate hard rules: random rules, random inputs, and training."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax import models, training
from distill_jax.losses import cross_entropy
from distill_jax.models import from_function
from distill_jax.objectives import term, weighted_sum
from distill_jax.rules import (
    Column,
    RuleError,
    RuleWarning,
    Schema,
    bind,
    enforce,
    max_constraint_loss,
    violation,
)
from distill_jax.rules.language import formulas as f
from distill_jax.rules.levels import enforcement
from distill_jax.rules.levels.enforcement import SURE, clauses, max_constraint
from distill_jax.types import Outputs
from tests.rules import small_books

NUMBERS = (Column("x"), Column("y"), Column("z"))
CLASSES = ("a", "b", "c", "d")
seeds = st.integers(0, 2**31)


def bound(text, schema):
    with warnings.catch_warnings():  # some are never violated
        warnings.simplefilter("ignore", RuleWarning)
        return bind(text, schema, conflicts="ignore")


def condition(rng):
    """A condition on columns, and the same in NumPy, where NaN satisfies nothing."""
    parts = []
    for i in rng.choice(3, rng.integers(1, 3), replace=False):
        threshold, above = round(rng.normal(), 1), bool(rng.integers(2))
        parts.append((int(i), threshold, above))

    def holds(columns):
        sides = [columns[:, i] > t if above else columns[:, i] < t for i, t, above in parts]
        return np.all(sides, axis=0)

    text = " and ".join(f"{'xyz'[i]} {'>' if above else '<'} {t}" for i, t, above in parts)
    return text, holds


def inputs(rng, n=64):
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.15] = np.nan
    return x


def wild(key, columns):
    return 3.0 * jax.random.normal(key, (columns.shape[1], 4))


def linear(params, columns):
    return jnp.where(jnp.isnan(columns), 0.0, columns) @ params


WILD = from_function(wild, linear, missing=True)


@small_books.quick
def predict(book, params, columns):
    return enforce(WILD, book).predict(params, {}, columns).logits


@functools.cache
def theories():
    """Twelve random theories in one book, which is compiled once: a row obeys the one it names."""
    rng = np.random.default_rng(0)
    rules = []
    for group in range(12):
        drawn = [(group, *condition(rng), rng.random(4) < 0.6) for _ in range(5)]
        rules += [rule for rule in drawn if rule[-1].any()]
    text = "\n".join(
        f"[hard] w == {group} and {text} => {' or '.join(np.array(CLASSES)[allowed])}"
        for group, text, _, allowed in rules
    )
    return rules, bound(text + "\n[w=9] x > 0 => a", Schema((*NUMBERS, Column("w")), CLASSES))


@settings(max_examples=12)
@given(seeds)
def test_forbidden_classes_are_never_predicted(seed):
    rules, book = theories()
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(12, dtype=np.float32), 64)
    columns = np.concatenate([inputs(rng, len(group)), group[:, None]], 1)
    params = jnp.asarray(3.0 * rng.normal(size=(4, 4)), jnp.float32)
    logits = np.asarray(predict(book, params, columns))
    allowed = np.all(
        [~((group == g) & holds(columns))[:, None] | ok for g, _, holds, ok in rules], axis=0
    )
    left = allowed.any(1)
    p = np.asarray(jax.nn.softmax(logits))
    assert np.isfinite(p).all()
    assert (p[left][~allowed[left]] == 0).all()
    assert allowed[left][np.arange(left.sum()), logits[left].argmax(1)].all()
    raw = np.asarray(linear(params, jnp.asarray(columns)))
    close = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(logits[left][allowed[left]], raw[left][allowed[left]], **close)
    np.testing.assert_allclose(logits[~left], raw[~left], **close)


NAMES = np.array([f"{name}{theory}" for theory in range(12) for name in "abcde"])


@functools.cache
def implications():
    """Twelve random theories, each over five labels of its own, in one book.

    Rules ``condition and labels => label``, circles among them, and each in parts.
    """
    rng = np.random.default_rng(1)
    rules = []
    for theory in range(12):
        for _ in range(6):
            body = rng.choice(5, rng.integers(0, 3), replace=False)
            head = int(rng.choice([k for k in range(5) if k not in body]))
            guarded = len(body) == 0 or rng.random() < 0.3
            text, holds = condition(rng) if guarded else ("", lambda c: np.ones(len(c), bool))
            body, head = 5 * theory + body, 5 * theory + head
            whole = " and ".join([*([text] if text else []), *NAMES[body]])
            rules.append((f"[hard] {whole} => {NAMES[head]}", holds, list(map(int, body)), head))
    schema = Schema(NUMBERS, tuple(NAMES.tolist()), exclusive=False)
    return rules, bound("\n".join(r[0] for r in rules), schema)


def closed(rules, logits, columns):
    """What the rules make of logits, by going through them until nothing changes."""
    logits, before = logits.astype(np.float64), None
    while before is None or (logits != before).any():
        before = logits.copy()
        for _, holds, body, head in rules:
            least = logits[:, body].min(1) if body else np.full(len(logits), SURE)
            logits[:, head] = np.where(
                holds(columns), np.maximum(logits[:, head], least), logits[:, head]
            )
    return logits


@small_books.quick
def constrain(book, columns, logits, threshold):
    out = max_constraint(book, columns, logits)
    return out, violation(book, columns, (out > threshold).astype(jnp.float32))


@pytest.mark.quick
@settings(max_examples=12)
@given(seeds, st.sampled_from([0.0, 1.5, -2.0]))
def test_implications_between_labels_always_hold(seed, threshold):
    rng = np.random.default_rng(seed)
    rules, book = implications()
    columns = inputs(rng)
    logits = (2 * rng.normal(size=(64, len(NAMES)))).astype(np.float32)
    out, violated = constrain(book, columns, logits, threshold)
    assert (violated == 0).all()
    np.testing.assert_array_equal(out, closed(rules, logits, columns))


HIERARCHY = bind(
    "[hard] cat => pet\n[hard] dog => pet\n[hard] pet or wolf => animal\n[w=1] dog => wolf",
    Schema((Column("x"),), ("animal", "pet", "cat", "dog", "wolf"), exclusive=False),
)
BELOW = [[0, 1, 2, 3, 4], [1, 2, 3], [2], [3], [4]]  # all that imply each label, itself included


def test_of_a_hierarchy_each_label_has_the_largest_output_of_those_below_it():
    logits = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    got = max_constraint(HIERARCHY, None, jnp.asarray(logits))
    np.testing.assert_array_equal(got, np.stack([logits[:, b].max(1) for b in BELOW], 1))


def reference(logits, targets):
    """Equation of the paper, in float64."""
    h = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    total = 0.0
    for a, below in enumerate(BELOW):
        y = targets[:, a]
        with np.errstate(divide="ignore", invalid="ignore"):
            present = -y * np.log((targets[:, below] * h[:, below]).max(1))
        total = total + np.where(y == 0, 0, present) - (1 - y) * np.log1p(-h[:, below].max(1))
    return total


quick_loss = small_books.quick(max_constraint_loss)


@small_books.quick
def loss(logits, targets, where):
    def total(logits):
        rows = max_constraint_loss(logits, targets, rules=HIERARCHY, where=where)
        return rows.sum(), rows

    return jax.grad(total, has_aux=True)(logits)


def hierarchy(seed=0):
    rng = np.random.default_rng(seed)
    leaves = rng.random((8, 5)) < 0.3
    targets = np.stack([leaves[:, below].any(1) for below in BELOW], 1)
    targets[0] = [False, True, False, True, False]  # not coherent
    return (2 * rng.normal(size=(8, 5))).astype(np.float32), targets.astype(np.float32)


def test_max_constraint_loss_is_that_of_the_paper():
    everyone = jnp.ones(8, bool)
    for seed in range(3):
        logits, targets = hierarchy(seed)
        targets[1] *= 0.7  # probabilities are targets too
        grads, rows = loss(logits, targets, everyone)
        np.testing.assert_allclose(rows, reference(logits, targets), rtol=1e-5)
        slopes = small_books.slopes(lambda x, y=targets: reference(x, y), logits)
        np.testing.assert_allclose(grads, slopes, rtol=1e-4, atol=1e-5)
        plain = quick_loss(jnp.asarray(logits), targets > 0.5, rules=HIERARCHY)
        np.testing.assert_allclose(plain[2:], rows[2:], rtol=1e-6)


def test_an_absent_label_does_not_stand_for_a_present_one():
    # The pet is no dog, though the model thinks so: pet and animal must learn from cat and pet.
    logits = jnp.array([[-1.0, 0.5, 0.2, 3.0, -2.0]] * 8)
    grads, _ = loss(logits, jnp.array([[1.0, 1.0, 1.0, 0.0, 0.0]] * 8), jnp.ones(8, bool))
    assert (grads[:, 1] < 0).all() and (grads[:, 2] < 0).all() and (grads[:, 3] > 0.9).all()


def test_max_constraint_loss_at_the_ends():
    logits, targets = hierarchy()
    logits[3], targets[3] = [-np.inf, 2, 1, -np.inf, -np.inf], [1, 1, 1, 0, 0]
    logits[4], targets[4] = [-1e4, 1e4, 1e4, 1e4, -1e4], [1, 1, 1, 1, 0]
    where = jnp.array([True, True, False, True, True, False, True, True])
    dirty = np.where(where[:, None], logits, np.nan).astype(np.float32)
    grads, rows = loss(dirty, np.where(where[:, None], targets, np.nan).astype(np.float32), where)
    assert np.isfinite(grads).all() and np.isfinite(rows).all()
    assert rows[4] == 0
    np.testing.assert_array_equal(rows[~where], 0.0)
    np.testing.assert_array_equal(grads[~where], 0.0)
    clean, whole = loss(logits, targets, jnp.ones(8, bool))
    np.testing.assert_array_equal(rows, np.where(where, whole, 0.0))
    np.testing.assert_array_equal(grads, np.where(where[:, None], clean, 0.0))
    for x in loss(dirty * np.nan, targets, jnp.zeros(8, bool)):
        np.testing.assert_array_equal(x, 0.0)
    short = quick_loss(jnp.asarray(logits, jnp.bfloat16), targets, rules=HIERARCHY)
    assert short.dtype == jnp.float32


def test_conditions_on_columns_imply_labels():
    schema = Schema((Column("x"),), ("a", "b"), exclusive=False)
    rules = bind("[hard] x > 0 => a\n[hard] x > 1 and a => b", schema)
    columns = jnp.array([[-1.0], [0.5], [2.0], [jnp.nan]])
    constrained = small_books.quick(max_constraint)
    out = constrained(rules, columns, -jnp.ones((4, 2)))
    np.testing.assert_array_equal(out, [[-1, -1], [SURE, -1], [SURE, SURE], [-1, -1]])
    targets = jnp.array([[0, 0], [1, 0], [1, 1], [0, 0]])
    rows = quick_loss(-jnp.ones((4, 2)), targets, rules=rules, columns=columns)
    p = np.log1p(np.exp(-1.0))  # of a label that is absent, and so predicted
    np.testing.assert_allclose(rows, [2 * p, p, 0.0, 2 * p], rtol=1e-6)
    with pytest.raises(ValueError, match="columns are needed.*x > 0 => a"):
        max_constraint_loss(-jnp.ones((4, 2)), targets, rules=rules)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("a => not b", "excludes a, b from holding together"),
        ("not (a and b)", "excludes a, b from holding together"),
        ("exactly_one(a, b)", "does not say which of them to"),
        ("not a => b", "demands one of a, b,"),
        ("a <=> x > 0", "excludes a, whose logit would be lowered"),
        ("a => b or c", "demands one of b, c,"),
        ("x > 0 => at_most(1, a, b, c)", "excludes b, c from holding together"),
        ("view(later).a => b", "depends on another view"),
        ("(a and a == b and x > 0) or x < 0", "cannot be satisfied where its condition holds"),
    ],
)
def test_what_cannot_be_enforced_is_named_with_the_reason(rule, why):
    schema = Schema((Column("x"),), ("a", "b", "c"), exclusive=False, views=("later",))
    book = bound(f"thing :- c.\nthing :- x > 0.\n[w=1] a => c\n[hard] {rule}", schema)
    model = models.logistic_regression(3)
    with pytest.raises(RuleError, match=why) as found:
        enforce(model, book)
    assert f"[hard] {rule}" in str(found.value) and "enforced as implications" in str(found.value)


SAME = [
    ["a => c", "b => c", "x > 0 and c => d"],
    ["a or b => c", "c => x <= 0 or x is missing or d"],
    ["any_of(a, b) => c", "not (x > 0 and c and not d)"],
    ["at_least(1, a, b) => c", "all_of(x > 0, c) => d"],
    ["(not a or c) and (not b or c)", "c => (x > 0 => d)"],
    ["not c => not a and not b", "big and c => d"],
    ["not (any_of(a, b) and not c) and (big => (c => d))"],
    ["(a or b) <=> (a or b) and c", "c and (x > 0 or (x > 5 and a)) => d and c"],
]


@pytest.mark.parametrize("rules", SAME[1:])
def test_rules_that_mean_the_same_are_enforced_alike(rules):
    schema = Schema((Column("x"),), tuple("abcd"), exclusive=False)
    first, other = (
        bound("big :- x > 0.\n" + "\n".join(f"[hard] {rule}" for rule in r), schema)
        for r in (SAME[0], rules)
    )
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=(16, 4))).astype(np.float32)
    columns = np.repeat(np.float32([[1.0], [-1.0], [np.nan], [7.0]]), 4, 0)
    got, want = (max_constraint(book, columns, jnp.asarray(logits)) for book in (other, first))
    np.testing.assert_array_equal(got, want)
    assert (np.asarray(got) != logits).any()


def test_more_implications_than_can_be_enforced_are_an_error_that_says_so(monkeypatch):
    schema = Schema((), tuple(f"l{i}" for i in range(17)), exclusive=False)
    text = " and ".join(f"(l{2 * i} or l{2 * i + 1})" for i in range(8))
    book = bind(f"[hard] {text} => l16", schema)
    assert len(clauses(book).rule) == 2**8
    monkeypatch.setattr(enforcement, "MOST_CASES", 100)
    enforcement._clauses.cache_clear()
    with pytest.raises(RuleError, match="more than 100 clauses"):
        clauses(book)


@pytest.mark.parametrize("name", ["big one", "`", "``x", "a\\b", "\n", "or", "x > 0"])
def test_predicates_of_any_name_are_expanded(name):
    """Labels that nothing implies stay as they were; see ``strip`` of a name in quotes."""
    schema = Schema((Column("x"),), ("a", "b"), exclusive=False)
    define = f.Rule(f.Implies(f.Name("a"), f.Name(name)), definition=True)
    hard = f.Rule(f.Implies(f.Name(name), f.Name("b")), strength=f.HARD)
    logits = jnp.array([[-2.0, -3.0], [2.0, 3.0]])
    got = max_constraint(bind([define, hard], schema), jnp.zeros((2, 1)), logits)
    np.testing.assert_array_equal(got, [[-2, -2], [2, 3]])


def test_a_forbidden_class_is_not_predicted_where_the_model_excludes_the_others():
    rules = bind("[hard] x > 0 => a or b", Schema((Column("x"),), ("a", "b", "c")))
    inf = np.inf
    logits = jnp.array([[-inf, -inf, 1.0], [-inf, 2.0, 1.0], [-inf, -inf, 1.0], [-inf] * 3])
    model = from_function(lambda key, inputs: logits, lambda params, inputs: params)
    columns = jnp.array([[1.0], [1.0], [-1.0], [1.0]])
    got = enforce(model, rules).predict(logits, {}, columns).logits
    want = [[0, 0, -inf], [-inf, 2, -inf], [-inf, -inf, 1], [-inf] * 3]
    np.testing.assert_array_equal(got, want)


def test_clauses_over_columns_may_stand_in_bodies():
    schema = Schema((Column("x"),), ("a", "b"), exclusive=False)
    rules = bind("big :- x > 0.\n[hard] big and a => b", schema)
    columns, logits = jnp.array([[1.0], [-1.0]]), jnp.array([[2.0, 0.0]] * 2)
    out = small_books.quick(max_constraint)(rules, columns, logits)
    np.testing.assert_array_equal(out, [[2, 2], [2, 0]])


def features(key, inputs):
    return jnp.zeros((1, 2))


def apply(params, inputs):
    return Outputs(inputs["table"] @ params, {"table": inputs["table"]})


def table(inputs):
    return inputs["table"]


def test_an_enforced_model_keeps_what_the_model_had():
    schema = Schema((Column("x"),), ("a", "b"))
    rules = bind("[hard] x > 0 => a", schema)
    model = from_function(features, apply)
    safe = enforce(model, rules, columns=table)
    assert safe == enforce(model, rules, columns=table)  # compiled once
    assert hash(safe) == hash(enforce(model, rules, columns=table))
    assert safe.classes == ("a", "b") and safe.init is model.init
    assert enforce(WILD, bind("[hard] x > 0 => a", Schema(NUMBERS, CLASSES))).missing
    inputs = {"table": jnp.array([[1.0], [-1.0]], jnp.bfloat16)}
    out = safe.predict(jnp.array([[0.0, 5.0]], jnp.bfloat16), {}, inputs)
    assert out.logits.dtype == jnp.bfloat16 and "table" in out.features
    np.testing.assert_array_equal(out.logits, [[0, -np.inf], [0, -5]])


def test_complaints(library_errors):
    schema = Schema((Column("x"),), ("a", "b"))
    hard = bind("[hard] x > 0 => a", schema)
    with pytest.raises(ValueError, match="enforce needs a hard rule"):
        enforce(models.logistic_regression(2), bind("x > 0 => a", schema))
    with pytest.raises(ValueError, match="model has the classes"):
        enforce(models.logistic_regression(2, classes=("a", "c")), hard)
    three = enforce(models.logistic_regression(3), hard)
    params, state = models.logistic_regression(3).init(jax.random.key(0), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"logits must have shape \(2, 2\)"):
        three.predict(params, state, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="targets must have the shape of student_logits"):
        max_constraint_loss(jnp.ones((2, 5)), jnp.ones((2, 4)), rules=HIERARCHY)


OPTIMIZER = optax.adam(0.05)


def test_a_model_may_be_trained_enforced():
    inputs = np.random.default_rng(0).standard_normal((128, 2)).astype(np.float32)
    labels = (inputs.sum(1) > 0).astype(np.int32)
    schema = Schema((Column("x"), Column("y")), ("no", "yes"))
    rules = bind("[hard] x > 0 and y > 0 => yes\n[hard] x < -1 and y < -1 => no", schema)
    model = enforce(models.logistic_regression(2), rules)
    end, metrics = training.run(
        model,
        weighted_sum(term("labels", 1.0, cross_entropy)),
        OPTIMIZER,
        {"inputs": inputs, "labels": labels},
        key=jax.random.key(0),
        steps=60,
        batch_size=64,
    )
    assert np.isfinite(metrics["loss"]).all() and metrics["loss"][-1] < metrics["loss"][0]
    logits = model.predict(end.params, end.state, jnp.asarray(inputs)).logits
    assert (np.asarray(logits).argmax(1) == labels).mean() > 0.95
    p = jax.nn.softmax(logits)
    assert small_books.quick(violation)(rules, jnp.asarray(inputs), p).max() == 0.0


def test_a_hierarchy_is_trained_by_its_loss_and_enforced_afterwards():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((128, 3)).astype(np.float32)
    leaves = np.concatenate([np.zeros((128, 2)), inputs > 0.5], axis=1)
    targets = np.stack([leaves[:, below].any(1) for below in BELOW], 1).astype(np.float32)
    model = models.logistic_regression(5)
    end, metrics = training.run(
        model,
        weighted_sum(term("labels", 1.0, max_constraint_loss, rules=HIERARCHY)),
        OPTIMIZER,
        {"inputs": inputs, "targets": targets},
        key=jax.random.key(0),
        steps=100,
        batch_size=64,
    )
    assert metrics["loss"][-1] < 0.6 * metrics["loss"][0]
    columns = jnp.asarray(inputs[:, :1])

    @small_books.quick
    def wrong(logits):
        present = (logits > 0).astype(jnp.float32)
        hard = violation(HIERARCHY, columns, present)[:, :3]
        return hard.max(), (present != targets).mean()

    logits = model.predict(end.params, end.state, jnp.asarray(inputs)).logits
    before, after = wrong(logits), wrong(max_constraint(HIERARCHY, None, logits))
    assert before[0] == 1.0 and after[0] == 0.0 and after[1] < before[1]
