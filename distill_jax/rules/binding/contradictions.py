"""Finds hard rules that contradict each other, before training.

A hard rule forbids classes (or label sets) in regions of the table. Hard rules conflict where their
regions intersect and no class (or label set) remains allowed. Regions are boxes over columns, so
their intersection is exact. Arithmetic and regular expressions depend on other columns, so a
conflict that involves them is only *possible* until an example row is found.

The search is depth-first: it picks a class that is still allowed, branches over the rules that
forbid it in a region that intersects the current one, and backtracks as soon as the remaining rules
together cannot forbid everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding import _regions
from distill_jax.rules.binding.book import Book
from distill_jax.rules.circuits._algebra import BOOLEAN, evaluate, first_nodes

MOST_CASES = 1_000
"""Maximum number of boxes per rule; further ones are not compared."""
MOST_TRIED = 50_000_000
"""Nodes times label sets that are tried before the search, at most: bytes of memory."""
MOST_STEPS = 20_000
"""Maximum number of regions visited, and of steps of the solver for label sets."""


@dataclasses.dataclass(frozen=True)
class Conflict:
    """Hard rules that together forbid every class, or every label set, in some region.

    Attributes:
      rules: Names of the rules (or texts, if unnamed), in the order of the book.
      indices: Their indices in the book.
      region: Where they conflict, as the text of a formula over columns; empty for everywhere.
      example: A row where they conflict, as values by column; None if none was found.
      certain: Whether the conflict was shown to occur; otherwise it is only possible.
      why: The reason why it is not certain; empty if it is.
    """

    rules: tuple[str, ...]
    indices: tuple[int, ...]
    region: str
    example: dict[str, Any] | None
    certain: bool
    why: str = ""

    def __str__(self) -> str:
        subject = ", ".join(repr(name) for name in self.rules)
        if self.why == _UNFINISHED:
            return f"the hard rules {subject} may contradict each other: {self.why}"
        verb = "forbid" if self.certain else "may forbid"
        together = "together " if len(self.rules) > 1 else ""
        rule = "rules" if len(self.rules) > 1 else "rule"
        verb += "s" if len(self.rules) == 1 and self.certain else ""
        where = f"where {self.region}" if self.region else "everywhere"
        tail = f" ({self.why})" if self.why else ""
        return f"the hard {rule} {subject} {together}{verb} everything {where}{tail}"


_UNFINISHED = "they have too many cases for all to be compared"
_DEPENDENT = "no example was found: the region depends on arithmetic or regular expressions"


@checked
def conflicts(book: Book, *, most: int = 100) -> list[Conflict]:
    """Finds hard rules that together forbid every class, or every label set, on some example.

    If the rules only compare columns with constants, all conflicts are found, and each is certain.
    One conflict is listed per set of rules, and only for sets that are minimal. Rules over label
    sets that depend on another view are ignored. A search that is cut short is reported as a
    possible conflict.

    Args:
      book: The rules; only hard ones are searched.
      most: Maximum number of conflicts to find.

    Returns:
      The conflicts, certain ones first; empty if there are none.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"), Column("smoker", "boolean")), ("well", "sick"))
      >>> text = '''
      ... [hard] old: age > 60 => sick
      ... [hard] clean: not smoker => well
      ... '''
      >>> (found,) = conflicts(bind(text, schema, conflicts="ignore"))
      >>> print(found)
      the hard rules 'old', 'clean' together forbid everything where age > 60 and not smoker
      >>> found.example
      {'age': 61.0, 'smoker': False}
    """
    most = _checks.count("most", most, least=0)
    hard = np.flatnonzero(np.asarray(book.hard))
    if not len(hard) or most < 1 or _always_possible(book):
        return []
    cases = _regions.Cases(book, MOST_CASES)
    parts, forbidden, cut = (
        _class_parts(book, cases) if book.schema.exclusive else _label_set_parts(book, cases)
    )
    found: dict[frozenset[int], Conflict] = {}
    unfinished = set(cut)
    try:
        for chosen in _Search(parts, forbidden, cases.registers, found).run():
            owners = frozenset(parts[i][0] for i in chosen)
            box: _regions.Box | None = ()
            for i in chosen:
                box = _regions.intersection(box, parts[i][1]) if box is not None else None
            assert box is not None  # the search only combines boxes that intersect
            conflict = _conflict(book, owners, tuple(x for x in box if x[0] < cases.registers))
            if owners not in found or conflict.certain:
                found[owners] = conflict
            if len(found) >= most:
                break
    except _TooManySteps:
        unfinished |= {owner for owner, _ in parts}
    smallest = [c for own, c in found.items() if not any(other < own for other in found)]
    smallest.sort(key=lambda c: (not c.certain, c.indices))
    if unfinished:
        indices = tuple(sorted(unfinished))
        smallest.append(Conflict(_rule_names(book, indices), indices, "", None, False, _UNFINISHED))
    return smallest


class _TooManySteps(Exception):
    pass


Part = tuple[int, _regions.Box]
"""The index of a rule, and a box in which it forbids something."""


def _conflict(book: Book, owners: frozenset[int], box: _regions.Box) -> Conflict:
    row = _regions.example(book, box)
    indices = tuple(sorted(owners))
    why = "" if row is not None else _DEPENDENT
    region = _regions.text(book, box)
    return Conflict(_rule_names(book, indices), indices, region, row, row is not None, why)


def _rule_names(book: Book, indices: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(rule.name or str(rule.formula) for rule in (book.rules[i] for i in indices))


# Which classes or label sets each part forbids


class _Classes:
    """Which classes each part forbids, ``[parts, classes]``."""

    def __init__(self, tables: np.ndarray):
        self.tables = tables

    def allowed(self, parts: np.ndarray) -> list[int]:
        """Classes that no part forbids."""
        return np.flatnonzero(~self.tables[parts].any(0)).tolist()

    def forbids(self, parts: np.ndarray, left: Any) -> np.ndarray:
        return parts[self.tables[parts, left]]


class _LabelSets:
    """Which label sets each part forbids, as cubes ``[parts, labels]``.

    A part forbids the sets that contain all its labels with 1 and none with −1; 0 is for any.
    """

    def __init__(self, cubes: np.ndarray):
        self.cubes = cubes
        self.steps = 0

    def allowed(self, parts: np.ndarray) -> list[np.ndarray]:
        """One label set that no part forbids, if there is one."""
        found = self._solve(self.cubes[parts], np.zeros(self.cubes.shape[1], np.int8))
        return [] if found is None else [np.where(found == 0, -1, found)]

    def forbids(self, parts: np.ndarray, left: Any) -> np.ndarray:
        cubes = self.cubes[parts]
        return parts[((cubes == 0) | (cubes == left)).all(1)]

    def _solve(self, cubes: np.ndarray, values: np.ndarray) -> np.ndarray | None:
        """An assignment outside all cubes, by unit propagation and branching; None if none."""
        while True:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise _TooManySteps
            cubes = cubes[
                (cubes * values >= 0).all(1)
            ]  # the assignment is already outside the others
            open_ = np.where(values == 0, cubes, 0)
            free = np.abs(open_).sum(1)
            if not len(cubes):
                return values
            if not free.all():
                return None
            units = open_[free == 1]
            if not len(units):
                break
            in_, out = (units < 0).any(0), (units > 0).any(0)
            if (in_ & out).any():
                return None
            values = values + in_.astype(np.int8) - out.astype(np.int8)
        label = int(np.abs(open_[free == free.min()]).sum(0).argmax())
        likely = -1 if open_[:, label].sum() >= 0 else 1
        for value in (likely, -likely):
            tried = values.copy()
            tried[label] = value
            solved = self._solve(cubes, tried)
            if solved is not None:
                return solved
        return None


def _class_parts(book: Book, cases: _regions.Cases) -> tuple[list[Part], Any, set[int]]:
    pieces, hard = book.pieces, np.asarray(book.hard)
    parts, tables, cut = [], [], set()
    for guard, rule, table in zip(
        *(np.asarray(x) for x in (pieces.guard, pieces.rule, pieces.table)), strict=True
    ):
        if hard[rule]:
            boxes = cases.boxes(int(guard))
            cut |= {int(rule)} if cases.truncated else set()
            parts += [(int(rule), box) for box in boxes]
            tables += [table > 0] * len(boxes)
    shape = (len(parts), len(book.schema.classes))
    return parts, _Classes(np.reshape(np.asarray(tables, bool), shape)), cut


def _label_set_parts(book: Book, cases: _regions.Cases) -> tuple[list[Part], Any, set[int]]:
    labels, first = len(book.schema.classes), cases.registers
    parts, cubes, cut = [], [], set()
    for rule in np.flatnonzero(np.asarray(book.hard)).tolist():
        boxes = cases.boxes(int(book.violated[rule]))
        truncated = cases.truncated
        if any(register >= first + labels for box in boxes for register, _, _ in box):
            continue  # on a view, whose labels are not known beforehand
        cut |= {rule} if truncated else set()
        for box in boxes:
            cube = np.zeros(labels, np.int8)
            for register, low, _ in box:
                if register >= first:
                    cube[register - first] = 1 if low == 1 else -1
            parts.append((rule, tuple(x for x in box if x[0] < first)))
            cubes.append(cube)
    return parts, _LabelSets(np.reshape(np.asarray(cubes, np.int8), (len(parts), labels))), cut


def _always_possible(book: Book) -> bool:
    """Whether one class, or one of a few simple label sets, is allowed everywhere."""
    hard = np.asarray(book.hard)
    if book.schema.exclusive:
        tables = np.asarray(book.pieces.table)[hard[np.asarray(book.pieces.rule)]]
        return not tables.any(0).all()
    labels = len(book.schema.classes)
    # All sets of one label and of the first labels, or as many as fit.
    most = max(1, MOST_TRIED // (labels + book.circuit.number_of_nodes + 2) // 2)
    some = np.unique(np.linspace(0, labels - 1, min(labels, most)).astype(int))[:, None]
    every = np.arange(labels)[None, :]
    ends = np.repeat([[False], [True]], labels, 1)
    candidates = np.concatenate([ends, every == some, every <= some])
    held = _with_labels(book, candidates)[np.asarray(book.violated)[hard]]
    return bool((~held).all(0).any())


def _with_labels(book: Book, sets: np.ndarray) -> np.ndarray:
    """The circuit's nodes for label sets with all feature literals true, ``[nodes, sets]``.

    Formulas are in negation normal form: a node that is false here is false for all features.
    """
    circuit = jax.tree.map(np.asarray, book.circuit)
    of_view = circuit.label >= sets.shape[1]
    on_labels = sets.T[np.where(of_view, 0, circuit.label)] ^ circuit.negated[:, None]
    on_features = np.ones((circuit.register.shape[0], len(sets)), bool)
    first = first_nodes(BOOLEAN, on_features, on_labels | of_view[:, None])
    return evaluate(circuit.levels, first, BOOLEAN)


class _Search:
    """Searches for sets of parts whose boxes intersect and that together forbid everything."""

    def __init__(
        self,
        parts: list[Part],
        forbidden: Any,
        registers: int,
        found: dict[frozenset[int], Conflict],
    ):
        self.forbidden, self.found = forbidden, found
        self.owner = np.asarray([owner for owner, _ in parts], int)
        used = sorted({bound[0] for _, box in parts for bound in box})
        place = {register: i for i, register in enumerate(used)}
        self.low = np.full((len(parts), len(used)), -np.inf)
        self.high = np.full((len(parts), len(used)), np.inf)
        for i, (_, box) in enumerate(parts):
            for register, low, high in box:
                self.low[i, place[register]], self.high[i, place[register]] = low, high
        self.steps = 0

    def run(self) -> Iterator[list[int]]:
        everywhere = np.full(self.low.shape[1], np.inf)
        return self._visit([], -everywhere, everywhere, np.arange(len(self.owner)))

    def _visit(
        self, chosen: list[int], low: np.ndarray, high: np.ndarray, near: np.ndarray
    ) -> Iterator[list[int]]:
        """Extends the ``chosen`` parts, whose boxes intersect in a region, by parts ``near`` it."""
        self.steps += 1
        if self.steps > MOST_STEPS or len(chosen) > 200:
            raise _TooManySteps
        owners = {int(self.owner[i]) for i in chosen}
        if any(c.certain and known <= owners for known, c in self.found.items()):
            return
        left = self.forbidden.allowed(np.asarray(chosen, int))
        if not left:
            yield self._minimal(chosen)
            return
        meets = (np.maximum(self.low[near], low) <= np.minimum(self.high[near], high)).all(1)
        near = near[meets]
        if self.forbidden.allowed(np.concatenate([near, np.asarray(chosen, int)])):
            return
        # Branch on the allowed class or label set that the fewest parts forbid.
        next_ = min((self.forbidden.forbids(near, x) for x in left), key=len)
        for i in next_:
            near = near[near != i]  # sets that contain it are found in its own branch
            yield from self._visit(
                [*chosen, int(i)],
                np.maximum(low, self.low[i]),
                np.minimum(high, self.high[i]),
                near,
            )

    def _minimal(self, chosen: list[int]) -> list[int]:
        """A minimal subset of the parts that still forbids everything."""
        for i in list(chosen):
            others = [x for x in chosen if x != i]
            if others and not self.forbidden.allowed(np.asarray(others, int)):
                chosen = others
        return chosen
