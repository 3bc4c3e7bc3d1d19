"""Grounding: names become columns, classes and views; formulas become circuit nodes.

A rule is grounded in *worlds*. With exclusive classes, a world fixes the true class and the class
predicted on each view: label atoms become constants, and the rule reduces to a formula over
features. With label sets there is one world, and label atoms are literals.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.rules.binding._atoms import (
    FLIPPED,
    NEGATION,
    Columns,
    FeatureAtoms,
    class_or_category,
)
from distill_jax.rules.binding._groups import Conjunctions, groups_of
from distill_jax.rules.binding._scores import (
    NotPoints,
    Total,
    at_least,
    difference,
    is_score,
    points_of,
)
from distill_jax.rules.binding.book import Info
from distill_jax.rules.binding.schema import Schema
from distill_jax.rules.circuits._building import MOST_COUNTED, Builder, TooManyNodes
from distill_jax.rules.circuits._circuit import FALSE, TRUE, Circuit
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error, unknown_name

MOST_WORLDS = 1_000_000
"""Combinations of a class and classes on views that a rule may depend on, at most."""
MOST_WALKS = 50_000_000
"""Parts of a rule times the classes that it mentions, at most: about a minute."""
MOST_CHAINED = 1_000
"""Predicates whose clauses use one another in a chain, at most."""
MOST_LEVELS = 200
"""Levels of conjunctions and disjunctions, clauses included, at most."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a rule over exclusive classes.

    Where ``guard`` holds and the predictions on the views are ``seen``, the classes in ``table``
    violate the rule.

    Attributes:
      guard: A node over features.
      seen: The class predicted on each view, or None for any.
      table: Which classes violate, ``[classes]``.
    """

    guard: int
    seen: tuple[int | None, ...]
    table: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Atom:
    """A condition on classes: its truth in every world, ``[classes, classes of view 0, …]``, with
    length 1 along the axes that it does not depend on.

    ``key`` identifies it: a view (None for the example itself), and the class or the other view
    that it is compared with.
    """

    key: tuple[str | None, Any]
    truth: np.ndarray = dataclasses.field(compare=False, hash=False)


Statement = Callable[[Atom, bool], int]
"""Maps an atom over labels (if False, its negation) to its node in a world."""


class Grounder:
    """Grounds the rules of one book with one ``Builder``.

    With ``like``, the columns and their thresholds are those of another book, whose encoded columns
    the circuit then reads.

    Attributes:
      columns: The columns that the rules use, and which of their comparisons are soft.
      builder: The circuit under construction.
    """

    def __init__(
        self,
        schema: Schema,
        rules: Sequence[f.Rule],
        definitions: Sequence[f.Rule],
        widths: Mapping[str, float],
        like: Info | None = None,
    ):
        self.schema = schema
        self.clauses: dict[str, list[f.Rule]] = {}
        for clause in definitions:
            self.clauses.setdefault(head_of(clause), []).append(clause)
        self.columns = Columns(schema, tuple(self.clauses), widths, like)
        self.columns.add_tests(rules)  # first: registers of arithmetic come after columns
        self.builder = Builder(len(self.columns))
        self._used, self._order = self._predicates()
        self.labelled, self._height = self._labelled()
        self.of_columns: dict[tuple[str, bool], int] = {}
        self._known = {"labels": Known(), "possible": Known()}
        self.rules = rules
        self.groups = groups_of(rules)
        self.place_in_group = {
            id(rules[i]): (group, place)
            for group in self.groups
            for place, i in enumerate(group.members)
        }
        self._labelled_groups = {
            group.name
            for group in self.groups
            if any(self.reads_labels(rules[i].formula.body) for i in group.members)  # type: ignore[union-attr]
        }
        self.groups_of_columns: dict[str, Conjunctions] = {}
        self._group_atoms: dict[str, list[Atom]] = {}
        self._worlds: dict[tuple[str, int], Known] = {}
        self._atoms: dict[tuple[str | None, str], Atom] = {}

    def circuit(self, outputs: list[int]) -> tuple[Circuit, np.ndarray]:
        """The circuit that computes ``outputs``, and the outputs' indices among its nodes."""
        return self.builder.circuit(outputs, len(self.columns.computed), self.columns.ends)

    def check(self) -> None:
        """Raises a ``RuleError`` if a clause of a predicate, used or not, is invalid."""
        for name in self._order:
            walk = self._walk(self.clauses[name][0], _true, self._known["possible"])
            walk.node(f.Name(name), True)

    def _predicates(self) -> tuple[dict[str, list[tuple[str, f.Rule]]], list[str]]:
        """What predicates use, by name, and their names, each after those that it uses.

        Without recursion, since chains of clauses may be long.

        Raises:
          RuleError: for clauses that go in a circle.
        """
        used = {
            name: [
                (x.name, clause)
                for clause in clauses
                if isinstance(clause.formula, f.Implies)
                for x in dict.fromkeys(f.trees(clause.formula.body))
                if isinstance(x, f.Name) and x.name in self.clauses
            ]
            for name, clauses in self.clauses.items()
        }
        order: dict[str, None] = {}
        for root in self.clauses:
            path: dict[str, Iterator[tuple[str, f.Rule]]] = {}
            if root not in order:
                path[root] = iter(used[root])
            while path:
                name = next(reversed(path))
                below, clause = next(path[name], (None, None))
                if below is None or clause is None:
                    order[name] = None
                    del path[name]
                elif below in path:
                    names = list(path)
                    cycle = [*names[names.index(below) :], below]
                    shown = cycle if len(cycle) < 10 else [*cycle[:5], "…", *cycle[-4:]]
                    message = "clauses may not go in a circle: " + " :- ".join(shown)
                    raise rule_error(clause, message, below)
                elif below not in order:
                    path[below] = iter(used[below])
        return used, list(order)

    def _labelled(self) -> tuple[set[str], dict[str, int]]:
        """The predicates that depend on labels, and the length of the longest chain below each."""
        labelled: set[str] = set()
        height: dict[str, int] = {}
        for name in self._order:
            below = [other for other, _ in self._used[name]]
            height[name] = 1 + max((height[other] for other in below), default=0)
            if height[name] > MOST_CHAINED:
                raise rule_error(
                    self.clauses[name][0],
                    f"clauses use one another in a chain of more than {MOST_CHAINED}: shorten it",
                    name,
                )
            trees = (x for clause in self.clauses[name] for x in f.trees(clause.formula))
            if not labelled.isdisjoint(below) or any(self._is_label(x) for x in trees):
                labelled.add(name)
        return labelled, height

    def _is_label(self, x: f.Tree) -> bool:
        if isinstance(x, f.Name):
            return x.name in self.place or x.name == self.schema.target
        return isinstance(x, f.Of)

    def reads_labels(self, formula: f.Formula) -> bool:
        """Whether a formula depends on labels."""
        return any(
            self._is_label(x) or (isinstance(x, f.Name) and x.name in self.labelled)
            for x in f.trees(formula)
        )

    def long_chain(self, name: str) -> list[str]:
        """What a predicate is made of, the innermost first; empty if that is not nested deeply."""
        if self._height[name] <= 20:
            return []
        found, waiting = {name}, [name]
        while waiting:
            for other, _ in self._used[waiting.pop()]:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return sorted(found - {name}, key=self._height.__getitem__)

    def atom_of(self, view: str | None, name: str) -> Atom:
        """The atom of a class or label, on the example itself or on a view."""
        if (view, name) not in self._atoms:
            one = np.arange(len(self.schema.classes)) == self.place[name]
            truth = self.on_view_axis(view, one) if self.schema.views else one
            self._atoms[view, name] = Atom((view, name), truth)
        return self._atoms[view, name]

    def on_view_axis(self, view: str | None, truth: np.ndarray) -> np.ndarray:
        """Reshapes ``[classes]`` of one view for broadcasting: one axis per view."""
        axis = 0 if view is None else 1 + self.schema.views.index(view)
        shape = [1] * (1 + len(self.schema.views))
        shape[axis] = len(truth)
        return truth.reshape(shape)

    def labelled_group(self, rule: f.Rule) -> bool:
        """Whether a rule is in a group where labels say which rules apply."""
        return rule.group is not None and rule.group in self._labelled_groups

    def condition(self, rule: f.Rule, formula: f.Formula) -> tuple[int, int]:
        """The nodes of a formula over columns, a part of a rule, and of its negation."""
        if isinstance(formula, f.Else):
            return TRUE, FALSE
        walk = self._walk(rule, _true, self._known["possible"])
        return walk.node(formula, True), walk.node(formula, False)

    def pieces(self, rule: f.Rule) -> list[Piece]:
        """Grounds a rule over exclusive classes: which classes violate it, and where."""
        found = self._label_atoms(rule)
        K, views = len(self.schema.classes), len(self.schema.views)
        if not views:
            return self._pieces_of_classes(rule, found)
        used = [v for v in range(views) if any(a.truth.shape[1 + v] > 1 for a in found)]
        shape = (K, *(K if v in used else 1 for v in range(views)))
        if np.prod(shape) > MOST_WORLDS:
            raise rule_error(
                rule,
                f"it combines {len(used)} views of {K} classes each, which gives too many cases; "
                "split it into several rules",
            )
        truths = np.stack(
            [np.broadcast_to(a.truth, shape).ravel() for a in found]
            or [np.zeros(int(np.prod(shape)), bool)]
        )
        kinds, which = np.unique(truths, axis=1, return_inverse=True)
        guards = []
        for column in kinds.T:
            world = dict(zip(found, column, strict=False))
            walk = self._walk(rule, lambda a, positive, w=world: int(w[a] == positive))
            guards.append(self._violation(walk, rule))
        guard = np.asarray(guards)[which.ravel()].reshape(shape)
        return _pieces_from_guards(guard, shape)

    def _pieces_of_classes(self, rule: f.Rule, found: list[Atom]) -> list[Piece]:
        """The pieces of a rule without views: each class that it mentions, and all others, is a
        world."""
        classes = len(self.schema.classes)
        if len(found) > 20:
            size = len(found) * sum(1 for _ in f.trees(rule.formula))
            if size > MOST_WALKS:
                raise rule_error(
                    rule,
                    f"it mentions {len(found)} classes in a formula that is too large for them "
                    f"({size} steps, at most {MOST_WALKS}): split it into several rules, or "
                    "mention the other classes",
                )
        mentioned = {self.place[atom.key[1]]: atom for atom in found}
        worlds = [*mentioned.items()] + [(-1, None)] * (len(mentioned) < classes)
        of_class: dict[int, list[int]] = {}  # by guard
        for place, true in worlds:
            known = None  # of a group, what one rule has built is used by the next
            if self.labelled_group(rule):
                known = self._worlds.setdefault((str(rule.group), place), Known())
            walk = self._walk(
                rule, lambda atom, positive, t=true: int((atom == t) == positive), known
            )
            of_class.setdefault(self._violation(walk, rule), []).append(place)
        pieces = []
        for node, places in sorted(of_class.items()):
            if node != FALSE:
                table = np.zeros(classes, bool)
                if -1 in places:
                    table[:] = True
                    table[list(mentioned)] = False
                table[[place for place in places if place >= 0]] = True
                pieces.append(Piece(node, (), tuple(table.tolist())))
        return pieces

    def violated(self, rule: f.Rule) -> tuple[int, int]:
        """Grounds a rule over label sets: nodes of where it is, and where it can be, violated."""
        offsets = {None: 0} | {
            v: (1 + i) * len(self.schema.classes) for i, v in enumerate(self.schema.views)
        }

        def literal(atom: Atom, positive: bool) -> int:
            view, name = atom.key
            return self.builder.label(offsets[view] + self.place[name], not positive)

        walks = (self._walk(rule, atom, self._known[kind]) for kind, atom in
                 (("labels", literal), ("possible", _true)))  # fmt: skip
        violated, possible = (self._violation(walk, rule) for walk in walks)
        return violated, possible

    def _violation(self, walk: _Walk, rule: f.Rule) -> int:
        """The node of a rule's violation in a world."""
        node = walk.violation(rule)
        if self.builder.height(node) > MOST_LEVELS:
            raise rule_error(
                rule,
                f"it has {self.builder.height(node)} levels of conjunctions and disjunctions, with "
                f"the clauses that it uses, at most {MOST_LEVELS}: write shorter chains of clauses",
            )
        return node

    @functools.cached_property
    def place(self) -> dict[str, int]:
        """The index of each class."""
        return {name: i for i, name in enumerate(self.schema.classes)}

    def _label_atoms(self, rule: f.Rule) -> list[Atom]:
        """The label atoms that a rule depends on; without views, those of its whole group."""
        rules = [rule]
        if self.labelled_group(rule) and not self.schema.views:
            if rule.group in self._group_atoms:
                return self._group_atoms[rule.group]
            group, _ = self.place_in_group[id(rule)]
            rules = [self.rules[i] for i in group.members]
        atoms: dict[Atom, None] = {}

        def collect(atom: Atom, positive: bool) -> int:
            atoms[atom] = None
            return TRUE

        known = Known()
        for own in rules:
            _Walk(self, _NoFeatures(self.columns, _NO_BUILDER, own), collect, known).violation(own)
        if len(rules) > 1:
            self._group_atoms[str(rule.group)] = list(atoms)
        return list(atoms)

    def _walk(self, rule: f.Rule, atom: Statement, known: Known | None = None) -> _Walk:
        features = FeatureAtoms(self.columns, self.builder, rule)
        return _Walk(self, features, atom, Known() if known is None else known)


