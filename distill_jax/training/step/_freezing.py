"""Which of the student's parameters train. The others are constants of a step.

Gradients, the optimizer and its state see the student's tree with ``Frozen()``, a node without
leaves, in the place of every array that does not train: nothing is computed or kept for it. Masks
and labels of Optax that are trees of all parameters still fit, as trees whose leaves stand above
these nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from distill_jax import _checks
from distill_jax._fingerprints import leaves_by_path

Trainable = Callable[[str, Any], bool] | PyTree
"""``(path, leaf) -> bool``, or booleans in the structure of the student's parameters, or above."""

SHOWN = 8  # paths listed in one message


class Frozen(NamedTuple):
    """Stands for an array that does not train."""


def chosen(trainable: Trainable, params: PyTree) -> tuple[bool, ...]:
    """Whether each of the student's parameters trains, in the order of the leaves.

    Args:
      trainable: As ``run`` takes it.
      params: The student's, or their shapes.

    Raises:
      TypeError: if it is neither a function nor a tree, or gives what is no boolean.
      ValueError: if a tree does not fit the parameters, or none is chosen.
    """
    leaves = leaves_by_path(params)
    if callable(trainable):
        found = _by_function(trainable, leaves)
    else:
        found = _by_tree(trainable, params)
    for path, x in zip(leaves, found, strict=True):
        if not isinstance(x, bool | np.bool_):
            raise TypeError(
                f"trainable must give True or False for each parameter, got {x!r} for {path!r}"
            )
    if not any(found):
        raise ValueError(
            "trainable must choose one of the student's parameters or more, got False for all: "
            f"{shown(leaves)}"
        )
    return tuple(map(bool, found))


def _by_function(trainable: Callable[..., Any], leaves: dict[str, Any]) -> list[Any]:
    if isinstance(trainable, type):
        raise TypeError(
            f"trainable must be a function (path, leaf) -> bool, or a tree of booleans, got the "
            f"class {trainable.__name__}: choose by path, lambda path, leaf: 'lora' in path"
        )
    _checks.takes("(path, leaf)", trainable=trainable)
    return [trainable(path, leaf) for path, leaf in leaves.items()]


def _by_tree(trainable: PyTree, params: PyTree) -> list[Any]:
    try:
        spread = jax.tree.map(lambda x, own: jax.tree.map(lambda _: x, own), trainable, params)
        return jax.tree.leaves(spread, is_leaf=lambda x: x is None)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "trainable must have the structure of the student's parameters, or one above it: it "
            f"has {shown(leaves_by_path(trainable))}, and the parameters are "
            f"{shown(leaves_by_path(params))}"
        ) from error


def shown(paths: Any) -> str:
    """Some paths, for a message."""
    paths = list(paths)
    rest = len(paths) - SHOWN
    return f"{paths[:SHOWN]}" + (f" and {rest} more" if rest > 0 else "")


def split(params: PyTree, which: tuple[bool, ...] | None) -> tuple[PyTree, PyTree]:
    """``(those that train, the others)``, each with ``Frozen()`` in the place of the other's."""
    leaves, structure = jax.tree.flatten(params)
    which = (True,) * len(leaves) if which is None else which
    pairs = list(zip(leaves, which, strict=True))
    return (
        jax.tree.unflatten(structure, [x if trains else Frozen() for x, trains in pairs]),
        jax.tree.unflatten(structure, [Frozen() if trains else x for x, trains in pairs]),
    )


def join(trained: PyTree, others: PyTree) -> PyTree:
    """All parameters, from those that train and a tree with the others.

    What ``others`` holds in the place of a parameter that trains does not matter.
    """
    return jax.tree.map(
        lambda x, other: other if isinstance(x, Frozen) else x, trained, others, is_leaf=_is_frozen
    )


def like(params: PyTree, trained: PyTree) -> PyTree:
    """All parameters, with ``Frozen()`` where ``trained`` has it."""
    return jax.tree.map(
        lambda x, own: x if isinstance(x, Frozen) else own, trained, params, is_leaf=_is_frozen
    )


def _is_frozen(x: Any) -> bool:
    return isinstance(x, Frozen)
