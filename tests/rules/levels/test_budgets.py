"""Dual ascent: multipliers by their definition, and training that keeps to a budget."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.objectives import weighted_sum
from distill_jax.rules import bind, dual_ascent
from tests.rules import small_books
from tests.rules.levels import problem


def test_multipliers_move_by_the_mean_of_the_rows_that_count():
    logits, columns, views = small_books.data()
    where = jnp.array([True, True, False, True, False, True, True, False])
    budget = jnp.linspace(0.0, 0.5, 6)
    ascent = dual_ascent("d", 2.0, small_books.book(), budget=budget, step_size=0.5)
    objective = weighted_sum(ascent)

    def value_of(multipliers, logits, where, denominators=None):
        state = {"d": {"multipliers": multipliers}}
        return small_books.value_of(
            objective, {}, logits, columns, views,
            state=state, denominators=denominators, where=where,
        )  # fmt: skip

    run = small_books.quick(jax.value_and_grad(value_of, has_aux=True))
    start = jnp.full(6, 0.1)
    (value, (parts, new)), slopes = run(start, logits, where)
    violated = small_books.violations(logits, columns, views["later"].logits)[np.asarray(where)]
    np.testing.assert_allclose(value, 2 * 0.1 * violated.sum(1).mean(), rtol=2e-6)
    moved = np.maximum(0.1 + 0.5 * (violated.mean(0) - np.asarray(budget)), 0.0)
    np.testing.assert_allclose(new["d"]["multipliers"], moved, rtol=1e-5, atol=1e-7)
    assert (moved == 0).any() and (moved > 0.1).any()
    assert parts["d"].count == 5
    np.testing.assert_array_equal(slopes, 0.0)
    (nothing, (_, same)), _ = run(start, logits * jnp.nan, jnp.zeros(8, bool))
    assert nothing == 0.0
    np.testing.assert_allclose(same["d"]["multipliers"], 0.1)
    with pytest.raises(ValueError, match="couples the examples"):
        value_of(start, logits, None, {"d": jnp.array(8.0)})


def test_it_reaches_the_budget_and_lets_go_of_what_is_satisfied():
    rules = bind("x > 0 => yes\nx > 0 and y > 0 => yes", problem.SCHEMA)
    without, _ = problem.violated(rules, problem.trained_without_rules())
    budget = 0.05
    assert without[0] > 1.5 * budget > budget > without[1]
    terms = problem.LABELS, dual_ascent("rules", 1.0, rules, budget=budget, step_size=1.0)
    end, _ = problem.train(*terms, steps=600)
    longer, _ = problem.train(*terms, steps=600, initial=end)
    mean, _ = problem.violated(rules, end)
    multipliers = np.asarray(end.term_state["rules"]["multipliers"])
    assert abs(mean[0] - budget) < 0.005, mean
    assert multipliers[0] > 1.0
    np.testing.assert_allclose(
        longer.term_state["rules"]["multipliers"][0], multipliers[0], rtol=0.05
    )
    assert mean[1] < budget and multipliers[1] == 0.0


def test_complaints(library_errors):
    rules = small_books.book()
    with pytest.raises(ValueError, match="budget must lie in"):
        dual_ascent("rules", 1.0, rules, budget=1.5, step_size=1.0)
    with pytest.raises(ValueError, match=r"budget must have shape \(6,\)"):
        dual_ascent("rules", 1.0, rules, budget=jnp.zeros(2), step_size=1.0)
    with pytest.raises(ValueError, match="step_size must be finite and > 0"):
        dual_ascent("rules", 1.0, rules, budget=0.1, step_size=0.0)
    with pytest.raises(ValueError, match="reads of term 'rules' names 'column'"):
        dual_ascent("rules", 1.0, rules, budget=0.1, step_size=1.0, reads={"column": "inputs"})
