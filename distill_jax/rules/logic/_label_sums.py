"""Violations over label sets, summed over rules or rows without an array of rows times rules.

Flat rules (see ``_plans``) have hand-written sums and gradients, made of short sums whose terms
stay in the processor's registers, without scatter operations. Other rules are evaluated as a
circuit, with automatic differentiation. Both process one plane of a tile at a time (see
``_tiles``).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from distill_jax._programs import vary_alike
from distill_jax.rules.binding._plans import Join, Plan, Sums
from distill_jax.rules.circuits._algebra import BITS, each_child, evaluate, take
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.circuits._registers import registers
from distill_jax.rules.circuits.fuzzy_logics import PRODUCT, Logic, Squared
from distill_jax.rules.logic._linear_maps import linear_map
from distill_jax.rules.logic._tiles import cut, holds, nodes, over_tiles, padded, tiles_of, write


def weighted(
    plan: Plan,
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    probabilities: Float[Array, "batch labels"],
    weights: Float[Array, " rules"],
    *,
    views: Float[Array, "batch seen"] | None = None,
    logic: Logic = PRODUCT,
    squared: bool = False,
) -> Float[Array, " batch"]:
    """Σ weight · violation over the rules, row by row, or Σ weight · violation².

    The gradient to the probabilities is computed together with the value, that to the weights only
    in a backward pass that needs it. No gradient reaches columns and views.

    Args:
      plan: From ``plan``.
      circuit: The circuit that the plan was made from.
      columns: Encoded columns; NaN where a value is missing.
      probabilities: The probabilities of the labels.
      weights: The weights of the rules.
      views: The probabilities of other views, concatenated over views.
      logic: The fuzzy logic; gradients are derived from its algebra.
      squared: Whether violations are squared.

    Returns:
      ``[batch]``, float32 or wider.
    """
    p, w = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (probabilities, weights))
    seen = jnp.zeros((p.shape[0], 0), p.dtype) if views is None else views.astype(p.dtype)
    rescale = Squared(logic.rescale) if squared else logic.rescale
    return _weighted((logic.algebra, rescale), *vary_alike((plan, circuit, columns, seen, p, w)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted(static, plan, circuit, columns, seen, p, weights):
    return _rows(static, plan, circuit, columns, seen, p, weights, False)[0]


def _weighted_jvp(static, primals, tangents):
    plan, circuit, columns, seen, p, weights = primals
    fixed = plan, circuit, columns, seen
    of_p, of_weights = tangents[-2:]
    for_p = not isinstance(of_p, SymbolicZero)
    rows, gradient = _rows(static, *fixed, p, weights, for_p)
    slope = jnp.zeros_like(rows) if gradient is None else (gradient * of_p).sum(1)
    if not isinstance(of_weights, SymbolicZero):
        slope += linear_map(
            lambda weights: _rows(static, *fixed, p, weights, False)[0],
            lambda slope: _per_rule(
                static, *fixed, p, slope.astype(p.dtype), weights.shape[0]
            ).astype(weights.dtype),
            of_weights,
        )
    return rows, slope


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


class _Batch(NamedTuple):
    """All rows, padded to fill a tile.

    Attributes:
      values: Registers, ``[registers, batch]``.
      labels: Probabilities of labels, then those of views, ``[batch, labels + seen]``.
    """

    values: Array
    labels: Array


def _batch(circuit: Circuit, columns: Array, seen: Array, p: Array) -> _Batch:
    labels = jnp.concatenate([p, seen], axis=1) if seen.shape[1] else p
    return _Batch(registers(circuit, padded(columns, jnp.nan)), padded(labels, 0.0))


def _scratch(batch: _Batch, width: int) -> Array:
    """An array for the values that ``Flat`` refers to in one plane: p, 1 − p, 1 and 0."""
    zeros = jnp.zeros((2 * batch.labels.shape[1], width), batch.labels.dtype)
    return jnp.concatenate([zeros, jnp.ones_like(zeros[:1]), jnp.zeros_like(zeros[:1])])


def _fill(scratch: Array, batch: _Batch, first: Any) -> Array:
    """The scratch array with the values of the plane that starts at ``first``.

    They overwrite those of the last plane: XLA would compute a new array again wherever it is read,
    and one array for all rows at once would be large.
    """
    own = jax.lax.dynamic_slice_in_dim(batch.labels, first, scratch.shape[1], axis=0).T
    scratch = jax.lax.dynamic_update_slice_in_dim(scratch, own, 0, axis=0)
    return jax.lax.dynamic_update_slice_in_dim(scratch, 1.0 - own, own.shape[0], axis=0)


def _prepare(plan: Plan, circuit: Circuit, batch: _Batch, rows: int) -> Callable[[Array], Any]:
    """A function for a tile's nodes over columns, as bits.

    It returns the guards of each group of flat rules, and the crisp nodes of the other rules; None
    for what the plan does not need.
    """
    guards = [flat.guard for flat in plan.flat]
    crisp = None if plan.rest is None or not plan.rest.crisp.shape[0] else plan.rest.crisp
    if crisp is None and all(guard is None for guard in guards):
        return lambda first: ([None for _ in guards], None)

    def prepare(first):
        found = nodes(circuit, cut(batch.values, first, rows))
        chosen = [None if g is None else BITS.conjunction(each_child(found, g)) for g in guards]
        return chosen, None if crisp is None else take(found, crisp)

    return prepare


def _rows(static, plan, circuit, columns, seen, p, weights, differentiate):
    """The weighted sum, ``[batch]``, and its gradient to the probabilities if ``differentiate``."""
    algebra, rescale = static
    batch = _batch(circuit, columns, seen, p)
    tiles = tiles_of(batch.values.shape[1])
    prepare = _prepare(plan, circuit, batch, 8 * tiles.width)
    own = [weights[flat.rule] for flat in plan.flat]
    factors = [
        w[flat.chunks.index] * flat.chunks.live for w, flat in zip(own, plan.flat, strict=True)
    ]
    slopes = [w[flat.slot] * flat.sign for w, flat in zip(own, plan.flat, strict=True)]

    def plane(carry, prepared, t, i):
        first = tiles.start(t) + i * tiles.width
        rows, gradients, scratch = carry
        q = _fill(scratch, batch, first)
        guards, crisp = prepared
        value = jnp.zeros((1, tiles.width), p.dtype)
        gradient = jnp.zeros((p.shape[1], tiles.width), p.dtype)
        for flat, guard, factor, slope in zip(plan.flat, guards, factors, slopes, strict=True):
            value += _flat_value(flat, q, guard, i, factor, algebra, rescale)
            if differentiate:
                gradient += _flat_gradient(flat, q, guard, i, slope, algebra, rescale, first >= 0)
        if plan.rest is not None:
            held = _crisp(crisp, i, q)
            rest_weights = weights[plan.rest.rule][None, :]

            def of(q):
                return rest_weights @ _rest_values(plan.rest, q, held, algebra, rescale)

            if differentiate:
                new, pull = jax.vjp(of, q)
                back = pull(jnp.ones_like(new))[0]
                total = p.shape[1] + seen.shape[1]
                gradient += back[: p.shape[1]] - back[total : total + p.shape[1]]
            else:
                new = of(q)
            value += new
        if differentiate:
            gradients = write(gradients, gradient, first)
        return write(rows, value, first), gradients, q

    wide = batch.values.shape[1]
    carry = (
        jnp.zeros((1, wide), p.dtype),
        jnp.zeros((p.shape[1], wide), p.dtype) if differentiate else None,
        _scratch(batch, tiles.width),
    )
    rows, gradients, _ = over_tiles(tiles, prepare, plane, carry, (batch, weights, plan, circuit))
    number = p.shape[0]
    return rows[0, :number], None if gradients is None else gradients.T[:number]


def _per_rule(static, plan, circuit, columns, seen, p, row_weights, number):
    """Σ row weight · rescale(violation) over the rows, ``[rules]``: the gradient to the weights."""
    algebra, rescale = static
    batch = _batch(circuit, columns, seen, p)
    tiles = tiles_of(batch.values.shape[1])
    prepare = _prepare(plan, circuit, batch, 8 * tiles.width)
    row_weights = padded(row_weights, 0.0)[None, :]
    rules = [flat.rule for flat in plan.flat] + ([] if plan.rest is None else [plan.rest.rule])

    def plane(carry, prepared, t, i):
        totals, scratch = carry
        first = tiles.start(t) + i * tiles.width
        q = _fill(scratch, batch, first)
        w = jnp.where(tiles.fresh(t, i)[None, :], cut(row_weights, first, tiles.width), 0.0)
        guards, crisp = prepared
        values = []
        for flat, guard in zip(plan.flat, guards, strict=True):
            v = _rescaled(algebra.conjunction([take(q, child) for child in flat.children]), rescale)
            values.append(v if guard is None else jnp.where(holds(guard, i), v, 0.0))
        if plan.rest is not None:
            values.append(_rest_values(plan.rest, q, _crisp(crisp, i, q), algebra, rescale))
        return [a + v @ w[0] for a, v in zip(totals, values, strict=True)], q

    zeros = [jnp.zeros(r.shape[0], p.dtype) for r in rules]
    carry = zeros, _scratch(batch, tiles.width)
    found, _ = over_tiles(tiles, prepare, plane, carry, (batch, row_weights, plan, circuit))
    order = jnp.concatenate([jnp.asarray(r) for r in rules])
    return jnp.zeros(number, p.dtype).at[order].set(jnp.concatenate(found))


# Flat rules


def _flat_value(flat, q, guard, plane, factor, algebra, rescale):
    """Σ weight · rescale(violation) over a group of flat rules, ``[1, width]``."""

    def part(index, factor):
        literals = [take(q, child[index]) for child in flat.children]
        v = factor[:, None] * _rescaled(algebra.conjunction(literals), rescale)
        return v if guard is None else jnp.where(holds(take(guard, index), plane), v, 0.0)

    sums = _short_sum(part, flat.chunks.index, factor)
    return jnp.ones((1, sums.shape[0]), q.dtype) @ sums


def _flat_gradient(flat, q, guard, plane, slope, algebra, rescale, always):
    """The gradient of that sum to the labels, ``[labels, width]``."""

    def part(slot, slope, own, *others):
        own, others = take(q, own), [take(q, other) for other in others]

        def violation(own):
            return _rescaled(algebra.conjunction([own, *others]), rescale)

        d = slope[:, None] * jax.jvp(violation, (own,), (jnp.ones_like(own),))[1]
        return d if guard is None else jnp.where(holds(take(guard, slot), plane), d, 0.0)

    # In a branch of ``cond``, since XLA would compute the short sums again wherever one is read.
    zeros = jnp.zeros((flat.slot.shape[0], q.shape[1]), q.dtype)
    zeros, _ = vary_alike((zeros, (q, guard, slope, flat)))
    sums = jax.lax.cond(
        always,
        lambda: _short_sum(part, flat.slot, slope, flat.own, *flat.others),
        lambda: zeros,
    )
    return _summed(sums, flat.tree)


def _short_sum(part: Callable[..., Array], *tables: Any) -> Array:
    """Σ part(…) over the second axis of the tables, as one fused expression."""
    number = tables[0].shape[1]
    return functools.reduce(operator.add, (part(*(t[:, i] for t in tables)) for i in range(number)))


def _summed(rows: Array, tree: tuple[Sums, ...]) -> Array:
    """Sums of rows, in the tree's steps of short sums."""
    for sums in tree:
        rows = _short_sum(
            lambda index, live, rows=rows: take(rows, index) * live[:, None], sums.index, sums.live
        )
    return rows


