"""Teachers that take less memory: weights in bfloat16 or in eight-bit integers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks, _programs
from distill_jax._arguments import checked
from distill_jax.teachers.kinds import Teacher
from distill_jax.types import Outputs, Params, State


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel in eight bits, ``values * scale``.

    Attributes:
      values: Integers from -127 to 127, int8, ``[..., channels]``.
      scale: One number per channel, float32, ``[1, ..., channels]``.
      dtype: The dtype of the original kernel, and of the arithmetic.
    """

    values: Any
    scale: Any
    dtype: Any


@checked
def cast(teacher: Teacher, dtype: Any = jnp.bfloat16) -> Teacher:
    """The same teacher with params stored, and outputs computed, in ``dtype``.

    bfloat16 takes half the bytes of float32. State (batch statistics) stays as it is, and so do
    integers and keys. Logits come out in float32 or better, features in ``dtype``. Inputs are
    rounded to ``dtype`` as well: bfloat16 has 8 significant bits. To cast a student, whose params
    stay float32, see :func:`distill_jax.models.cast`.

    Meant for GPUs and TPUs, which have units that multiply bfloat16. XLA's CPU backend converts it
    to float32 first: measured on two CPU cores for an MLP of 784-1200-1200-10 on MNIST (``python
    benchmarks/memory.py``), half the bytes are held between calls, but more during a call, and it
    is no faster. Soft targets stay within 1e-5 nats on average at temperatures 1 and 4.

    Args:
      teacher: Any but a quantized one. An ensemble is cast together with its weights. Where rules
        correct a teacher, cast the teacher inside.
      dtype: ``jnp.bfloat16``, or float32 for a teacher that is stored in less.

    Returns:
      A teacher with params in ``dtype`` and logits ``[batch, ..., classes]`` in float32 or better.

    Raises:
      TypeError: if ``dtype`` is not a floating dtype.
      ValueError: for float16 and smaller, for a quantized teacher, and for one with
        ``exact_inputs``, which compares its inputs with written thresholds.

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
            "teacher compares its inputs with written thresholds (exact_inputs=True), and they "
            f"would be rounded to {dtype}: cast the teacher inside, corrected(cast(teacher), book)"
        )
    return dataclasses.replace(
        teacher,
        predict=_Cast(teacher.predict, dtype),
        params=jax.tree.map(lambda x: _to(x, dtype), teacher.params),
    )


@checked
def quantize(teacher: Teacher, *, smallest: int = 1024) -> Teacher:
    """The same teacher with eight-bit kernels: a quarter of float32's memory.

    Each kernel (a floating array of two axes or more, ``[..., out]``) becomes int8 values times one
    float32 scale per channel of its last axis, symmetric around 0 and rounded to nearest: no weight
    changes by more than 1/254 of the largest in its channel. Biases, norms and state stay as they
    are. In every call each kernel is dequantized just before it is used, and the arithmetic is as
    before, so any teacher can be quantized. A call holds the small kernels and one dequantized
    kernel. The kernels of a scan over layers are one array, and are dequantized together.

    This saves memory, not time. Measured on two CPU cores for an MLP of 784-1200-1200-10 on MNIST
    (``python benchmarks/memory.py``, which needs MNIST): 2.4 instead of 9.6 MB are held between
    calls, and 5.8 more, the largest kernel, during a call; with more kernels than here, the peak
    falls by more. Soft targets stay within 1e-5 nats on average at temperatures 1 and 4. Calls with
    256 rows take up to a tenth longer; calls with 8 rows, where reading the kernels is most of the
    work, half as long again.

    Args:
      teacher: Any. To compute in bfloat16 as well, ``quantize(cast(teacher))``.
      smallest: Kernels with fewer elements stay as they are.

    Returns:
      A teacher whose params hold :class:`Quantized` in place of kernels. Classes, and the shapes
      and dtypes of logits and features, are those of ``teacher``.

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
    smallest = _checks.count("smallest", smallest)

    def small(path: Any, x: Any) -> Any:
        if isinstance(x, Quantized) or np.ndim(x) < 2 or np.size(x) < smallest:
            return x
        return _quantized(path, x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    params = jax.tree_util.tree_map_with_path(small, teacher.params, is_leaf=_is_quantized)
    return dataclasses.replace(teacher, predict=_Dequantizing(teacher.predict), params=params)


def _quantized(path: Any, x: Array) -> Quantized:
    kernel = jnp.asarray(x, _checks.wide_dtype(x))
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
        # Params are cast here too: a caller may pass others, in float32.
        params, inputs = jax.tree.map(lambda x: _to(x, self.dtype), (params, inputs))
        outputs = self.predict(params, state, inputs)
        wide = _checks.wide_dtype(outputs.logits)
        return outputs._replace(logits=outputs.logits.astype(wide))


@dataclasses.dataclass(frozen=True)
class _Dequantizing:
    """Dequantizes kernels in the traced program, each before its first use."""

    predict: Callable[..., Outputs]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        leaves, structure = jax.tree.flatten((inputs, params, state), is_leaf=_is_quantized)

        def flat(*leaves):
            inputs, params, state = jax.tree.unflatten(structure, leaves)
            return self.predict(params, state, inputs)

        batch = len(jax.tree.leaves(inputs))
        shapes = [jax.eval_shape(_dequantized, x) if _is_quantized(x) else x for x in leaves]
        program = _programs.trace(flat, shapes, batch=batch)
        known = program.constants | dict(zip(program.takes, leaves, strict=True))
        waiting = {v for v, x in known.items() if _is_quantized(x)}
        # A piece begins at the first use of a kernel, which waits for the results before it.
        # Otherwise XLA would dequantize all kernels, and hold them, before the first is used; and
        # in a loop over batches, before the loop.
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
                    known[v] = _dequantized(_programs.after(known[v], arrived))
            made = piece.run(*[known[v] for v in piece.takes])
            known |= zip(piece.gives, made, strict=True)
            for equation in piece.equations:
                if not depends.isdisjoint(_programs.variables(equation.invars)):
                    depends |= set(equation.outvars)
            arrived = [known[v] for v in piece.gives if v in depends][-1:] or arrived
        given = {v: _dequantized(x) if _is_quantized(x) else x for v, x in known.items()}
        return _programs.result(program, given)


def _dequantized(x: Quantized) -> Array:
    return (x.values.astype(x.scale.dtype) * x.scale).astype(x.dtype)