class Known:
    """What is known in one world, of all that depends on labels.

    Attributes:
      predicates: Nodes, by name and sign.
      groups: Where no rule before applies, by the name of the group.
    """

    def __init__(self) -> None:
        self.predicates: dict[tuple[str, bool], int] = {}
        self.groups: dict[str, Conjunctions] = {}


def _true(atom: Atom, positive: bool) -> int:
    """Any atom over labels may hold, and so may its negation."""
    return TRUE


class _NoBuilder(Builder):
    """Builds nothing: for finding what a formula depends on."""

    def all(self, parts: Iterable[int]) -> int:
        return TRUE

    any = all

    def at_least(self, number: int, parts: list[int]) -> int:
        return TRUE

    def weighted_at_least(self, number: int, parts: Sequence[int], weights: Sequence[int]) -> int:
        return TRUE


_NO_BUILDER = _NoBuilder(0)


@dataclasses.dataclass(frozen=True)
class _NoFeatures(FeatureAtoms):
    """Atoms over columns that nothing is built for."""

    def comparison(self, left: f.Value, operator: str, right: f.Value, positive: bool) -> int:
        return TRUE

    def boolean(self, name: str, positive: bool) -> int:
        return TRUE

    def missing(self, x: f.Missing, positive: bool) -> int:
        return TRUE

    def text_test(self, x: f.Matches | f.Contains, positive: bool) -> int:
        return TRUE


