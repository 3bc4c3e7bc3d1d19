"""What losses, and what makes their parameters, are given by the names of parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import cross_entropy, forward_kl
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.types import Outputs
from tests.objectives.examples import CLASSES, both, context_of, example


@pytest.mark.quick
def test_each_teacher_by_its_name():
    batch, kernel = example()
    teachers = {"big": Outputs(batch["teacher_logits"]), "small": Outputs(-batch["teacher_logits"])}
    context = Context(Outputs(batch["inputs"] @ kernel), teachers, batch)
    objective = weighted_sum(
        term("big", 1.0, forward_kl),
        term("other", 1.0, forward_kl, reads={"teacher_logits": "small"}),
        term("own", 1.0, forward_kl, reads={"teacher_logits": lambda c: c.student.logits}),
    )
    _, (parts, _) = objective({}, {}, context)
    student = context.student.logits
    where = batch["where"]
    for name, teacher in (("big", teachers["big"]), ("other", teachers["small"])):
        want = forward_kl(student, teacher.logits, where=where).sum()
        np.testing.assert_allclose(parts[name].sum, want, rtol=1e-6)
    assert parts["own"].sum == 0


def test_a_column_by_another_name():
    batch, kernel = example()
    batch["noisy"] = (batch["labels"] + 1) % CLASSES
    objective = weighted_sum(term("labels", 1.0, cross_entropy, reads={"labels": "noisy"}))
    value = objective({}, {}, context_of(kernel, batch))[0]
    rows = cross_entropy(batch["inputs"] @ kernel, batch["noisy"], where=batch["where"])
    np.testing.assert_allclose(value, rows.sum() / 11, rtol=1e-6)


def test_features_by_their_path():
    def size(student_features):
        return (student_features**2).sum(-1)

    objective = weighted_sum(term("size", 1.0, size, reads={"student_features": "hidden/0"}))
    outputs = Outputs(jnp.zeros((2, 2)), {"hidden/0": jnp.ones((2, 3))})
    context = Context(outputs, {}, {"inputs": jnp.zeros((2, 1))})
    assert objective({}, {}, context)[0] == 3
    with pytest.raises(ValueError, match=r"features 'hidden/0' of the student; there are \[\]"):
        objective({}, {}, context._replace(student=Outputs(jnp.zeros((2, 2)))))


def of_teachers(**features):
    """A context of two rows, whose teachers have one feature ``"h"`` each, filled with a number."""
    teachers = {
        name: Outputs(jnp.zeros((2, 2)), {"h": jnp.full((2, 3), value)})
        for name, value in features.items()
    }
    student = Outputs(jnp.zeros((2, 2)), {"h": jnp.zeros((2, 3))})
    return Context(student, teachers, {"inputs": jnp.zeros((2, 1))})


@pytest.mark.parametrize(
    ("name", "source", "teachers", "want"),
    [
        ("hint", "big:h", {"big": 2.0, "small": 3.0}, 2.0),
        ("hint", "small:h", {"big": 2.0, "small": 3.0}, 3.0),
        ("small", "h", {"big": 2.0, "small": 3.0}, 3.0),
        ("hint", "h", {"big": 2.0}, 2.0),
        ("hint", "h", {"big": 2.0, "average": 9.0}, 2.0),
        ("hint", "average:h", {"big": 2.0, "average": 9.0}, 9.0),
    ],
)
def test_features_of_a_teacher_by_its_name_and_their_path(name, source, teachers, want):
    def mean(teacher_features):
        return teacher_features.mean(-1)

    made = weighted_sum(term(name, 1.0, mean, reads={"teacher_features": source}))
    assert made({}, {}, of_teachers(**teachers))[0] == want


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("h", r"the teachers are \['big', 'small'\]: write 'teacher:path'"),
        ("other:h", r"reads teacher_features 'other:h'; the teachers are"),
        ("big:g", r"the features 'g' of teacher 'big'; there are \['h'\]"),
    ],
)
def test_features_of_a_teacher_that_are_not_there(source, message):
    made = term("hint", 1.0, lambda teacher_features: 0, reads={"teacher_features": source})
    with pytest.raises(ValueError, match=message):
        weighted_sum(made)({}, {}, of_teachers(big=2.0, small=3.0))


def test_a_projector_and_its_start_read_by_name():
    """The loss against NumPy, the gradients of student and projector, and what ``init`` is told."""
    keys = jax.random.split(jax.random.key(3), 2)
    hidden = jax.random.normal(keys[0], (4, 3))
    target = jax.random.normal(keys[1], (4, 5))
    told = []

    def start(key, teacher_features, labels, student_features):
        told.append((student_features, teacher_features, labels))
        shape = student_features.shape[-1], teacher_features.shape[-1]
        return {"kernel": jax.random.normal(key, shape)}, {"calls": 0}

    def hint(params, state, student_features, teacher_features, *, scale, where):
        error = student_features @ params["kernel"] - teacher_features
        error = jnp.where(where[:, None], error, 0.0)
        return scale * (error**2).sum(-1), {"calls": state["calls"] + 1}

    made = term(
        "hint",
        1.0,
        hint,
        init=start,
        reads={"student_features": "h", "teacher_features": "big:deep/1", "labels": "noisy"},
        scale=0.5,
    )
    objective = weighted_sum(made)

    def context_with(hidden):
        batch = {
            "inputs": jnp.zeros((4, 1)),
            "noisy": jnp.zeros(4, int),
            "where": jnp.array([True, True, False, True]),
        }
        teachers = {"big": Outputs(jnp.zeros((4, 2)), {"deep/1": target})}
        return Context(Outputs(jnp.zeros((4, 2)), {"h": hidden}), teachers, batch)

    params, state = objective.init(jax.random.key(0), context_with(hidden))
    assert [(x.shape, x.dtype) for x in told[0]] == [
        ((4, 3), jnp.float32),
        ((4, 5), jnp.float32),
        ((4,), jnp.int32),
    ]
    assert not any(isinstance(x, jax.Array) for x in told[0])

    def value(params, hidden):
        return objective(params, state, context_with(hidden))

    (grads, grad_hidden), (_, new) = jax.grad(value, (0, 1), has_aux=True)(params, hidden)
    kernel, rows = np.float64(params["hint"]["kernel"]), np.array([0, 1, 3])
    error = np.float64(hidden)[rows] @ kernel - np.float64(target)[rows]
    np.testing.assert_allclose(value(params, hidden)[0], 0.5 * (error**2).sum() / 3, rtol=1e-5)
    np.testing.assert_allclose(
        grads["hint"]["kernel"], np.float64(hidden)[rows].T @ error / 3, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(grad_hidden[rows], error @ kernel.T / 3, rtol=1e-4, atol=1e-5)
    assert not grad_hidden[2].any()
    assert new["hint"] == {"calls": 1}


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    def test_no_teacher(self):
        batch, kernel = example()
        del batch["teacher_logits"]
        with pytest.raises(ValueError, match="term 'teacher' needs a teacher: the teachers are"):
            both()({}, {}, context_of(kernel, batch))

    def test_two_teachers_and_neither_named(self):
        batch, kernel = example()
        logits = Outputs(batch["teacher_logits"])
        context = Context(Outputs(batch["inputs"] @ kernel), {"a": logits, "b": logits}, batch)
        with pytest.raises(ValueError, match=r"the teachers are \['a', 'b'\]"):
            both()({}, {}, context)

    def test_a_missing_column(self):
        batch, kernel = example()
        del batch["labels"]
        with pytest.raises(ValueError, match="term 'labels' reads the column 'labels'; the batch"):
            both()({}, {}, context_of(kernel, batch))
        del batch["labelled"]
        with pytest.raises(ValueError, match="where of term 'labels' reads the column 'labelled'"):
            both().counts(batch)

    def test_features_need_a_path(self):
        batch, kernel = example()
        objective = weighted_sum(term("hint", 1.0, lambda student_features: student_features))
        with pytest.raises(ValueError, match="must say which features to compare"):
            objective({}, {}, context_of(kernel, batch))
