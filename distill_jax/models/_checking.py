"""Checks of what the networks that come along are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import _checks
from distill_jax.types import OutputKind


def check_classes(num_classes: int, classes: Sequence[str] | None, outputs: OutputKind) -> None:
    """Raises ValueError for fewer than two classes that exclude each other, or for another number
    of names than of classes."""
    if _checks.count("num_classes", num_classes) < 2 and outputs == "softmax":
        raise ValueError(
            f"num_classes must be 2 or more, got {num_classes}: a yes-or-no task has two classes; "
            "a predicted number is outputs='regression', a single label outputs='multi_label'"
        )
    if classes is not None and len(_checks.names("classes", classes)) != num_classes:
        raise ValueError(
            f"classes must name each of the {num_classes} classes, got {len(classes)} names"
        )


def check_floating(inputs: Any) -> None:
    """Raises TypeError for integers: pixels from 0 to 255 would train badly, without an error."""
    if not isinstance(inputs, jax.Array) and not hasattr(inputs, "dtype"):
        raise TypeError(f"inputs must be one array [batch, ...], got {type(inputs).__name__}")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"inputs must be floating point, got {inputs.dtype}: convert and scale them, "
            "for example inputs.astype(jnp.float32) / 255"
        )


def check_images(inputs: Any) -> None:
    """Raises where inputs are not floats ``[batch, height, width, channels]``."""
    check_floating(inputs)
    if inputs.ndim != 4:
        raise ValueError(
            f"inputs must have shape [batch, height, width, channels], got {inputs.shape}"
        )
