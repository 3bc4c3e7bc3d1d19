"""Linear constraints between outputs: encouraged, projected, enforced, against float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy import optimize

from distill_jax import losses, models, rules, term, training, weighted_sum
from distill_jax.rules import (
    RuleError,
    encourage_linear,
    enforce_linear,
    from_requirements,
    linear_constraints,
    linear_penalty,
    linear_violation,
    project_linear,
)

SETS = {
    "halfspace": ("total >= 2*a - 3*b + 0.5", 3),
    "box": ("0 <= total <= 1\na between -1 and 1\nb >= 0.5", 3),
    "chain": ("total <= a\na <= b\nb <= c\nc <= d", 5),
    "parts": ("total == a + b + c\na >= 0\nb >= 0\nc >= 0", 4),
    "corner": ("a >= 0\nb >= 0\na + b >= 0\na - b >= 0\n2*a >= b\na + 2*b >= 0", 3),
    "point": ("total == 1\na == total\na - 1 == 0\nb <= 2", 3),
    "simplex": ("total + a + b + c == 1\ntotal >= 0\na >= 0\nb >= 0\nc >= 0\na <= 0.5", 4),
    "equal pair": ("a <= b\nb <= a\ntotal >= 0.1*a + 0.7*b", 3),
}
NAMES = ("total", "a", "b", "c", "d")


def constraints_of(name):
    text, width = SETS[name]
    return linear_constraints(text, NAMES[:width])


def predictions(number, width, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (number, width)).astype(np.float32)


def reference_violation(constraints, y):
    y = np.asarray(y, np.float64)
    rows = []
    for row in constraints.rows:
        excess = sum(float(c) * y[..., i] for i, c in row.coefficients) - float(row.bound)
        rows.append(np.abs(excess) if row.equality else np.maximum(excess, 0))
    return np.stack(rows, axis=-1)


def allowed(constraints, y):
    """What rounding in float32 may add to each comparison: 1e-6 of the size of its terms."""
    y = np.abs(np.asarray(y, np.float64))
    sizes = [
        sum(abs(float(c)) * y[..., i] for i, c in row.coefficients) + abs(float(row.bound))
        for row in constraints.rows
    ]
    return 1e-6 * (np.stack(sizes, axis=-1) + y.max(-1, keepdims=True))


@functools.lru_cache
def layer(name):
    return jax.jit(enforced(constraints_of(name)))


def enforced(constraints, order=None):
    identity = models.from_function(
        lambda key, x: (), lambda params, x: x, outputs="regression", classes=constraints.names
    )
    model = enforce_linear(identity, constraints, order=order)
    return lambda z: model.predict((), None, z).logits


project = jax.jit(project_linear)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["parts", "box"])
def test_violation_and_penalty_match_a_reference_in_float64(name):
    constraints = constraints_of(name)
    y = predictions(20, len(constraints.names))
    want = reference_violation(constraints, y)
    np.testing.assert_allclose(linear_violation(constraints, y), want, rtol=1e-5, atol=1e-5)
    got = linear_penalty(jnp.asarray(y), constraints=constraints)
    np.testing.assert_allclose(got, want.sum(-1), rtol=1e-5, atol=1e-5)
    weights = np.arange(len(constraints), dtype=np.float32)
    got = linear_penalty(
        jnp.asarray(y), constraints=constraints, kind="squared", weights=jnp.asarray(weights)
    )
    np.testing.assert_allclose(got, 0.5 * want**2 @ weights, rtol=1e-5, atol=1e-5)


def test_masked_rows_have_neither_penalty_nor_gradient():
    constraints = constraints_of("parts")
    y = predictions(4, 4)
    y[1] = np.nan
    where = jnp.array([True, False, True, True])

    def loss(y):
        return linear_penalty(y, constraints=constraints, kind="squared", where=where)

    assert loss(jnp.asarray(y))[1] == 0
    slope = jax.grad(lambda y: loss(y).sum())(jnp.asarray(y))
    assert (slope[1] == 0).all() and np.isfinite(slope).all() and (slope[0] != 0).any()
    check_grads(lambda y: loss(jnp.where(where[:, None], y, 0.0)), (jnp.asarray(y),), order=1)


@pytest.mark.parametrize("name", SETS)
def test_ten_thousand_rows_satisfy_what_is_enforced_and_what_is_projected(name):
    constraints = constraints_of(name)
    z = predictions(10_000, len(constraints.names))
    for corrected in (layer(name)(z), project(constraints, z)):
        assert corrected.dtype == jnp.float32 and np.isfinite(corrected).all()
        bound = allowed(constraints, np.maximum(np.abs(corrected), np.abs(z)))
        assert (reference_violation(constraints, corrected) <= bound).all()


def nearest(constraints, z):
    """The nearest point by Lawson and Hanson's least distance programming, in float64."""
    a = np.concatenate([constraints.a_ub, constraints.a_eq, -constraints.a_eq])
    b = np.concatenate([constraints.b_ub, constraints.b_eq, -constraints.b_eq])
    system = np.concatenate([-a.T, (a @ z - b)[None]])
    multipliers, _ = optimize.nnls(system, np.eye(len(z) + 1)[-1])
    rest = system @ multipliers - np.eye(len(z) + 1)[-1]
    return z - rest[:-1] / rest[-1]


