"""The corrected distribution against float64 NumPy; teaching, learning, and teachers of rules."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, teachers, training
from distill_jax.losses import cross_entropy, forward_kl
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.rules import (
    Column,
    RuleWarning,
    Schema,
    bind,
    corrected,
    imitation,
    learned,
    posterior_kl,
    project,
    remainder,
    rule_teacher,
    teach,
    violation,
)
from distill_jax.types import Outputs
from tests.rules import small_books


def posterior(logits, columns, view, strengths=small_books.STRENGTHS, log_p=None):
    """q by its definition; hard rules are ignored where they leave nothing."""
    against = small_books.tables(columns, view)
    p = small_books.softmax(logits) if log_p is None else np.exp(log_p)
    forbidden = (against[:, small_books.HARD] > 0).any(1)
    soft = p * np.exp(-(strengths * ~small_books.HARD)[None, :, None] * against).prod(1)
    q = soft * ~forbidden
    q = np.where(q.sum(1, keepdims=True) > 0, q, soft)
    return q / q.sum(1, keepdims=True)


projected = small_books.quick(
    lambda book, columns, logits, views, strengths=None: project(
        book, columns, logits, strengths=strengths, views=views
    )
)


@small_books.quick
def taught(logits, columns, views, strengths, temperature, where):
    def total(logits, strengths):
        rows = posterior_kl(
            logits,
            columns,
            views,
            rules=small_books.book(),
            strengths=strengths,
            temperature=temperature,
            where=where,
        )
        return rows.sum(), rows

    grads, rows = jax.grad(total, (0, 1), has_aux=True)(logits, strengths)
    return rows, *grads


def kl(q, p):
    return np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / p), 0).sum(-1)


def test_projection_is_the_definition():
    for seed in range(3):
        logits, columns, views = small_books.data(seed)
        want = posterior(logits, columns, views["later"].logits)
        got = projected(small_books.book(), columns, logits, views)
        np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
        np.testing.assert_array_equal(np.isneginf(got), want == 0)
        assert np.isneginf(got[1, 0]) and np.isneginf(got[4, 0])  # smokers are not well
    other = np.linspace(-2, 3, 6)
    got = projected(small_books.book(), columns, logits, views, jnp.asarray(other, jnp.float32))
    want = posterior(logits, columns, views["later"].logits, other)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)


def test_projection_takes_excluded_classes_and_gaps_of_10000():
    logits, columns, views = small_books.data()
    logits = logits.at[0, 2].set(-jnp.inf).at[4, 1].set(-jnp.inf).at[5, 0].set(1e4)
    want = posterior(logits, columns, views["later"].logits)
    got = projected(small_books.book(), columns, logits, views)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
    assert np.isneginf(got[0, 2]) and np.isneginf(got[4, 1])
    short = projected(small_books.book(), columns, logits.astype(jnp.bfloat16), views)
    assert short.dtype == jnp.float32


@pytest.mark.quick
def test_where_hard_rules_leave_no_class_they_are_ignored():
    schema = Schema((Column("x"),), ("a", "b", "c"))
    text = "[hard] x > 0 => a\n[hard] x > 1 => b\n[w=2] x > 1 => c"
    with pytest.warns(RuleWarning, match="together forbid everything"):
        rules = bind(text, schema, conflicts="warn")
    columns = jnp.array([[0.5], [2.0], [0.5], [jnp.nan]])
    logits = jnp.array([[0.0, 0, 0], [0.0, 0, 0], [-jnp.inf, 1.0, 0], [0.0, 0, 0]])

    def total(logits):
        found = project(rules, columns, logits)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum(), found

    grads, got = small_books.quick(jax.grad(total, has_aux=True))(logits)
    e = np.exp(2)
    want = [[1, 0, 0], [1 / (2 + e), 1 / (2 + e), e / (2 + e)], [0, np.e / (1 + np.e), 0]]
    np.testing.assert_allclose(np.exp(got[:2]), want[:2], rtol=1e-5)
    np.testing.assert_allclose(np.exp(got[2]), [0, np.e / (1 + np.e), 1 / (1 + np.e)], rtol=1e-5)
    np.testing.assert_allclose(np.exp(got[3]), 1 / 3, rtol=1e-5)
    assert np.isfinite(grads).all()


def test_order_of_classes_does_not_matter():
    logits, columns, views = small_books.data()
    turn = jnp.array([2, 0, 1])
    other = small_books.book(tuple(small_books.CLASSES[k] for k in turn))
    turned = {"later": Outputs(views["later"].logits[:, turn])}
    np.testing.assert_allclose(
        projected(other, columns, logits[:, turn], turned),
        projected(small_books.book(), columns, logits, views)[:, turn],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teaching_is_kl_from_the_corrected_student(temperature):
    everyone, strengths = jnp.ones(8, bool), jnp.asarray(small_books.STRENGTHS, jnp.float32)
    t = jnp.asarray(temperature)
    for seed in range(3):
        logits, columns, views = small_books.data(seed)
        q = posterior(logits, columns, views["later"].logits)
        q = q ** (1 / temperature) / (q ** (1 / temperature)).sum(1, keepdims=True)
        p = small_books.softmax(np.asarray(logits, np.float64) / temperature)
        rows, grads, none = taught(logits, columns, views, strengths, t, everyone)
        assert rows.dtype == jnp.float32
        np.testing.assert_allclose(rows, temperature**2 * kl(q, p), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(grads, temperature * (p - q), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(none, 0.0)


def test_masked_rows_teach_nothing():
    logits, columns, views = small_books.data()
    strengths, t = jnp.asarray(small_books.STRENGTHS, jnp.float32), jnp.asarray(1.0)
    where = jnp.array([True, False, True, False, True, True, False, False])
    keep = where[:, None]
    views_bad = {"later": Outputs(jnp.where(keep, views["later"].logits, jnp.nan))}
    bad = jnp.where(keep, logits, jnp.nan), jnp.where(keep, columns, jnp.inf)
    rows, grads, _ = taught(logits, columns, views, strengths, t, jnp.ones(8, bool))
    got, slopes, _ = taught(*bad, views_bad, strengths, t, where)
    np.testing.assert_array_equal(got, np.where(where, rows, 0.0))
    np.testing.assert_array_equal(slopes, np.where(keep, grads, 0.0))
    for x in taught(logits * jnp.nan, columns, views, strengths, t, jnp.zeros(8, bool)):
        np.testing.assert_array_equal(x, 0.0)


def test_schedules_of_the_paper_and_of_the_code():
    code = imitation(0.95, steps_per_epoch=7)
    for batch in (1, 3, 700):  # get_pi(cur_iter=batch * 1. / n_batches, params=[.95, 0])
        want = 1.0 - max(0.95 ** (batch / 7), 0)
        np.testing.assert_allclose(code(batch - 1), want, rtol=1e-5)
    paper = imitation(0.9, steps_per_epoch=1, ceiling=0.6, first=0)
    np.testing.assert_allclose([paper(t) for t in range(3)], [0, 0.1, 0.19], atol=1e-6)
    np.testing.assert_allclose(paper(1000), 0.6)
    np.testing.assert_allclose(remainder(paper)(2), 0.81, rtol=1e-6)
    assert paper == imitation(0.9, steps_per_epoch=1, ceiling=0.6, first=0)
    assert hash(remainder(paper)) == hash(remainder(paper)) and paper != code
    with pytest.raises(ValueError, match="alpha must lie in"):
        imitation(1.2, steps_per_epoch=1)
    with pytest.raises(ValueError, match="steps_per_epoch must be finite and > 0"):
        imitation(0.9, steps_per_epoch=0)


def value_of(objective, params, logits, columns, views, batch, step=0, denominators=None):
    batch = {"inputs": columns, "columns": columns, **batch}
    context = Context(Outputs(logits), {}, batch, step, views=views)
    return objective(params, {"r": {}}, context, denominators)[0]


def test_the_schedule_weighs_the_term_and_pieces_add_up():
    logits, columns, views = small_books.data()
    pi = imitation(0.5, steps_per_epoch=1)
    objective = weighted_sum(teach("r", pi, small_books.book()))
    view = views["later"].logits
    counts = {"r": jnp.asarray(8.0)}

    @small_books.quick
    @jax.grad
    def gradient(x, c, v, step):
        return value_of(objective, {}, x, c, {"later": v}, {}, step, counts)

    whole = gradient(logits, columns, view, 0)
    q = posterior(logits, columns, view)
    np.testing.assert_allclose(
        whole, 0.5 * (small_books.softmax(logits) - q) / 8, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(gradient(logits, columns, view, 1), 1.5 * whole, rtol=1e-5)
    parts = [gradient(logits[i], columns[i], view[i], 0) for i in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-8)


def test_learning_moves_strengths_by_labels_and_the_student_by_imitation():
    logits, columns, views = small_books.data()
    labels = np.array([0, 2, 1, 2, 1, 0, 1, 2])
    known = np.array([True, True, True, False, True, True, True, True])
    where = np.array([True, True, True, True, False, True, True, True])
    batch = {
        "labels": jnp.where(known, labels, -7),
        "known": jnp.asarray(known),
        "where": jnp.asarray(where),
    }
    objective = weighted_sum(teach("r", 1.0, small_books.book(), learn=True, labelled="known"))
    start = np.array([9.0, 9.0, 0.4, 9.0, 9.0, 9.0])  # only the third is marked [learn]

    def value(params, logits):
        return value_of(objective, params, logits, columns, views, batch)

    run = small_books.quick(jax.value_and_grad(value, (0, 1)))
    got, (to_params, to_logits) = run({"r": {"strengths": jnp.asarray(start, jnp.float32)}}, logits)
    strengths = small_books.STRENGTHS + start * (np.arange(6) == 2)

    def likelihood(strength):
        s = strengths.copy()
        s[2] = strength
        q = posterior(logits, columns, views["later"].logits, s)
        rows = known & where & (q[np.arange(8), labels] > 0)
        return -np.log(q[np.arange(8), labels][rows]).sum() / 7

    q = posterior(logits, columns, views["later"].logits, strengths)
    p = small_books.softmax(logits)
    np.testing.assert_allclose(got, (kl(q, p) * where).sum() / 7 + likelihood(0.4), rtol=1e-5)
    slope = (likelihood(0.4 + 1e-5) - likelihood(0.4 - 1e-5)) / 2e-5
    want = np.where(np.arange(6) == 2, slope, 0.0)
    np.testing.assert_allclose(to_params["r"]["strengths"], want, rtol=1e-3, atol=1e-6)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(to_logits, (p - q) * where[:, None] / 7, rtol=1e-4, atol=1e-6)


def test_a_label_that_hard_rules_forbid_says_nothing():
    rules = bind("[hard] x > 0 => a\n[learn] x > 0 => b", Schema((Column("x"),), ("a", "b")))
    objective = weighted_sum(teach("r", 1.0, rules, learn=True))
    columns, batch = jnp.ones((2, 1)), {"labels": jnp.array([1, 1])}

    def value(params):
        return value_of(objective, params, jnp.zeros((2, 2)), columns, {}, batch)

    got, grads = small_books.quick(jax.value_and_grad(value))({"r": {"strengths": jnp.zeros(2)}})
    np.testing.assert_allclose(got, np.log(2), rtol=1e-6)  # of imitation: 0, 1 against ½, ½
    np.testing.assert_array_equal(grads["r"]["strengths"], 0.0)


def test_complaints(library_errors):
    logits, columns, views = small_books.data()
    for call in (
        lambda: project(small_books.labels(), columns, logits),
        lambda: teach("r", 1.0, small_books.labels()),
        lambda: rule_teacher(small_books.labels()),
    ):
        with pytest.raises(ValueError, match="exclusive classes.*encourage"):
            call()
    with pytest.raises(ValueError, match=r"views must hold the model's logits on \['later'\]"):
        project(small_books.book(), columns, logits)
    with pytest.raises(ValueError, match=r"rule_teacher sees one input.*\['later'\]"):
        rule_teacher(small_books.book())
    with pytest.raises(ValueError, match="prior must sum to 1"):
        rule_teacher(small_books.plain(), prior=jnp.ones(3))
    with pytest.raises(ValueError, match=r"prior must have shape \(3,\)"):
        rule_teacher(small_books.plain(), prior=jnp.ones(2) / 2)
    with pytest.raises(ValueError, match=r"strengths must have shape \(4,\)"):
        rule_teacher(small_books.plain(), strengths=jnp.ones(3))
    with pytest.raises(ValueError, match=r"a rule marked \[learn\]"):
        teach("r", 1.0, bind("a", Schema((), ("a", "b"))), learn=True)
    with pytest.raises(ValueError, match="leave strengths out"):
        teach("r", 1.0, small_books.book(), learn=True, strengths=jnp.ones(6))
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        teach("r", 1.0, small_books.book(), temperature=0.0)
    strange = teachers.from_function(lambda p, x: x, 0.0, classes=("sick", "well", "dead"))
    with pytest.raises(ValueError, match="teacher orders its classes as"):
        corrected(strange, small_books.plain())


# Teachers


def says(params, inputs):
    return Outputs(inputs[:, :1] * params, {"hidden": inputs})


def test_teachers_of_rules_and_corrected_ones():
    rules = small_books.plain()
    _, columns, views = small_books.data()
    prior = jnp.array([0.5, 0.3, 0.2])
    ask = small_books.quick(lambda teacher, columns: teacher(columns))
    alone = rule_teacher(rules, prior=prior)
    got = ask(alone, columns).logits
    base = jnp.broadcast_to(jnp.log(prior), (8, 3))
    # As the book with views, without its last two rules.
    four = np.where(np.arange(6) < 4, small_books.STRENGTHS, 0.0)
    want = posterior(base, columns, views["later"].logits, four)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)
    assert alone.classes == small_books.CLASSES
    even = rule_teacher(rules, strengths=jnp.zeros(4))
    np.testing.assert_allclose(np.exp(ask(even, columns).logits[0]), 1 / 3, rtol=1e-5)

    safe = jnp.where(jnp.isnan(columns), 0.0, columns)
    weights = jnp.array([[0.1, -0.02, 0.03]])
    neural = teachers.from_function(says, weights, classes=small_books.CLASSES)
    found = ask(corrected(neural, rules), safe)
    want = posterior(safe[:, :1] * weights, safe, views["later"].logits, four)
    np.testing.assert_allclose(np.exp(found.logits), want, rtol=2e-5)
    np.testing.assert_array_equal(found.features["hidden"], safe)


def test_teachers_of_one_kind_share_a_program():
    traces = []

    @jax.jit
    def ask(teacher, columns):
        traces.append(1)
        return teacher(columns).logits

    _, columns, _ = small_books.data()
    rules = small_books.plain()
    for prior in ([0.2, 0.3, 0.5], [0.5, 0.3, 0.2]):
        ask(rule_teacher(rules, prior=jnp.array(prior)), columns)
    assert len(traces) == 1
    for scale in (1.0, 2.0):
        neural = teachers.from_function(says, jnp.full((1, 3), scale))
        ask(corrected(neural, rules, strengths=jnp.full(4, scale)), columns)
    assert len(traces) == 2


# Training


SCHEMA = Schema((Column("x"), Column("y")), ("no", "yes"))
MODEL = models.logistic_regression(2)
OPTIMIZER = optax.adam(0.05)


@functools.cache
def problem():
    """The class is yes where x + y > 0; a tenth of the labels is wrong."""
    inputs = np.random.default_rng(0).standard_normal((256, 2)).astype(np.float32)
    truth = (inputs.sum(1) > 0).astype(np.int32)
    labels = truth.copy()
    labels[::10] ^= 1
    return {"inputs": inputs, "labels": labels}, truth


def train(*terms, teachers=None, steps=150, data=None):
    return training.run(
        MODEL,
        weighted_sum(*terms),
        OPTIMIZER,
        problem()[0] if data is None else data,
        key=jax.random.key(0),
        steps=steps,
        batch_size=len((problem()[0] if data is None else data)["inputs"]),
        teachers=teachers,
    )


@jax.jit
def violated(rules, params, state, inputs):
    logits = MODEL.predict(params, state, inputs).logits
    corrected = project(rules, inputs, logits)
    return [violation(rules, inputs, jax.nn.softmax(x)).mean(0) for x in (logits, corrected)]


def test_teaching_lowers_violations_and_projecting_lowers_them_further():
    rules = bind("[w=2] x > 0 and y > 0 => yes\n[hard] x < -1 and y < -1 => no", SCHEMA)
    inputs = jnp.asarray(problem()[0]["inputs"])
    pi = imitation(0.9, steps_per_epoch=10)
    reads = {"columns": "inputs"}
    plain, _ = train(term("labels", 1.0, cross_entropy))
    mixed, _ = train(
        term("labels", remainder(pi), cross_entropy), teach("rules", pi, rules, reads=reads)
    )
    without, corrected = violated(rules, plain.params, plain.state, inputs)
    with_rules, both = violated(rules, mixed.params, mixed.state, inputs)
    assert (with_rules < 0.9 * without).all(), (without, with_rules)
    assert (corrected < 0.5 * without).all() and (both < 0.5 * with_rules).all()
    assert corrected[1] == 0.0 and both[1] == 0.0


def test_learned_strengths_tell_good_rules_from_bad_ones():
    """A student that sees nothing leaves it to the strengths, which become log-odds."""
    rules = bind("[learn] x > 1 => yes\n[learn] x < -1 => yes\n[w=0] y > 0 => yes", SCHEMA)
    x = np.linspace(-2, 2, 200, dtype=np.float32)
    rate = np.where(x > 1, 10, np.where(x < -1, 90, 50))  # percent that say no
    labels = ((np.arange(200) * 37) % 100 >= rate).astype(np.int32)
    columns = np.stack([x, x], 1)
    data = {"inputs": np.ones_like(columns), "columns": columns, "labels": labels}
    end, _ = train(
        term("labels", 0.7, cross_entropy),
        teach("rules", 0.3, rules, learn=True),
        data=data,
        steps=300,
    )
    book = learned(rules, end.term_params["rules"])
    found = np.asarray(book.strengths)
    assert not book.learn.any() and "[learn]" not in str(book)
    written = [rule.strength.log_odds for rule in book.rules]  # what it prints is what it holds
    np.testing.assert_allclose(written, found)
    rates = [labels[rule].mean() for rule in (x > 1, x < -1, abs(x) <= 1)]
    odds = [np.log(r / (1 - r)) for r in rates]
    np.testing.assert_allclose(found[:2], [odds[0] - odds[2], odds[1] - odds[2]], atol=0.3)
    assert found[0] > 1.5 and found[1] < -1.5 and found[2] == 0.0


def test_a_neural_teacher_rules_and_labels_train_one_student():
    data, truth = problem()
    few = {name: x[:20] for name, x in data.items()}
    rules = bind("[w=3] x + y > 0.5 => yes\n[w=3] x + y < -0.5 => no", SCHEMA)
    wise = teachers.from_function(says_the_sum, jnp.array(2.0))
    taught_by = {"big": wise, "rules": rule_teacher(rules), "both": corrected(wise, rules)}
    labels_alone, _ = train(term("labels", 1.0, cross_entropy), data=few)
    end, metrics = train(
        term("labels", 0.2, cross_entropy),
        term("big", 0.2, forward_kl),
        term("rules", 0.3, forward_kl),
        term("both", 0.3, forward_kl),
        teach("self", 0.1, rules, reads={"columns": "inputs"}),
        teachers=taught_by,
        data=few,
    )

    def accuracy(state):
        logits = MODEL.predict(state.params, state.state, jnp.asarray(data["inputs"])).logits
        return (np.asarray(logits).argmax(1) == truth).mean()

    assert accuracy(end) > accuracy(labels_alone) + 0.05
    assert set(metrics) == {"loss", "labels", "big", "rules", "both", "self"}


def says_the_sum(params, inputs):
    return params * inputs.sum(1, keepdims=True)


def test_rules_teach_from_a_table_with_missing_values_that_the_student_does_not_see():
    rules = bind("[w=3] x > 0 => yes\n[w=3] x < 0 => no", SCHEMA)
    x = np.linspace(-2, 2, 40, dtype=np.float32)
    table = np.stack([np.where(np.arange(40) % 4 == 0, np.nan, x), x], 1)
    data = {"inputs": np.stack([x, x], 1), "teacher_inputs": table}
    objective = weighted_sum(term("rules", 1.0, forward_kl))
    how = {"key": jax.random.key(0), "steps": 2, "batch_size": 40}
    taught_by = {"rules": rule_teacher(rules)}
    student = models.logistic_regression()
    _, metrics = training.run(student, objective, optax.adam(0.1), data, **how, teachers=taught_by)
    assert np.isfinite(metrics["loss"]).all()
    both = taught_by | {"neural": teachers.from_function(says_the_sum, jnp.array(2.0))}
    with pytest.raises(ValueError, match="teacher_inputs must be finite"):
        training.run(student, objective, optax.adam(0.1), data, **how, teachers=both)
