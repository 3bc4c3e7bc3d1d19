"""What losses, and what makes their parameters, are given by the names of parameters."""

from __future__ import annotations

import functools

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


def kd(student_logits, teacher_logits, labels=None):
    rows = forward_kl(student_logits, teacher_logits)
    return rows if labels is None else rows + cross_entropy(student_logits, labels)


def two_rows(**columns):
    """Two rows of equal logits; a teacher that agrees with them."""
    batch = {"inputs": jnp.zeros((2, 1)), **columns}
    return Context(Outputs(jnp.zeros((2, 3))), {"big": Outputs(jnp.zeros((2, 3)))}, batch)


def value(made, context):
    return float(weighted_sum(made)({}, {}, context)[0])


def test_a_parameter_with_a_default_is_read_where_there_is_something():
    labels = jnp.array([0, 2])
    nats = pytest.approx(np.log(3), rel=1e-6)
    assert value(term("kd", 1.0, kd), two_rows(labels=labels)) == nats
    assert value(term("kd", 1.0, kd), two_rows()) == 0
    assert value(term("kd", 1.0, kd, labels=None), two_rows(labels=labels)) == 0
    reads = {"labels": "noisy"}
    assert value(term("kd", 1.0, kd, reads=reads), two_rows(labels=labels, noisy=labels)) == nats
    bound = functools.partial(kd, labels=jnp.array([1, 1]))  # the partial's own come first
    seen = value(term("kd", 1.0, bound), two_rows(labels=jnp.array([7, 7])))
    assert seen == nats
    with pytest.raises(ValueError, match=r"reads the column 'noisy'; the batch has"):
        value(term("kd", 1.0, kd, reads=reads), two_rows(labels=labels))


def test_every_known_name_with_a_default():
    def loss(
        student_logits=None, teacher_logits=None, *, views=None, context=None, key=None, step=None
    ):
        seen.append((student_logits, teacher_logits, views, context, key, step))
        return jnp.zeros(2)

    seen, key = [], jax.random.key(1)
    context = two_rows()._replace(key=key, step=5, views={"v": Outputs(jnp.ones((2, 3)))})
    value(term("t", 1.0, loss), context)
    logits, taught, views, whole, given, step = seen[0]
    assert logits.shape == taught.shape == (2, 3)
    assert views.keys() == {"v"} and whole.batch.keys() == {"inputs"}
    assert given is key and step == 5
    value(term("t", 1.0, loss), context._replace(teachers={}, views={}))
    assert seen[1][1] is None and seen[1][2] is None
    with pytest.raises(ValueError, match=r"the teachers are \['a', 'b'\]"):
        value(term("t", 1.0, loss), context._replace(teachers=dict.fromkeys("ab", context.student)))


def test_keyword_only_parameters_are_read_as_well():
    def loss(student_logits, *, labels, scale, shift=0.0):
        return scale * cross_entropy(student_logits, labels) + shift

    context = two_rows(labels=jnp.array([0, 2]), scale=jnp.array([1.0, 3.0]))
    assert value(term("t", 1.0, loss), context) == pytest.approx(2 * np.log(3), rel=1e-6)
    assert value(term("t", 1.0, loss, scale=3.0, shift=1.0), context) == pytest.approx(
        3 * np.log(3) + 1, rel=1e-6
    )


def test_a_positional_parameter_may_be_an_option():
    def loss(student_logits, scale, labels):
        return scale * cross_entropy(student_logits, labels)

    context = two_rows(labels=jnp.array([0, 2]))
    assert value(term("t", 1.0, loss, scale=2.0), context) == pytest.approx(2 * np.log(3), rel=1e-6)


def test_what_makes_parameters_reads_what_is_there():
    def start(key, *, labels, targets=None):
        return {"rows": jnp.zeros(labels.shape), "targets": jnp.zeros(targets.shape)}, None

    def loss(params, state, labels):
        return jnp.zeros(2), state

    objective = weighted_sum(term("own", 1.0, loss, init=start))
    context = two_rows(labels=jnp.array([0, 2]), targets=jnp.ones((2, 3)))
    params, _ = objective.init(jax.random.key(0), context)
    assert params["own"]["targets"].shape == (2, 3)


def test_columns_that_are_read_by_default_are_checked():
    data = {"inputs": np.zeros((2, 1)), "labels": np.array([0, 7])}
    with pytest.raises(ValueError, match="labels must lie in 0 ... 2"):
        weighted_sum(term("kd", 1.0, kd)).check(data, 3)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize("name", ["rng", "train", "is_training", "deterministic", "seed"])
    def test_a_parameter_that_looks_as_if_it_were_filled(self, name):
        space = {}
        exec(f"def loss(student_logits, {name}=None): ...", space)  # noqa: S102
        with pytest.raises(TypeError, match=f"parameter '{name}', which is not filled: call it"):
            term("t", 1.0, space["loss"])
        term("t", 1.0, space["loss"], **{name: True})
        term("t", 1.0, space["loss"], reads={name: "column"})

    def test_a_name_that_is_nearly_a_column(self):
        def loss(student_logits, label=None):
            return student_logits.sum(-1)

        context = two_rows(labels=jnp.array([0, 2]))
        with pytest.raises(ValueError, match=r"'label', .* is 'labels' meant\? Rename it, pass"):
            value(term("t", 1.0, loss), context)
        assert value(term("t", 1.0, loss, label=None), context) == 0

    def test_parameters_without_names(self):
        with pytest.raises(TypeError, match=r"must name its parameters, .* got \*arguments"):
            term("t", 1.0, lambda *arguments: arguments[0])

    def test_a_feature_with_a_default_needs_a_path(self):
        def loss(student_logits, student_features=None):
            return student_logits.sum(-1)

        with pytest.raises(ValueError, match="must say which features to compare"):
            value(term("t", 1.0, loss), two_rows())

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
