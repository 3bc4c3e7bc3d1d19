"""What the adapters share: outputs and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from jaxtyping import Array

from distill_jax.logits import as_logits
from distill_jax.types import OutputKind, Outputs

Features = tuple[str, ...] | Literal["all"] | None
"""Which features an adapter keeps: paths, ``"all"`` of them, or None of them."""


def as_outputs(
    made: Any,
    kind: OutputKind,
    classes: tuple[str, ...] | None,
    features: Mapping[str, Array] | None = None,
) -> Outputs:
    """The result of a forward pass, as Outputs whose logits are those of their kind.

    Raises:
      TypeError: if it returned something other than logits or Outputs.
      ValueError: if the logits have no axis besides the batch, or if their number is not that of
        the declared classes.
    """
    outputs = made if isinstance(made, Outputs) else Outputs(made)
    logits = as_logits(outputs.logits, kind)
    if classes is not None and logits.shape[-1] != len(classes):
        raise ValueError(
            f"classes must name every logit, in order: got {len(classes)} names "
            f"for logits of shape {logits.shape}"
        )
    return Outputs(logits, {**outputs.features, **(features or {})})


def select(found: Mapping[str, Any], features: Features, inputs: Any) -> dict[str, Array]:
    """The requested features, by path.

    Args:
      found: What the modules returned, by path, possibly nested.
      features: Which to keep.
      inputs: Their first array has the size of the batch.

    Raises:
      ValueError: if a path does not exist or does not lead to an array ``[batch, ...]``.
    """
    batch = jax.tree.leaves(inputs)[0].shape[:1]
    arrays = {
        path: x for path, x in found.items() if isinstance(x, jax.Array) and x.shape[:1] == batch
    }
    if features == "all":
        return arrays
    missing = [path for path in features or () if path not in arrays]
    if missing:
        raise ValueError(
            f"features has paths that lead to no array [batch, ...]: {missing}; "
            f"the model has these paths: {sorted(arrays)}"
        )
    return {path: arrays[path] for path in features or ()}


def by_call(name: str, calls: Sequence[Any]) -> dict[str, Any]:
    """One feature for a module that ran once; ``name[0]`` to ``name[n-1]`` if it ran n times."""
    if len(calls) == 1:
        return {name: calls[0]}
    return {f"{name}[{i}]": value for i, value in enumerate(calls)}


def check_features(features: Features) -> None:
    """Raises TypeError for a single string, which would be read letter by letter."""
    if isinstance(features, str) and features != "all":
        raise TypeError(f'features must be a tuple of paths, "all" or None, got {features!r}')
