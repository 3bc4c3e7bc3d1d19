"""How far training moved the weights of each rule in a model made from rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax._arguments import checked
from distill_jax.models.functions import from_function
from distill_jax.rules.binding.book import Book
from distill_jax.types import Model, Params


class Unit(NamedTuple):
    """A column of a kernel, and the rule that it represents.

    Attributes:
      name: ``"minus_35/1"``, ``"promoter"``.
      text: The rule that it was made from.
      layer: Key of its layer in the params.
      column: Its column in the kernel of that layer.
      rows: The rows of the kernel that belong to what the rule mentions.
    """

    name: str
    text: str
    layer: str
    column: int
    rows: tuple[int, ...]


class Layout(NamedTuple):
    """What the rows and columns of the kernels of a model made from rules represent.

    Attributes:
      sources: For each layer, the names of the rows of its kernel.
      units: In the order of their layers. A kernel's column may represent several rules.
    """

    sources: Mapping[str, tuple[str, ...]]
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class RuleModel(Model):
    """A model made from rules, with the names of its weights.

    Its params are ``{layer: {"kernel": [sources, units], "bias": [units]}}``.

    Attributes:
      exact_inputs: True: the inputs are compared with the thresholds of rules, so they are not cast
        to a lower precision.
      layout: The names of the rows and columns of each kernel.
    """

    exact_inputs: bool = True
    layout: Layout = dataclasses.field(default=Layout({}, ()), compare=False)


def rule_model(
    init: Callable[..., Any], apply: Callable[..., Any], book: Book, layout: Layout
) -> RuleModel:
    """A model of a book's classes from two functions, as ``from_function`` takes them."""
    model = from_function(init, apply, classes=book.classes, outputs=book.outputs, missing=True)
    return RuleModel(
        model.init, model.apply, book.classes, missing=True, outputs=book.outputs, layout=layout
    )


@checked
def drift(model: Model, before: Params, after: Params, *, most: int = 3) -> list[dict[str, Any]]:
    """How far training moved the weights of each rule.

    Args:
      model: From ``to_network`` or ``to_logistic_regression``.
      before: Its params at the start.
      after: Its params after training, without an axis for runs.
      most: The largest number of weights listed in ``biggest`` and in ``new``.

    Returns:
      One row per rule (and per class, where a rule changes several), as plain data for
      ``report.show``: ``unit``, ``rule``, ``bias_before``, ``bias_after``; ``moved``, the root mean
      square change of the weights that belong to the rule; ``biggest`` and ``new``, as text, the
      largest changes of those weights and of all other weights of the unit; and ``weights``, a list
      of ``{"atom", "before", "after"}``.

    Raises:
      TypeError: if the model was not made from rules.
      ValueError: if the params do not have the model's layers and shapes.

    Example:
      >>> from distill_jax.rules import Column, Schema, to_network
      >>> schema = Schema((Column("a", "boolean"), Column("b", "boolean")), ("no", "yes"))
      >>> model = to_network("yes :- a, not b.", schema, noise=0.0)
      >>> before, _ = model.init(jax.random.key(0), jnp.zeros((1, 2)))
      >>> after = jax.tree.map(lambda x: x * 1.5, before)
      >>> row = drift(model, before, after)[0]
      >>> row["rule"], row["biggest"]
      ('yes :- a, not b.', 'a 4.00 → 6.00, b -4.00 → -6.00, unknown: b -4.00 → -6.00')
    """
    if not isinstance(model, RuleModel):
        raise TypeError(
            f"model must come from to_network or to_logistic_regression, got {type(model).__name__}"
        )
    old, new = _arrays(model, "before", before), _arrays(model, "after", after)
    layout = model.layout
    return [_row(layout, u, old[u.layer], new[u.layer], most) for u in layout.units]


def _row(layout: Layout, unit: Unit, old: Any, new: Any, most: int) -> dict[str, Any]:
    names = layout.sources[unit.layer]
    start, end = old["kernel"][:, unit.column], new["kernel"][:, unit.column]
    own = list(unit.rows)
    rest = [i for i in range(len(names)) if i not in set(own)]
    moves = end - start

    def biggest(rows: Sequence[int]) -> str:
        order = sorted(rows, key=lambda i: -abs(moves[i]))[:most]
        return ", ".join(f"{names[i]} {start[i]:.2f} → {end[i]:.2f}" for i in order)

    return {
        "unit": unit.name,
        "rule": unit.text,
        "bias_before": float(old["bias"][unit.column]),
        "bias_after": float(new["bias"][unit.column]),
        "moved": float(np.sqrt(np.mean(moves[own] ** 2))) if own else 0.0,
        "biggest": biggest(own),
        "new": biggest(rest),
        "weights": [
            {"atom": names[i], "before": float(start[i]), "after": float(end[i])} for i in own
        ],
    }


def _arrays(model: RuleModel, who: str, params: Any) -> dict[str, dict[str, np.ndarray]]:
    layers = model.layout.sources
    if not isinstance(params, Mapping) or set(params) != set(layers):
        raise ValueError(
            f"{who} must be params of the model, with the layers {sorted(layers)}, got "
            f"{sorted(params) if isinstance(params, Mapping) else type(params).__name__}"
        )
    arrays = {
        layer: {name: np.asarray(x, np.float64) for name, x in params[layer].items()}
        for layer in layers
    }
    for layer, sources in layers.items():
        shape = arrays[layer]["kernel"].shape
        if len(shape) != 2 or shape[0] != len(sources):
            raise ValueError(
                f"{who}[{layer!r}]['kernel'] must have shape [{len(sources)}, units], got {shape}: "
                "if the params have an axis for runs, take one run"
            )
    return arrays
