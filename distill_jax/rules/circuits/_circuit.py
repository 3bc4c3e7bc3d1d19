"""Formulas as arrays: a program whose size does not grow with the number of rules.

A formula in negation normal form is a graph: literals at the bottom, then levels of conjunctions
and disjunctions over earlier nodes. ``Circuit`` holds the graph as arrays; ``_building`` makes it
on the host, and ``_algebra`` evaluates it.

A literal on features is an interval: ``low <= register <= high``, or, ``inverted``, the opposite.
Every comparison is one (``x > 3`` is an interval from the next float32 on), or a disjunction of two
(``x != 3``). A register that is NaN lies in no interval, so that a comparison with an unknown value
is false, and so is its negation; ``x is missing`` is the inverted interval of all numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

FALSE, TRUE = 0, 1
"""The first two nodes of every circuit."""


class Arithmetic(NamedTuple):
    """Registers made from earlier ones.

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
      constants: Numbers that arithmetic uses, ``[constants]``; registers are the columns, the
        constants, then what each step of ``arithmetic`` makes.
      arithmetic: One step per depth.
      register, low, high, inverted: Literals on features, ``[literals]``.
      width: Of a soft comparison, > 0; 0 for a crisp one.
      label, negated: Literals on labels, ``[label literals]``: which probability, and whether it is
        subtracted from 1. Labels of views follow the labels themselves.
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
        """On features and on labels."""
        return self.register.shape[0] + self.label.shape[0]

    @property
    def number_of_nodes(self) -> int:
        """All but FALSE and TRUE."""
        inner = sum(level.ands.shape[0] + level.ors.shape[0] for level in self.levels)
        return self.number_of_literals + inner
