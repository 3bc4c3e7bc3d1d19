"""Sharding rules: how each parameter is sharded over devices, by its path and shape.

A rule is a function ``(path, shape, axes) -> PartitionSpec`` of a parameter's path
(``"hidden/0/kernel"``), its shape, and the sizes of the mesh's axes by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from distill_jax import _checks
from distill_jax._arguments import checked

Rule = Callable[[str, tuple[int, ...], Mapping[str, int]], PartitionSpec]
"""``(path, shape, sizes of the mesh's axes) -> PartitionSpec``; hashed with the layout."""

Axes = str | tuple[str, ...]


@checked
def replicate(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
    """The sharding rule by which every device holds the whole array.

    Args:
      path, shape, axes: Ignored.

    Returns:
      ``PartitionSpec()``.
    """
    del path, shape, axes
    return PartitionSpec()


@dataclasses.dataclass(frozen=True)
class shard_by_size:  # noqa: N801 (used as a function)
    """The rule that shards large arrays, as fully sharded data parallelism (FSDP) does.

    The longest axis of an array that the mesh's axis divides is sharded (the first of equals); an
    array with fewer than ``least`` elements is replicated: gathering it costs more than holding it.

    Args:
      axis: Axis of the mesh, or several that shard together.
      least: The smallest number of elements of an array that is sharded.

    Returns:
      A rule ``(path, shape, axes) -> PartitionSpec``, with a hash.

    Example:
      >>> rule = shard_by_size("data", least=100)
      >>> tuple(rule("kernel", (16, 32), {"data": 8})), tuple(rule("bias", (32,), {"data": 8}))
      ((None, 'data'), ())
    """

    axis: Axes
    least: int = 2**16

    def __post_init__(self) -> None:
        if not isinstance(self.axis, str):
            object.__setattr__(self, "axis", _checks.names("axis", self.axis))
        object.__setattr__(self, "least", _checks.count("least", self.least, least=0))

    @property
    def axes(self) -> frozenset[str]:
        return frozenset(axis_names(self.axis))

    def __call__(self, path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
        size = math.prod(axes[name] for name in axis_names(self.axis))
        fitting = [n for n in shape if n > 0 and n % size == 0]
        if not fitting or math.prod(shape) < self.least:
            return PartitionSpec()
        return PartitionSpec(*[None] * shape.index(max(fitting)), self.axis)


@dataclasses.dataclass(frozen=True, init=False)
class shard_by_name:  # noqa: N801 (used as a function)
    """The rule that shards parameters by their names.

    A pattern is a regular expression for whole names at the end of a path: ``"kernel"`` matches
    ``hidden/0/kernel`` but not ``old_kernel``, ``r"hidden/\\d+/kernel"`` every hidden kernel, and
    ``"encoder/.*"`` everything below ``encoder``. The first pattern that matches counts.

    Args:
      specs: A ``PartitionSpec`` for each pattern.
      otherwise: The rule for all other parameters.

    Returns:
      A rule ``(path, shape, axes) -> PartitionSpec``, with a hash.

    Example:
      >>> from jax.sharding import PartitionSpec as P
      >>> rule = shard_by_name({r"hidden/\\d+/kernel": P(None, "model"), "head/kernel": P("model")})
      >>> tuple(rule("hidden/0/kernel", (16, 32), {"model": 2}))
      (None, 'model')
    """

    specs: tuple[tuple[str, PartitionSpec], ...]
    otherwise: Rule

    def __init__(self, specs: Mapping[str, PartitionSpec], otherwise: Rule = replicate):
        if not isinstance(specs, Mapping):
            raise TypeError(
                f"specs must be a dictionary of PartitionSpecs by pattern, got "
                f"{type(specs).__name__}: write {{'kernel': PartitionSpec(None, 'model')}}"
            )
        for pattern, spec in specs.items():
            if not isinstance(spec, PartitionSpec):
                raise TypeError(
                    f"specs[{pattern!r}] must be a PartitionSpec, got {type(spec).__name__}: write "
                    'PartitionSpec(None, "model") to cut the second axis'
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"specs has {pattern!r}, which is no regular expression: {error}"
                ) from error
        if not callable(otherwise):
            raise TypeError(f"otherwise must be a rule, got {type(otherwise).__name__}")
        object.__setattr__(self, "specs", tuple(specs.items()))
        object.__setattr__(self, "otherwise", otherwise)

    @property
    def axes(self) -> frozenset[str]:
        own = {name for _, spec in self.specs for entry in spec for name in axis_names(entry)}
        return frozenset(own) | axes_of(self.otherwise)

    def __call__(self, path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
        for pattern, spec in self.specs:
            if _matches(pattern, path):
                return spec
        return self.otherwise(path, shape, axes)

    def unmatched(self, paths: Sequence[str]) -> list[str]:
        """Patterns that match none of the paths."""
        own = [p for p, _ in self.specs if not any(_matches(p, path) for path in paths)]
        return own + getattr(self.otherwise, "unmatched", lambda paths: [])(paths)


def axis_names(entry: Any) -> tuple[str, ...]:
    """The axes of one entry of a spec."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def axes_of(rule: Any) -> frozenset[str]:
    return getattr(rule, "axes", frozenset())


def _matches(pattern: str, path: str) -> bool:
    return re.search(rf"(?:^|/)(?:{pattern})$", path) is not None
