"""Teachers that take less memory: weights in bfloat16, or in eight-bit integers."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from distill_jax import _checks
from distill_jax.teachers.kinds import Teacher
from distill_jax.types import Outputs, Params, State


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel in eight bits, ``values * scale``.

    Attributes:
      values: Whole numbers from -127 to 127.
      scale: One number a channel of the last axis; the other axes are 1.
      dtype: What the kernel was, and is computed in.
    """

    values: Int8[Array, "*axes channels"]
    scale: Float[Array, "*ones channels"]
    dtype: Any


def cast(teacher: Teacher, dtype: Any = jnp.bfloat16) -> Teacher:
    """The same teacher with weights kept, and outputs computed, in ``dtype``.

    Half the memory of float32 in bfloat16; on a GPU or a TPU it is faster too. State (batch
    statistics) stays as it is, integers and keys too. Logits come out in float32 or better,
    features in ``dtype``. Inputs are rounded to ``dtype`` as well: bfloat16 keeps eight bits.

    How far the soft targets move is measured by ``python benchmarks/memory.py``: for an MLP on
    MNIST, by less than 1e-4 nats at temperature 1.

    Args:
      teacher: Any but a quantized one. An ensemble is cast with its weights; rules around a
        teacher are put around the cast one.
      dtype: ``jnp.bfloat16``, or float32 for a teacher that is stored in less.

    Raises:
      TypeError: if ``dtype`` is no floating dtype.
      ValueError: for float16 and less, for a quantized teacher, and for one that compares its
        inputs with written thresholds.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> from distill_jax.teachers import teacher
      >>> model, inputs = logistic_regression(3), jnp.ones((2, 4))
      >>> small = cast(teacher(model, *model.init(jax.random.key(0), inputs)))
      >>> str(small.params["kernel"].dtype), str(small(inputs).logits.dtype)
      ('bfloat16', 'float32')
    """
    dtype = _checks.compute_dtype(dtype)
    if any(isinstance(x, Quantized) for x in _kernels(teacher.params)):
        raise ValueError("teacher is quantized: write quantize(cast(teacher, dtype))")
    if _checks.reads_exactly(teacher.predict):
        raise ValueError(
            "teacher compares its inputs with written numbers, and would see them rounded to "
            f"{dtype}: cast what is inside, corrected(cast(teacher), book)"
        )
    return dataclasses.replace(
        teacher,
        predict=_Cast(teacher.predict, dtype),
        params=jax.tree.map(lambda x: _to(x, dtype), teacher.params),
    )


def quantize(teacher: Teacher, *, smallest: int = 1024) -> Teacher:
    """The same teacher with kernels of eight bits: a quarter of float32's memory.

    Each kernel (a floating array of two axes or more, ``[..., out]``) becomes whole numbers times
    one float32 scale for each channel of its last axis, symmetric around 0, rounded to nearest:
    no weight moves by more than 1/254 of the largest of its channel. Biases, norms and state stay.
    Kernels are multiplied out again in every call, one after another, and computing is what it
    was, so that any teacher can be quantized: this saves memory, not time.

    What it costs in time and in agreement is measured by ``python benchmarks/memory.py``: for an
    MLP on MNIST, soft targets move by less than 1e-3 nats at temperature 1. On a CPU a call with
    few rows is slower, since multiplying a kernel out takes as long as using it for a few dozen.

    Args:
      teacher: Any. For bfloat16 beside it, ``quantize(cast(teacher))``.
      smallest: Kernels with fewer numbers stay.

    Returns:
      A teacher whose params hold :class:`Quantized` in place of kernels; classes and features are
      those of ``teacher``.

    Raises:
      ValueError: for a kernel that holds NaN or inf, or if ``smallest`` is below 1.

    Example:
      >>> from distill_jax.models import mlp
      >>> from distill_jax.teachers import teacher
      >>> model, inputs = mlp([64], 3), jnp.ones((2, 32))
      >>> small = quantize(teacher(model, *model.init(jax.random.key(0), inputs)))
      >>> kernel = small.params["hidden"]["0"]["kernel"]
      >>> str(kernel.values.dtype), kernel.scale.shape
      ('int8', (1, 64))
    """
    if operator.index(smallest) < 1:
        raise ValueError(f"smallest must be 1 or more, got {smallest}")

    def small(path: Any, x: Any) -> Any:
        if isinstance(x, Quantized) or jnp.ndim(x) < 2 or jnp.size(x) < smallest:
            return x
        return _quantized(path, x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    params = jax.tree_util.tree_map_with_path(small, teacher.params, is_leaf=_is_quantized)
    return dataclasses.replace(teacher, predict=_Multiplied(teacher.predict), params=params)


def _quantized(path: Any, x: Array) -> Quantized:
    kernel = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    _checks.finite(**{f"the kernel {name!r} of teacher": kernel})
    widest = jnp.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
    scale = jnp.where(widest > 0, widest / 127.0, 1.0)
    values = jnp.clip(jnp.round(kernel / scale), -127, 127).astype(jnp.int8)
    return Quantized(values, scale.astype(jnp.float32), np.dtype(x.dtype))


def _is_quantized(x: Any) -> bool:
    return isinstance(x, Quantized)


def _kernels(params: Params) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=_is_quantized)


def _to(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


@dataclasses.dataclass(frozen=True)
class _Cast:
    predict: Callable[..., Outputs]
    dtype: Any

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        # Once more: a caller may pass params that were kept in float32.
        params, inputs = jax.tree.map(lambda x: _to(x, self.dtype), (params, inputs))
        outputs = self.predict(params, state, inputs)
        wide = jnp.promote_types(outputs.logits.dtype, jnp.float32)
        return outputs._replace(logits=outputs.logits.astype(wide))


@dataclasses.dataclass(frozen=True)
class _Multiplied:
    predict: Callable[..., Outputs]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        # Tied to the inputs, or a loop over batches would multiply all kernels out before it
        # begins, and hold them.
        params, inputs = jax.lax.optimization_barrier((params, inputs))

        def kernel(x: Any) -> Any:
            if not isinstance(x, Quantized):
                return x
            return (x.values.astype(x.scale.dtype) * x.scale).astype(x.dtype)

        params = jax.tree.map(kernel, params, is_leaf=_is_quantized)
        return self.predict(params, state, inputs)
