"""A model from any pair of functions, and what every adapter shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.logits import two_class
from distill_jax.types import Model, Outputs, Params, State

Features = tuple[str, ...] | Literal["all"] | None
"""Which features an adapter keeps: paths, ``"all"`` of them, or None of them."""


def from_function(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    *,
    classes: tuple[str, ...] | None = None,
) -> Model:
    """A model from any pair of functions.

    What ``apply`` takes is read once from its signature. The second argument is ``state`` if it
    has that name; ``key`` and ``train`` are passed, by name, where they are asked for::

        init(key, inputs) -> params           apply(params, inputs) -> logits
        init(key, inputs) -> (params, state)  apply(params, state, inputs, *, key, train)
                                                  -> (logits, state)

    In place of logits, ``apply`` may return :class:`~distill_jax.types.Outputs`. A single output
    ``z`` becomes the two classes ``[0, z]``.

    Args:
      init: Makes the params, and the state if there is one. It may be traced.
      apply: The forward pass.
      classes: The names of the classes in the order of the logits.

    Raises:
      TypeError: if ``apply`` takes neither ``(params, inputs)`` nor ``(params, state, inputs)``.

    Example:
      >>> model = from_function(
      ...     lambda key, inputs: jnp.zeros((inputs.shape[-1], 3)),
      ...     lambda params, inputs: inputs @ params,
      ... )
      >>> inputs = jnp.ones((2, 4))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> model.predict(params, state, inputs).logits.shape
      (2, 3)
    """
    parameters = inspect.signature(apply).parameters.values()
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    stateful = "state" in positional
    if len(positional) < 2 + stateful or (stateful and positional[1] != "state"):
        raise TypeError(
            "apply must take (params, inputs) or (params, state, inputs), with key= and train= "
            f"where it uses them, got {inspect.signature(apply)}"
        )
    options = {"key", "train"} & set(by_name)

    def model_init(key: Array, inputs: Any) -> tuple[Params, State]:
        made = init(key, inputs)
        if not stateful:
            return made, {}
        if not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "init must return (params, state), since apply takes a state, "
                f"got {type(made).__name__}"
            )
        return made

    def model_apply(
        params: Params,
        state: State,
        inputs: Any,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Outputs, State]:
        given = {name: value for name, value in (("key", key), ("train", train)) if name in options}
        if not stateful:
            return as_outputs(apply(params, inputs, **given), classes), state
        made = apply(params, state, inputs, **given)
        if isinstance(made, Outputs) or not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "apply must return (logits, state), since it takes a state, "
                f"got {type(made).__name__}"
            )
        return as_outputs(made[0], classes), made[1]

    return Model(model_init, model_apply, classes)


def as_outputs(
    made: Any, classes: tuple[str, ...] | None, features: Mapping[str, Array] | None = None
) -> Outputs:
    """What a forward pass returned, as Outputs with two classes or more.

    Raises:
      TypeError: if it returned something other than logits or Outputs.
      ValueError: if the number of logits is not that of the declared classes.
    """
    outputs = made if isinstance(made, Outputs) else Outputs(made)
    if not isinstance(outputs.logits, jax.Array):
        raise TypeError(
            "a model must return its logits as one array [batch, ..., classes] or as Outputs, "
            f"got {type(outputs.logits).__name__}"
        )
    logits = two_class(outputs.logits)
    if classes is not None and logits.shape[-1] != len(classes):
        raise ValueError(
            f"classes must name every logit, in order: got {len(classes)} names "
            f"for logits of shape {logits.shape}"
        )
    return Outputs(logits, {**outputs.features, **(features or {})})


def select(found: Mapping[str, Any], features: Features, inputs: Any) -> dict[str, Array]:
    """Keeps the features that were asked for.

    Args:
      found: What the modules returned, by path, possibly nested.
      features: Which to keep.
      inputs: Their first array says how large the batch is.

    Raises:
      ValueError: if a path is not there, or does not lead to an array ``[batch, ...]``.
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
            f"the paths there are: {sorted(arrays)}"
        )
    return {path: arrays[path] for path in features or ()}


def by_call(name: str, calls: Collection[Any]) -> dict[str, Any]:
    """A module that ran once has one feature, one that ran n times ``name[0]`` … ``name[n-1]``."""
    if len(calls) == 1:
        return {name: next(iter(calls))}
    return {f"{name}[{i}]": value for i, value in enumerate(calls)}


def check_features(features: Features) -> None:
    """Raises TypeError for a lone string, which would be read letter by letter."""
    if isinstance(features, str) and features != "all":
        raise TypeError(f'features must be a tuple of paths, "all" or None, got {features!r}')


def floating_images(inputs: Any) -> None:
    """Raises TypeError for integers: pixels 0 to 255 train badly, and say nothing about it."""
    if not isinstance(inputs, jax.Array) and not hasattr(inputs, "dtype"):
        raise TypeError(f"inputs must be one array [batch, ...], got {type(inputs).__name__}")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"inputs must be floating point, got {inputs.dtype}: convert and scale them, "
            "for example inputs.astype(jnp.float32) / 255"
        )
