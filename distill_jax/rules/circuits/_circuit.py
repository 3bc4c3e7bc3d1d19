"""Formulas as arrays, so that the size of a compiled program does not grow with the rules.

A formula in negation normal form is a graph: literals at the bottom, then levels of conjunctions
and disjunctions over earlier nodes. ``Circuit`` holds the graph as arrays; ``_building`` builds it
on the host, and ``_algebra`` evaluates it.

A literal on features is an interval, ``low <= register <= high``, or, if ``inverted``, its
complement. Every comparison is an interval (``x > 3`` starts at the next float32), or a disjunction
of two (``x != 3``). A register that is NaN lies in no interval, so that a comparison with a missing
value is false, and so is its negation; ``x is missing`` is the inverted interval of all numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

FALSE, TRUE = 0, 1
"""The first two nodes of every circuit."""


class Arithmetic(NamedTuple):
    """A step of arithmetic: new registers computed from earlier ones.

    Attributes:
      operator: 0 for +, 1 for -, 2 for *, 3 for /, ``[new registers]``.
      left, right: The registers of the operands, ``[new registers]``.
    """

    operator: Any
    left: Any
    right: Any


class Level(NamedTuple):
    """Conjunctions, then disjunctions, over nodes of lower levels.

    Attributes:
      ands: Children ``[n, fan_in]``, padded with TRUE; None where a level has no conjunctions.
      ors: Children ``[n, fan_in]``, padded with FALSE; None where it has no disjunctions.
    """

    ands: Any
    ors: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "constants", "arithmetic", "register", "low", "high", "inverted", "width",
        "label", "negated", "levels",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Circuit:
    """A graph over columns and labels. Nodes: FALSE, TRUE, literals on features, those on labels,
    then each level's conjunctions and disjunctions.

    Attributes:
      constants: Numbers that arithmetic uses, ``[constants]``. The registers are the columns, the
        constants, then the results of each step of ``arithmetic``.
      arithmetic: One step per depth.
      register, low, high, inverted: Literals on features, ``[literals]``.
      width: The width of a soft comparison, > 0; 0 for a crisp one, ``[literals]``.
      label, negated: Literals on labels, ``[label literals]``: the index of a probability, and
        whether it is subtracted from 1. The labels of views follow the labels themselves.
      levels: From the bottom up.
    """

    constants: Any
    arithmetic: tuple[Arithmetic, ...]
    register: Any
    low: Any
    high: Any
    inverted: Any
    width: Any
    label: Any
    negated: Any
    levels: tuple[Level, ...]

    @property
    def number_of_literals(self) -> int:
        """The number of literals, on features and on labels."""
        return self.register.shape[0] + self.label.shape[0]

    @property
    def number_of_nodes(self) -> int:
        """The number of nodes, without FALSE and TRUE."""
        inner = sum(level.ands.shape[0] + level.ors.shape[0] for level in self.levels)
        return self.number_of_literals + inner
