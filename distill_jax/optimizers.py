"""Optax transforms of ours, to be chained with any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from distill_jax import _checks
from distill_jax._arguments import checked

Inputs = Sequence[int] | Callable[[str, tuple[int, ...]], Sequence[int]]


@checked
def max_norm(
    limit: float, *, name: str = "kernel", inputs: Inputs | None = None
) -> optax.GradientTransformation:
    """Keeps the incoming weights of every unit within a ball of radius ``limit``.

    Where a step would leave the ball, the unit's weights are scaled back onto it. The norm runs
    over the axes of a kernel that are its inputs; every index of the others is a unit. Put it last:
    ``optax.chain(optax.adam(1e-3), max_norm(3.0))``.

    Which axes are inputs is read from the ``bias`` beside a kernel, which has one entry per unit:
    of a dense kernel ``[in, out]`` the first, of a convolution ``[..., in, out]`` all but the last,
    of attention's query, key and value ``[in, heads, head_dim]`` the first, and of its output
    ``[heads, head_dim, out]`` the first two. In a stack of layers, ``[layers, in, out]`` with a
    bias ``[layers, out]``, each layer has units of its own. Without a bias only ``[in, out]`` is
    clear: kernels of more axes are refused unless ``inputs`` is given.

    Args:
      limit: Largest L2 norm, > 0.
      name: Last part of the path of the parameters it is for; biases are left free.
      inputs: The axes that are inputs, such as ``(-2,)``, or a function of a kernel's path
        (``"student/encoder/query/kernel"``) and shape that returns them.

    Raises:
      ValueError: by ``init`` and ``update``, if it is not clear which axes of a kernel are inputs.

    References:
      Srivastava et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014,
      section 5.1.

    Example:
      >>> params = {"kernel": jnp.full((4, 1), 2.0)}
      >>> transform = max_norm(1.0)
      >>> zero = {"kernel": jnp.zeros((4, 1))}
      >>> updates, _ = transform.update(zero, transform.init(params), params)
      >>> print(jnp.linalg.norm(optax.apply_updates(params, updates)["kernel"]))
      1.0
    """
    _checks.positive(limit=limit)
    if inputs is not None and not callable(inputs):
        inputs = tuple(inputs)

    def axes_by_path(params: PyTree) -> dict[tuple[str, ...], tuple[int, ...]]:
        shapes = {_names(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
        return {
            path: _input_axes(path, shape, shapes.get((*path[:-1], "bias")), inputs)
            for path, shape in shapes.items()
            if path and path[-1] == name and len(shape) >= 2
        }

    def init(params: PyTree) -> optax.EmptyState:
        axes_by_path(params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        if params is None:
            raise ValueError("max_norm needs params: call update(updates, state, params)")
        axes = axes_by_path(params)

        def project(path, change, old):
            if (own := axes.get(_names(path))) is None:
                return change
            new = old + change
            square = jnp.sum(new * new, axis=own, keepdims=True)
            over = square > limit * limit
            scale = jnp.where(over, limit * jax.lax.rsqrt(jnp.where(over, square, 1.0)), 1.0)
            return jnp.where(over, new * scale - old, change)

        return jax.tree_util.tree_map_with_path(project, updates, params), state

    return optax.GradientTransformation(init, update)


def _names(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((part,), simple=True) for part in path)


def _input_axes(
    path: tuple[str, ...],
    shape: tuple[int, ...],
    bias: tuple[int, ...] | None,
    inputs: Inputs | None,
) -> tuple[int, ...]:
    """The axes of a kernel over which the norm of a unit runs, by the arguments of max_norm."""
    where = "/".join(path)
    if inputs is not None:
        given = tuple(inputs(where, shape) if callable(inputs) else inputs)
        if not given or not all(-len(shape) <= axis < len(shape) for axis in given):
            raise ValueError(
                f"inputs must be one or more axes of each kernel, got {given} for {where} of shape "
                f"{shape}"
            )
        return given
    # A kernel is [*stack, *inputs, *units] and its bias [*stack, *units].
    fits: list[tuple[int, ...]] = []
    if bias is None:
        fits += [(0,)] if len(shape) == 2 else []
    else:
        for stack in range(len(bias)):
            end = len(shape) - (len(bias) - stack)
            if end > stack and shape[:stack] == bias[:stack] and shape[end:] == bias[stack:]:
                fits.append(tuple(range(stack, end)))
    if len(fits) == 1:
        return fits[0]
    beside = "no bias" if bias is None else f"a bias of shape {bias}"
    raise ValueError(
        f"max_norm cannot tell which axes of {where}, of shape {shape} with {beside} beside it, "
        "are inputs: pass inputs=, the axes or a function of path and shape, such as "
        "lambda path, shape: range(len(shape) - 1) for dense layers and convolutions"
    )


class PullState(NamedTuple):
    """Where training started."""

    start: PyTree


@checked
def pull_to_start(strength: float | Array) -> optax.GradientTransformation:
    """Pulls all parameters back to where training started: rules are not forgotten.

    Adds the gradient of ½ · strength · ‖params − start‖². Before an optimizer in a chain it is a
    penalty like L2: ``optax.chain(pull_to_start(1e-3), optax.adam(1e-2))``; between a scaling and
    the learning rate it is decoupled, as in AdamW. The start is remembered in the optimizer's
    state, so a resumed run is pulled to the same place. For parameters that start at 0 it is plain
    weight decay.

    Args:
      strength: 0 or more; may be traced.

    Example:
      >>> pull = pull_to_start(0.5)
      >>> state = pull.init({"w": jnp.ones(2)})
      >>> updates, _ = pull.update({"w": jnp.zeros(2)}, state, {"w": jnp.array([1.0, 3.0])})
      >>> print(updates["w"])
      [0. 1.]
    """
    _checks.at_least(0.0, strength=strength)

    def init(params: PyTree) -> PullState:
        return PullState(jax.tree.map(jnp.copy, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        if params is None:
            raise ValueError("pull_to_start needs params: call update(updates, state, params)")
        pulled = jax.tree.map(
            lambda g, p, start: g + (strength * (p - start)).astype(g.dtype),
            updates, params, state.start,
        )  # fmt: skip
        return pulled, state

    return optax.GradientTransformation(init, update)
