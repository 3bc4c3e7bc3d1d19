"""What keeps rows and terms that do not count out of the gradient.

Setting a loss to 0 afterwards guards its value alone: in the backward pass 0 meets an infinite
slope, or NaN, and their product is NaN. So what a loss reads is guarded before the loss sees it:

- in masked rows it is 0 (``masked``), whatever it held;
- where the term's weight is 0 it is cut from the gradient (``cut``): the cotangent is replaced by
  a selection, not multiplied by 0.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, PyTree

from distill_jax import _checks
from distill_jax.objectives.context import Context


@dataclasses.dataclass(frozen=True)
class Guard:
    """Guards what one term reads.

    Attributes:
      mask: The rows that count, ``[batch, ...]``, or None.
      off: Whether the term's weight is 0, or None where it is known not to be.
    """

    mask: Any = None
    off: Any = None

    def outputs(self, tree: PyTree) -> PyTree:
        """Logits and features, arrays ``[batch, ...]``.

        A mask with more axes than ``[batch]`` is applied entry by entry to arrays with one axis
        more, ``[batch, time, classes]``. To others, pooled features for example, it is applied row
        by row: a row is 0 if none of its entries counts.
        """
        return jax.tree.map(lambda x: self.cut(self._masked(x, outputs=True)), tree)

    def columns(self, tree: PyTree) -> PyTree:
        """Columns of the batch, arrays ``[batch, ...]``.

        A mask with more axes than ``[batch]`` is applied entry by entry to all columns that begin
        with its axes, and row by row to others.
        """
        return jax.tree.map(lambda x: self.cut(self._masked(x, outputs=False)), tree)

    def context(self, context: Context) -> Context:
        outputs = context.student, dict(context.teachers), dict(context.views)
        student, teachers, views = self.outputs(outputs)
        batch = {
            name: (self.outputs if name == "teacher_logits" else self.columns)(x)
            for name, x in context.batch.items()
        }
        return context._replace(student=student, teachers=teachers, views=views, batch=batch)

    def cut(self, tree: PyTree) -> PyTree:
        """The same values, through which no gradient passes while the term is off."""
        if self.off is None:
            return tree
        return jax.tree.map(functools.partial(_cut, self.off), tree)

    def _masked(self, x: Any, *, outputs: bool) -> Any:
        mask = self.mask
        if mask is None or not _is_array(x) or x.shape[:1] != mask.shape[:1]:
            return x
        entries = x.shape[: mask.ndim] == mask.shape
        if mask.ndim > 1 and outputs:
            entries = entries and x.ndim == mask.ndim + 1
        keep = jnp.asarray(mask if entries else mask.any(axis=tuple(range(1, mask.ndim))))
        x = jnp.asarray(x)
        # Plain operations of lax, since every term's inputs are traced through here.
        keep = jax.lax.broadcast_in_dim(keep, x.shape, tuple(range(keep.ndim)))
        return jax.lax.select(keep, x, jax.lax.full_like(x, 0))


def _cut(off: Bool[Array, ""], x: Any) -> Any:
    # Only what is traced is differentiated; what is known stays known, for checks of its value.
    if not isinstance(x, jax.core.Tracer) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jax.lax.select(off, jax.lax.stop_gradient(x), x)


def is_off(weight: Any) -> Bool[Array, ""] | None:
    """Whether a weight is 0; None if it is known not to be."""
    known = _checks.known(weight)
    if known is not None and known != 0:
        return None
    return jnp.asarray(weight == 0)


@jax.custom_jvp
def weighted(weight: Float[Array, ""], mean: Float[Array, ""]) -> Float[Array, ""]:
    """``weight * mean``, where 0 times an infinite mean is 0.

    At weight 0 no gradient passes to the mean; the slope with respect to the weight is the mean.
    """
    return jnp.where(weight == 0, 0.0, weight * mean)


@functools.partial(weighted.defjvp, symbolic_zeros=True)
def _weighted_jvp(primals: tuple[Array, Array], tangents: Any) -> tuple[Array, Array]:
    weight, mean = primals
    of_weight, of_mean = tangents
    slope = jnp.zeros_like(mean)
    if not isinstance(of_weight, SymbolicZero):
        slope += of_weight * mean
    if not isinstance(of_mean, SymbolicZero):
        slope += jnp.where(weight == 0, 0.0, weight * of_mean)
    return weighted(weight, mean), slope


def _is_array(x: Any) -> bool:
    described = hasattr(x, "shape") and hasattr(x, "dtype")
    return described and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
