"""A model from any pair of functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from distill_jax._arguments import checked
from distill_jax.models._adapt import as_outputs, mode_arguments
from distill_jax.types import Model, OutputKind, Outputs, Params, State

KEYS = ("key", "rng", "rngs")
"""Parameters of a function that are given the key of a call."""


@checked
def from_function(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    *,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
    missing: bool = False,
    exact_inputs: bool = False,
) -> Model:
    """A model from any pair of functions.

    The signature of ``apply`` decides what it is given. Its second parameter is the state if it is
    called ``state``. By name it is given the key, if it has a parameter ``key``, ``rng`` or
    ``rngs``, and the mode, if it has ``train``, ``training``, ``is_training``, ``deterministic`` or
    ``inference``. Other parameters that look like these, or have no default, are refused::

        init(key, inputs) -> params           apply(params, inputs) -> logits
        init(key, inputs) -> (params, state)  apply(params, state, inputs, *, key, train)
                                                  -> (logits, state)

    Instead of logits ``[batch, ..., classes]``, ``apply`` may return
    :class:`~distill_jax.types.Outputs`. Where they are classes (``outputs="softmax"``), a single
    output ``z`` becomes the logits ``[0, z]``.

    Args:
      init: Makes the params, and the state if there is one: pytrees of arrays. It may be traced.
      apply: The forward pass.
      classes: The names of the classes in the order of the logits.
      outputs: What the outputs mean, an :data:`~distill_jax.types.OutputKind`: classes, labels,
        numbers or a vector.
      missing: Whether ``apply`` handles NaN in ``inputs``, a missing value.
      exact_inputs: Whether ``inputs`` must not be rounded to a smaller dtype, because ``apply``
        compares them with written thresholds.

    Returns:
      A model. The state of a model without one is ``{}``.

    Raises:
      TypeError: if ``apply`` takes neither ``(params, inputs)`` nor ``(params, state, inputs)``, or
        has a parameter that nothing fills.

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
    stateful = "state" in positional
    if len(positional) < 2 + stateful or (stateful and positional[1] != "state"):
        raise TypeError(
            "apply must take (params, inputs) or (params, state, inputs), and key= and train= "
            f"where it uses them, got {inspect.signature(apply)}"
        )
    own = 2 + stateful
    by_name = [p.name for p in list(parameters)[own:] if p.kind is not p.POSITIONAL_ONLY]
    keys = [name for name in KEYS if name in by_name]

    def options(key: Array | None, train: bool) -> dict[str, Any]:
        mode = mode_arguments(apply, train, skip_none=False, own=own, filled=KEYS, who="apply")
        return {**mode, **dict.fromkeys(keys, key)}

    options(None, False)  # raises for parameters that nothing fills

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
        given = options(key, train)
        if not stateful:
            return as_outputs(apply(params, inputs, **given), outputs, classes), state
        made = apply(params, state, inputs, **given)
        if isinstance(made, Outputs) or not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "apply must return (logits, state), since it takes a state, "
                f"got {type(made).__name__}"
            )
        return as_outputs(made[0], outputs, classes), made[1]

    return Model(model_init, model_apply, classes, missing, exact_inputs, outputs)
