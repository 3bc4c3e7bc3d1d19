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
from jaxtyping import Array

from distill_jax import _checks, _programs
from distill_jax.teachers.kinds import Teacher
from distill_jax.types import Outputs, Params, State


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel in eight bits, ``values * scale``.

    Attributes:
      values: Whole numbers from -127 to 127, int8, ``[..., channels]``.
      scale: One number a channel, float32, ``[1, ..., channels]``.
      dtype: What the kernel was, and is computed in.
    """

    values: Any
    scale: Any
    dtype: Any


def cast(teacher: Teacher, dtype: Any = jnp.bfloat16) -> Teacher:
    """The same teacher with weights kept, and outputs computed, in ``dtype``.

    Half of float32's bytes in bfloat16. State (batch statistics) stays as it is, integers and keys
    too. Logits come out in float32 or better, features in ``dtype``. Inputs are rounded to
    ``dtype`` as well: bfloat16 keeps eight bits.

    Meant for GPUs and TPUs, which multiply bfloat16 as it is. XLA's CPU backend makes float32 of it
    first: measured on two CPU cores for an MLP of 784-1200-1200-10 on MNIST (``python
    benchmarks/memory.py``), half the bytes are held between calls, but more in a call, and it is no
    faster. Soft targets stay within 1e-5 nats on average at temperatures 1 and 4.

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
    if teacher.exact_inputs:
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
    Kernels are multiplied out again in every call, each when it is needed, and computing is what it
    was, so that any teacher can be quantized. A call holds the small kernels and one large one.
    Kernels inside of a scan over layers, which are one array, are multiplied out together.

    This saves memory, not time. Measured on two CPU cores for an MLP of 784-1200-1200-10 on MNIST
    (``python benchmarks/memory.py`` with MNIST there): 2.4 of 9.6 MB are held, and 5.8 more, the
    largest kernel, in a call, so that the peak falls little here, and by more the more kernels
    there are. Soft targets
    stay within 1e-5 nats on average at temperatures 1 and 4. Calls of 256 rows take up to a tenth
    longer, calls of 8 rows, in which reading the kernels is most of the work, half as long again.

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
        leaves, structure = jax.tree.flatten((inputs, params, state), is_leaf=_is_quantized)

        def flat(*leaves):
            inputs, params, state = jax.tree.unflatten(structure, leaves)
            return self.predict(params, state, inputs)

        batch = len(jax.tree.leaves(inputs))
        shapes = [jax.eval_shape(_multiplied, x) if _is_quantized(x) else x for x in leaves]
        program = _programs.trace(flat, shapes, batch=batch)
        known = program.constants | dict(zip(program.takes, leaves, strict=True))
        waiting = {v for v, x in known.items() if _is_quantized(x)}
        # A piece begins where a kernel is used first. Its numbers wait for what came before, or all
        # kernels would be multiplied out, and held, before the first is used; in a loop over
        # batches, before the loop.
        edges, arrived = [0], leaves[:batch]
        depends = set(program.takes[:batch])
        for i, equation in enumerate(program.equations):
            new = waiting.intersection(_programs.variables(equation.invars))
            if new and i > edges[-1]:
                edges.append(i)
            waiting -= new
        for piece in _programs.pieces(program, [*edges, len(program.equations)]):
            for v in piece.takes:
                if _is_quantized(known[v]):
                    known[v] = _multiplied(_programs.after(known[v], arrived))
            made = piece.run(*[known[v] for v in piece.takes])
            known |= zip(piece.gives, made, strict=True)
            for equation in piece.equations:
                if not depends.isdisjoint(_programs.variables(equation.invars)):
                    depends |= set(equation.outvars)
            arrived = [known[v] for v in piece.gives if v in depends][-1:] or arrived
        given = {v: _multiplied(x) if _is_quantized(x) else x for v, x in known.items()}
        return _programs.result(program, given)


def _multiplied(x: Quantized) -> Array:
    return (x.values.astype(x.scale.dtype) * x.scale).astype(x.dtype)
