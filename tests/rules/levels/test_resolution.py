"""Hard rules of any form over label sets, enforced in an order of the labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import models, rules
from distill_jax.rules import Column, RuleError, Schema, bind, enforce, from_requirements

LABELS = ("a", "b", "c", "d", "e")


def model_of(number):
    """A model whose logits are its inputs."""
    return models.from_function(
        lambda key, x: (), lambda params, x: x[:, -number:], outputs="multi_label"
    )


def nothing(inputs):
    return inputs[:, :0]


def first(inputs):
    return inputs[:, :1]


def random_clauses(rng):
    """Clauses that some set of labels satisfies."""
    hidden = rng.integers(0, 2, 5).astype(bool)
    clauses = []
    while len(clauses) < 9:
        chosen = rng.choice(5, rng.integers(1, 4), replace=False)
        signs = rng.integers(0, 2, len(chosen)).astype(bool)
        if (signs == hidden[chosen]).any():
            clauses.append(list(zip(chosen.tolist(), signs.tolist(), strict=True)))
    return clauses


@pytest.mark.quick
@pytest.mark.parametrize("seed", range(4))
def test_every_clause_holds_for_what_is_predicted(seed):
    rng = np.random.default_rng(seed)
    clauses = random_clauses(rng)
    text = "\n".join(
        "[hard] " + " or ".join(f"{'' if sign else 'not '}{LABELS[i]}" for i, sign in clause)
        for clause in clauses
    )
    book = bind(text, Schema((), LABELS, exclusive=False), conflicts="ignore")
    order = rng.permutation(LABELS).tolist()
    safe = enforce(model_of(5), book, columns=nothing, order=order)
    z = rng.normal(0, 2, (2000, 5)).astype(np.float32)
    z[:50] = 0.0  # an untrained model: no label is decided
    z[50:60, 0] = -np.inf
    got = np.asarray(safe.predict((), None, jnp.asarray(z)).logits)
    for on in (got > 0, np.asarray(jax.nn.sigmoid(got)) > 0.5):
        for clause in clauses:
            assert np.any([on[:, i] == sign for i, sign in clause], axis=0).all(), clause
    before = z[60:] > 0
    fine = np.all([np.any([before[:, i] == s for i, s in c], axis=0) for c in clauses], axis=0)
    assert np.array_equal(got[60:][fine] > 0, before[fine])  # satisfied predictions stay


def test_exclusions_and_alternatives_follow_the_order():
    schema = Schema((), ("cat", "dog"), exclusive=False)
    book = bind("[hard] not (cat and dog)\n[hard] cat or dog", schema)
    model, z = model_of(2), jnp.array([[1.0, 2.0], [-1.0, -2.0]])
    for order, want in (
        (("cat", "dog"), [[1.0, -1.0], [-1.0, 1.0]]),
        (("dog", "cat"), [[-2.0, 2.0], [2.0, -2.0]]),
    ):
        safe = enforce(model, book, columns=nothing, order=order)
        assert np.array_equal(safe.predict((), None, z).logits, want)
        assert safe == enforce(model, book, columns=nothing, order=list(order))
    slope = jax.grad(lambda z: safe.predict((), None, z).logits.sum())(jnp.zeros((1, 2)))
    assert np.isfinite(slope).all()


def test_conditions_on_columns_decide_where_a_clause_holds():
    schema = Schema((Column("age"),), ("child", "driver"), exclusive=False)
    book = bind("[hard] age < 18 => child\n[hard] not (child and driver)", schema)
    safe = enforce(model_of(2), book, columns=first, order=("driver", "child"))
    inputs = jnp.array([[10.0, -3.0, 2.0], [30.0, -3.0, 2.0], [np.nan, -3.0, 2.0]])
    got = np.asarray(safe.predict((), None, inputs).logits) > 0
    assert got.tolist() == [[True, False], [False, True], [False, True]]


def test_pishields_clauses_are_enforced():
    clauses, order = from_requirements("y_0 or not y_1 or y_2\nnot y_0 or not y_1\ny_1 or y_2")
    book = bind(clauses, Schema((), order, exclusive=False))
    with pytest.raises(RuleError, match="demands one of .* Pass order to enforce"):
        enforce(model_of(3), book, columns=nothing)
    safe = enforce(model_of(3), book, columns=nothing, order=order)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(500, 3)), jnp.float32)
    on = safe.predict((), None, z).logits > 0
    assert rules.violation(book, jnp.zeros((500, 0)), on.astype(jnp.float32)).max() == 0


def test_orders_and_books_that_do_not_fit():
    schema = Schema((), ("a", "b"), exclusive=False)
    book = bind("[hard] a or b", schema)
    with pytest.raises(ValueError, match="order must name each label once"):
        enforce(model_of(2), book, columns=nothing, order=["a"])
    exclusive = bind("[hard] not a", Schema((), ("a", "b")))
    with pytest.raises(ValueError, match="order is for label sets"):
        enforce(models.mlp([2], 2), exclusive, columns=nothing, order=["a", "b"])
    clashing = bind("[hard] a\n[hard] not a", schema, conflicts="ignore")
    with pytest.raises(RuleError, match="no set of labels satisfies all hard rules"):
        enforce(model_of(2), clashing, columns=nothing, order=["a", "b"])
