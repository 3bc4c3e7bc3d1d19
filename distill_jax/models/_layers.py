"""Layers of the shipped networks, as functions over dictionaries of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def dense(params: dict[str, Array], x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
    """``x @ kernel + bias``, with an error that names both sizes."""
    kernel = params["kernel"]
    if kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"inputs must have the {kernel.shape[0]} features of the kernel {kernel.shape}, "
            f"got {x.shape}: were the params made for other inputs?"
        )
    return x @ kernel + params["bias"][None, :]


def check_classes(num_classes: int, classes: tuple[str, ...] | None) -> None:
    """Raises ValueError where there are fewer than two classes, or their names are not as many."""
    if num_classes < 2:
        raise ValueError(
            f"num_classes must be 2 or more, got {num_classes}: a yes-or-no task has two classes"
        )
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"classes must name each of the {num_classes} classes, got {len(classes)} names"
        )


def check_floating(inputs: Any) -> None:
    """Raises TypeError for integers: pixels 0 to 255 train badly, and say nothing about it."""
    if not isinstance(inputs, jax.Array) and not hasattr(inputs, "dtype"):
        raise TypeError(f"inputs must be one array [batch, ...], got {type(inputs).__name__}")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"inputs must be floating point, got {inputs.dtype}: convert and scale them, "
            "for example inputs.astype(jnp.float32) / 255"
        )


def dense_init(key: Array, inputs: int, outputs: int, *, gain: float) -> dict[str, Array]:
    """A normal kernel ``[in, out]`` of variance ``gain / in``, and a bias of 0."""
    kernel = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def conv(
    params: dict[str, Array], x: Float[Array, "batch height width in"], stride: int = 1
) -> Float[Array, "batch rows columns out"]:
    """Cross-correlation with a kernel of odd size, padded evenly on all sides.

    Not ``"SAME"``, which pads a strided convolution on one side only, unlike the papers.
    """
    kernel = params["kernel"]
    if kernel.shape[2] != x.shape[3]:
        raise ValueError(
            f"inputs must have the {kernel.shape[2]} channels of the kernel {kernel.shape}, "
            f"got {x.shape}: were the params made for other inputs?"
        )
    dtype = jnp.result_type(kernel, x)
    y = jax.lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=(stride, stride),
        padding=[(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"][None, None, None, :] if "bias" in params else y


def conv_init(key: Array, size: int, inputs: int, outputs: int) -> dict[str, Array]:
    """A kernel ``[size, size, in, out]`` from He's normal distribution, variance 2 / fan in."""
    kernel = jax.random.normal(key, (size, size, inputs, outputs))
    return {"kernel": kernel * (2.0 / (size * size * inputs)) ** 0.5}


def batch_norm(
    params: dict[str, Array],
    state: dict[str, Array],
    x: Float[Array, "*batch channels"],
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "*batch channels"], dict[str, Array]]:
    """Normalises each channel over all other axes.

    In training by the statistics of the batch, which move the stored ones: ``momentum`` is what
    stays. The variance is the biased one (ddof 0), also in store. In evaluation by the stored
    ones. Statistics are float32 or better.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
        axes = tuple(range(x.ndim - 1))
        now = {"mean": wide.mean(axes), "var": wide.var(axes)}
        state = {
            name: momentum * state[name] + (1.0 - momentum) * jax.lax.stop_gradient(now[name])
            for name in state
        }
    else:
        now = state
    scale = params["scale"] * jax.lax.rsqrt(now["var"] + epsilon)
    y = (wide - _last(now["mean"], x)) * _last(scale, x) + _last(params["bias"], x)
    return y.astype(x.dtype), state


def batch_norm_init(channels: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Params (scale 1, bias 0) and state (mean 0, variance 1)."""
    return (
        {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)},
        {"mean": jnp.zeros(channels), "var": jnp.ones(channels)},
    )


def check_images(inputs: Any) -> None:
    """Raises where inputs are not floats ``[batch, height, width, channels]``."""
    check_floating(inputs)
    if inputs.ndim != 4:
        raise ValueError(
            f"inputs must have shape [batch, height, width, channels], got {inputs.shape}"
        )


def check_sizes(**sizes: Sequence[int]) -> None:
    """Raises ValueError where a size is no positive integer."""
    for name, given in sizes.items():
        for size in given:
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"{name} must be integers >= 1, got {size!r}")


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
