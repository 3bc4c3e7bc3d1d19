"""Execution plans for violations over label sets, prepared on the host.

Nearly every rule is violated where one conjunction holds: its body and the negation of its head.
Such a rule is *flat*: a guard on features, 0 or 1, and a few label literals. A label's gradient is
a sum over all its occurrences. They are sorted by label here, into short sums of a few occurrences
and a tree of sums over those, so compiled functions gather and never scatter. All other rules are
evaluated as a part of the circuit.

A plan consists of arrays, so compiled functions take it as an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.rules.circuits._algebra import BOOLEAN, evaluate, first_nodes
from distill_jax.rules.circuits._circuit import FALSE, TRUE, Circuit, Level
from distill_jax.rules.circuits._graph import nodes_of

SUMMED = {3: 16, 8: 4}
"""Maximum number of label literals of a flat rule -> number of parts per short sum."""


class Sums(NamedTuple):
    """A level of a tree of sums: row indices ``[sums, parts]``, and 1 for a part, 0 for padding."""

    index: Any
    live: Any


class Flat(NamedTuple):
    """Flat rules with a similar number of label literals.

    Indices refer to the rows: each label, 1 minus each label, then ONE, ZERO.

    Attributes:
      rule: Indices of these rules among all, ``[flat]``.
      guard: Nodes of the circuit that must hold, padded with TRUE, ``[flat, nodes]``; None if
        no rule has a guard.
      children: Label literals of each rule, padded with ONE, ``[literals, flat]``.
      chunks: The rules, grouped into short sums.
      slot: The rule of each occurrence of a student's label, in short sums of one label each,
        ``[sums, parts]``.
      own: The literal that occurs, ``[sums, parts]``.
      others: The other literals of that rule, ``[literals - 1, sums, parts]``.
      sign: 1 for the label, -1 for 1 minus the label, 0 for padding.
      tree: Sums of the short sums, to one row per label.
    """

    rule: Any
    guard: Any
    children: Any
    chunks: Sums
    slot: Any
    own: Any
    others: Any
    sign: Any
    tree: tuple[Sums, ...]


class Join(NamedTuple):
    """Children ``[n, fan in]`` of a level's nodes, and the sums of their gradients."""

    children: Any
    tree: tuple[Sums, ...]


class Rest(NamedTuple):
    """The part of a circuit that other rules need.

    Rows: as for ``Flat``, then nodes over features alone, then the nodes of each level.

    Attributes:
      rule: Indices of these rules among all, ``[rest]``.
      crisp: Nodes over features alone, in the whole circuit.
      levels: Conjunctions and disjunctions, whose children are ``Join``s.
      root: The rules' violations, ``[rest]``.
    """

    rule: Any
    crisp: Any
    levels: tuple[Level, ...]
    root: Join


class Plan(NamedTuple):
    """How violations of label sets are computed; made by ``plan``."""

    flat: tuple[Flat, ...]
    rest: Rest | None


def plan(circuit: Circuit, violated: Any, labels: int, views: int = 0) -> Plan:
    """Makes the execution plan of a book over label sets.

    Args:
      circuit: A circuit without soft comparisons.
      violated: The node of each rule's violation, ``[rules]``.
      labels: Number of labels.
      views: Number of further views.
    """
    circuit = jax.tree.map(np.asarray, circuit)
    graph = _Graph(circuit)
    total = labels * (1 + views)
    found = [graph.conjunction(int(v)) for v in violated]
    groups: dict[int, list[int]] = {}
    rest = []
    for i, parts in enumerate(found):
        if parts is None or len(parts[1]) > max(SUMMED):
            rest.append(i)
        else:
            groups.setdefault(min(n for n in SUMMED if n >= len(parts[1])), []).append(i)
    flat = []
    for _, own in sorted(groups.items()):
        crisp, literals = zip(*(parts for i in own if (parts := found[i])), strict=True)
        # A rule without labels is just its guard: a conjunction of ONE.
        rows = [[graph.row(n, total) for n in nodes] or [2 * total] for nodes in literals]
        flat.append(_flat(own, crisp, rows, labels, total))
    return Plan(tuple(flat), _rest(graph, rest, violated, labels, total) if rest else None)


def _flat(
    rules: list[int], crisp: Sequence[list[int]], literals: list[list[int]], labels: int, total: int
) -> Flat:
    children = _padded(literals, 2 * total)
    parts = next(parts for n, parts in SUMMED.items() if n >= children.shape[1])
    slot, place = np.nonzero((children < 2 * total) & (children % total < labels))
    own = children[slot, place]  # literals on the student's labels, not on a view's
    places, owners = _short_sums(own % total, parts)
    others = [np.delete(children[s], p) for s, p in zip(slot, place, strict=True)]
    if not others:  # no label occurs: indices need a valid target
        slot, own, others = np.zeros(1, int), np.zeros(1, int), [children[0, 1:]]
    sign = np.where(own < total, 1.0, -1.0)
    return Flat(
        rule=np.asarray(rules, np.int32),
        guard=_padded(crisp, TRUE) if any(crisp) else None,
        children=children.T.copy(),
        chunks=_short_sums(np.zeros(len(rules), np.int32), parts)[0],
        slot=slot[places.index].astype(np.int32),
        own=own[places.index].astype(np.int32),
        others=np.stack(others)[places.index].transpose(2, 0, 1).astype(np.int32),
        sign=(sign[places.index] * places.live).astype(np.float32),
        tree=_sum_tree(owners, labels),
    )