@pytest.mark.parametrize("name", SETS)
def test_projection_is_the_nearest_point_by_an_independent_method(name):
    constraints = constraints_of(name)
    z = predictions(10_000, len(constraints.names))
    got = project(constraints, z)[:300]
    want = [nearest(constraints, row) for row in z[:300].astype(np.float64)]
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_points_inside_stay_and_projecting_twice_changes_nothing():
    for name in ("corner", "chain"):
        constraints = constraints_of(name)
        z = predictions(10_000, len(constraints.names))
        once = project(constraints, z)
        np.testing.assert_allclose(project(constraints, once), once, atol=1e-5)
        inside = (linear_violation(constraints, z) == 0).all(-1)
        assert inside.any() and np.array_equal(once[inside], z[inside])
        assert np.array_equal(layer(name)(z)[inside], z[inside])


def test_slopes_of_projection_and_layer():
    constraints = constraints_of("simplex")
    z = jnp.asarray(predictions(5, 4, seed=2))
    check_grads(lambda z: project(constraints, z), (z,), order=1, atol=2e-2, rtol=2e-2)
    check_grads(layer("simplex"), (z,), order=1, atol=2e-2, rtol=2e-2)
    # Along the active constraints slopes pass, across them they are 0: a projection matrix.
    slope = jax.jacobian(lambda z: project(constraints, z))(z[0])
    np.testing.assert_allclose(slope @ slope, slope, atol=1e-5)
    np.testing.assert_allclose(constraints.a_eq @ np.asarray(slope), 0, atol=1e-5)


def test_rows_that_are_not_finite_are_not_hidden():
    constraints = constraints_of("parts")
    z = np.ones((3, 4), np.float32)
    z[0, 0], z[1, 1] = np.nan, np.inf
    got = project(constraints, z)
    assert np.isnan(got[:2]).all() and np.isfinite(got[2]).all()


def test_the_order_says_which_outputs_are_trusted():
    constraints = linear_constraints("total == a + b\na >= 0\nb >= 0", ("total", "a", "b"))
    z = jnp.array([[3.0, 2.0, 2.0]])
    assert np.array_equal(enforced(constraints)(z), [[3.0, 2.0, 1.0]])
    assert np.array_equal(enforced(constraints, ["b", "a", "total"])(z), [[4.0, 2.0, 2.0]])


def test_a_shield_of_pishield_gives_its_published_answer():
    text = "ordering y_0 y_1 y_2\n-y_0 >= -3\ny_0 >= 3\ny_0 - y_1 >= 0\n-y_0 - y_2 >= 0"
    found, order = from_requirements(text)
    constraints = linear_constraints(found, ["y_0", "y_1", "y_2"])
    got = enforced(constraints, order)(jnp.array([[-5.0, -2.0, -1.0]]))
    assert np.array_equal(got, [[3.0, -2.0, -3.0]])  # as its README says


