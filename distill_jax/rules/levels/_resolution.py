r"""Clauses over labels, satisfied by correcting labels one after the other.

Resolving the later labels away leaves, for each label, clauses over it and the labels before. They
bound its logit by those of the others,

.. math:: z'_i = \min\Big(\max(z_i, \max_{i \vee C} \min_{l \in C} -v_l),
    \min_{\bar{i} \vee C} \max_{l \in C} v_l\Big),

where :math:`v` of a label is its logit, and of a negated label minus that. If a clause demands the
label, all others of its literals are false, and none that forbids it is in that position: their
resolvent is a clause over the labels before, and satisfied. So every clause holds at the threshold
of probability one half.

References:
  Giunchiglia and Lukasiewicz, `Multi-Label Classification Neural Networks with Hard Logical
  Constraints <https://arxiv.org/abs/2103.13427>`_, 2021, section 4; Davis and Putnam, `A Computing
  Procedure for Quantification Theory <https://doi.org/10.1145/321033.321034>`_, 1960.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax.rules.language.errors import RuleError

MOST_CLAUSES = 2_000
"""Clauses that may be left while labels are resolved away: each step may square them."""

UNDECIDED = 1e-6
"""The least size of a logit: nearer to 0, a label counts as absent, and probabilities would tie."""


class Violation(NamedTuple):
    """A violation of a rule: where ``conditions`` hold, labels ``on`` hold, and ``off`` do not."""

    conditions: frozenset[int]
    on: frozenset[int]
    off: frozenset[int]


class Bounds(NamedTuple):
    """Bounds of the labels that have any, in the order in which they are corrected.

    Attributes:
      label: The index of each, ``[steps]``.
      bodies: Of lower and upper bounds, literals that all hold: a label's index, plus the number of
        labels if it is negated; padded with twice that number, ``[steps, 2, most, parts]``.
      guards: Where each applies: an index into ``conditions``, their number for everywhere, and one
        more for nowhere, ``[steps, 2, most]``.
      conditions: The sets of conditions on columns.
    """

    label: np.ndarray
    bodies: np.ndarray
    guards: np.ndarray
    conditions: tuple[frozenset[int], ...]


def resolved(violations: Iterable[Violation], order: Sequence[int]) -> Bounds | int:
    """The bounds of each label in terms of those before it.

    Returns:
      The bounds, or the label whose resolution leaves too many clauses.

    Raises:
      RuleError: if no set of labels satisfies all rules.
    """
    left = _strongest(violations)
    found: list[tuple[int, list[Violation], list[Violation]]] = []
    for i in reversed(order):
        lower = [v for v in left if i in v.off]
        upper = [v for v in left if i in v.on]
        left = [v for v in left if i not in v.off | v.on]
        if len(lower) * len(upper) + len(left) > MOST_CLAUSES:
            return i
        left = _strongest([*left, *(_resolvent(a, b, i) for a in lower for b in upper)])
        if lower or upper:
            found.append((i, lower, upper))
    return _arrays(found[::-1], len(order))


def _resolvent(a: Violation, b: Violation, i: int) -> Violation:
    off, on = (a.off | b.off) - {i}, (a.on | b.on) - {i}
    return Violation(a.conditions | b.conditions, on, off)


def _strongest(violations: Iterable[Violation]) -> list[Violation]:
    """Without those that cannot happen, and those that others include."""
    possible = {v for v in violations if not v.on & v.off}
    if Violation(frozenset(), frozenset(), frozenset()) in possible:
        raise RuleError("no set of labels satisfies all hard rules: leave one of them out")
    # What columns alone violate, no labels can help: bind has searched for rows where rules clash.
    possible = {v for v in possible if v.on or v.off}
    kept: list[Violation] = []
    for v in sorted(possible, key=lambda v: (sum(map(len, v)), *map(sorted, v))):
        if not any(all(a <= b for a, b in zip(w, v, strict=True)) for w in kept):
            kept.append(v)
    return kept


def _arrays(found: Sequence[tuple[int, list[Violation], list[Violation]]], number: int) -> Bounds:
    sides = [rows for _, *both in found for rows in both]
    most = max(map(len, sides), default=0)
    parts = max((len(v.on) + len(v.off) - 1 for rows in sides for v in rows), default=0)
    conditions = tuple(dict.fromkeys(v.conditions for rows in sides for v in rows if v.conditions))
    bodies = np.full((len(found), 2, most, max(parts, 1)), 2 * number, np.int32)
    guards = np.full((len(found), 2, most), len(conditions) + 1, np.int32)
    for step, (i, *both) in enumerate(found):
        for side, rows in enumerate(both):
            for k, v in enumerate(rows):
                body = [*sorted(v.on - {i}), *(number + j for j in sorted(v.off - {i}))]
                bodies[step, side, k, : len(body)] = body
                guards[step, side, k] = (
                    conditions.index(v.conditions) if v.conditions else len(conditions)
                )
    return Bounds(np.array([i for i, *_ in found], np.int32), bodies, guards, conditions)


def corrected(bounds: Bounds, holds: Array, logits: Array, sure: float) -> Array:
    """Logits ``[batch, labels]`` that satisfy all clauses.

    Args:
      bounds: From ``resolved``.
      holds: Where the conditions hold, ``[batch, conditions]``.
      logits: ``[batch, labels]``.
      sure: The logit of a label that is demanded whatever the others.
    """
    undecided = jnp.abs(logits) < UNDECIDED
    shift = jnp.where(undecided, -UNDECIDED - logits, 0.0)
    logits = logits + jax.lax.stop_gradient(shift)
    if not len(bounds.label):
        return logits
    batch = logits.shape[0]
    always = jnp.broadcast_to(jnp.array([[True, False]]), (batch, 2))
    holds = jnp.concatenate([holds, always], axis=1)
    top = jnp.full((batch, 1), sure, logits.dtype)

    def correct(z: Array, bound: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        i, bodies, guards = bound
        both = jnp.concatenate([z, -z, top], axis=1)[:, bodies].min(-1)
        both = jnp.where(holds[:, guards], both, -jnp.inf).max(-1)
        own = jnp.take(z, i, axis=1)
        own = jnp.minimum(jnp.maximum(own, both[:, 0]), -both[:, 1])
        return jnp.where((jnp.arange(z.shape[1]) == i)[None, :], own[:, None], z), None

    arrays = (jnp.asarray(bounds.label), jnp.asarray(bounds.bodies), jnp.asarray(bounds.guards))
    return jax.lax.scan(correct, logits, arrays, unroll=len(bounds.label) <= 8)[0]
