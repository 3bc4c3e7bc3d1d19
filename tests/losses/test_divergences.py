"""Conventions that the literature disagrees on, pinned; what the divergences are to each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, log_softmax, softmax
from scipy.stats import entropy

from distill_jax import losses
from tests import laws, references

P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
TEACHER, STUDENT = jnp.log(jnp.asarray(P, jnp.float32)), jnp.log(jnp.asarray(Q, jnp.float32))


@functools.cache
def compiled(loss):
    return jax.jit(lambda options: loss(STUDENT, TEACHER, **options))


def between(loss, **options):
    """The loss from student Q to teacher P."""
    return float(compiled(loss)(laws.arrays(options)))


def test_references_agree_with_other_implementations():
    """The battery's references, against SciPy's own functions of probabilities."""
    student, teacher = laws.data(laws.LOSSES[0])
    p, q = softmax(teacher.astype(float), -1), softmax(student.astype(float), -1)
    laws.close(references.forward_kl(student, teacher), entropy(p, q, axis=-1), rtol=1e-12)
    laws.close(references.reverse_kl(student, teacher), entropy(q, p, axis=-1), rtol=1e-12)
    halves = jensenshannon(p, q, axis=-1) ** 2
    laws.close(references.jensen_shannon(student, teacher, beta=0.5), halves, rtol=1e-12)
    for share in (0.1, 0.7):
        m = share * p + (1 - share) * q
        both = share * entropy(p, m, axis=-1) + (1 - share) * entropy(q, m, axis=-1)
        laws.close(references.jensen_shannon(student, teacher, beta=share), both, rtol=1e-10)
        skewed = entropy(p, m, axis=-1)
        laws.close(references.skew_kl(student, teacher, alpha=share), skewed, rtol=1e-10)


@pytest.mark.quick
def test_the_teacher_is_what_beta_weights():
    # GKD's definition, from probabilities: beta KL(p || m) + (1 - beta) KL(q || m).
    for beta in (0.1, 0.3, 0.5, 0.9):
        m = beta * P + (1 - beta) * Q
        want = beta * entropy(P, m) + (1 - beta) * entropy(Q, m)
        other_side = (1 - beta) * entropy(P, m) + beta * entropy(Q, m)
        got = between(losses.jensen_shannon, beta=beta)
        assert got == pytest.approx(want, rel=1e-5)
        assert beta == 0.5 or abs(got - other_side) > 0.01


def test_jensen_shannon_vanishes_at_its_ends_and_its_scaled_form_does_not():
    forward, reverse = entropy(P, Q), entropy(Q, P)
    for beta, kl in ((0.0, forward), (1.0, reverse)):
        assert between(losses.jensen_shannon, beta=beta) == 0.0
        assert between(losses.scaled_jensen_shannon, beta=beta) == pytest.approx(kl, rel=1e-5)
        near = abs(beta - 1e-4)
        assert between(losses.jensen_shannon, beta=near) == pytest.approx(1e-4 * kl, rel=1e-2)
        assert between(losses.scaled_jensen_shannon, beta=near) == pytest.approx(kl, abs=1e-3)
    four = 4 * between(losses.jensen_shannon, beta=0.5)
    assert between(losses.scaled_jensen_shannon, beta=0.5) == pytest.approx(four, rel=1e-6)


def test_jensen_shannon_is_bounded_by_the_entropy_of_beta():
    student, teacher = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])  # nothing in common
    for beta in (0.1, 0.5, 0.8):
        bound = entropy([beta, 1 - beta])
        got = losses.jensen_shannon(student, teacher, beta=beta)
        assert float(got) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "want"),
    [
        (1.0, 0.0, entropy(P, Q)),
        (0.0, 1.0, entropy(Q, P)),
        (0.5, 0.5, 2 * ((np.sqrt(P) - np.sqrt(Q)) ** 2).sum()),
        (1.0, 1.0, 0.5 * ((P - Q) ** 2).sum()),
        # On the axes Cichocki's equation 20 has 1 / alpha**2, and is the limit from off the axis.
        (0.5, 0.0, 4 * (np.sqrt(P) * 0.5 * np.log(P / Q) - np.sqrt(P) + np.sqrt(Q)).sum()),
    ],
)
def test_alpha_beta_holds_the_others(alpha, beta, want):
    assert between(losses.alpha_beta, alpha=alpha, beta=beta) == pytest.approx(want, rel=1e-5)
    nudged = between(losses.alpha_beta, alpha=alpha + 1e-4, beta=beta + 1e-4)
    assert nudged == pytest.approx(want, rel=1e-3)


def test_renyi_passes_through_the_kl():
    kl = entropy(P, Q)
    assert between(losses.renyi, alpha=1.0) == pytest.approx(kl, rel=1e-5)
    for alpha in (0.999, 1.001):
        assert between(losses.renyi, alpha=alpha) == pytest.approx(kl, rel=3e-3)
    # Skew symmetry (van Erven and Harremoës, proposition 2), and growth with the order.
    reverse = float(losses.renyi(TEACHER, STUDENT, alpha=0.7))
    assert between(losses.renyi, alpha=0.3) == pytest.approx(0.3 / 0.7 * reverse, rel=1e-5)
    orders = [between(losses.renyi, alpha=alpha) for alpha in (0.3, 0.7, 1.0, 2.0, 5.0)]
    assert orders == sorted(orders)


def test_symmetric_kl_is_the_sum_and_skew_starts_at_the_kl():
    forward, reverse = entropy(P, Q), entropy(Q, P)
    assert between(losses.symmetric_kl) == pytest.approx(forward + reverse, rel=1e-6)
    assert between(losses.skew_kl, alpha=0.0) == pytest.approx(forward, rel=1e-6)
    assert between(losses.skew_reverse_kl, alpha=0.0) == pytest.approx(reverse, rel=1e-6)
    # DistiLLM's alpha is the share of the first distribution in the mixture.
    mixed = entropy(P, 0.2 * P + 0.8 * Q)
    assert between(losses.skew_kl, alpha=0.2) == pytest.approx(mixed, rel=1e-5)


def test_squared_error_is_half_the_sum_and_total_variation_half_the_distance():
    want = 0.5 * float(((STUDENT - TEACHER) ** 2).sum())
    assert between(losses.squared_error) == pytest.approx(want, rel=1e-6)
    distance = 0.5 * np.abs(P - Q).sum()
    assert between(losses.total_variation) == pytest.approx(distance, rel=1e-6)


def test_multilabel_is_a_sum_of_binary_divergences():
    p, q = expit(np.asarray(TEACHER, float) / 3), expit(np.asarray(STUDENT, float) / 3)
    want = 9 * sum(entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True))
    got = between(losses.soft_targets_multilabel, temperature=3.0)
    assert got == pytest.approx(want, rel=1e-5)
    # A class alone is the two-class softmax.
    z = jnp.stack([jnp.zeros(3), STUDENT], -1), jnp.stack([jnp.zeros(3), TEACHER], -1)
    pairs = losses.soft_targets(*z, temperature=3.0)
    assert float(pairs.sum()) == pytest.approx(want, rel=1e-5)


def test_soft_targets_is_scaled_and_its_gradient_is_in_closed_form():
    for t in (1.0, 4.0):
        p, q = softmax(np.log(P) / t), softmax(np.log(Q) / t)
        assert between(losses.soft_targets, temperature=t) == pytest.approx(t * t * entropy(p, q))
        gradient = jax.grad(lambda s, t=t: losses.soft_targets(s, TEACHER, temperature=t))(STUDENT)
        laws.close(gradient, t * (q - p), rtol=1e-5, atol=1e-6)


def test_a_schedule_gives_the_temperature():
    schedule = optax.linear_schedule(8.0, 1.0, 10)

    @jax.jit
    def at(step):
        return losses.soft_targets(STUDENT, TEACHER, temperature=schedule(step))

    for step in (0, 5, 10):
        want = between(losses.soft_targets, temperature=float(schedule(step)))
        assert float(at(jnp.asarray(step))) == pytest.approx(want, rel=1e-5)


def test_derivatives_of_both_orders_in_both_modes():
    """The closed form, by JAX's own checker; the battery has stricter ones for every loss."""
    student, teacher = (jnp.asarray(x[:2, :4]) for x in laws.data(laws.LOSSES[0]))

    @jax.jit
    def call(student, teacher, temperature):
        return losses.soft_targets(student, teacher, temperature=temperature).sum()

    check_grads(call, (student, teacher, jnp.float32(2.0)), order=2, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("nats", [5.0, 19.0, 40.0])
def test_slopes_at_the_ends_are_chi_squares_however_steep(nats):
    """Too steep for difference quotients: a class that the student all but excludes."""
    student, teacher = np.array([0.0, 1.0, 0.3 - nats]), np.array([1.0, 0.5, 0.2])
    p, q = softmax(teacher), softmax(student)
    chi = ((p - q) ** 2 / q).sum()
    inputs = jnp.float32(student), jnp.float32(teacher)

    def slope(loss, student, teacher, end):
        return jax.grad(lambda x: loss(student, teacher, x))(jnp.float32(end))

    def scaled(student, teacher, beta):
        return losses.scaled_jensen_shannon(student, teacher, beta=beta)

    def skewed(student, teacher, alpha):
        return losses.skew_kl(student, teacher, alpha=alpha)

    half = entropy(p, q) - chi / 2
    laws.close(slope(scaled, *inputs, 0.0), half, rtol=1e-5)
    laws.close(slope(scaled, *inputs[::-1], 1.0), -half, rtol=1e-5)
    laws.close(slope(skewed, *inputs, 0.0), -chi, rtol=1e-5)


def test_a_power_near_0_keeps_its_digits_at_large_gaps():
    student, teacher = np.array([0.0, -9e4, 1.0]), np.array([0.5, 0.2, -9e4])
    small = float(np.float32(1e-6))
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    c = np.exp((1 + small) * log_q) - np.exp(small * log_q + log_p)
    want = c - np.exp(log_q) * c.sum()
    inputs = jnp.float32(student), jnp.float32(teacher)
    for swap in (False, True):
        powers = {"alpha": 1.0, "beta": small} if not swap else {"alpha": small, "beta": 1.0}
        argument = int(swap)
        got = jax.grad(losses.alpha_beta, argument)(*inputs[:: -1 if swap else 1], **powers)
        laws.close(got, want, rtol=1e-5, atol=1e-6)


def test_a_student_that_starts_as_its_teacher_stays():
    """Adam divides by the size of the gradient, so any gradient but 0 would move it."""
    teacher = jnp.asarray(laws.data(laws.LOSSES[0])[1])
    adam = optax.adam(1e-2)

    @jax.jit
    def step(student, state):
        gradient = jax.grad(lambda s: losses.forward_kl(s, teacher).sum())(student)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(student, updates), state

    student, state = teacher, adam.init(teacher)
    for _ in range(3):
        student, state = step(student, state)
    np.testing.assert_array_equal(student, teacher)


def test_gradients_keep_their_digits_where_one_improbable_class_alone_differs():
    """Also if it differs by so much that the difference of its exponentials would do otherwise."""
    _, teacher = laws.data(laws.LOSSES[0], shape=(120, 10))
    teacher[:, 3] -= 12.0
    student = teacher.copy()
    student[:, 3] += np.tile(np.array([0.02, 0.12, 0.2, 0.27, 0.5, 0.8], np.float32), 20)
    log_p, log_q = (log_softmax(x.astype(np.float64), -1) for x in (teacher, student))
    d = log_p - log_q
    to_student = -np.exp(log_q) * np.expm1(d)
    to_teacher = np.exp(log_p) * (d - (np.exp(log_p) * d).sum(-1, keepdims=True))
    total = jax.jit(jax.grad(lambda s, t: losses.forward_kl(s, t).sum(), (0, 1)))
    for got, want in zip(total(student, teacher), (to_student, to_teacher), strict=True):
        error = np.abs(got - want).max(-1) / np.abs(want).max(-1)
        assert (error < 5e-6).all(), error


@pytest.mark.usefixtures("library_errors")
def test_alpha_and_beta_are_not_both_zero():
    with pytest.raises(ValueError, match="alpha and beta must not both be 0"):
        losses.alpha_beta(STUDENT, TEACHER, alpha=0.0, beta=0.0)
