"""One evaluator, whatever and and or mean: against a loop in plain Python."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.rules.circuits._algebra import (
    BITS,
    BOOLEAN,
    Algebra,
    all_children,
    each_child,
    evaluate,
    first_nodes,
    label_literals,
)
from distill_jax.rules.circuits._graph import nodes_of
from distill_jax.rules.circuits._log_pairs import LOG_PAIRS
from tests import laws
from tests.rules.random_circuits import JOINS, LOGICS, random_circuit, table, values_of


@pytest.fixture(scope="module")
def setting():
    """A circuit, columns, probabilities, and the literals on features, ``[literals, batch]``."""
    circuit, _ = random_circuit(4, 30, labels=True)
    columns, labels = table(40)
    features = values_of(circuit, columns, labels, "godel")[2 : 2 + len(circuit.register)]
    return circuit, columns, labels, features.astype(np.float32)


@pytest.mark.quick
@pytest.mark.parametrize("logic", JOINS)
def test_truths(setting, logic) -> None:
    circuit, columns, labels, features = setting
    algebra = LOGICS[logic].algebra
    literals = label_literals(circuit, jnp.asarray(labels.T), algebra)
    first = first_nodes(algebra, jnp.asarray(features), literals)
    want = values_of(circuit, columns, labels, logic)
    for gather in (all_children, each_child):
        got = evaluate(circuit.levels, first, algebra, gather=gather)
        laws.close(got, want, rtol=1e-5, atol=1e-6)


def test_booleans_here_and_on_the_host(setting) -> None:
    circuit, columns, _, features = setting
    possible = np.ones((len(circuit.label), len(columns)), bool)
    want = values_of(circuit, columns, None, "godel") == 1
    first = first_nodes(BOOLEAN, features > 0, possible)
    host = evaluate(circuit.levels, first, BOOLEAN)
    assert isinstance(host, np.ndarray) and host.dtype == bool
    np.testing.assert_array_equal(host, want)
    first = first_nodes(BOOLEAN, jnp.asarray(features > 0), jnp.asarray(possible))
    np.testing.assert_array_equal(evaluate(circuit.levels, first, BOOLEAN), want)


def test_bits_are_eight_booleans(setting) -> None:
    circuit, columns, _, features = setting
    possible = np.ones((len(circuit.label), len(columns)), bool)
    packed = [jnp.asarray(np.packbits(x > 0, axis=1)) for x in (features, possible)]
    got = evaluate(circuit.levels, first_nodes(BITS, *packed), BITS, gather=each_child)
    want = values_of(circuit, columns, None, "godel") == 1
    np.testing.assert_array_equal(np.unpackbits(np.asarray(got), axis=1), want)


def test_pairs_of_logarithms_are_product_logic(setting) -> None:
    circuit, columns, labels, features = setting
    held, p = jnp.asarray(features), jnp.asarray(labels.T)

    def nodes(held, p):
        literals = label_literals(circuit, (jnp.log(p), jnp.log1p(-p)), LOG_PAIRS)
        first = first_nodes(LOG_PAIRS, (jnp.log(held), jnp.log1p(-held)), literals)
        return evaluate(circuit.levels, first, LOG_PAIRS)

    want = values_of(circuit, columns, labels, "product")
    yes, no = jax.jit(nodes)(held, p)
    laws.close(jnp.exp(yes), want, rtol=1e-5, atol=1e-6)
    laws.close(jnp.exp(no), 1 - want, rtol=1e-5, atol=1e-6)


def test_any_pair_of_functions_is_an_algebra(setting) -> None:
    """How many literals a formula has, counted on the host."""
    circuit, *_ = setting

    def total(parts):
        return sum(parts[1:], parts[0])

    counts = Algebra(total, total, operator.neg, false=0, true=0)
    ones = np.ones((circuit.number_of_literals, 1), int)
    got = evaluate(circuit.levels, first_nodes(counts, ones), counts)[:, 0]
    want: list[int] = []
    for node in nodes_of(circuit):
        is_literal = node.kind in ("interval", "label")
        want.append(1 if is_literal else sum(want[c] for c in node.children))
    assert got.tolist() == want
    assert len(want) == 2 + circuit.number_of_nodes
