"""The gradient of one optimizer step, from a batch computed in pieces.

A batch in microbatches needs the memory of one of them. The gradient is that of the whole batch, up
to rounding: sums are divided by the counts of the whole batch, which are known beforehand, however
unevenly masked rows are distributed (means of means would be wrong).

- One pass, if no term couples examples: forward and backward through each piece, and a sum.
- Two passes, if a term does, or owns state: a forward pass through all pieces, the gradient with
  respect to all outputs, then a vector-Jacobian product for each piece. The outputs of the whole
  batch are held at once, and the student runs forward twice.

Batch norm sees one microbatch at a time; dropout, and a teacher that draws, draw anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from distill_jax import _checks
from distill_jax._programs import has_convolution
from distill_jax.objectives import Context, Objective, Part
from distill_jax.training.step._forward import Forward
from distill_jax.types import Batch, State

_PIECES = 1 << 20
"""Folded into the keys of pieces."""


class Gradients(NamedTuple):
    """What an optimizer step needs; ``grads`` has the structure ``{"student", "terms"}``."""

    loss: Array
    parts: dict[str, Part]
    grads: dict[str, PyTree]
    state: State
    term_state: dict[str, PyTree]


def gradients(
    forward: Forward,
    objective: Objective,
    trainable: Mapping[str, PyTree],
    state: State,
    term_state: Mapping[str, PyTree],
    columns: Batch,
    step: Array,
    key: Array,
    *,
    microbatches: int = 1,
) -> Gradients:
    """The gradient of the objective on a batch, computed in ``microbatches`` equal pieces."""
    arguments = forward, objective, trainable, state, term_state, columns, step, key
    if microbatches == 1:
        return _whole(*arguments)
    divides(microbatches, len(jax.tree.leaves(columns)[0]))
    coupled = any(t.coupled or jax.tree.leaves(term_state.get(t.name)) for t in objective.terms)
    return (_two_passes if coupled else _one_pass)(*arguments, microbatches)


def divides(microbatches: int, rows: int) -> None:
    """Raises ValueError unless ``rows`` can be cut into ``microbatches`` pieces of equal size."""
    if rows % microbatches:
        fitting = [n for n in range(1, rows + 1) if rows % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(n - microbatches))[:4])
        raise ValueError(
            f"microbatches must divide the {rows} rows of a batch, got {microbatches}: take one of "
            f"{near}, or another batch size"
        )


def split(tree: PyTree, pieces: int) -> PyTree:
    """``[rows, ...]`` to ``[pieces, rows / pieces, ...]``.

    By stride, so that where devices hold consecutive rows, each keeps its own in every piece.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), tree
    )


