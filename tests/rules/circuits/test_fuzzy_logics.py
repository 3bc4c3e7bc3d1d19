"""Logics as values: those that come along, and a user's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.rules import Column, Logic, Schema, bind, log_truth, truth, violation
from distill_jax.rules.circuits.fuzzy_logics import LOGICS
from distill_jax.rules.logic import evaluation
from tests import laws
from tests.rules.random_circuits import JOINS, einstein
from tests.rules.random_circuits import LOGICS as WITH_EINSTEIN

TEXT = "x > 0 and a => b\nexactly_one(a, b, c)\nnot (a and b and c)"
SCHEMA = Schema((Column("x"),), ("a", "b", "c"), exclusive=False)
EINSTEIN = Logic.from_t_norm("einstein", einstein)


@pytest.mark.quick
@pytest.mark.usefixtures("library_errors")
def test_the_four_go_by_name() -> None:
    for name, logic in LOGICS.items():
        book = bind(TEXT, SCHEMA, logic=name)  # type: ignore[arg-type]
        assert book.info.logic is logic and logic.name == name and repr(logic) == f"<Logic {name}>"
        assert bind(TEXT, SCHEMA, logic=logic).info == book.info
    with pytest.raises(ValueError, match="logic must be one of .*'godel'.*or a Logic, got 'fuzzy'"):
        bind(TEXT, SCHEMA, logic="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logic must be one of .*got 3"):
        bind(TEXT, SCHEMA, logic=3)  # type: ignore[arg-type]


def test_equal_functions_make_equal_logics() -> None:
    assert EINSTEIN == Logic.from_t_norm("einstein", einstein)
    assert hash(EINSTEIN) == hash(Logic.from_t_norm("einstein", einstein))
    assert EINSTEIN != Logic.from_t_norm("einstein", lambda a, b: einstein(a, b))
    with pytest.raises(ValueError, match="name must be a non-empty string"):
        Logic.from_t_norm("", einstein)


def test_a_logic_of_ones_own() -> None:
    book = bind(TEXT, SCHEMA, logic=EINSTEIN)
    p = np.random.default_rng(0).uniform(0, 1, (5, 3)).astype(np.float32)
    a, b, c = p.T.astype(np.float64)
    got = jax.jit(violation)(book, np.ones((5, 1), np.float32), p)
    laws.close(got[:, 0], einstein(a, 1 - b), rtol=1e-5, atol=1e-6)
    laws.close(got[:, 2], einstein(einstein(a, b), c), rtol=1e-5, atol=1e-6)
    at_zero = violation(book, -np.ones((5, 1), np.float32), p)
    assert not at_zero[:, 0].any()
    corners = np.array(np.meshgrid(*[[0, 1]] * 3), np.float32).reshape(3, -1).T
    columns = np.ones((8, 1), np.float32)
    laws.close(
        truth(book, columns, corners),
        truth(bind(TEXT, SCHEMA), columns, corners),
        rtol=0,
        atol=1e-6,
    )
    logits = jnp.log(p) - jnp.log1p(-p)
    logs = log_truth(book, np.ones((5, 1), np.float32), logits)
    laws.close(logs, jnp.log(1 - got), rtol=1e-4, atol=1e-6)


def test_a_logic_of_ones_own_has_its_gradient_in_tiles_too(monkeypatch) -> None:
    book = bind(TEXT, SCHEMA, logic=EINSTEIN)
    rng = np.random.default_rng(1)
    columns = rng.choice([-1.0, 1.0], (150, 1)).astype(np.float32)
    p, weights = rng.uniform(0, 1, (150, 3)).astype(np.float32), np.ones(3, np.float32)

    def both(p, weights):
        def total(p, weights):
            return evaluation.weighted_violation(book, columns, p, weights, squared=True).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1)))(p, weights)

    at_once = both(p, weights)
    monkeypatch.setattr(evaluation, "SMALL_SUMS", 0)
    jax.tree.map(lambda a, b: laws.close(a, b, rtol=1e-4, atol=1e-5), both(p, weights), at_once)


def test_a_disjunction_and_a_rescaling_of_ones_own() -> None:
    def total(a, b):
        return jnp.minimum(a + b, 1.0)

    logic = Logic.from_t_norm("mixed", jnp.multiply, total, rescale=jnp.square)
    book = bind("not (a or b)", SCHEMA, logic=logic)
    p = np.array([[0.25, 0.5, 0.0], [0.75, 0.5, 0.0]], np.float32)
    # Formulas are in negation normal form: the violation is "a or b", and squared.
    laws.close(violation(book, np.ones((2, 1), np.float32), p)[:, 0], [0.75**2, 1.0], rtol=1e-6)


def test_equal_parts_share_the_gradient_of_a_minimum() -> None:
    """A student that starts at 0 has all its labels equal."""
    for logic, want in (("godel", 1 / 3), ("lukasiewicz", 0.0), ("product", 0.25)):
        algebra = LOGICS[logic].algebra
        slopes = jax.grad(lambda x, a=algebra: a.conjunction(list(x)).sum())(jnp.full((3, 1), 0.5))
        laws.close(slopes, np.full((3, 1), want), rtol=1e-6)
        slopes = jax.grad(lambda x, a=algebra: a.disjunction(list(x)).sum())(jnp.full((3, 1), 0.5))
        laws.close(slopes, np.full((3, 1), want), rtol=1e-6)
    at_the_kink = jax.grad(lambda x: LOGICS["lukasiewicz"].algebra.conjunction([x, x]))(0.5)
    assert at_the_kink == 1.0  # two halves


def test_gradients_are_those_of_plain_formulas() -> None:
    """Of every logic, by differences in float64 that share no code with the library."""
    rng = np.random.default_rng(3)
    parts = rng.uniform(0.05, 0.95, (3, 200))  # on both sides of Lukasiewicz's kink
    for logic, joins in JOINS.items():
        algebra = WITH_EINSTEIN[logic].algebra
        for own, join in zip((algebra.conjunction, algebra.disjunction), joins, strict=True):
            got = jax.jit(jax.grad(lambda x, own=own: own(list(x)).sum()))(np.float32(parts))
            for i in range(3):
                step = np.zeros((3, 1))
                step[i] = 1e-6
                want = (join(parts + step) - join(parts - step)) / 2e-6
                smooth = np.abs(join(parts + step) - 2 * join(parts) + join(parts - step)) < 1e-9
                assert smooth.mean() > 0.9
                laws.close(got[i][smooth], want[smooth], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("library_errors")
def test_what_is_no_logic_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be a non-empty string other than"):
        Logic.from_t_norm("product", jnp.multiply)
    for argument in ("t_norm", "t_conorm", "rescale"):
        functions = {"t_norm": jnp.multiply, argument: 3}
        with pytest.raises(TypeError, match=f"{argument} must be a function, got 3"):
            Logic.from_t_norm("own", **functions)
    with pytest.raises((TypeError, ValueError), match="product"):
        bind("not (a or b)", SCHEMA, logic=["product"])
