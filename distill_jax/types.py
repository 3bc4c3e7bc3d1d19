"""The types that every floor shares: a model, its outputs, a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Array, PyTree

from distill_jax import _checks

Batch = Mapping[str, Any]
"""Named columns with one leading axis: ``inputs``, often ``labels`` or ``targets``, and optionally
``where`` (``[batch]`` booleans: rows that are False are padding and
contribute to no loss; a batch norm does see them, with the inputs of a row that counts).
``columns`` is an encoded table for rules, in which NaN stands for a missing value;
``inputs:clause`` holds the inputs of another view of the examples, named ``clause``, and
``teacher_inputs`` those of the teachers, where they differ from the student's.

A column is an array, of JAX or NumPy, or a tree of arrays: a dictionary, a tuple or a registered
dataclass (``flax.struct.dataclass``), such as ``{"tokens": ids, "mask": mask}``. Lists become one
array."""

Params = PyTree
"""Arrays that gradients reach."""

OutputKind = Literal["softmax", "multi_label", "regression", "embedding"]
"""What the outputs of a model mean, which decides how they are averaged, compared and measured:

- ``"softmax"``: logits of classes that exclude each other. A single output ``z`` stands for the
  logits ``[0, z]`` of two classes.
- ``"multi_label"``: log-odds of labels, each of which holds or not, whatever the others do; one
  label or more. The levels of an ordinal scale are labels too ("above level k").
- ``"regression"``: predicted numbers, one or more per row.
- ``"embedding"``: coordinates of a vector."""

State = PyTree
"""Arrays that a forward pass in training mode replaces, batch statistics for example."""


class Outputs(NamedTuple):
    """What a model returns for a batch.

    Attributes:
      logits: What the model predicts, ``[batch, ..., outputs]``; ``Model.outputs`` says what the
        numbers mean. By default they are unnormalised log-probabilities of two classes or more: a
        model with one output ``z`` has the logits ``[0, z]``.
      features: Hidden arrays by the path of the module that made them (``"blocks/0"``). The
        features ``"log_variance"`` or ``"variance"`` of a regression model, of the shape of its
        logits, are the variances that it predicts, which ``evaluate`` compares with its errors.
    """

    logits: Array
    features: Mapping[str, Array] = {}


@dataclasses.dataclass(frozen=True)
class Model:
    """A pair of pure functions; parameters live outside.

    ``params, state = model.init(key, inputs)`` and
    ``outputs, state = model.apply(params, state, inputs, key=key, train=True)``.

    Hashed by its functions, so one model object is compiled once: create it once, and keep it.

    Attributes:
      init: ``(key, inputs) -> (params, state)``; only shapes and dtypes of ``inputs``, an array or
        a tree of arrays, matter.
      apply: ``(params, state, inputs, *, key=None, train=False) -> (Outputs, state)``.
      classes: The names of the classes in the order of the logits, where they are known. Two
        models that both declare them must agree before one can teach the other.
      missing: Whether ``inputs`` may hold NaN, for missing values.
      exact_inputs: Whether ``inputs`` must not be rounded to a smaller dtype, because the model
        compares them with written thresholds.
      outputs: What the logits mean, an :data:`OutputKind`.
    """

    init: Callable[[Array, Any], tuple[Params, State]]
    apply: Callable[..., tuple[Outputs, State]]
    classes: tuple[str, ...] | None = None
    missing: bool = False
    exact_inputs: bool = False
    outputs: OutputKind = "softmax"

    def __post_init__(self) -> None:
        _checks.choice(get_args(OutputKind), outputs=self.outputs)
        if self.classes is not None:  # a list would have no hash
            object.__setattr__(self, "classes", _checks.names("classes", self.classes))

    def predict(self, params: Params, state: State, inputs: Any) -> Outputs:
        """Outputs in evaluation mode: no dropout, stored batch statistics."""
        return self.apply(params, state, inputs, key=None, train=False)[0]