def join(tree: PyTree) -> PyTree:
    """The inverse of :func:`split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _piece_key(key: Array, i: Array | int) -> Array:
    """The key of a piece of a batch.

    Far from small numbers: ``split(key)[1]``, the key of the terms, is ``fold_in(key, 1)``.
    """
    return jax.random.fold_in(key, i + _PIECES)


def _whole(forward, objective, trainable, state, term_state, columns, step, key) -> Gradients:
    taught = forward.teach(columns, key)
    key_model, key_terms = jax.random.split(key)

    def value(trainable):
        params = trainable["student"]
        views = forward.views(params, state, columns)
        student, new = forward.student(params, state, columns, key_model)
        context = Context(student, taught, columns, step, key_terms, views)
        with jax.named_scope("loss"):
            scalar, (parts, terms) = objective(trainable["terms"], term_state, context)
        return scalar, (parts, new, terms)

    (scalar, (parts, new, terms)), grads = jax.value_and_grad(value, has_aux=True)(dict(trainable))
    return Gradients(scalar, parts, grads, _like(new, state), _like(terms, term_state))


def _one_pass(
    forward, objective, trainable, state, term_state, columns, step, key, pieces
) -> Gradients:
    counts = objective.counts(columns)

    def piece(state, i, rows):
        own = _piece_key(key, i)
        taught = forward.teach(rows, own)
        key_model, key_terms = jax.random.split(own)

        def value(trainable):
            params = trainable["student"]
            views = forward.views(params, state, rows)
            student, new = forward.student(params, state, rows, key_model)
            context = Context(student, taught, rows, step, key_terms, views)
            with jax.named_scope("loss"):
                scalar, (parts, _) = objective(trainable["terms"], term_state, context, counts)
            return scalar, (parts, new)

        (scalar, (parts, new)), grads = jax.value_and_grad(value, has_aux=True)(dict(trainable))
        return _like(new, state), (scalar, parts, grads)

    piece = _traced_once(piece)
    state, (scalar, parts, grads) = _summed(piece, state, split(columns, pieces), pieces)
    return Gradients(scalar, parts, _like(grads, trainable), state, dict(term_state))


def _two_passes(
    forward, objective, trainable, state, term_state, columns, step, key, pieces
) -> Gradients:
    params, cut = trainable["student"], split(columns, pieces)

    def piece_key(i):
        return _piece_key(key, i)

    def model_key(i):  # the terms see the whole batch, and its key
        return jax.random.split(piece_key(i))[0]

    @_traced_once
    def see(state, piece):
        i, rows = piece
        outputs, new = forward.student(params, state, rows, model_key(i))
        taught = forward.teach(rows, piece_key(i))
        seen = outputs, taught, forward.views(params, state, rows)
        return _like(new, state), (state, seen)

    scan = (jnp.arange(pieces), cut)
    end, (states, seen) = jax.lax.scan(see, state, scan, unroll=_unroll(see, state, scan))
    student, taught, views = join(seen)
    leaves, structure = jax.tree.flatten(student)
    floats = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def value(moving, terms):
        moving = iter(moving)
        outputs = [next(moving) if f else x for f, x in zip(floats, leaves, strict=True)]
        student = jax.tree.unflatten(structure, outputs)
        context = Context(student, taught, columns, step, jax.random.split(key)[1], views)
        with jax.named_scope("loss"):
            scalar, (parts, new) = objective(terms, term_state, context)
        return scalar, (parts, new)

    moving = [x for f, x in zip(floats, leaves, strict=True) if f]
    (scalar, (parts, new)), (back, grads_terms) = jax.value_and_grad(
        value, argnums=(0, 1), has_aux=True
    )(moving, trainable["terms"])

    @_traced_once
    def pull(_, i, piece):
        rows, state, back = piece

        def outputs(params):
            seen = jax.tree.leaves(forward.student(params, state, rows, model_key(i))[0])
            return [x for f, x in zip(floats, seen, strict=True) if f]

        return None, jax.vjp(outputs, params)[1](back)[0]

    _, grads = _summed(pull, None, (cut, states, split(back, pieces)), pieces)
    grads = {"student": _like(grads, params), "terms": grads_terms}
    return Gradients(scalar, parts, grads, end, _like(new, term_state))


def _summed(piece: Callable, state: Any, cut: PyTree, pieces: int) -> tuple[Any, PyTree]:
    """``piece(state, i, rows) -> (state, addends)`` over all pieces; sums in float32 at least."""

    def body(carry, x):
        state, total = carry
        state, more = piece(state, *x)
        return (state, jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more)), None

    first = jax.tree.map(lambda x: x[0], cut)
    _, shapes = jax.eval_shape(piece, state, jnp.zeros((), jnp.int32), first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _checks.wide_dtype(x.dtype)), shapes)
    scan = (jnp.arange(pieces), cut)
    start = (state, zeros)
    (state, total), _ = jax.lax.scan(body, start, scan, unroll=_unroll(body, start, scan))
    return state, total


def _traced_once(function: Callable) -> Callable:
    """The same function, traced once by JAX for its shapes, its equations and its use in a scan."""
    return jax.jit(function, inline=True)


def _unroll(body: Callable, carry: Any, scan: PyTree) -> int:
    """All pieces if one holds a convolution, which XLA's CPU backend runs slowly in a scan."""
    if jax.default_backend() != "cpu":
        return 1
    first = jax.tree.map(lambda x: x[0], scan)
    slow = has_convolution(jax.make_jaxpr(body)(carry, first))
    return len(scan[0]) if slow else 1


def _like(new: PyTree, old: PyTree) -> PyTree:
    """The new values in the dtypes of the old ones: the state's dtypes never change."""
    return jax.tree.map(lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), new, old)
