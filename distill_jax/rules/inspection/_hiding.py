"""Which rules of a group hide which: counts over rows, and the rule that hides another on one row.

Groups whose bodies depend on labels are left out: which of their rules apply is not known.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.rules.binding._ground import Grounder
from distill_jax.rules.binding.book import Book, Info
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.logic._nodes import crisp_nodes


class Bodies(NamedTuple):
    """The bodies of the rules in groups, each group in the order in which its rules are tried.

    Attributes:
      circuit: A circuit over the book's columns.
      node: Where each body holds, ``[members]``.
      rule: The index of each rule in the book, ``[members]``.
      start: Where the group of each begins among the members, ``[members]``.
      stop: Where those that are tried before it, and hide it, end, ``[members]``.
      last: Whether no rule of its group is tried after it, ``[members]``.
    """

    circuit: Circuit
    node: Any
    rule: Any
    start: Any
    stop: Any
    last: Any


@functools.lru_cache(maxsize=16)
def bodies(info: Info) -> Bodies | None:
    """The bodies of a book's rules in groups; None if there are no such rules."""
    grounder = Grounder(info.schema, info.rules, info.definitions, {}, info)
    rules, starts, stops, last = [], [], [], []
    for group in grounder.groups:
        own = [info.rules[i] for i in group.members]
        if not any(grounder.labelled_group(rule) for rule in own):
            start = len(rules)
            rules += group.members
            starts += [start] * len(group.members)
            stops += [start + n for n in group.before]
            last += [n == group.before[-1] for n in group.before]
    if not rules:
        return None
    bodies = [(info.rules[i], info.rules[i].formula.body) for i in rules]  # type: ignore[union-attr]
    circuit, nodes = grounder.circuit([grounder.condition(*body)[0] for body in bodies])
    rule, start, stop = (np.asarray(x, np.int32) for x in (rules, starts, stops))
    return Bodies(circuit, nodes, rule, start, stop, np.asarray(last))


def hidden_sums(found: Bodies, columns: Any, valid: Any, *, by: bool) -> dict[str, Any]:
    """Counts over the valid rows of one chunk.

    Args:
      found: The bodies.
      columns: Encoded columns, ``[batch, columns]``.
      valid: Rows that count, ``[batch]``.
      by: Whether to count pairs.

    Returns:
      ``hidden``: where each member's body holds and a rule that fires hides it, ``[members]``;
      ``stops``: where its body is unknown and stops its group, ``[members]``; ``stopped``: rows
      where some group is stopped; with ``by``, ``hidden_by``: where the second, firing, hides the
      first, ``[members, members]``.
    """
    held, fired, stops = _states(found, columns)
    held, fired, stops = (x & valid[:, None] for x in (held, fired, stops))
    out = {
        "hidden": (held & _any_before(found, fired)).sum(0),
        "stops": stops.sum(0),
        "stopped": stops.any(1).sum(),
    }
    if by:
        place = np.arange(len(found.rule))[None, :]
        earlier = (found.start[:, None] <= place) & (place < found.stop[:, None])
        both = held.astype(jnp.float32).T @ fired.astype(jnp.float32)
        out["hidden_by"] = both * earlier
    return out


def reasons(book: Book, columns: Any) -> dict[int, dict[str, int]]:
    """Why rules whose body holds do not fire on one row.

    Args:
      book: The rules.
      columns: Encoded columns, ``[1, columns]``.

    Returns:
      By the index of such a rule, ``hidden_by`` or ``stopped_by`` and the index of the rule that
      fires instead, or whose body is unknown.
    """
    found = bodies(book.info)
    if found is None:
        return {}
    held, fired, stops = (np.asarray(x)[0] for x in _jitted_states(found, columns))
    out = {}
    for k in np.flatnonzero(held & ~fired).tolist():
        before = slice(found.start[k], found.stop[k])
        for name, why in (("hidden_by", fired), ("stopped_by", stops)):
            if why[before].any():
                first = int(found.start[k] + why[before].argmax())
                out[int(found.rule[k])] = {name: int(found.rule[first])}
                break
    return out


def _states(found: Bodies, columns: Any) -> tuple[Any, Any, Any]:
    """Whose body holds, who fires, and who stops its group, ``[batch, members]`` each."""
    held = crisp_nodes(found.circuit, columns)[found.node].T
    possible = crisp_nodes(found.circuit, columns, unknown=True)[found.node].T
    reached = ~_any_before(found, possible)
    return held, held & reached, possible & ~held & reached & ~found.last[None, :]


def _any_before(found: Bodies, where: Any) -> Any:
    """Whether something is true of a rule that is tried before each one, ``[batch, members]``."""
    total = jnp.pad(jnp.cumsum(where, axis=1, dtype=jnp.int32), [(0, 0), (1, 0)])
    return total[:, found.stop] > total[:, found.start]


_jitted_states = jax.jit(_states)
