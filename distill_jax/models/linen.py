"""A model from a Flax Linen module."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax._programs import described
from distill_jax.models import _calling
from distill_jax.models._adapt import (
    TRAINING,
    Features,
    Logits,
    as_outputs,
    by_call,
    check_features,
    check_logits,
    entries,
    mode_arguments,
    reserved,
    select,
)
from distill_jax.types import Model, OutputKind, Outputs, Params, State

KEYS = ("rng", "dropout_rng")
"""Parameters of ``__call__`` that are given a key, besides the module's random streams."""


@checked
def from_linen(
    module: nn.Module,
    *,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
    features: Features = None,
    logits: Logits = None,
    rngs: tuple[str, ...] = ("dropout",),
) -> Model:
    """A model from a Linen module.

    Inputs that are a dictionary are passed by name, if their keys are parameters of ``__call__``:
    ``{"tokens": ids, "mask": mask}`` as ``module(tokens=ids, mask=mask)``. A tuple is passed in
    order to a module that needs several arguments. Everything else is passed whole: so is, to a
    module that takes one argument, a tuple, or a dictionary without a key of that name. Inputs that
    could be meant in two ways are refused.

    The collection ``params`` becomes the params, all others together the state. The state changes
    in training mode only. If ``__call__`` has a parameter ``train``, ``training``, ``is_training``,
    ``deterministic``, ``inference`` or ``use_running_average``, the mode is passed to it; if it has
    ``rng`` or ``dropout_rng``, a key of its own, or None. Other parameters that look like a mode or
    a key, or that nothing fills, are refused. Metadata of partitioned parameters is removed.

    Args:
      module: Called with the inputs, an array ``[batch, ...]`` or a pytree of arrays; returns
        logits ``[batch, ..., classes]`` or :class:`~distill_jax.types.Outputs`, or several entries,
        see ``logits``. A single output ``z`` of kind ``"softmax"`` becomes the logits ``[0, z]``.
      classes: The names of the classes in the order of the logits.
      outputs: What the outputs mean, an :data:`~distill_jax.types.OutputKind`.
      features: Which hidden arrays ``[batch, ...]`` to keep, by the path of the submodule that
        returns them (``"encoder/Dense_0"``) or of what it sows into ``intermediates``
        (``"encoder/name"``); ``"all"``; or None. A submodule that runs n times has ``path[0]``,
        ``path[1]``, ... Under ``jit`` an unused feature costs nothing.
      logits: Which entry holds the logits, if the module returns several: the key of a dictionary
        or the name of an attribute, the index of a tuple, or a function of what it returns. Other
        entries that are arrays ``[batch, ...]`` become features by their names (with a function,
        all such entries); the rest is left out.
      rngs: Names of the random streams that the module draws from.

    Returns:
      A model. Its params are the nested dictionary that the module made, its state
      ``{collection: variables}``.

    Raises:
      TypeError: if ``module`` is not an instance of a Linen module, or its ``__call__`` has a
        parameter that looks like a mode or a key. From ``init`` and ``apply``, if a parameter is
        filled by nothing, inputs do not fit the parameters, or several entries are returned and
        ``logits`` is None.
      ValueError: from ``apply``, if a random stream is needed and ``key`` is None, if a feature
        does not exist, if the state changes its structure, or if a module that a field such as
        ``train=False`` holds in evaluation mode is to be trained.

    Example:
      >>> model = from_linen(nn.Dense(3))
      >>> inputs = jnp.ones((2, 4))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> params["kernel"].shape, state
      ((4, 3), {})

      Named inputs, and several outputs:

      >>> class Tagger(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, tokens, mask):
      ...         hidden = nn.Embed(10, 4)(tokens) * mask[..., None]
      ...         return {"scores": nn.Dense(3)(hidden), "hidden": hidden}
      >>> model = from_linen(Tagger(), logits="scores")
      >>> inputs = {"tokens": jnp.ones((2, 5), int), "mask": jnp.ones((2, 5))}
      >>> outputs = model.predict(*model.init(jax.random.key(0), inputs), inputs)
      >>> outputs.logits.shape, outputs.features["hidden"].shape
      ((2, 5, 3), (2, 5, 4))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be an instance of flax.linen.Module, got {type(module).__name__}: "
            "an NNX module goes through from_nnx"
        )
    check_features(features)
    check_logits(logits)
    rngs = _checks.names("rngs", rngs)

    def keys(key: Array) -> dict[str, Array]:
        return {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}

    call = type(module).__call__
    drawing = [name for name in KEYS if name in inspect.signature(call).parameters]

    def options(train: bool, key: Array | None, given: tuple[str, ...] | None) -> dict[str, Any]:
        made = mode_arguments(call, train, skip_none=False, filled=KEYS, given=given)
        if key is not None:
            for i, name in enumerate(drawing):
                made[name] = jax.random.fold_in(key, len(rngs) + i)
        return made

    options(False, None, None)  # raises for parameters that look like a mode or a key

    def arguments(inputs: Any) -> _calling.Arguments:
        return _calling.arguments(call, inputs, reserved(call, KEYS))

    def init(key: Array, inputs: Any) -> tuple[Params, State]:
        params_key, other_key = jax.random.split(key)
        streams = {"params": params_key, **keys(other_key)}
        given = arguments(jax.tree.map(described, inputs))
        named = options(False, other_key, given.filled)
        try:
            variables = module.lazy_init(streams, *given.positional, **given.by_name, **named)
        except flax.errors.LazyInitError:  # a stored variable depends on the inputs' values
            args, kwargs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given[:2])
            variables = module.init(streams, *args, **kwargs, **named)
        variables = nn.unbox(variables)
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return variables.get("params", {}), state

    def apply(
        params: Params,
        state: State,
        inputs: Any,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Outputs, State]:
        if train:
            _check_can_train(module)
        given = arguments(inputs)
        try:
            made, changed = module.apply(
                {"params": params, **state},
                *given.positional,
                rngs=None if key is None else keys(key),
                mutable=[*(state if train else ()), "intermediates"],
                capture_intermediates=features is not None,
                **given.by_name,
                **options(train, key, given.filled),
            )
        except flax.errors.InvalidRngError as error:
            if key is not None:
                raise
            raise ValueError(
                f"key is None, but the module needs one: pass key=. {error}"
            ) from error
        changed = nn.unbox(dict(changed))
        found = changed.pop("intermediates", {})
        after = {**state, **changed}
        if jax.tree.structure(after) != jax.tree.structure(state):
            raise ValueError(
                "state changed its structure in a call: the module stores a variable that init did "
                "not create; sow what only one call needs into 'intermediates'"
            )
        kept = {} if features is None else select(_by_path(found), features, inputs)
        return as_outputs(entries(made, logits, inputs), outputs, classes, kept), after

    return Model(init, apply, classes, outputs=outputs)


def _check_can_train(module: nn.Module) -> None:
    """Raises ValueError for a module whose own fields say that it is not in training."""
    fields = [f.name for f in dataclasses.fields(module)]
    wrong = {name: False for name in TRAINING} | {"deterministic": True, "inference": True}
    for name, value in wrong.items():
        if name in fields and getattr(module, name) is value:
            raise ValueError(
                f"the module was made with {name}={value}, and would be trained in evaluation "
                f"mode: give its __call__ a parameter {name} in place of the field"
            )


def _by_path(intermediates: Any) -> dict[str, Any]:
    found = {}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, name))
                continue
            where = path if name == "__call__" else (*path, name)
            if where:  # the module's own result is the logits
                found.update(
                    by_call("/".join(where), value if isinstance(value, tuple) else (value,))
                )

    walk(intermediates, ())
    return found
