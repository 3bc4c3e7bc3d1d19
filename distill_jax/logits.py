"""From logits to rows: the two drivers that every loss over classes runs through.

A *core* is ``core(student, teacher, *options) -> rows`` over dense, clean, float32 blocks
``[..., classes]``. It knows nothing of masks, dtypes or memory. ``rows`` returns unreduced values
and composes with every transform. ``total`` returns a weighted sum and computes the gradient block
by block in the forward pass, so the gradient is the only array of the size of the logits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax._programs import vary_alike
from distill_jax.types import OutputKind

Core = Callable[..., Array]


@checked
def two_class(logits: Float[Array, "*batch outputs"]) -> Float[Array, "*batch classes"]:
    """A single output ``z`` as the logits ``[0, z]`` of two classes; wider logits are unchanged.

    The result's softmax is ``[1 - sigmoid(z), sigmoid(z)]``, and its argmax is 1 where ``z > 0``.

    Args:
      logits: ``[..., outputs]``.

    Returns:
      ``[..., 2]`` for one output, otherwise ``logits``.

    Example:
      >>> two_class(jnp.array([[2.0], [-1.0]]))
      Array([[ 0.,  2.],
             [ 0., -1.]], dtype=float32)
    """
    _checks.floating(logits=logits)
    _checks.classes_axis(least=1, logits=logits)
    logits = jnp.asarray(logits)
    if logits.shape[-1] != 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def as_logits(outputs: Any, kind: OutputKind) -> Array:
    """What a forward pass returned, as the logits that ``kind`` has.

    Args:
      outputs: ``[batch, ..., outputs]``.
      kind: What they mean.

    Returns:
      ``[batch, ..., classes]``, with two classes for a single output of kind ``"softmax"``.

    Raises:
      TypeError: if ``outputs`` is not one array.
      ValueError: if it has no axis besides the batch.
    """
    if not isinstance(outputs, jax.Array | np.ndarray):
        raise TypeError(
            "a model must return its logits as one array [batch, ..., classes] or as Outputs, "
            f"got {type(outputs).__name__}"
        )
    if outputs.ndim < 2:
        raise ValueError(
            "a model must return logits [batch, ..., classes], one number per row as [batch, 1], "
            f"got shape {outputs.shape}"
        )
    logits = jnp.asarray(outputs)
    return two_class(logits) if kind == "softmax" else logits


@checked
def rows(
    core: Core,
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *options: Any,
    where: Bool[Array, "*batch"] | None = None,
    least: int = 2,
) -> Float[Array, "*batch"]:
    """Runs a core over two dense arrays: checks, float32 or better, masks.

    Masked rows are replaced before the core sees them, so they contribute neither value nor
    gradient, even if they hold NaN.

    Args:
      core: ``core(student, teacher, *options) -> rows``.
      student_logits: ``[..., classes]``.
      teacher_logits: Same shape.
      *options: Scalars, cast to the dtype of the arithmetic.
      where: Rows to count, ``[...]``; the others have value 0 and gradient 0.
      least: How many outputs there must be: one, for a core that is not about a softmax.

    Returns:
      One value per row, ``[...]``, float32 or better.
    """
    _checks.floating(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.classes_axis(least=least, student_logits=student_logits)
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    dtype = _checks.wide_dtype(student_logits, teacher_logits)
    student, teacher = (jnp.asarray(x, dtype) for x in (student_logits, teacher_logits))
    scalars = (jnp.asarray(option, dtype) for option in options)
    if where is None:
        return core(student, teacher, *scalars)
    _checks.boolean(where=where)
    _checks.shape(student.shape[:-1], where=where)
    where = jnp.asarray(where)
    student, teacher = (jnp.where(where[..., None], x, 0.0) for x in (student, teacher))
    return jnp.where(where, core(student, teacher, *scalars), 0.0)


@checked
def total(
    loss: Callable[..., Array],
    student_logits: Float[Array, "*batch classes"],
    against: Array,
    *,
    where: Bool[Array, "*batch"] | None = None,
    weights: Float[Array, "*batch"] | None = None,
    chunk: int | None = None,
    **options: Any,
) -> tuple[Float[Array, ""], Float[Array, "*batch"]]:
    """The weighted sum of a loss over all rows, with the gradient computed in the forward pass.

    Equal to ``(weights * loss(student_logits, against, where=where, **options)).sum()`` and its
    gradient, in less time and memory if there are many classes: values and gradient of a block of
    rows are computed in one pass over it. Only the gradients that are needed are computed. Reverse
    mode and jvp-of-grad work; direct forward mode does not.

    Args:
      loss: A loss of this package over logits, such as ``forward_kl`` or ``cross_entropy``, that
        does not couple examples.
      student_logits: ``[..., classes]``.
      against: The loss's second argument: the teacher's logits or target probabilities,
        ``[..., classes]``, or labels, ``[...]``.
      where: Rows to count, ``[...]``.
      weights: A factor for each row, ``[...]``; 1 where None.
      chunk: Rows per block; None takes about a megabyte of logits.
      **options: The loss's scalar options, traced or not.

    Returns:
      The sum, a scalar, and the unweighted rows, ``[...]``. No gradient flows through the rows.

    Raises:
      ValueError: if shapes differ, ``chunk`` is not positive, or an option is out of its range.

    Example:
      >>> from distill_jax.losses import forward_kl
      >>> student, teacher = jnp.zeros((4, 3)), jnp.eye(4, 3)
      >>> value, _ = total(forward_kl, student, teacher, chunk=2)
      >>> bool(jnp.isclose(value, forward_kl(student, teacher).sum()))
      True
    """
    _checks.floating(student_logits=student_logits)
    _checks.classes_axis(least=1, student_logits=student_logits)  # the loss may want two
    batch, classes = student_logits.shape[:-1], student_logits.shape[-1]
    if np.shape(against)[: len(batch)] != batch:
        raise ValueError(
            f"against must begin with the axes {batch} of student_logits, got {np.shape(against)}"
        )
    optional: dict[str, Any] = {"where": where, "weights": weights}
    _checks.shape(batch, **{name: x for name, x in optional.items() if x is not None})
    if chunk is not None:
        _checks.integer(chunk=chunk)
        _checks.positive(chunk=chunk)
    # Checked here, where options are still concrete; in the blocks they are traced.
    jax.eval_shape(lambda s, a, m: loss(s, a, where=m, **options), student_logits, against, where)
    dtype = _checks.wide_dtype(student_logits)
    count = math.prod(batch)
    if count == 0:
        return jnp.zeros((), dtype), jnp.zeros(batch, dtype)
    tail = len(batch)
    arguments = (
        tuple(x.reshape(count, *x.shape[tail:]) for x in (student_logits, against)),
        {name: jnp.asarray(option, dtype) for name, option in options.items()},
        jnp.ones(count, dtype) if weights is None else weights.reshape(count).astype(dtype),
        jnp.ones(count, bool) if where is None else where.reshape(count),
    )
    chunk = _even(count, max(1, 262_144 // classes)) if chunk is None else min(chunk, count)
    made: Any = _total((loss, chunk), *vary_alike(arguments))
    value, per_row = made
    return value, jax.lax.stop_gradient(per_row).reshape(batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(static, pair, options, weights, live):
    loss, chunk = static

    def block(pair, w, m):
        out = loss(*pair, where=m, **options)
        return _weighted(w, out), out

    return _scan(block, chunk, (pair, weights, live))


def _total_fwd(static, pair, options, weights, live):
    # Symbolic zeros show which gradients are needed; the others cost nothing.
    loss, chunk = static
    values = tuple(x.value for x in pair), {name: x.value for name, x in options.items()}
    wants = [i for i, x in enumerate(pair) if x.perturbed]
    wants_options = [name for name, x in options.items() if x.perturbed]

    def block(pair, w, m):
        def of(chosen, chosen_options):
            full = tuple(chosen.get(i, x) for i, x in enumerate(pair))
            return loss(*full, where=m, **{**values[1], **chosen_options})

        out, pull = jax.vjp(
            of, {i: pair[i] for i in wants}, {name: values[1][name] for name in wants_options}
        )
        per_row, shared = pull(w.astype(out.dtype))
        return (_weighted(w, out), shared), (out, per_row)

    (value, shared), (out, per_row) = _scan(block, chunk, (values[0], weights.value, live.value))
    pair_grads = tuple(per_row.get(i) for i in range(2))
    option_grads = {name: shared.get(name) for name in options}
    return (value, out), (pair_grads, option_grads, out if weights.perturbed else None)


def _total_bwd(static, residuals, cotangents):
    slope, _ = cotangents  # the rows are behind a stop_gradient
    pair, options, weights = jax.tree.map(lambda x: (slope * x).astype(x.dtype), residuals)
    return pair, options, weights, None


_total.defvjp(_total_fwd, _total_bwd, symbolic_zeros=True)


def _weighted(weights: Array, rows: Array) -> Array:
    return jnp.where(weights == 0, 0.0, weights * rows).sum()  # an infinite row of weight 0 is 0


def _scan(block: Callable, chunk: int, arrays: Any) -> tuple[Any, Any]:
    """The sum of ``block``'s first results over blocks of rows, and all of its second results."""
    count = len(jax.tree.leaves(arrays)[0])
    whole = count // chunk * chunk
    heads = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), arrays)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(lambda xs: block(*xs)[0], jax.tree.map(lambda x: x[0], heads)),
    )
    _, zeros = vary_alike((arrays, zeros))

    def step(carry, xs):
        sums, out = block(*xs)
        return jax.tree.map(jnp.add, carry, sums), out

    sums, out = jax.lax.scan(step, zeros, heads)
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if whole < count:
        sums, last = step(sums, jax.tree.map(lambda x: x[whole:], arrays))
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, last)
    return sums, out


def _even(count: int, most: int) -> int:
    """Rows per block, ``most`` or fewer: of one size, if that is more than half of ``most``.

    A last block of another size costs a copy of all the others.
    """
    most = min(most, count)
    return next((n for n in range(most, most // 2, -1) if count % n == 0), most)
