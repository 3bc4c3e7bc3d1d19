"""The nodes of a circuit as a list on the host, from its arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from distill_jax.rules.circuits._circuit import FALSE, TRUE, Circuit


class Node(NamedTuple):
    """A node of a circuit.

    Attributes:
      kind: ``"interval"``, ``"label"``, ``"and"`` or ``"or"``; FALSE is an ``"or"`` and TRUE an
        ``"and"`` without children.
      place: Its index among the circuit's intervals or literals on labels, or that of its level; -1
        for FALSE and TRUE.
      children: The indices of its children, without padding.
    """

    kind: str
    place: int
    children: tuple[int, ...] = ()


def nodes_of(circuit: Circuit) -> list[Node]:
    """Every node, in the order of the arrays."""
    found = [Node("or", -1), Node("and", -1)]  # FALSE, TRUE
    found += [Node("interval", i) for i in range(circuit.register.shape[0])]
    found += [Node("label", i) for i in range(circuit.label.shape[0])]
    for i, level in enumerate(circuit.levels):
        tables: tuple[tuple[str, int, Any], ...] = (
            ("and", TRUE, level.ands),
            ("or", FALSE, level.ors),
        )
        for kind, padding, table in tables:
            rows = np.asarray(table).tolist()
            found += [Node(kind, i, tuple(c for c in row if c != padding)) for row in rows]
    return found
