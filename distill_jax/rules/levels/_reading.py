"""What a term with parameters or state reads from a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from distill_jax.objectives import Context, term


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads what a term with parameters or state needs, by the rule of ``term``.

    Attributes:
      name: The term's name.
      like: A function whose positional parameters say what to read.
      reads: As items of the ``reads`` of ``term``.
    """

    name: str
    like: Callable[..., Any]
    reads: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        self.reader()  # complains about what it cannot read

    def reader(self) -> Any:
        return term(self.name, 1.0, self.like, reads=dict(self.reads))

    def __call__(self, context: Context) -> list[Any]:
        return self.reader()._arguments(context)
