"""Random circuits and rows, and what each node is in a loop of plain Python."""

from __future__ import annotations

import functools
import random

import numpy as np

from distill_jax.rules import Logic
from distill_jax.rules.circuits import fuzzy_logics
from distill_jax.rules.circuits._building import Builder, Interval
from distill_jax.rules.circuits._circuit import Circuit

COLUMNS, LABELS, RULES, BATCH = (
    4,
    3,
    20,
    300,
)  # 300 rows are three tiles, of which the last goes back


def random_circuit(seed: int, rules: int, *, labels: bool, flat: bool = False):
    """A builder, and the nodes of some formulas."""
    draw = random.Random(seed)
    build = Builder(COLUMNS)
    registers = [*range(COLUMNS), build.arithmetic("-", 0, 1), build.constant(0.5)]

    def literal():
        kind = draw.random()
        if labels and kind < 0.6:
            return build.label(draw.randrange(2 * LABELS), draw.random() < 0.5)
        low = draw.choice([-np.inf, -1.0, 0.0])
        high = draw.choice([np.inf, 0.5, 1.0])
        missing = draw.random() < 0.1
        ends = (-np.inf, np.inf, True) if missing else (low, high, False)
        return build.interval(Interval(draw.choice(registers), *ends))

    def formula(depth):
        if depth == 0:
            return literal()
        parts = [formula(depth - 1) for _ in range(draw.randint(2, 3))]
        return build.all(parts) if draw.random() < 0.5 else build.any(parts)

    if flat:
        nodes = [build.all([literal() for _ in range(draw.randint(1, 5))]) for _ in range(rules)]
    else:
        nodes = [formula(draw.randint(0, 3)) for _ in range(rules)]
    circuit, places = build.circuit(nodes)
    return circuit, places


def values_of(circuit: Circuit, columns: np.ndarray, labels: np.ndarray | None, logic: str):
    """Every node, row by row and one after another, in float64. [nodes, batch]"""
    registers = [*columns.T.astype(np.float64)]
    registers += [np.full(len(columns), c) for c in np.asarray(circuit.constants)]
    for step in circuit.arithmetic:
        new = []
        for op, a, b in zip(*(np.asarray(x) for x in step), strict=True):
            assert op == 1
            new.append(np.float32(registers[a]) - np.float32(registers[b]))
        registers += new
    nodes = [np.zeros(len(columns)), np.ones(len(columns))]
    for register, low, high, inverted in zip(
        *(np.asarray(x) for x in (circuit.register, circuit.low, circuit.high, circuit.inverted)),
        strict=True,
    ):
        x = registers[register]
        nodes.append((((low <= x) & (x <= high)) != inverted).astype(float))
    for label, negated in zip(np.asarray(circuit.label), np.asarray(circuit.negated), strict=True):
        q = np.ones(len(columns)) if labels is None else labels[:, label].astype(np.float64)
        nodes.append(1 - q if negated and labels is not None else q)
    for level in circuit.levels:
        conjunction, disjunction = JOINS[logic]
        ands = [conjunction(np.array([nodes[c] for c in own])) for own in np.asarray(level.ands)]
        ors = [disjunction(np.array([nodes[c] for c in own])) for own in np.asarray(level.ors)]
        nodes += ands + ors
    return np.array(nodes)


def einstein(a, b):
    """The Einstein product, a t-norm that the library does not bring along."""
    return a * b / (1.0 + (1.0 - a) * (1.0 - b))


def _einstein_all(p):
    return functools.reduce(einstein, p)


JOINS = {
    "product": (lambda p: p.prod(0), lambda p: 1 - (1 - p).prod(0)),
    "lukasiewicz": (
        lambda p: np.maximum(0, 1 - (1 - p).sum(0)),
        lambda p: np.minimum(1, p.sum(0)),
    ),
    "godel": (lambda p: p.min(0), lambda p: p.max(0)),
    "einstein": (_einstein_all, lambda p: 1 - _einstein_all(1 - p)),
}
"""And and or of children ``[n, batch]``."""

LOGICS = fuzzy_logics.LOGICS | {"einstein": Logic.from_t_norm("einstein", einstein)}


@functools.cache
def table(batch: int = BATCH):
    rng = np.random.default_rng(0)
    columns = rng.choice([-2, -1.0, -0.3, 0.0, 0.5, 0.7, 1.0, 3.0, np.nan], (batch, COLUMNS))
    probabilities = rng.uniform(0.02, 0.98, (batch, 2 * LABELS))
    return columns.astype(np.float32), probabilities.astype(np.float32)
