"""Teachers that predict several times and average: with dropout, and on augmented inputs.

Both average as :func:`~distill_jax.teachers.ensemble` does: for classes and labels probabilities
(``mix="probability"``) or their logarithms (``"log"``), for numbers and vectors the mean. A teacher
that draws needs a key: ``teacher(inputs, key=key)``, ``precompute(teacher, inputs, key=key)``. In
training each step passes one, so that every step draws anew, and a resumed run draws what the
uninterrupted one would have.

All predictions of a call are computed side by side: memory grows with their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.teachers import _keys
from distill_jax.teachers._keys import Draws
from distill_jax.teachers._mixing import check_mix, mixed, wide
from distill_jax.teachers.kinds import Teacher
from distill_jax.types import Model, OutputKind, Outputs, Params, State

DRAWS = 8


@checked
def monte_carlo(
    model: Model,
    params: Params,
    state: State,
    *,
    draws: int = DRAWS,
    mix: Literal["probability", "log"] = "probability",
) -> Teacher:
    """A model with dropout at test time, as a teacher: the mean prediction of several draws.

    Each draw is a forward pass in training mode with a key of its own, so that whatever the model
    draws in training (dropout, noise, dropped layers) is drawn. A model that replaces its state
    there is refused: a batch norm would normalise with the statistics of the batch, and predictions
    for a row would depend on the others. In NNX build its norms with ``use_running_average=True``.

    Args:
      model: Any model that draws in training mode.
      params: Its params.
      state: Its state.
      draws: Forward passes per call.
      mix: Whether to average probabilities or their logarithms; see
        :func:`~distill_jax.teachers.ensemble`.

    Returns:
      A teacher with logits ``[batch, ..., classes]`` in float32 or better, without features, that
      must be called with a key. Its state is ``{"model": state, "draws": ...}``.

    Raises:
      ValueError: if ``draws`` is below 1, or for ``mix="log"`` of numbers or vectors; from a call,
        without a key, if the model does not draw, or if it replaces its state.

    Example:
      >>> from distill_jax.models import mlp
      >>> model, inputs = mlp([8], 3, dropout=0.5), jnp.ones((2, 4))
      >>> wise = monte_carlo(model, *model.init(jax.random.key(0), inputs), draws=16)
      >>> wise(inputs, key=jax.random.key(1)).logits.shape
      (2, 3)

    References:
      Gal and Ghahramani, `Dropout as a Bayesian Approximation
      <https://arxiv.org/abs/1506.02142>`_, 2016, section 4; for distillation Bulò et al., `Dropout
      Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016.
    """
    draws = _checks.count("draws", draws)
    check_mix(mix, model.outputs, "model")
    return Teacher(
        _MonteCarlo(model, draws, mix),
        params,
        {"model": state, "draws": Draws()},
        model.classes,
        model.missing,
        model.exact_inputs,
        model.outputs,
    )


@checked
def augmented(
    teacher: Teacher,
    augment: Callable[[Array, Any], Any] | Sequence[Callable[[Any], Any]],
    *,
    draws: int | None = None,
    mix: Literal["probability", "log"] = "probability",
) -> Teacher:
    """A teacher that averages its predictions on augmented inputs: test-time augmentation.

    Args:
      teacher: Any; one that draws, too: it draws anew for each augmentation.
      augment: ``(key, inputs) -> inputs``, random, with rows that draw apart if they shall; or a
        sequence of functions ``inputs -> inputs``, all of which are applied: put the identity among
        them for the inputs as they are. Define functions once: a new lambda is compiled again.
      draws: How often to augment at random, 8 by default; None for a sequence.
      mix: Whether to average probabilities or their logarithms; see
        :func:`~distill_jax.teachers.ensemble`.

    Returns:
      A teacher with logits ``[batch, ..., classes]`` in float32 or better, without features. With a
      function it must be called with a key; with a sequence it draws nothing of its own. Its params
      are those of ``teacher``.

    Raises:
      TypeError: if ``augment`` is neither; from a call, if it returns nothing.
      ValueError: if the sequence is empty or ``draws`` is given for one, if ``draws`` is below 1,
        or for ``mix="log"`` of numbers or vectors; from a call, without a key where one is needed,
        or if an augmentation changes the number of rows.

    Example:
      >>> from distill_jax.teachers import from_function
      >>> ends = from_function(lambda params, inputs: inputs[:, :2] * params, 1.0)
      >>> both = augmented(ends, [lambda x: x, lambda x: x[:, ::-1]])
      >>> print(jax.nn.softmax(both(jnp.array([[50.0, 0.0, 0.0]])).logits).round(2))
      [[0.75 0.25]]

      >>> def noisy(key, inputs):
      ...     return inputs + jax.random.normal(key, inputs.shape)
      >>> random = augmented(ends, noisy, draws=4)
      >>> random(jnp.ones((5, 3)), key=jax.random.key(0)).logits.shape
      (5, 2)
    """
    check_mix(mix, teacher.outputs, "teacher")
    if callable(augment):
        draws = _checks.count("draws", DRAWS if draws is None else draws)
        state = {"teacher": teacher.state, "draws": Draws()}
        predict = _AtRandom(teacher.predict, augment, draws, mix, teacher.outputs)
        return dataclasses.replace(teacher, predict=predict, state=state)
    functions = tuple(augment)
    for i, function in enumerate(functions):
        if not callable(function):
            raise TypeError(
                f"augment must be a function (key, inputs) -> inputs, or a sequence of functions "
                f"inputs -> inputs; augment[{i}] is {function!r}"
            )
    if not functions:
        raise ValueError("augment must be one function or more, got none")
    if draws is not None:
        raise ValueError(
            f"draws is for an augment that draws, got draws={draws} and {len(functions)} "
            "functions, each of which is applied once: leave draws out"
        )
    predict = _InTurn(teacher.predict, functions, mix, teacher.outputs)
    return dataclasses.replace(teacher, predict=predict)


@dataclasses.dataclass(frozen=True)
class _MonteCarlo:
    model: Model
    draws: int
    mix: str

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        keys = state["draws"].keys(self.draws)

        def one(key: Array) -> Array:
            outputs, new = self.model.apply(params, state["model"], inputs, key=key, train=True)
            _check_kept(state["model"], new)
            return wide(outputs.logits)

        logits = jax.vmap(one)(keys)
        if _ignores(one, keys):
            raise ValueError(
                "model draws nothing in training mode, so all draws would be equal: give it "
                "dropout, or make the teacher with teachers.teacher(model, params, state)"
            )
        return Outputs(mixed(logits, self.mix, self.model.outputs))


@dataclasses.dataclass(frozen=True)
class _AtRandom:
    predict: Callable[..., Outputs]
    augment: Callable[[Array, Any], Any]
    draws: int
    mix: str
    kind: OutputKind

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        def one(number: Array, key: Array) -> Array:
            seen = _with_rows_of(inputs, self.augment(key, inputs), "augment")
            return wide(self.predict(params, _keys.folded(state["teacher"], number), seen).logits)

        keys = state["draws"].keys(self.draws)
        logits = jax.vmap(one)(jnp.arange(self.draws), keys)
        return Outputs(mixed(logits, self.mix, self.kind))


@dataclasses.dataclass(frozen=True)
class _InTurn:
    predict: Callable[..., Outputs]
    functions: tuple[Callable[[Any], Any], ...]
    mix: str
    kind: OutputKind

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        logits = []
        for i, function in enumerate(self.functions):
            seen = _with_rows_of(inputs, function(inputs), f"augment[{i}]")
            logits.append(wide(self.predict(params, _keys.folded(state, i), seen).logits))
        _checks.same_shape(**{f"logits on augment[{i}]": x for i, x in enumerate(logits)})
        return Outputs(mixed(jnp.stack(logits), self.mix, self.kind))


def _ignores(function: Callable[[Array], Array], keys: Array) -> bool:
    """Whether a function of a key gives the same for each: then vmap need not batch its result."""
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), keys)
    except ValueError:
        return False
    return True


def _check_kept(old: State, new: State) -> None:
    """Raises ValueError for a state that a forward pass replaced."""
    before, after = jax.tree.leaves(old), jax.tree.leaves(new)
    if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
        raise ValueError(
            "model replaces its state in training mode (the statistics of a batch norm, for "
            "example), so that its predictions for a row may depend on the other rows: build it "
            "with norms that are frozen, in NNX use_running_average=True"
        )


def _with_rows_of(inputs: Any, made: Any, who: str) -> Any:
    if made is None:
        raise TypeError(f"{who} must return the inputs, got None: add a return statement")
    before, after = ({np.shape(x)[:1] for x in jax.tree.leaves(tree)} for tree in (inputs, made))
    if before != after:
        raise ValueError(
            f"{who} must return inputs of as many rows as it was given, {sorted(before)}, got "
            f"{sorted(after)}"
        )
    return made