class _Walk:
    """Builds the node of a formula in one world, recursively.

    Attributes:
      features: Builds nodes of atoms over columns; holds the rule being compiled.
      atom: Builds nodes of atoms over labels.
      known: What is known in this world.
    """

    def __init__(self, grounder: Grounder, features: FeatureAtoms, atom: Statement, known: Known):
        self.grounder, self.schema, self.clauses = grounder, grounder.schema, grounder.clauses
        self.features, self.atom, self.known = features, atom, known
        self._cache: dict[tuple[int, bool], int] = {}

    def violation(self, rule: f.Rule) -> int:
        """The node of a rule's violation: where it fires, and its head does not hold."""
        x = rule.formula
        if rule.group is None or not isinstance(x, f.Implies):
            return self.node(x, False)
        parts = list(self._none_before(rule))
        if not isinstance(x.body, f.Else):
            parts.append(self.node(x.body, True))
        return self.features.builder.all([*parts, self.node(x.head, False)])

    def _none_before(self, rule: f.Rule) -> tuple[int, ...]:
        """Nodes that all hold where no rule applies that is tried before this one in its group."""
        group, place = self.grounder.place_in_group[id(rule)]
        labelled = self.grounder.labelled_group(rule)
        if isinstance(self.features, _NoFeatures) and not labelled:
            return ()
        known = self.known.groups if labelled else self.grounder.groups_of_columns
        outer = self.features
        if group.name not in known:
            known[group.name] = Conjunctions(outer.builder)
        found = known[group.name]
        while len(found.first) <= group.before[place]:
            other = self.grounder.rules[group.members[len(found.first) - 1]]
            self.features = dataclasses.replace(outer, rule=other)
            assert isinstance(other.formula, f.Implies)
            found.append(self.node(other.formula.body, False))
        self.features = outer
        return found.first[group.before[place]]

    def node(self, x: f.Formula, positive: bool) -> int:
        """The node of ``x``, or of its negation if not ``positive``."""
        # Cached: every <=> needs both signs, and many clauses may use one predicate.
        key = (id(x), positive)
        if key not in self._cache:
            self._cache[key] = self._build_node(x, positive)
        return self._cache[key]

    def _build_node(self, x: f.Formula, positive: bool) -> int:
        build, lower = self.features.builder, self.node
        if isinstance(x, f.Not):
            return lower(x.part, not positive)
        if isinstance(x, f.And | f.Or):
            join = build.all if isinstance(x, f.And) == positive else build.any
            return join([lower(part, positive) for part in x.parts])
        if isinstance(x, f.Implies):
            join = build.any if positive else build.all
            return join([lower(x.body, not positive), lower(x.head, positive)])
        if isinstance(x, f.Iff):
            return self._equivalence(
                lambda p: lower(x.left, p), lambda p: lower(x.right, p), positive
            )
        if isinstance(x, f.Count):
            return self._count(x, positive)
        if isinstance(x, f.Compare):
            pairs = zip(x.operands, x.operators, x.operands[1:], strict=False)
            join = build.all if positive else build.any
            return join([self._comparison(a, op, b, positive) for a, op, b in pairs])
        if isinstance(x, f.Between):
            ends = ((x.low, "<=", x.value), (x.value, "<=", x.high))
            join = build.all if positive else build.any
            return join([self._comparison(a, op, b, positive) for a, op, b in ends])
        if isinstance(x, f.In):
            join = build.any if positive != x.negated else build.all
            wanted = positive != x.negated
            return join([self._comparison(x.value, "==", c, wanted) for c in x.choices])
        if isinstance(x, f.Missing):
            if is_score(x.value):
                raise self.features.error(
                    f"{x.value} is never missing itself, only conditions in it are unknown: ask "
                    "whether their columns are missing"
                )
            if self._is_target(x.value) or self._is_label(x.value):
                raise self.features.error(f"{x.value} is predicted, so it is never missing")
            return self.features.missing(x, positive)
        if isinstance(x, f.Matches | f.Contains):
            return self.features.text_test(x, positive)
        if isinstance(x, f.Name | f.Of):
            return self._name_node(x, positive)
        if isinstance(x, f.Trend):
            raise self.features.error(f"{x.kind}(…) is parsed but not built yet")
        if isinstance(x, f.Else):
            raise self.features.error("else is for the last rule of a group: write [first=name]")
        raise self.features.error(f"{x} is not a formula: it has no truth value")

    def _equivalence(
        self, left: Callable[[bool], int], right: Callable[[bool], int], positive: bool
    ) -> int:
        build = self.features.builder
        both = build.all([left(True), right(positive)])
        neither = build.all([left(False), right(not positive)])
        return build.any([both, neither])

    def _count(self, x: f.Count, positive: bool) -> int:
        n = len(x.parts)
        low, high = {
            "exactly_one": (1, 1),
            "at_most": (0, x.number),
            "at_least": (x.number, n),
            "all_of": (n, n),
            "any_of": (1, n),
        }[x.kind]
        assert low is not None and high is not None  # the parser ensures it
        held = [self.node(part, True) for part in x.parts]
        broken = [self.node(part, False) for part in x.parts]
        build = self.features.builder
        try:
            if positive:  # at least low hold, and at least n - high do not
                return build.all([build.at_least(low, held), build.at_least(n - high, broken)])
            return build.any([build.at_least(n - low + 1, broken), build.at_least(high + 1, held)])
        except TooManyNodes:
            raise self.features.error(
                f"{x.kind} of {n} formulas is made of more than {MOST_COUNTED} conjunctions: count "
                f"smaller groups, or a number nearer to 0 or {n}"
            ) from None

    def _name_node(self, x: f.Name | f.Of, positive: bool) -> int:
        if isinstance(x, f.Of) or x.name in self.grounder.place:
            return self.atom(self._label_atom(x), positive)
        column = self.features.columns.by_name.get(x.name)
        if column is not None:
            if column.kind != "boolean":
                text = f'test it with {x} matches r"…"' if column.kind == "text" else ""
                raise self.features.error(
                    f"column {x.name!r} is {column.kind}, so it is neither true nor false: "
                    f"{text or 'compare it with a value'}",
                    x.name,
                )
            return self.features.boolean(x.name, positive)
        if x.name in self.clauses:
            return self._predicate(x.name, positive)
        if x.name == self.schema.target:
            raise self.features.error(
                f"{x.name!r} is the class variable: compare it, as in "
                f"{x.name} == {self.schema.classes[0]!r}",
                x.name,
            )
        raise unknown_name(self.features.rule, x.name, self.features.columns.names())

    def _predicate(self, name: str, positive: bool) -> int:
        """The node of a predicate; what it is made of comes first, so that chains may be long."""
        if isinstance(self.features, _NoFeatures) and name not in self.grounder.labelled:
            return TRUE
        if (name, positive) not in self._nodes_of(name):
            for other in self.grounder.long_chain(name):
                for sign in (True, False):
                    if (other, sign) not in self._nodes_of(other):
                        self._expand(other, sign)
            self._expand(name, positive)
        return self._nodes_of(name)[name, positive]

    def _nodes_of(self, name: str) -> dict[tuple[str, bool], int]:
        """Known nodes; those of predicates over columns alone are the same in every world."""
        return self.known.predicates if name in self.grounder.labelled else self.grounder.of_columns

    def _expand(self, name: str, positive: bool) -> None:
        outer = self.features
        parts = []
        for clause in self.clauses[name]:
            self.features = dataclasses.replace(outer, rule=clause)
            assert isinstance(clause.formula, f.Implies)
            parts.append(self.node(clause.formula.body, positive))
        self.features = outer
        build = self.features.builder
        node = build.any(parts) if positive else build.all(parts)
        self._nodes_of(name)[name, positive] = node

    # Atoms over labels

    def _label_atom(self, x: f.Name | f.Of) -> Atom:
        """The atom of a class or label, on the example itself or on a view."""
        view = x.view if isinstance(x, f.Of) else None
        if isinstance(x, f.Of):
            if view is None:
                raise self.features.error(
                    f"{x} is a probability, for budgets and trends, which are not built yet",
                    x.name,
                )
            if view not in self.schema.views:
                raise unknown_name(self.features.rule, view, self.schema.views)
        if x.name == self.schema.target:
            raise self.features.error(f"{x} is the class variable: compare it with a class", x.name)
        if x.name not in self.grounder.place:
            raise unknown_name(self.features.rule, x.name, self.schema.classes)
        return self.grounder.atom_of(view, x.name)

    def _is_target(self, x: f.Value) -> bool:
        name = x.name if isinstance(x, f.Name | f.Of) else None
        return name is not None and name == self.schema.target

    def _is_label(self, x: f.Value) -> bool:
        return isinstance(x, f.Of) or (isinstance(x, f.Name) and x.name in self.grounder.place)

    def _comparison(self, left: f.Value, operator: str, right: f.Value, positive: bool) -> int:
        """The node of ``left operator right``, or of its negation."""
        if is_score(left) or is_score(right):
            return self._score_comparison(left, operator if positive else NEGATION[operator], right)
        if self._is_target(left) or self._is_target(right):
            if not self._is_target(left):
                left, operator, right = right, FLIPPED[operator], left
            self._check_equality(left, operator)
            return self.atom(self._target_atom(left, right), positive == (operator == "=="))
        if self._is_label(left) or self._is_label(right):
            self._check_equality(left if self._is_label(left) else right, operator)
            if not (isinstance(left, f.Name | f.Of) and isinstance(right, f.Name | f.Of)):
                raise self.features.error(
                    f"{left} {operator} {right} compares a class with a value: a class is a "
                    "formula, true or false; use it directly",
                )
            return self._equivalence(
                lambda p: self._name_node(left, p),
                lambda p: self._name_node(right, p),
                positive == (operator == "=="),
            )
        return self.features.comparison(left, operator, right, positive)

    # Scores

    def _score_comparison(self, left: f.Value, operator: str, right: f.Value) -> int:
        """The node of a comparison between scores and numbers.

        It holds where it does for every way to decide conditions that are unknown.
        """
        try:
            total = difference(points_of(left), points_of(right))
        except NotPoints as odd:
            raise self.features.error(str(odd)) from None
        build, sides = self.features.builder, {">": 1, ">=": 1, "<": -1, "<=": -1}
        if operator in sides:
            return self._points_above_0(total, sides[operator], operator in ("<", ">"))
        strict = operator == "!="
        ends = [self._points_above_0(total, sign, strict) for sign in (1, -1)]
        return build.any(ends) if strict else build.all(ends)

    def _points_above_0(self, total: Total, sign: int, strict: bool) -> int:
        """The node of where sign · total is > 0 if ``strict``, else ≥ 0, in the worst case."""
        weights: dict[int, int] = {}
        wanted = at_least(total, sign, strict)
        rest = wanted.least
        for condition, weight in wanted.weights.items():
            node = self.node(condition, weight > 0)
            if weight < 0:  # w x = w + |w| (1 - x)
                rest -= weight
            if node == TRUE:
                rest -= abs(weight)
            elif node != FALSE:
                weights[node] = weights.get(node, 0) + abs(weight)
        if not weights:
            return TRUE if rest <= 0 else FALSE
        try:
            return self.features.builder.weighted_at_least(
                rest, list(weights), list(weights.values())
            )
        except TooManyNodes:
            different = len(set(weights.values()))
            raise self.features.error(
                f"a score of {len(weights)} conditions with {different} different factors is made "
                f"of more than {MOST_COUNTED} conjunctions: round the factors so that more of them "
                "are equal, or leave out conditions"
            ) from None

    def _target_atom(self, left: f.Value, right: f.Value) -> Atom:
        """The atom of ``species == 'cat'``, or of ``sentiment == view(v).sentiment``."""
        assert isinstance(left, f.Name | f.Of)
        view = left.view if isinstance(left, f.Of) else None
        classes = self.schema.classes
        if self._is_target(right):
            assert isinstance(right, f.Name | f.Of)
            other = right.view if isinstance(right, f.Of) else None
            for name in (view, other):
                if name is not None and name not in self.schema.views:
                    raise unknown_name(self.features.rule, name, self.schema.views)
            truth = np.zeros([1] * (1 + len(self.schema.views)), bool)
            for k in range(len(classes)):
                one = np.arange(len(classes)) == k
                truth = truth | (
                    self.grounder.on_view_axis(view, one) & self.grounder.on_view_axis(other, one)
                )
            return Atom((view, (other, self.schema.target)), truth)
        name = class_or_category(right)
        if name is None or name not in self.grounder.place:
            raise unknown_name(self.features.rule, str(right) if name is None else name, classes)
        return self._label_atom(f.Name(name) if view is None else f.Of(view, name))

    def _check_equality(self, x: f.Value, operator: str) -> None:
        if operator not in ("==", "!="):
            raise self.features.error(f"{x} has no order: compare it with == or !=, not {operator}")


def head_of(clause: f.Rule) -> str:
    """The name in a clause's head: a class, a label or a predicate."""
    head = clause.formula.head if isinstance(clause.formula, f.Implies) else clause.formula
    return head.name if isinstance(head, f.Name) else str(head)


def _pieces_from_guards(guard: np.ndarray, shape: tuple[int, ...]) -> list[Piece]:
    """Groups the worlds of a rule by the guard of its violation."""
    pieces = []
    for seen in itertools.product(*(range(n) for n in shape[1:])):
        own = guard[(slice(None), *seen)]
        shown = tuple(k if n > 1 else None for k, n in zip(seen, shape[1:], strict=True))
        for node in np.unique(own):
            if node != FALSE:
                table = tuple(bool(x) for x in own == node)
                pieces.append(Piece(int(node), shown, table))
    return pieces
