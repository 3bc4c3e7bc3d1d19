"""What the adapters share: modes, outputs, features."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jaxtyping import Array

from distill_jax.logits import as_logits
from distill_jax.types import OutputKind, Outputs

Features = tuple[str, ...] | Literal["all"] | None
"""Which features an adapter keeps: paths, ``"all"`` of them, or None of them."""


TRAINING = ("train", "training", "is_training", "is_train", "enable_dropout")
"""Parameters and fields that are True in training mode."""
EVALUATION = (
    "deterministic", "use_running_average", "inference", "is_inference", "eval", "is_eval",
    "evaluation",
)  # fmt: skip
"""Parameters and fields that are True in evaluation mode."""
_MODE = frozenset(
    "train training trains eval evaluation evaluating inference infer deterministic stochastic "
    "test testing dropout".split()
)
_KEY = frozenset("rng rngs prng seed key".split())


def mode_arguments(
    call: Callable[..., Any],
    train: bool,
    *,
    skip_none: bool,
    own: int = 2,
    filled: tuple[str, ...] = (),
    who: str = "the module's __call__",
) -> dict[str, Any]:
    """The arguments that pass the mode to a module's ``__call__``, read from its signature.

    Args:
      call: The method or function.
      train: The mode.
      skip_none: Whether to leave out parameters of ``EVALUATION`` whose default is None: such a
        module has its mode from elsewhere.
      own: Number of first parameters that are filled by position: ``self`` and the inputs.
      filled: Parameters that the caller fills by name.
      who: What ``call`` is, for messages.

    Raises:
      TypeError: if ``call`` needs a parameter that nothing fills, or has one that looks like the
        mode or a random key and is not known.
    """
    values = dict.fromkeys(TRAINING, train) | dict.fromkeys(EVALUATION, not train)
    known = [*values, *filled]
    bound = call.keywords if isinstance(call, functools.partial) else {}
    found = {}
    for p in list(inspect.signature(call).parameters.values())[own:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in (*filled, *bound):
            continue
        if p.name in values and p.kind is not p.POSITIONAL_ONLY:
            if not (skip_none and p.default is None and p.name in EVALUATION):
                found[p.name] = values[p.name]
        elif p.default is p.empty:
            raise TypeError(
                f"{who} needs {p.name!r}, which nothing fills: besides the inputs it is given, by "
                f"name, what it has of {known}; give {p.name!r} a default, or pass it as a part of "
                "the inputs"
            )
        elif _looks_like_mode_or_key(p):
            raise TypeError(
                f"{who} has the parameter {p.name!r} (by default {p.default!r}), which looks like "
                f"the mode or a random key and is not filled: rename it to one of {known}, or bind "
                "it beforehand"
            )
    return found


def _looks_like_mode_or_key(parameter: inspect.Parameter) -> bool:
    name, default = parameter.name.lower(), parameter.default
    words = set(name.split("_"))
    mode = name in ("mode", "phase") or bool(words & _MODE)
    if mode and (default is None or isinstance(default, bool | str)):
        return True
    key = bool(words & (_KEY - {"key"})) or name == "key" or name.endswith("_key")
    return key and (default is None or isinstance(default, int))


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
    """Raises TypeError for what names no arrays; a string would be read letter by letter."""
    if features is None or features == "all":
        return
    if isinstance(features, str) or not isinstance(features, Sequence):
        raise TypeError(f'features must be a tuple of paths, "all" or None, got {features!r}')