def _rest(graph: _Graph, rules: list[int], violated: Any, labels: int, total: int) -> Rest:
    roots = [int(violated[i]) for i in rules]
    needed = graph.below(roots)
    inner = [node for node in needed if graph.children(node)[0] and graph.of_labels[node]]
    below = {c for node in inner for c in graph.children(node)[1]} | set(roots)
    crisp = sorted(n for n in below if not graph.of_labels[n] and n not in (FALSE, TRUE))
    rows = {FALSE: 2 * total + 1, TRUE: 2 * total}
    rows |= {n: graph.row(n, total) for n in below - set(inner) if graph.of_labels[n]}
    start = 2 * total + 2
    rows |= {node: start + i for i, node in enumerate(crisp)}
    start += len(crisp)
    first_differentiable = start  # rows before it, except the literals, need no gradient
    levels = []
    for level in range(len(graph.circuit.levels)):
        joins = []
        made: dict[int, int] = {}
        for kind, neutral in (("and", 2 * total), ("or", 2 * total + 1)):
            own = [n for n in inner if graph.nodes[n][:2] == (kind, level)]
            lists = [[rows[c] for c in graph.children(n)[1]] for n in own]
            offset = start + len(made)
            made |= {node: offset + i for i, node in enumerate(own)}
            joins.append(
                _join(lists, neutral, start, labels, total, first_differentiable) if own else None
            )
        rows |= made
        start += len(made)
        levels.append(Level(*joins))
    root = _join([[rows[n]] for n in roots], 2 * total, start, labels, total, first_differentiable)
    return Rest(np.asarray(rules, np.int32), np.asarray(crisp, np.int32), tuple(levels), root)


def _join(
    lists: list[list[int]],
    neutral: int,
    number: int,
    labels: int,
    total: int,
    first_differentiable: int,
) -> Join:
    children = _padded(lists, neutral)
    flat = children.ravel()
    wanted = (flat >= first_differentiable) | ((flat < 2 * total) & (flat % total < labels))
    return Join(children, _sum_tree(np.where(wanted, flat, -1), number))


def _short_sums(owners: np.ndarray, parts: int) -> tuple[Sums, np.ndarray]:
    """Sums of at most ``parts`` rows of one owner, and the owners; rows of -1 are skipped."""
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] >= 0]
    chunks, of = [], []
    for group in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
        for i in range(0, len(group), parts):
            chunks.append(group[i : i + parts])
            of.append(owners[group[0]])
    return _sums(chunks), np.asarray(of, np.int32)


def _sum_tree(owners: np.ndarray, number: int, parts: int = 16) -> tuple[Sums, ...]:
    """Levels of sums that reduce rows to one sum per owner, of ``number`` owners."""
    levels = []
    while len(owners) and np.bincount(owners[owners >= 0], minlength=1).max() > parts:
        sums, owners = _short_sums(owners, parts)
        levels.append(sums)
    lists: list[list[int]] = [[] for _ in range(number)]
    for i, owner in enumerate(owners):
        if owner >= 0:
            lists[owner].append(i)
    return (*levels, _sums(lists))


def _sums(lists: Sequence[Any]) -> Sums:
    lists = lists or [[]]
    return Sums(_padded(lists, 0), _padded([np.ones(len(x)) for x in lists], 0).astype(np.float32))


def _padded(lists: Sequence[Any], fill: int) -> np.ndarray:
    """Lists as rows of an array, padded with ``fill`` to one length, at least 1."""
    table = np.full((len(lists), max(1, *map(len, lists), 1)), fill, np.int32)
    for i, own in enumerate(lists):
        table[i, : len(own)] = own
    return table


class _Graph:
    """A circuit's nodes on the host, and which of them depend on labels."""

    def __init__(self, circuit: Circuit):
        self.circuit = circuit
        self.nodes = nodes_of(circuit)
        self.of_labels = _depends_on_labels(circuit)

    def children(self, node: int) -> tuple[str, tuple[int, ...]]:
        """``("and", parts)``, ``("or", parts)``, or ``("", ())`` for a literal."""
        kind, _, children = self.nodes[node]
        return (kind, children) if kind in ("and", "or") else ("", ())

    def conjunction(self, node: int) -> tuple[list[int], list[int]] | None:
        """Feature nodes and label literals whose conjunction a node is; None if it is not one."""
        if not self.of_labels[node]:
            return ([] if node == TRUE else [node]), []
        kind, parts = self.children(node)
        if not kind:
            return [], [node]
        found = [self.conjunction(part) for part in parts] if kind == "and" else [None]
        if any(f is None for f in found):
            return None
        return [n for f in found if f for n in f[0]], [n for f in found if f for n in f[1]]

    def row(self, node: int, total: int) -> int:
        """The row of a label literal."""
        i = self.nodes[node].place
        return int(self.circuit.label[i]) + total * bool(self.circuit.negated[i])

    def below(self, roots: list[int]) -> list[int]:
        """All nodes that the roots depend on, including the roots, in order."""
        seen, stack = set(roots), list(roots)
        while stack:
            for child in self.children(stack.pop())[1]:
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return sorted(seen)


def _depends_on_labels(circuit: Circuit) -> np.ndarray:
    """Which nodes depend on labels, ``[nodes]``."""
    either = dataclasses.replace(BOOLEAN, conjunction=BOOLEAN.disjunction, true=False)
    features, labels = circuit.register.shape[0], circuit.label.shape[0]
    first = first_nodes(either, np.zeros((features, 1), bool), np.ones((labels, 1), bool))
    return evaluate(circuit.levels, first, either)[:, 0]
