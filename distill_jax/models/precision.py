"""Mixed precision: parameters in float32, a forward pass in bfloat16, losses in float32.

bfloat16 has the range of float32, so that a gradient neither vanishes nor overflows, and the loss
needs no scaling. float16 does not, and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax import _checks
from distill_jax.types import Model, Outputs, Params, State


def compute_in(model: Model, dtype: Any) -> Model:
    """The same model, with a forward and a backward pass in ``dtype``.

    Params and floating inputs are cast in each call; integers, booleans and keys stay what they
    are. Params are made, kept and updated as before, and their gradients arrive in their own
    dtype. State goes in and comes out in its own dtype, so that the statistics of a batch norm stay
    float32. Logits come out in float32 or better, and what is computed from them, losses and
    metrics, is float32. Features stay in ``dtype``: they are large, and losses widen what they
    compare.

    bfloat16 keeps eight bits: numbers above 256 that must stay whole (identifiers, token numbers)
    belong in integer inputs. A Flax module that was given a ``dtype`` of its own keeps to it; so
    does whatever reads a float32 array that is neither params nor inputs. Evaluation computes in
    ``dtype`` too.

    Meant for GPUs and TPUs, which multiply bfloat16 in units made for it. On a CPU it depends on
    the processor: on two cores with AVX512-BF16, a gradient took 0.9 to 1.2 times as long as in
    float32, its cosine with that one was 0.998 or more, and memory was no less, since XLA's CPU
    backend widens much of it inside (``python benchmarks/memory.py``).

    Args:
      model: Any model.
      dtype: ``jnp.bfloat16``; or float32, to train params that are stored in less.

    Returns:
      A model with the params and state of ``model``. Made twice alike, it is compiled once.

    Raises:
      TypeError: if ``dtype`` is no floating dtype.
      ValueError: for float16 and less, or float64 without ``jax_enable_x64``; and for models that
        compare their inputs with written thresholds, such as an enforced one.

    Example:
      >>> from distill_jax.models import mlp
      >>> model = compute_in(mlp([8], 3), jnp.bfloat16)
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
            f"model compares its inputs with written numbers, and would see them rounded to "
            f"{dtype}: wrap what is inside, enforce(compute_in(model, dtype), book)"
        )
    return dataclasses.replace(model, apply=_ComputeIn(model.apply, dtype))


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
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
        low, seen = cast((params, inputs), self.dtype)
        outputs, after = self.apply(low, state, seen, key=key, train=train)
        # A module may compute new state from what it saw, and hand it out as it came.
        kept = jax.tree.map(
            lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), after, state
        )
        wide = jnp.promote_types(outputs.logits.dtype, jnp.float32)
        return outputs._replace(logits=outputs.logits.astype(wide)), kept


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in ``dtype``; integers, booleans and keys as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if _floating(x) else x, tree)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
