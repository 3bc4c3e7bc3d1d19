"""Rules as teachers, alone and correcting others: values, shared programs, training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, teachers, training
from distill_jax.losses import cross_entropy, forward_kl
from distill_jax.objectives import term, weighted_sum
from distill_jax.rules import bind, corrected, encode, encourage, enforce, rule_teacher, teach
from distill_jax.types import Outputs
from tests.rules import small_books
from tests.rules.levels import problem
from tests.rules.small_books import posterior


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


@pytest.mark.quick
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


def test_complaints(library_errors):
    with pytest.raises(ValueError, match="exclusive classes.*encourage"):
        rule_teacher(small_books.labels())
    with pytest.raises(ValueError, match=r"rule_teacher takes one input.*\['later'\]"):
        rule_teacher(small_books.book())
    with pytest.raises(ValueError, match="prior must sum to 1"):
        rule_teacher(small_books.plain(), prior=jnp.ones(3))
    with pytest.raises(ValueError, match=r"prior must have shape \(3,\)"):
        rule_teacher(small_books.plain(), prior=jnp.ones(2) / 2)
    with pytest.raises(ValueError, match=r"strengths must have shape \(4,\)"):
        rule_teacher(small_books.plain(), strengths=jnp.ones(3))
    strange = teachers.from_function(lambda p, x: x, 0.0, classes=("sick", "well", "dead"))
    with pytest.raises(ValueError, match="teacher orders its classes as"):
        corrected(strange, small_books.plain())


def says_the_sum(params, inputs):
    return params * inputs[:, :2].sum(1, keepdims=True)


def test_a_neural_teacher_rules_and_labels_train_one_student():
    rules = bind("[w=3] x + y > 0.5 => yes\n[w=3] x + y < -0.5 => no", problem.SCHEMA)
    data = problem.table()
    data = {"inputs": encode(rules, data["inputs"]), "labels": data["labels"]}  # x, y, x + y
    few = {name: x[:20] for name, x in data.items()}
    wise = teachers.from_function(says_the_sum, jnp.array(2.0))
    taught_by = {"big": wise, "rules": rule_teacher(rules), "both": corrected(wise, rules)}
    labels_alone, _ = problem.train(problem.LABELS, data=few)
    end, metrics = problem.train(
        term("labels", 0.2, cross_entropy),
        term("big", 0.2, forward_kl),
        term("rules", 0.3, forward_kl),
        term("both", 0.3, forward_kl),
        teach("self", 0.1, rules, reads={"columns": "inputs"}),
        teachers=taught_by,
        data=few,
    )

    def accuracy(state):
        logits = problem.MODEL.predict(state.params, state.state, data["inputs"]).logits
        return (np.asarray(logits).argmax(1) == (data["inputs"][:, 2] > 0)).mean()

    assert accuracy(end) > accuracy(labels_alone) + 0.05
    assert set(metrics) == {"loss", "labels", "big", "rules", "both", "self"}


def test_rules_teach_from_a_table_with_missing_values_that_the_student_does_not_see():
    rules = bind("[w=3] x > 0 => yes\n[w=3] x < 0 => no", problem.SCHEMA)
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


def table_of(inputs):
    return inputs["table"]


def test_rules_read_a_table_among_several_inputs():
    rules = bind("[w=3] x > 0 => yes\n[hard] x < -1 => no", problem.SCHEMA)
    x = np.linspace(-2, 2, 8, dtype=np.float32)
    data = {"inputs": {"x": x[:, None], "table": np.stack([x, x], 1)}}
    objective = weighted_sum(
        term("rules", 1.0, forward_kl),
        encourage("own", 0.5, rules, reads={"columns": "inputs['table']"}),
    )
    line = models.from_function(
        lambda key, inputs: jnp.zeros((1, 2)), lambda params, inputs: inputs["x"] @ params
    )
    student = enforce(line, rules, columns=table_of)
    taught_by = {"rules": rule_teacher(rules, columns=table_of)}
    how = {"key": jax.random.key(0), "steps": 2, "batch_size": 8, "teachers": taught_by}
    state, metrics = training.run(student, objective, optax.sgd(0.1), data, **how)
    assert (metrics["rules"] > 0).all() and (metrics["own"] > 0).all()
    logits = student.predict(state.params, state.state, data["inputs"]).logits
    assert (jax.nn.softmax(logits)[x < -1, 1] == 0).all()
    with pytest.raises(TypeError, match="columns must be an array, got dict"):
        training.run(
            student,
            weighted_sum(encourage("own", 0.5, rules, reads={"columns": "inputs"})),
            optax.sgd(0.1),
            data,
            **how,
        )
