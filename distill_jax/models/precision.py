"""Mixed precision: parameters in float32, a forward pass in bfloat16, losses in float32.

bfloat16 has the range of float32, so gradients neither vanish nor overflow and the loss needs no
scaling. float16 would need it, and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.types import Model, Outputs, Params, State


@checked
def cast(model: Model, dtype: Any) -> Model:
    """The same model, with its forward and backward pass computed in ``dtype``.

    Params and floating inputs are cast in each call; integers, booleans and keys stay as they are.
    Params are initialised, stored and updated in their own dtype, and so are their gradients.
    State goes in and comes out in its own dtype, so the statistics of a batch norm stay float32.
    Logits come out in float32 or better, so losses and metrics are float32. Features stay in
    ``dtype``: they are large, and losses convert what they compare.

    bfloat16 has 8 significant bits: numbers above 256 that must stay whole (identifiers, tokens)
    belong in integer inputs. A Flax module that was given a ``dtype`` of its own keeps it; so does
    whatever reads a float32 array that is neither params nor inputs. Evaluation computes in
    ``dtype`` too.

    Meant for GPUs and TPUs, which have units that multiply bfloat16. On a CPU it depends on the
    processor: on two cores with AVX512-BF16, a gradient took 0.9 to 1.2 times as long as in
    float32, their cosine similarity was 0.998 or more, and memory was no less, since XLA's CPU
    backend converts much of it to float32 (``python benchmarks/memory.py``).

    To cast a teacher, whose params are then stored in ``dtype`` too, see
    :func:`distill_jax.teachers.cast`.

    Args:
      model: Any model.
      dtype: ``jnp.bfloat16``; or float32, to train params that are stored in less.

    Returns:
      A model with the params and state of ``model``, logits ``[batch, ..., classes]`` in float32
      or better, and features in ``dtype``. Equal arguments give equal models, which share one
      compiled program.

    Raises:
      TypeError: if ``dtype`` is not a floating dtype.
      ValueError: for float16 and smaller, for float64 without ``jax_enable_x64``, and for models
        with ``exact_inputs``, such as an enforced one.

    Example:
      >>> from distill_jax.models import mlp
      >>> model = cast(mlp([8], 3), jnp.bfloat16)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> outputs = model.predict(params, state, jnp.ones((2, 4)))
      >>> str(params["head"]["kernel"].dtype), str(outputs.logits.dtype)
      ('float32', 'float32')
      >>> str(outputs.features["hidden/0"].dtype)
      'bfloat16'
    """
    dtype = _checks.compute_dtype(dtype)
    if model.exact_inputs:
        raise ValueError(
            "model compares its inputs with written thresholds (exact_inputs=True), and they would "
            f"be rounded to {dtype}: cast the model inside, enforce(cast(model, dtype), book)"
        )
    return dataclasses.replace(model, apply=_Cast(model.apply, dtype))


@dataclasses.dataclass(frozen=True)
class _Cast:
    apply: Callable[..., tuple[Outputs, State]]
    dtype: Any

    def __call__(
        self,
        params: Params,
        state: State,
        inputs: Any,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Outputs, State]:
        params, inputs = _cast_floating((params, inputs), self.dtype)
        outputs, after = self.apply(params, state, inputs, key=key, train=train)
        # New state is computed from cast inputs, and may come out in their dtype.
        after = jax.tree.map(
            lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), after, state
        )
        wide = _checks.wide_dtype(outputs.logits)
        return outputs._replace(logits=outputs.logits.astype(wide)), after


def _cast_floating(tree: Any, dtype: Any) -> Any:
    """Floating leaves in ``dtype``; integers, booleans and keys as they are."""

    def convert(x: Any) -> Any:
        return x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(convert, tree)
