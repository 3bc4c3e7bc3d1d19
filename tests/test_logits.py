"""The two drivers: rows and total."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.logits import rows, total, two_class
from distill_jax.losses import cross_entropy, forward_kl, jensen_shannon, soft_targets
from tests import laws

N, CLASSES = 7, 5


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(2 * rng.standard_normal((2, N, CLASSES)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.5, 2.0, N), jnp.float32)
    where = jnp.asarray([True, False, True, True, False, True, True])
    dirty = student.at[1].set(jnp.nan).at[4, 0].set(jnp.inf)
    return dirty, teacher.at[4].set(jnp.nan), weights, where, jnp.float32(3.0)


def plainly(student, teacher, weights, where, temperature):
    per_row = soft_targets(student, teacher, temperature=temperature, where=where)
    return (weights * per_row).sum(), per_row


def blockwise(student, teacher, weights, where, temperature, chunk):
    return total(
        soft_targets,
        student,
        teacher,
        where=where,
        weights=weights,
        chunk=chunk,
        temperature=temperature,
    )


def gradients(function):
    """Value, rows and gradients to student, teacher, weights and temperature."""

    @jax.jit
    def run(student, teacher, weights, where, temperature):
        def wanted(student, teacher, weights, temperature):
            return function(student, teacher, weights, where, temperature)

        wrt = (0, 1, 2, 3)
        return jax.value_and_grad(wanted, wrt, has_aux=True)(student, teacher, weights, temperature)

    return run


@functools.cache
def plain_gradients():
    return gradients(plainly)(*inputs())


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])  # 3 leaves a block of one row
def test_total_is_the_weighted_sum_of_rows(chunk):
    (value, per_row), grads = gradients(functools.partial(blockwise, chunk=chunk))(*inputs())
    (want, want_rows), want_grads = plain_gradients()
    laws.close(value, want, rtol=1e-6)
    laws.close(per_row, want_rows, rtol=1e-6)
    for got, expected in zip(grads, want_grads, strict=True):
        laws.close(got, expected, rtol=1e-5, atol=1e-6)
    assert (grads[0][1] == 0).all() and (grads[1][4] == 0).all()  # the masked rows held NaN


def test_total_keeps_leading_axes():
    student, teacher = jnp.asarray(laws.data(laws.LOSSES[0], shape=(2, 3, CLASSES)))
    value, per_row = total(forward_kl, student, teacher, chunk=4)
    want = forward_kl(student, teacher)
    laws.close(per_row, want, rtol=1e-6)
    laws.close(value, want.sum(), rtol=1e-6)


def test_total_of_nothing_is_zero():
    value, per_row = total(forward_kl, jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    assert value == 0 and per_row.shape == (0,)


def test_total_with_labels_and_smoothing():
    student, *_ = laws.data(laws.LOSSES[0], shape=(N, CLASSES))
    labels = jnp.arange(N) % CLASSES

    def pair(loss):
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.asarray(student), jnp.float32(0.1))

    got = pair(lambda s, e: total(cross_entropy, s, labels, chunk=2, label_smoothing=e)[0])
    want = pair(lambda s, e: cross_entropy(s, labels, label_smoothing=e).sum())
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        laws.close(x, y, rtol=1e-5, atol=1e-6)


def test_hessian_vector_products_through_total():
    student, teacher = map(jnp.asarray, laws.data(laws.LOSSES[0], shape=(N, CLASSES)))
    direction = jnp.asarray(laws.data(laws.LOSSES[0], 1, shape=(N, CLASSES))[0])

    @jax.jit
    def both(student, direction):
        def product(value):
            return jax.jvp(jax.grad(value), (student,), (direction,))[1]

        return (
            product(lambda s: total(jensen_shannon, s, teacher, chunk=3, beta=0.3)[0]),
            product(lambda s: jensen_shannon(s, teacher, beta=0.3).sum()),
        )

    got, want = both(student, direction)
    laws.close(got, want, rtol=1e-4, atol=1e-6)


def test_total_under_vmap():
    student, teacher = jnp.asarray(laws.data(laws.LOSSES[0], shape=(2, 3, CLASSES)))
    temperatures = jnp.array([1.0, 4.0])

    def value(student, teacher, temperature):
        return total(soft_targets, student, teacher, chunk=2, temperature=temperature)[0]

    got = jax.jit(jax.vmap(jax.grad(value, (0, 2))))(student, teacher, temperatures)
    grad = jax.jit(jax.grad(value, (0, 2)))
    for i in range(2):
        want = grad(student[i], teacher[i], temperatures[i])
        laws.close(got[0][i], want[0], rtol=1e-5, atol=1e-7)
        laws.close(got[1][i], want[1], rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_through_the_rows_of_total():
    student, teacher = jnp.asarray(laws.data(laws.LOSSES[0], shape=(3, CLASSES)))
    grad = jax.grad(lambda s: total(forward_kl, s, teacher)[1].sum())(student)
    assert (grad == 0).all()


BIG = jax.ShapeDtypeStruct((256, 8192), jnp.float32)


def test_only_gradients_that_are_asked_for_are_made():
    """Of the size of the logits, the scan that makes them gives one array a gradient."""

    def shapes(wrt):
        def value(student, teacher):
            return total(forward_kl, student, teacher, chunk=32)[0]

        jaxpr = jax.make_jaxpr(jax.grad(value, wrt))(BIG, BIG)
        scans = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
        outputs = [v.aval for e in scans for v in e.outvars]
        return sum(aval.size == 256 * 8192 for aval in outputs)

    assert shapes((0,)) == 1
    assert shapes((1,)) == 1
    assert shapes((0, 1)) == 2


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_total_needs_less_than_half_the_memory():
    def temporary(loss):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(BIG, BIG).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporary(lambda s, t: jensen_shannon(s, t).sum())
    blocks = temporary(lambda s, t: total(jensen_shannon, s, t, chunk=16)[0])
    assert blocks < plain / 2


@pytest.mark.usefixtures("library_errors")
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "student_logits must be floating", {"student": jnp.zeros((3, 4), int)}),
        (ValueError, "student_logits must have shape", {"student": jnp.zeros((3, 1))}),
        (ValueError, "against must begin with the axes", {"against": jnp.zeros((2, 4))}),
        (ValueError, "teacher_logits must have the shape", {"against": jnp.zeros((3, 5))}),
        (ValueError, "where must have shape", {"where": jnp.ones((2,), bool)}),
        (TypeError, "where must be booleans", {"where": jnp.ones((3,))}),
        (ValueError, "weights must have shape", {"weights": jnp.ones((3, 1))}),
        (ValueError, "chunk must be", {"chunk": 0}),
        (TypeError, "chunk must be", {"chunk": 2.5}),
        (ValueError, "temperature must be", {"temperature": -1.0}),
    ],
)
def test_total_complains(error, message, arguments):
    student, against = jnp.zeros((3, 4)), jnp.zeros((3, 4))
    student, against = arguments.pop("student", student), arguments.pop("against", against)
    with pytest.raises(error, match=message):
        total(soft_targets, student, against, **arguments)


@pytest.mark.quick
def test_rows_hands_a_core_clean_float32_blocks_and_options():
    seen = []

    def core(student, teacher, option):
        seen.append((student.dtype, teacher.dtype, option.dtype))
        return (student - teacher).sum(-1) * option

    student = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]], jnp.bfloat16)
    where = jnp.array([True, False])
    got = rows(core, student, jnp.zeros((2, 2)), 2.0, where=where)
    assert seen == [(jnp.float32, jnp.float32, jnp.float32)]
    np.testing.assert_array_equal(got, [6.0, 0.0])


@pytest.mark.quick
def test_two_class_is_the_sigmoid():
    z = jnp.array([[2.0], [-1.0], [0.0]])
    pair = two_class(z)
    laws.close(jax.nn.softmax(pair)[:, 1], jax.nn.sigmoid(z)[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(pair.argmax(-1), [1, 0, 0])  # argmax says z > 0
    assert two_class(pair) is pair


def test_an_infinite_row_of_weight_zero_is_zero():
    student = jnp.array([[0.0, -jnp.inf], [0.0, 1.0]])

    def value(student):
        weights = jnp.array([0.0, 1.0])
        return total(forward_kl, student, jnp.zeros((2, 2)), weights=weights)[0]

    got, grad = jax.value_and_grad(value)(student)
    laws.close(got, forward_kl(student[1], jnp.zeros(2)), rtol=1e-6)
    assert not grad[0].any() and grad[1].any()
