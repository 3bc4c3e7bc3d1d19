"""Networks over flat inputs, written as plain functions.

Kernels are ``[in, out]`` and called ``kernel``, biases ``bias``. Inputs are floats ``[batch, ...]``
and flattened to ``[batch, features]``. As plain functions they are cheap to make, to trace and to
call outside of ``jit``, which sweeps and small examples do often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.models._checking import check_classes, check_floating
from distill_jax.models.functions import from_function
from distill_jax.types import Model, OutputKind, Outputs


@checked
def logistic_regression(
    num_classes: int = 2,
    *,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
) -> Model:
    """Linear logits, ``inputs @ kernel + bias``, initially all zero.

    Two classes that exclude each other take one output ``z``, read as the logits ``[0, z]``; more
    take one output each. The loss is convex, so nothing is gained by a random start: ``init`` does
    not use its key.

    Args:
      num_classes: 2 or more; of other kinds than ``"softmax"``, how many outputs, 1 or more.
      classes: The names of the classes in the order of the logits.
      outputs: What the logits mean, an :data:`~distill_jax.types.OutputKind`: with
        ``"multi_label"`` a logistic regression per label, with ``"regression"`` a linear regression
        per number.

    Returns:
      A model with params ``{"kernel": [features, outputs], "bias": [outputs]}``, no state, logits
      ``[batch, num_classes]`` and no features.

    Raises:
      ValueError: if ``num_classes`` is too small, or ``classes`` has another length.

    Example:
      >>> model = logistic_regression()
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> params["kernel"].shape
      (3, 1)
    """
    check_classes(num_classes, classes, outputs)
    width = 1 if num_classes == 2 and outputs == "softmax" else num_classes

    def init(key: Array, inputs: Any) -> dict[str, Array]:
        del key
        return {"kernel": jnp.zeros((_width(inputs), width)), "bias": jnp.zeros(width)}

    def apply(params: dict[str, Array], inputs: Any) -> Array:
        return _dense(params, _flatten(inputs))

    return from_function(init, apply, classes=classes, outputs=outputs)


@checked
def mlp(
    sizes: Sequence[int],
    num_classes: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    dropout: float | Sequence[float] = 0.0,
    input_dropout: float = 0.0,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
) -> Model:
    """A multi-layer perceptron with dropout.

    Hidden kernels are initialised from He's normal distribution (variance 2 / fan in), the head
    from LeCun's (1 / fan in), biases with 0. Dropout is inverted: what is kept is divided by the
    probability of keeping it, so that evaluation needs no scaling.

    Args:
      sizes: Widths of the hidden layers; an empty sequence makes a linear model.
      num_classes: Outputs of the head, 2 or more; 1 or more of other kinds than ``"softmax"``.
      activation: After every hidden layer.
      dropout: Rate in [0, 1) after every hidden layer, or one rate per layer.
      input_dropout: Rate for the inputs.
      classes: The names of the classes in the order of the logits.
      outputs: What the logits mean, an :data:`~distill_jax.types.OutputKind`.

    Returns:
      A model with params ``{"hidden": {"0": {"kernel", "bias"}, ...}, "head": {...}}``, no state
      and logits ``[batch, num_classes]``. Its features ``"hidden/0"``, ... (``[batch, size]``) are
      taken after the activation and before dropout.

    Raises:
      ValueError: if a size or a rate is out of range; from ``apply``, if dropout gets no key.

    Example:
      >>> model = mlp([8], 3, dropout=0.5)
      >>> inputs = jnp.ones((2, 4))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> outputs, _ = model.apply(params, state, inputs, key=jax.random.key(1), train=True)
      >>> outputs.logits.shape, outputs.features["hidden/0"].shape
      ((2, 3), (2, 8))

    References:
      He et al., `Delving Deep into Rectifiers <https://arxiv.org/abs/1502.01852>`_, 2015;
      Srivastava et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014.
    """
    check_classes(num_classes, classes, outputs)
    sizes = tuple(_checks.count(f"sizes[{i}]", size) for i, size in enumerate(sizes))
    rates = tuple(dropout) if isinstance(dropout, Sequence) else (dropout,) * len(sizes)
    if len(rates) != len(sizes):
        raise ValueError(
            f"dropout must be one rate or one per hidden layer ({len(sizes)}), got {len(rates)}"
        )
    for name, rate in (("input_dropout", input_dropout), *(("dropout", rate) for rate in rates)):
        _checks.scalar(**{name: rate})
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {rate}")

    def init(key: Array, inputs: Any) -> dict[str, Any]:
        widths = (_width(inputs), *sizes)
        *keys, head_key = jax.random.split(key, len(sizes) + 1)
        return {
            "hidden": {
                str(i): _dense_init(keys[i], widths[i], widths[i + 1], gain=2.0)
                for i in range(len(sizes))
            },
            "head": _dense_init(head_key, widths[-1], num_classes, gain=1.0),
        }

    def apply(
        params: dict[str, Any], inputs: Any, *, key: Array | None = None, train: bool = False
    ) -> Outputs:
        def drop(x: Array, rate: float, layer: int) -> Array:
            if not (train and rate):
                return x
            if key is None:
                raise ValueError("key is None, but dropout in training needs one: pass key=")
            return _dropout(x, rate, jax.random.fold_in(key, layer))

        features = {}
        x = drop(_flatten(inputs), input_dropout, 0)
        for i, rate in enumerate(rates):
            x = activation(_dense(params["hidden"][str(i)], x))
            features[f"hidden/{i}"] = x
            x = drop(x, rate, i + 1)
        return Outputs(_dense(params["head"], x), features)

    return from_function(init, apply, classes=classes, outputs=outputs)


def _dense(params: dict[str, Array], x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
    """``x @ kernel + bias``, with an error that names both sizes."""
    kernel = params["kernel"]
    if kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"inputs must have the {kernel.shape[0]} features of the kernel {kernel.shape}, "
            f"got {x.shape}: were the params made for other inputs?"
        )
    return x @ kernel + params["bias"][None, :]


def _dense_init(key: Array, inputs: int, outputs: int, *, gain: float) -> dict[str, Array]:
    """A normal kernel ``[in, out]`` of variance ``gain / in``, and a bias of 0."""
    kernel = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _flatten(inputs: Any) -> Float[Array, "batch features"]:
    """Inputs ``[batch, ...]`` as ``[batch, features]``.

    Raises:
      TypeError: if they are not floating point.
      ValueError: if they have no axis besides the batch.
    """
    check_floating(inputs)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have shape [batch, ...features], got {inputs.shape}")
    # Written out, since -1 does not follow where the number of rows is unknown or 0.
    return jnp.reshape(jnp.asarray(inputs), (inputs.shape[0], math.prod(inputs.shape[1:])))


def _width(inputs: Any) -> int:
    return jax.eval_shape(_flatten, inputs).shape[1]


def _dropout(x: Array, rate: float, key: Array) -> Array:
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)