def _rescaled(values: Array, rescale: Callable[[Array], Array] | None) -> Array:
    return values if rescale is None else rescale(values)


# Other rules


def _crisp(words: Array | None, plane: Any, like: Array) -> Array:
    """The crisp nodes of one plane as 0 and 1, ``[crisp, width]``."""
    if words is None:
        return jnp.zeros((0, like.shape[1]), like.dtype)
    return holds(words, plane).astype(like.dtype)


def _rest_values(rest, q, crisp, algebra, rescale):
    """rescale(violation) of the rules that are not flat, ``[rest, width]``."""
    rows = evaluate(rest.levels, jnp.concatenate([q, crisp]), algebra, gather=_summed_children)
    return _rescaled(_summed_children(rows, rest.root)[0], rescale)


def _summed_children(rows: Array, join: Join) -> list[Array]:
    """The children's rows, with a gradient that is computed by sums in place of scatters."""
    n, fan_in = join.children.shape
    taken = _taken(rows, jnp.asarray(join.children).reshape(-1), join.tree)
    taken = taken.reshape(n, fan_in, rows.shape[1])
    return [taken[:, i] for i in range(fan_in)]


@jax.custom_vjp
def _taken(rows, index, tree):
    return take(rows, index)


def _taken_fwd(rows, index, tree):
    return take(rows, index), tree


def _taken_bwd(tree, slope):
    return _summed(slope, tree), None, None


_taken.defvjp(_taken_fwd, _taken_bwd)
