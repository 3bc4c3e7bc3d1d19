"""Shipped convolutional networks, written as plain functions.

Inputs are floats ``[batch, height, width, channels]``, of any number of channels; kernels are
``[height, width, in, out]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.models import _layers
from distill_jax.models.functions import from_function
from distill_jax.types import Model, Outputs, Params, State


def convnet(
    channels: Sequence[int],
    num_classes: int,
    *,
    batch_norm: bool = True,
    classes: tuple[str, ...] | None = None,
) -> Model:
    """A small network: 3x3 convolution, batch norm, ReLU and 2x2 max-pooling a stage, then a head.

    The head sees the mean over positions. Height and width are halved, rounding down, by every
    stage that still has two rows and columns or more.

    Args:
      channels: One number a stage.
      num_classes: Outputs of the head, 2 or more.
      batch_norm: Whether to normalise; without, the convolutions have a bias.
      classes: The names of the classes in the order of the logits.

    Returns:
      A model with features ``"blocks/0"``, ... (after each stage) and ``"pooled"``.

    Example:
      >>> model = convnet([4, 8], 3)
      >>> inputs = jnp.ones((2, 8, 8, 1))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> outputs = jax.eval_shape(model.predict, params, state, inputs)
      >>> outputs.logits.shape, outputs.features["blocks/1"].shape
      ((2, 3), (2, 2, 2, 8))
    """
    channels = tuple(channels)
    _layers.check_sizes(channels=channels)
    _layers.check_classes(num_classes, classes)
    if not channels:
        raise ValueError("channels must have one number a stage, got none")

    def init(key: Array, inputs: Any) -> tuple[Params, State]:
        _layers.check_images(inputs)
        *keys, head_key = jax.random.split(key, len(channels) + 1)
        params, state = {}, {}
        for i, (before, after) in enumerate(
            zip((inputs.shape[3], *channels), channels, strict=False)
        ):
            params[str(i)], state[str(i)] = _unit_init(keys[i], before, after, batch_norm)
        head = _layers.dense_init(head_key, channels[-1], num_classes, gain=1.0)
        return {"blocks": params, "head": head}, {"blocks": state}

    def apply(
        params: Params, state: State, inputs: Any, *, train: bool = False
    ) -> tuple[Outputs, State]:
        _layers.check_images(inputs)
        x, features, after = inputs, {}, {}
        for i in map(str, range(len(channels))):
            x, after[i] = _unit(params["blocks"][i], state["blocks"][i], x, train=train)
            x = _max_pool(jax.nn.relu(x))
            features[f"blocks/{i}"] = x
        features["pooled"] = x.mean((1, 2))
        logits = _layers.dense(params["head"], features["pooled"])
        return Outputs(logits, features), {"blocks": after}

    return from_function(init, apply, classes=classes)


def resnet(
    depth: int,
    num_classes: int,
    *,
    width: int = 16,
    classes: tuple[str, ...] | None = None,
) -> Model:
    """The residual network for CIFAR, with parameter-free shortcuts (option A).

    A 3x3 convolution, then three stages of ``n = (depth - 2) / 6`` blocks with ``width``,
    ``2 * width`` and ``4 * width`` channels; the second and third stage begin with stride 2, and
    their shortcuts take every second position and pad the new channels with zeros.

    Args:
      depth: Layers with weights, ``6 n + 2``: 20, 32, 44, 56, 110 in the paper.
      num_classes: Outputs of the head, 2 or more.
      width: Channels of the first stage.
      classes: The names of the classes in the order of the logits.

    Returns:
      A model with features ``"stem"``, ``"blocks/0"``, ... (after each block; a stage ends at
      block ``n - 1``, ``2 n - 1`` and ``3 n - 1``) and ``"pooled"``.

    Raises:
      ValueError: if ``depth`` is not ``6 n + 2`` with ``n >= 1``.

    Example:
      >>> model = resnet(20, 10)
      >>> inputs = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
      >>> params, _ = jax.eval_shape(model.init, jax.random.key(0), inputs)
      >>> sum(x.size for x in jax.tree.leaves(params))
      269722

    References:
      He et al., `Deep Residual Learning for Image Recognition
      <https://arxiv.org/abs/1512.03385>`_, 2016, section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    _layers.check_sizes(width=(width,))
    _layers.check_classes(num_classes, classes)
    each = (depth - 2) // 6
    widths = [width * 2**stage for stage in range(3) for _ in range(each)]
    strides = [2 if stage and not i else 1 for stage in range(3) for i in range(each)]

    def init(key: Array, inputs: Any) -> tuple[Params, State]:
        _layers.check_images(inputs)
        stem_key, head_key, *keys = jax.random.split(key, 2 + 2 * len(widths))
        params, state = {"blocks": {}}, {"blocks": {}}
        params["stem"], state["stem"] = _unit_init(stem_key, inputs.shape[3], width, True)
        before = width
        for i, after in enumerate(widths):
            first = _unit_init(keys[2 * i], before, after, True)
            second = _unit_init(keys[2 * i + 1], after, after, True)
            params["blocks"][str(i)] = {"first": first[0], "second": second[0]}
            state["blocks"][str(i)] = {"first": first[1], "second": second[1]}
            before = after
        params["head"] = _layers.dense_init(head_key, before, num_classes, gain=1.0)
        return params, state

    def apply(
        params: Params, state: State, inputs: Any, *, train: bool = False
    ) -> tuple[Outputs, State]:
        _layers.check_images(inputs)
        features, after = {}, {"blocks": {}}
        x, after["stem"] = _unit(params["stem"], state["stem"], inputs, train=train)
        x = features["stem"] = jax.nn.relu(x)
        for i, stride in enumerate(strides):
            block, stored = params["blocks"][str(i)], state["blocks"][str(i)]
            y, first = _unit(block["first"], stored["first"], x, stride, train=train)
            y, second = _unit(block["second"], stored["second"], jax.nn.relu(y), train=train)
            x = jax.nn.relu(y + _shortcut(x, y.shape[3], stride))
            features[f"blocks/{i}"] = x
            after["blocks"][str(i)] = {"first": first, "second": second}
        features["pooled"] = x.mean((1, 2))
        return Outputs(_layers.dense(params["head"], features["pooled"]), features), after

    return from_function(init, apply, classes=classes)


def _unit_init(key: Array, inputs: int, outputs: int, norm: bool) -> tuple[Params, State]:
    kernel = _layers.conv_init(key, 3, inputs, outputs)
    if not norm:
        return {"conv": {**kernel, "bias": jnp.zeros(outputs)}}, {}
    params, state = _layers.batch_norm_init(outputs)
    return {"conv": kernel, "norm": params}, {"norm": state}


def _unit(
    params: Params, state: State, x: Array, stride: int = 1, *, train: bool
) -> tuple[Array, State]:
    x = _layers.conv(params["conv"], x, stride)
    if "norm" not in params:
        return x, state
    x, norm = _layers.batch_norm(params["norm"], state["norm"], x, train=train)
    return x, {"norm": norm}


def _shortcut(x: Array, channels: int, stride: int) -> Array:
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, channels - x.shape[3])])


def _max_pool(x: Array) -> Array:
    if min(x.shape[1:3]) < 2:
        return x
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
