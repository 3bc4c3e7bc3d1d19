"""What a loss is meant for, as attributes that training looks at before the first step.

Any function may carry them, and none needs to:

- ``outputs``: the kinds of outputs of a model that the loss makes sense for;
- ``label_values``: from a model's number of outputs, how many values a label may have;
- ``probabilities``: the names of parameters that hold probabilities of classes;
- ``couples``: from the options of a term that are fixed in the program, whether rows depend on each
  other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from distill_jax.types import OutputKind

Loss = TypeVar("Loss", bound=Callable)


def meant_for(
    *outputs: OutputKind,
    label_values: Callable[[int], int] | None = None,
    probabilities: tuple[str, ...] = (),
    couples: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Callable[[Loss], Loss]:
    """A decorator that says what a loss is meant for."""

    def mark(loss: Loss) -> Loss:
        vars(loss).update(outputs=outputs, probabilities=probabilities)
        if label_values is not None:
            vars(loss)["label_values"] = label_values
        if couples is not None:
            vars(loss)["couples"] = couples
        return loss

    return mark
