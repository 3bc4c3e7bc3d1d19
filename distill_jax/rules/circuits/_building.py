"""Construction of circuits on the host, one node at a time; equal nodes are shared."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax.rules.circuits._circuit import FALSE, TRUE, Arithmetic, Circuit, Level

FAN_IN = 8
"""Nodes with more children are split into trees, so that padding stays small."""


MOST_COUNTED = 200_000
"""Conjunctions that one ``at_least`` may be made of."""


MOST_SUMS = 20_000
"""Different sums of the weights of one ``weighted_at_least``."""


class TooManyNodes(Exception):
    """An ``at_least`` or ``weighted_at_least`` of more than ``MOST_COUNTED`` conjunctions."""


class Interval(NamedTuple):
    """A literal on features; see ``Circuit``.

    The ends are float32 numbers, or whatever is ordered: ``Builder.circuit`` is told what they are.
    """

    register: int
    low: Any
    high: Any
    inverted: bool = False
    width: float = 0.0


class Builder:
    """Builds a circuit on the host. Nodes are numbers, and equal nodes have the same number.

    Registers are numbers, too: the columns from 0, then constants and results of arithmetic.
    Columns that turn up on the way are -1, -2 and so on; in the circuit they follow the others.
    """

    def __init__(self, columns: int):
        self.columns = columns
        self.nodes: list[Any] = [None, None]  # FALSE, TRUE
        self._heights = [0, 0]
        self._known: dict[Any, int] = {}
        self._registers: dict[Any, int] = {}
        self._sealed: set[int] = set()  # conjunctions that others do not take apart
        self._made: list[tuple[Any, int]] = []  # the operation of each new register, and its depth

    # Registers

    def constant(self, value: float) -> int:
        """The register of a number."""
        return self._register(("constant", float(value)), 0)

    def arithmetic(self, operator: str, left: int, right: int) -> int:
        """The register of ``left operator right``."""
        depth = 1 + max(self._depth(left), self._depth(right))
        return self._register(("+-*/".index(operator), left, right), depth)

    def _register(self, key: Any, depth: int) -> int:
        if key not in self._registers:
            self._registers[key] = self.columns + len(self._made)
            self._made.append((key, depth))
        return self._registers[key]

    def _depth(self, register: int) -> int:
        return 0 if register < self.columns else self._made[register - self.columns][1]

    # Nodes

    def interval(self, literal: Interval) -> int:
        """``low <= register <= high``; FALSE for an empty interval."""
        if not literal.inverted and literal.low > literal.high:
            return FALSE
        return self._node(literal)

    def label(self, index: int, negated: bool) -> int:
        """A literal on a label."""
        return self._node(("label", index, negated))

    def all(self, parts: Iterable[int]) -> int:
        """The conjunction. Intervals of one register are intersected; a contradiction is FALSE."""
        flat = self._flat("and", parts)
        if FALSE in flat:
            return FALSE
        flat = self._meet([part for part in flat if part != TRUE])
        if FALSE in flat or self._opposed(flat):
            return FALSE
        return self._join("and", flat, TRUE)

    def sealed(self, parts: Iterable[int]) -> int:
        """The conjunction, which stays one child of the conjunctions that it is a part of.

        So a long conjunction that many others share costs each of them one child. Intervals of one
        register are intersected among its own parts only.
        """
        node = self.all(parts)
        if self.children(node)[0] == "and":
            self._sealed.add(node)
        return node

    def any(self, parts: Iterable[int]) -> int:
        """The disjunction."""
        flat = self._flat("or", parts)
        if TRUE in flat or self._opposed(flat):
            return TRUE
        return self._join("or", [part for part in flat if part != FALSE], FALSE)

    def at_least(self, number: int, parts: list[int]) -> int:
        """``number`` of the parts or more, as conjunctions and disjunctions of halves.

        Raises:
          TooManyNodes: if these are more than ``MOST_COUNTED``.
        """
        known: dict[tuple[int, int, int], int] = {}
        if _conjunctions(number, len(parts)) > MOST_COUNTED:
            raise TooManyNodes

        def count(n: int, start: int, stop: int) -> int:
            if n <= 0:
                return TRUE
            if n > stop - start:
                return FALSE
            if n == 1:
                return self.any(parts[start:stop])
            if n == stop - start:
                return self.all(parts[start:stop])
            if (n, start, stop) not in known:
                half = (start + stop) // 2
                # Of the first half at most all, and of the second half at most all.
                numbers = range(max(0, n - (stop - half)), min(n, half - start) + 1)
                splits = [
                    self.all([count(i, start, half), count(n - i, half, stop)]) for i in numbers
                ]
                known[n, start, stop] = self.any(splits)
            return known[n, start, stop]

        return count(number, 0, len(parts))

    def weighted_at_least(self, number: int, parts: Sequence[int], weights: Sequence[int]) -> int:
        """Where the weights > 0 of the parts that hold add up to ``number`` or more.

        As ``at_least``, by halves: of the sums that the first half can have, the least that leaves
        each sum to the second.

        Raises:
          TooManyNodes: if these are more than ``MOST_COUNTED``, or of more than ``MOST_SUMS`` sums.
        """
        if len(set(weights)) <= 1:
            return self.at_least(-(-number // weights[0]) if weights else number, list(parts))
        order = sorted(range(len(parts)), key=lambda i: weights[i])  # equal ones have few sums
        nodes, own = [parts[i] for i in order], [weights[i] for i in order]
        sums: dict[tuple[int, int], list[int]] = {}
        known: dict[tuple[int, int, int], int] = {}
        made = 0

        def sums_of(start: int, stop: int) -> list[int]:
            if stop - start == 1:
                return [0, own[start]]
            if (start, stop) not in sums:
                half = (start + stop) // 2
                left, right = sums_of(start, half), sums_of(half, stop)
                if len(left) * len(right) > MOST_COUNTED:
                    raise TooManyNodes
                found = sorted({a + b for a in left for b in right})
                if len(found) > MOST_SUMS:
                    raise TooManyNodes
                sums[start, stop] = found
            return sums[start, stop]

        def reached(n: int, start: int, stop: int) -> int | None:
            """The least sum that is ``n`` or more."""
            every = sums_of(start, stop)
            place = bisect.bisect_left(every, n)
            return every[place] if place < len(every) else None

        def count(n: int, start: int, stop: int) -> int:
            nonlocal made
            if n <= 0:
                return TRUE
            if stop - start == 1:
                return nodes[start]  # n is its weight: a sum that it has
            if (n, start, stop) not in known:
                half, splits, last = (start + stop) // 2, [], None
                for a in sums_of(start, half):
                    b = reached(n - a, half, stop)
                    if b is not None and b != last:  # a larger sum for the same rest adds nothing
                        last, made = b, made + 1
                        if made > MOST_COUNTED:
                            raise TooManyNodes
                        splits.append(self.all([count(a, start, half), count(b, half, stop)]))
                    if b == 0:
                        break
                known[n, start, stop] = self.any(splits)
            return known[n, start, stop]

        wanted = reached(number, 0, len(nodes))
        return FALSE if wanted is None else count(wanted, 0, len(nodes))

    def height(self, node: int) -> int:
        """The levels of conjunctions and disjunctions up to a node."""
        return self._heights[node]

    def children(self, node: int) -> tuple[str, tuple[int, ...]]:
        """``("and", parts)``, ``("or", parts)``, or ``("", ())`` of a literal."""
        made = self.nodes[node]
        return made if isinstance(made, tuple) and made[0] in ("and", "or") else ("", ())

    def _node(self, key: Any) -> int:
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(key)
            inner = key[1] if key[0] in ("and", "or") else ()
            self._heights.append(1 + max(map(self._heights.__getitem__, inner)) if inner else 0)
        return self._known[key]

    def _flat(self, kind: str, parts: Iterable[int]) -> list[int]:
        found: dict[int, None] = {}
        for part in parts:
            inner_kind, inner = self.children(part)
            whole = inner_kind != kind or part in self._sealed
            found.update(dict.fromkeys((part,) if whole else inner))
        return list(found)

    def _meet(self, parts: list[int]) -> list[int]:
        """The parts with the intervals of each register intersected; FALSE if one is empty."""
        met: dict[Any, Interval] = {}
        others = []
        for part in parts:
            literal = self.nodes[part]
            if not isinstance(literal, Interval):
                others.append(part)
                continue
            # Soft literals are not intersected: the truth of their conjunction is a product.
            key = literal if literal.width else (literal.register, literal.inverted)
            if key in met and not literal.inverted:
                old = met[key]
                low, high = max(old.low, literal.low), min(old.high, literal.high)
                literal = Interval(literal.register, low, high)
            met[key] = literal
        for literal in met.values():  # a missing value lies in no interval
            if literal.inverted and (literal.register, False) in met:
                return [FALSE]
        return [self.interval(literal) for literal in met.values()] + others

    def _opposed(self, parts: list[int]) -> bool:
        """Whether a label and its negation are among the parts."""
        labels = {self.nodes[p][1:] for p in parts if _is_label(self.nodes[p])}
        return any((index, not negated) in labels for index, negated in labels)

    def _join(self, kind: str, parts: list[int], neutral: int) -> int:
        if not parts:
            return neutral
        if len(parts) == 1:
            return parts[0]
        return self._node((kind, tuple(sorted(parts))))

    # Arrays

    def circuit(
        self,
        outputs: list[int],
        further: int = 0,
        ends: Callable[[Sequence[Interval]], tuple[Any, Any]] | None = None,
    ) -> tuple[Circuit, np.ndarray]:
        """The circuit that computes ``outputs``, and the outputs' indices among its nodes.

        Args:
          outputs: Nodes.
          further: The number of columns that turned up on the way.
          ends: Maps intervals to their lower and upper ends in float32; the default takes their
            own.
        """
        nodes, outputs = self._balanced(outputs)
        intervals = [n for n in nodes if isinstance(self.nodes[n], Interval)]
        labels = [n for n in nodes if _is_label(self.nodes[n])]
        place = {FALSE: FALSE, TRUE: TRUE}
        for node in (*intervals, *labels):
            place[node] = len(place)
        by_height: dict[int, tuple[list[int], list[int]]] = {}
        for node in nodes:
            if node not in place:
                ands, ors = by_height.setdefault(self._heights[node], ([], []))
                (ands if self.nodes[node][0] == "and" else ors).append(node)
        levels = []
        for _, (ands, ors) in sorted(by_height.items()):
            level = Level(
                _padded([[place[c] for c in self.nodes[n][1]] for n in ands], TRUE),
                _padded([[place[c] for c in self.nodes[n][1]] for n in ors], FALSE),
            )
            for node in (*ands, *ors):
                place[node] = len(place)
            levels.append(level)
        literals = [self.nodes[n] for n in intervals]
        constants, arithmetic, moved = self._program(further)
        low, high = [x.low for x in literals], [x.high for x in literals]
        if ends is not None:
            low, high = ends(literals)
        circuit = Circuit(
            constants=np.asarray(constants, np.float32),
            arithmetic=arithmetic,
            register=np.asarray([moved[x.register] for x in literals], np.int32),
            low=np.asarray(low, np.float32),
            high=np.asarray(high, np.float32),
            inverted=np.asarray([x.inverted for x in literals], bool),
            width=np.asarray([x.width for x in literals], np.float32),
            label=np.asarray([self.nodes[n][1] for n in labels], np.int32),
            negated=np.asarray([self.nodes[n][2] for n in labels], bool),
            levels=tuple(levels),
        )
        return circuit, np.asarray([place[n] for n in outputs], np.int32)

    def _balanced(self, outputs: list[int]) -> tuple[list[int], list[int]]:
        """The nodes that the outputs need, children first, and the outputs among them.

        None of them has more than FAN_IN children.
        """
        new: dict[int, int] = {FALSE: FALSE, TRUE: TRUE}
        order: dict[int, None] = {}

        def visit(root: int) -> None:
            stack = [root]
            while stack:
                node = stack[-1]
                kind, children = self.children(node)
                missing = [c for c in children if c not in new]
                if missing:
                    stack.extend(missing)
                    continue
                stack.pop()
                if node in new:
                    continue
                parts = [new[c] for c in children]
                while len(parts) > FAN_IN:
                    groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
                    parts = [self._join(kind, g, TRUE) if len(g) > 1 else g[0] for g in groups]
                    order.update((p, None) for p in parts)
                new[node] = self._node((kind, tuple(parts))) if kind else node
                order[new[node]] = None

        for output in outputs:
            visit(output)
        return list(order), [new[output] for output in outputs]

    def _program(self, further: int) -> tuple[list[float], tuple[Arithmetic, ...], dict[int, int]]:
        """Constants, one step of arithmetic per depth, and the new index of each register."""
        moved = {i: i for i in range(self.columns)}
        moved |= {-1 - i: self.columns + i for i in range(further)}
        constants = []
        for i, (key, depth) in enumerate(self._made):
            if depth == 0:
                moved[self.columns + i] = len(moved)
                constants.append(key[1])
        by_depth: dict[int, list[int]] = {}
        for i, (_, depth) in enumerate(self._made):
            if depth:
                by_depth.setdefault(depth, []).append(i)
        steps = []
        for _, own in sorted(by_depth.items()):
            step = []
            for i in own:
                (operator, left, right), _ = self._made[i]
                step.append((operator, moved[left], moved[right]))
                moved[self.columns + i] = len(moved)
            steps.append(Arithmetic(*(np.asarray(x, np.int32) for x in zip(*step, strict=True))))
        return constants, tuple(steps), moved


def _conjunctions(number: int, parts: int) -> int:
    """How many conjunctions ``at_least`` makes, approximately, without making them."""
    found, size, segments = 0, parts, 1
    while size > 1:
        half = (size + 1) // 2
        wanted = np.arange(max(2, number - (parts - size)), min(number, size - 1) + 1)
        splits = np.minimum(wanted, half) - np.maximum(wanted - half, 0) + 1
        found += segments * int(splits.sum())
        size, segments = half, 2 * segments
    return found


def _is_label(node: Any) -> bool:
    return isinstance(node, tuple) and node[0] == "label"


def _padded(rows: list[list[int]], fill: int) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows), default=1)), fill, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
