"""Groups of rules of which some hide others: their order, and where no rule before applies.

A rule of a group *applies* where its body holds. In a group ``[first=name]`` the rules are tried in
the order written; in a group ``[group=name, priority=n]`` those of a higher priority come first,
and rules of one priority do not hide each other. A rule fires where it applies and certainly no
rule that is tried before it does: one whose body is unknown stops the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distill_jax.rules.circuits._building import Builder
from distill_jax.rules.circuits._circuit import TRUE
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error

WIDE = 32
"""Conditions that are kept side by side, where intervals of one column are intersected."""
BLOCK = 8
"""Further ones are joined in blocks of this size, then blocks of blocks, and so on."""


class Group(NamedTuple):
    """The rules of a group.

    Attributes:
      name: As written; empty for the rules with a priority and no name.
      members: The indices of its rules in the book, in the order in which they are tried.
      before: How many of ``members`` are tried before each of them, and hide it where they apply.
    """

    name: str
    members: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def title(self) -> str:
        """The group in a message."""
        return f"group {self.name!r}" if self.name else "group of rules with a priority"


def groups_of(rules: Sequence[f.Rule]) -> tuple[Group, ...]:
    """The groups of a book's rules, in the order of their first rules."""
    members: dict[str, list[int]] = {}
    for i, rule in enumerate(rules):
        if rule.group is not None:
            members.setdefault(rule.group, []).append(i)
    found = []
    for name, own in members.items():
        ranks = [-(rules[i].priority or 0) for i in own]
        if rules[own[0]].priority is None:
            found.append(Group(name, tuple(own), tuple(range(len(own)))))
            continue
        order = sorted(range(len(own)), key=lambda k: ranks[k])  # stable
        before: list[int] = []
        for place, k in enumerate(order):
            same = place > 0 and ranks[order[place - 1]] == ranks[k]
            before.append(before[-1] if same else place)
        found.append(Group(name, tuple(own[k] for k in order), tuple(before)))
    return tuple(found)


def check_groups(rules: Sequence[f.Rule], definitions: Sequence[f.Rule]) -> None:
    """Raises a ``RuleError`` for groups that have no meaning."""
    for rule in definitions:
        if rule.group is not None:
            raise rule_error(
                rule, "a clause that defines a predicate is in no group: groups are of rules"
            )
    for rule in rules:
        if rule.group is None and rule.source:  # the parser has looked for else
            continue
        is_else = isinstance(rule.formula, f.Implies) and isinstance(rule.formula.body, f.Else)
        if is_else and rule.group is None:
            raise rule_error(rule, "else is for the last rule of a group: write [first=name]")
        if sum(isinstance(x, f.Else) for x in f.trees(rule.formula)) > is_else:
            raise rule_error(rule, "else stands alone as the body of a rule")
        if rule.group is not None and not isinstance(rule.formula, f.Implies):
            raise rule_error(
                rule,
                "a rule of a group says body => head, since its body says where it applies: write "
                "the rule so, or leave out its group",
            )
    for group in groups_of(rules):
        own = [rules[i] for i in group.members]
        odd = next((x for x in own if (x.priority is None) != (own[0].priority is None)), None)
        if odd is not None:
            raise rule_error(
                odd,
                f"the {group.title} has rules with a priority and rules in the order written: name "
                "two groups",
            )
        for rule, before in zip(own, group.before, strict=True):
            assert isinstance(rule.formula, f.Implies)
            if isinstance(rule.formula.body, f.Else) and before < len(own) - 1:
                last = (
                    "last" if rule.priority is None else "of the lowest priority, and alone in it"
                )
                raise rule_error(rule, f"else must be {last} in its group: nothing fires after it")


class Conjunctions:
    """The conjunctions of the first n of a growing sequence of nodes, for every n.

    The circuit grows by a bounded number of children for each, not by all nodes so far.
    """

    def __init__(self, builder: Builder):
        self.builder = builder
        self.first: list[tuple[int, ...]] = [()]
        """For each n, the nodes whose conjunction it is."""
        self._side_by_side = TRUE
        self._blocks: list[list[int]] = []  # those not full yet, of 1, 8, 64, … nodes

    def append(self, node: int) -> None:
        """Adds a node to the sequence."""
        build = self.builder
        joined = build.all([self._side_by_side, node])
        if len(build.children(joined)[1]) <= WIDE:
            self._side_by_side = joined
        else:
            self._add(0, build.sealed([node]))
        blocks = [x for level in self._blocks for x in level]
        self.first.append((self._side_by_side, build.sealed(blocks)))

    def _add(self, level: int, node: int) -> None:
        if level == len(self._blocks):
            self._blocks.append([])
        self._blocks[level].append(node)
        if len(self._blocks[level]) == BLOCK:
            full, self._blocks[level] = self._blocks[level], []
            self._add(level + 1, self.builder.sealed(full))
