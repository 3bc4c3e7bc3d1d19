"""Convolutional networks, written as Flax NNX modules.

Inputs are floats ``[batch, height, width, channels]``; the number of channels is read from them.
Kernels are ``[height, width, in, out]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.models._checking import check_classes, check_images
from distill_jax.models.nnx import from_nnx
from distill_jax.types import Model, OutputKind


@checked
def convnet(
    channels: Sequence[int],
    num_classes: int,
    *,
    batch_norm: bool = True,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
) -> Model:
    """A small convolutional network: stages of 3x3 convolution, batch norm, ReLU, 2x2 max-pooling.

    The head sees the mean over positions. Each stage halves height and width, rounding down, while
    both are at least 2.

    Args:
      channels: Output channels of each stage.
      num_classes: Outputs of the head, 2 or more; 1 or more of other kinds than ``"softmax"``.
      batch_norm: Whether to normalise; if not, the convolutions have a bias.
      classes: The names of the classes in the order of the logits.
      outputs: What the logits mean, an :data:`~distill_jax.types.OutputKind`.

    Returns:
      A model with logits ``[batch, num_classes]`` and features ``"blocks/0"``, ... (after each
      stage, ``[batch, height, width, channels]``) and ``"pooled"`` (``[batch, channels]``). Its
      params are ``{"blocks": {"0": {"conv", "norm"}, ...}, "head": {"kernel", "bias"}}``, its state
      the statistics of the batch norms.

    Raises:
      ValueError: if a size is out of range; from ``init`` and ``apply``, if the inputs are not
        ``[batch, height, width, channels]``; from ``apply``, if params were made for another
        number of channels.
      TypeError: from ``init`` and ``apply``, if the inputs are not floating point.

    Example:
      >>> model = convnet([4, 8], 3)
      >>> inputs = jnp.ones((2, 8, 8, 1))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> outputs = jax.eval_shape(model.predict, params, state, inputs)
      >>> outputs.logits.shape, outputs.features["blocks/1"].shape
      ((2, 3), (2, 2, 2, 8))
    """
    channels = tuple(_checks.count(f"channels[{i}]", n) for i, n in enumerate(channels))
    check_classes(num_classes, classes, outputs)
    if not channels:
        raise ValueError("channels must have one number per stage, got none")

    def make(rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        check_images(inputs)
        return _ConvNet((inputs.shape[3], *channels), num_classes, batch_norm, rngs)

    features = tuple(f"blocks/{i}" for i in range(len(channels)))
    return from_nnx(make, classes=classes, outputs=outputs, features=(*features, "pooled"))


@checked
def resnet(
    depth: int,
    num_classes: int,
    *,
    width: int = 16,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
) -> Model:
    """The residual network for CIFAR, with parameter-free shortcuts (option A).

    A 3x3 convolution, then three stages of ``n = (depth - 2) / 6`` blocks with ``width``,
    ``2 * width`` and ``4 * width`` channels. The second and third stage begin with stride 2; their
    first shortcuts take every second position and pad the new channels with zeros.

    Args:
      depth: Layers with weights, ``6 n + 2``: 20, 32, 44, 56, 110 in the paper.
      num_classes: Outputs of the head, 2 or more; 1 or more of other kinds than ``"softmax"``.
      width: Channels of the first stage.
      classes: The names of the classes in the order of the logits.
      outputs: What the logits mean, an :data:`~distill_jax.types.OutputKind`.

    Returns:
      A model with logits ``[batch, num_classes]`` and features ``"stem"``, ``"blocks/0"``, ...
      (after each block, ``[batch, height, width, channels]``; stages end at the blocks ``n - 1``,
      ``2 n - 1`` and ``3 n - 1``) and ``"pooled"`` (``[batch, 4 * width]``). Its params are
      ``{"stem": {"conv", "norm"}, "blocks": {"0": {"first": {"conv", "norm"}, "second": ...}},
      "head": {"kernel", "bias"}}``, its state the statistics of the batch norms.

    Raises:
      ValueError: if ``depth`` is not ``6 n + 2`` with ``n >= 1``, or ``width`` is below 1; from
        ``init`` and ``apply`` as in :func:`convnet`.
      TypeError: from ``init`` and ``apply``, if the inputs are not floating point.

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
    if _checks.count("depth", depth) < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    width = _checks.count("width", width)
    check_classes(num_classes, classes, outputs)
    blocks_per_stage = (depth - 2) // 6

    def make(rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        check_images(inputs)
        return _ResNet(inputs.shape[3], width, blocks_per_stage, num_classes, rngs)

    features = tuple(f"blocks/{i}" for i in range(3 * blocks_per_stage))
    return from_nnx(make, classes=classes, outputs=outputs, features=("stem", *features, "pooled"))


class _ConvLayer(nnx.Module):
    """3x3 convolution, batch norm, activation; without the norm, the convolution has a bias."""

    def __init__(
        self,
        before: int,
        after: int,
        activation: Callable[[Array], Array],
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        batch_norm: bool = True,
    ):
        self.conv = nnx.Conv(
            before,
            after,
            (3, 3),
            strides=stride,
            padding=1,  # not "SAME", which pads a strided convolution on one side only
            use_bias=not batch_norm,
            kernel_init=_HE_NORMAL,
            param_dtype=_default_dtype(),
            rngs=rngs,
        )
        self.norm = _batch_norm(after, rngs) if batch_norm else None
        self.activation = activation

    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch rows columns out"]:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x).astype(x.dtype)  # float32 inside, since its statistics are
        return self.activation(x)


def _relu_and_pool(x: Array) -> Array:
    x = nnx.relu(x)
    return nnx.max_pool(x, (2, 2), strides=(2, 2)) if min(x.shape[1:3]) > 1 else x


def _unchanged(x: Array) -> Array:
    return x


class _ConvNet(nnx.Module):
    def __init__(self, channels: Sequence[int], num_classes: int, batch_norm: bool, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            _ConvLayer(before, after, _relu_and_pool, rngs, batch_norm=batch_norm)
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        self.head = _head(channels[-1], num_classes, rngs)

    def __call__(self, x: Array) -> Array:
        for block in self.blocks:
            x = block(x)
        return self.head(_pooled(self, x))


class _Block(nnx.Module):
    """Two convolutions beside a shortcut without parameters."""

    def __init__(self, before: int, after: int, stride: int, rngs: nnx.Rngs):
        self.first = _ConvLayer(before, after, nnx.relu, rngs, stride=stride)
        self.second = _ConvLayer(after, after, _unchanged, rngs)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        y = self.second(self.first(x))
        shortcut = x[:, :: self.stride, :: self.stride, :]
        new = y.shape[3] - x.shape[3]
        return nnx.relu(y + jnp.pad(shortcut, [(0, 0), (0, 0), (0, 0), (0, new)]))


class _ResNet(nnx.Module):
    def __init__(
        self, channels: int, width: int, blocks_per_stage: int, num_classes: int, rngs: nnx.Rngs
    ):
        self.stem = _ConvLayer(channels, width, nnx.relu, rngs)
        blocks, before = [], width
        for stage in range(3):
            for i in range(blocks_per_stage):
                after, stride = width * 2**stage, 2 if stage and not i else 1
                blocks.append(_Block(before, after, stride, rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.head = _head(before, num_classes, rngs)

    def __call__(self, x: Array) -> Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(_pooled(self, x))


def _pooled(module: nnx.Module, x: Array) -> Float[Array, "batch channels"]:
    """The mean over positions, kept as the feature ``"pooled"``."""
    x = x.mean((1, 2))
    module.sow(nnx.Intermediate, "pooled", x)
    return x


def _head(features: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    dtype = _default_dtype()
    return nnx.Linear(
        features, num_classes, kernel_init=_LECUN_NORMAL, param_dtype=dtype, rngs=rngs
    )


def _batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    norm = nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,  # a difference of two means, without digits where they are large
        param_dtype=_default_dtype(),
        rngs=rngs,
    )
    for statistic in (norm.mean, norm.var):  # Flax makes them float32 whatever param_dtype says
        statistic.set_value(statistic.get_value().astype(_default_dtype()))
    return norm


def _default_dtype() -> Any:
    """float32, or float64 with ``jax_enable_x64``, as for the other networks."""
    return jnp.result_type(float)


# Not truncated, as in He et al. (2015): variance 2 / fan in, or 1 / fan in before the softmax.
_HE_NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_LECUN_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
