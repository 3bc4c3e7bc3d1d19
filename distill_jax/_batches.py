"""The arrays of a batch, whose columns are arrays or trees of them with one leading axis.

A column is one array, or a dictionary, a tuple or a registered dataclass of columns:
``{"tokens": ids, "mask": mask}``. Lists, and tuples of numbers, are what NumPy makes an array of.
Messages call an array of a tree by its path, ``inputs['mask']``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np


def named(name: str, column: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a column, each with its name: the column's own, or that and a path."""
    for path, x in jax.tree_util.tree_leaves_with_path(column, is_leaf=_is_one_array):
        yield f"{name}{jax.tree_util.keystr(path)}", x


def arrays(batch: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays of a batch by their names, in the order of its columns."""
    return {name: x for column, tree in batch.items() for name, x in named(column, tree)}


def found(batch: Mapping[str, Any], name: str) -> Any:
    """The column of a name, or an array in a column, ``inputs['mask']``; None if there is none."""
    if name in batch:
        return batch[name]
    column = next((column for column in batch if name.startswith((f"{column}[", f"{column}."))), "")
    return dict(named(column, batch[column])).get(name) if column else None


def mapped(function: Callable[..., Any], batch: Mapping[str, Any], *others: Any) -> dict[str, Any]:
    """The batch with ``function`` applied to each of its arrays, and to those of ``others``."""
    return {
        name: jax.tree.map(function, tree, *(x[name] for x in others), is_leaf=_is_one_array)
        for name, tree in batch.items()
    }


def mapped_by_name(function: Callable[[str, Any], Any], name: str, column: Any) -> Any:
    """A column with ``function(name, array)`` applied to each of its arrays."""

    def at(path: Any, x: Any) -> Any:
        return function(f"{name}{jax.tree_util.keystr(path)}", x)

    return jax.tree_util.tree_map_with_path(at, plain(column), is_leaf=_is_one_array)


def first(batch: Mapping[str, Any]) -> Any:
    """The first array of a batch, of ``inputs`` if it has any."""
    columns = ([batch["inputs"]] if "inputs" in batch else []) + list(batch.values())
    return next(x for tree in columns for _, x in named("", tree))


def rows(batch: Mapping[str, Any]) -> int:
    """Number of rows of a batch whose arrays have one leading axis."""
    return np.shape(first(batch))[0]


def plain(column: Any) -> Any:
    """The same column with dictionaries in place of mappings that JAX does not look into."""
    return jax.tree.map(_as_dictionary, column, is_leaf=_is_one_array)


def _as_dictionary(x: Any) -> Any:
    return {name: plain(inner) for name, inner in x.items()} if isinstance(x, Mapping) else x


def _is_one_array(x: Any) -> bool:
    """Whether a list or a tuple is data for one array, and not a structure of several."""
    if isinstance(x, list):
        return True
    if not isinstance(x, tuple) or hasattr(x, "_fields"):
        return False
    return not any(np.ndim(y) if hasattr(y, "shape") else _is_structure(y) for y in x)


def _is_structure(x: Any) -> bool:
    if isinstance(x, Mapping):
        return True
    return not isinstance(x, list) and not jax.tree_util.all_leaves([x]) and not _is_one_array(x)