def test_a_student_trains_with_all_three():
    constraints = linear_constraints("total >= a + b\na >= 0\nb >= 0", ("total", "a", "b"))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 4)).astype(np.float32)
    targets = np.abs(inputs[:, :3]) + np.array([2.0, 0.0, 0.0], np.float32)
    student = models.mlp([8], 3, outputs="regression")
    objective = weighted_sum(
        term("targets", 1.0, losses.squared_error_with_targets),
        encourage_linear("parts", 0.5, constraints, kind="squared"),
    )
    data = {"inputs": inputs, "targets": targets}
    how = dict(key=jax.random.key(0), steps=20, batch_size=32)
    model = enforce_linear(student, constraints)
    assert model == enforce_linear(student, constraints)
    trained, history = training.run(model, objective, optax.adam(0.05), data, **how)
    got = model.predict(trained.params, trained.state, inputs).logits
    assert (reference_violation(constraints, got) <= allowed(constraints, got)).all()
    assert np.isfinite(np.asarray(history["loss"])).all()
    with pytest.raises(ValueError, match="outputs='softmax'"):
        training.run(models.mlp([8], 3), objective, optax.adam(0.05), data, **how)


@pytest.mark.usefixtures("library_errors")
def test_what_does_not_fit_is_refused_by_name():
    constraints = constraints_of("halfspace")
    with pytest.raises(ValueError, match=r"predictions must have shape \[..., 3\].*got \(2,\)"):
        project_linear(constraints, jnp.zeros(2))
    with pytest.raises(TypeError, match="predictions must be floating"):
        project_linear(constraints, jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="weights must have shape"):
        encourage_linear("parts", 1.0, constraints, weights=jnp.ones(2))
    with pytest.raises(ValueError, match="outputs='softmax'.*outputs='regression'"):
        enforce_linear(models.mlp([4], 3), constraints)
    regression = models.mlp([4], 3, outputs="regression")
    with pytest.raises(ValueError, match="order must name each output once"):
        enforce_linear(regression, constraints, order=["total", "a"])


def test_too_many_bounds_are_refused_with_a_remedy():
    names = [f"x{i}" for i in range(9)]
    rng = np.random.default_rng(0)
    factors = rng.integers(-3, 4, (30, 9))
    sums = [" + ".join(map("{}*{}".format, row, names)) for row in factors]
    constraints = linear_constraints([f"{s} <= 1" for s in sums], names)
    with pytest.raises(RuleError, match="order, or use project_linear"):
        enforce_linear(models.mlp([4], 9, outputs="regression"), constraints)
    z = predictions(50, 9)
    got = rules.project_linear(constraints, z)
    bound = allowed(constraints, np.maximum(np.abs(got), np.abs(z)))
    assert (reference_violation(constraints, got) <= bound).all()


def test_contradictions_below_the_tolerance_of_the_solver_are_found_exactly():
    regression = models.mlp([4], 2, outputs="regression")
    for text in ("a >= 1\na <= b\nb <= 0.99999999999", "a == b\na == b + 1e-12"):
        with pytest.raises(RuleError, match="no outputs satisfy all constraints exactly"):
            enforce_linear(regression, linear_constraints(text, ("a", "b")))
    # Decimal numbers are exact: 0.1 + 0.2 is 0.3 here.
    enforce_linear(regression, linear_constraints("a >= 0.3\na <= 0.1 + 0.2", ("a", "b")))


def test_many_outputs_in_a_loop():
    names = [f"x{i}" for i in range(12)]
    chain = [f"{a} <= {b}" for a, b in zip(names, names[1:], strict=False)]
    constraints = linear_constraints([*chain, " + ".join(names) + " == 1"], names)
    z = predictions(500, 12)
    for corrected in (jax.jit(enforced(constraints))(z), project(constraints, z)):
        bound = allowed(constraints, np.maximum(np.abs(corrected), np.abs(z)))
        assert (reference_violation(constraints, corrected) <= bound).all()
