"""How many points each score in a book's rules has on one row."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.rules.binding._ground import Grounder
from distill_jax.rules.binding._scores import points_of
from distill_jax.rules.binding.book import Book, Info
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.language import formulas as f
from distill_jax.rules.logic._nodes import crisp_nodes


class Scores(NamedTuple):
    """The scores of a book whose conditions are all over columns.

    Attributes:
      circuit: A circuit over the book's columns.
      held, broken: Where each condition holds, and where its negation does, ``[conditions]``.
      found: For each score the index of its rule, its text, and the factors of its conditions.
    """

    circuit: Circuit
    held: Any
    broken: Any
    found: tuple[tuple[int, str, tuple[Fraction, ...]], ...]


@functools.lru_cache(maxsize=16)
def scores(info: Info) -> Scores | None:
    """The scores of a book; None if there are none."""
    written = [
        (i, tree)
        for i, rule in enumerate(info.rules)
        for tree in dict.fromkeys(f.trees(rule.formula))
        if isinstance(tree, f.Score)
    ]
    if not written:
        return None
    grounder = Grounder(info.schema, info.rules, info.definitions, {}, info)
    held, broken, found = [], [], []
    for i, tree in written:
        factors = points_of(tree).factors
        if any(grounder.reads_labels(condition) for condition in factors):
            continue
        nodes = [grounder.condition(info.rules[i], condition) for condition in factors]
        held += [yes for yes, _ in nodes]
        broken += [no for _, no in nodes]
        found.append((i, str(tree), tuple(factors.values())))
    if not found:
        return None
    circuit, places = grounder.circuit([*held, *broken])
    return Scores(circuit, places[: len(held)], places[len(held) :], tuple(found))


def points(book: Book, columns: Any) -> dict[int, dict[str, float | list[float]]]:
    """The points of each score on one row, by the index of its rule and the text of the score.

    Args:
      book: The rules.
      columns: Encoded columns, ``[1, columns]``.

    Returns:
      A number, or its least and greatest value where conditions are unknown.
    """
    own = scores(book.info)
    if own is None:
        return {}
    held, broken = (np.asarray(x) for x in _nodes(own.circuit, own.held, own.broken, columns))
    out: dict[int, dict[str, float | list[float]]] = {}
    start = 0
    for rule, text, factors in own.found:
        stop = start + len(factors)
        known = sum(w for w, yes in zip(factors, held[start:stop], strict=True) if yes)
        unknown = ~held[start:stop] & ~broken[start:stop]
        free = [w for w, open_ in zip(factors, unknown, strict=True) if open_]
        ends = [float(known + sum(side(w, 0) for w in free)) for side in (min, max)]
        out.setdefault(rule, {})[text] = ends if free else ends[0]
        start = stop
    return out


@jax.jit
def _nodes(circuit: Circuit, held: Any, broken: Any, columns: Any) -> tuple[Any, Any]:
    nodes = crisp_nodes(circuit, columns)[:, 0]
    return nodes[held], nodes[broken]
