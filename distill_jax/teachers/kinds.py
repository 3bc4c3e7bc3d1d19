"""Teachers: a prediction function with its variables, as one pytree.

A teacher passes through ``jit``, ``vmap`` and ``scan`` as an argument, so that its variables are
never constants of a compiled program. It always runs in evaluation mode and receives no gradient.

``predict`` is part of the pytree's structure: two teachers whose ``predict`` compares equal share
one compiled program. So it is always a frozen dataclass or a bound method here, which compare by
content, and never a new lambda.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from distill_jax import _batches, _checks
from distill_jax._arguments import checked
from distill_jax.logits import as_logits
from distill_jax.teachers import _keys
from distill_jax.teachers._mixing import check_mix, mixed, wide
from distill_jax.types import Model, OutputKind, Outputs, Params, State


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "state"],
    meta_fields=["predict", "classes", "missing", "exact_inputs", "outputs"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """``teacher(inputs)`` returns ``predict(params, state, inputs)`` without a gradient.

    Inputs are an array ``[batch, ...]`` or a pytree of arrays; the result has logits
    ``[batch, ..., classes]``. A teacher that draws random numbers must be called with a key,
    ``teacher(inputs, key=key)``, and equal keys give equal draws; in training each step passes one
    of its own. Others ignore it. For a gradient through a teacher to its inputs, call ``predict``.

    Attributes:
      predict: ``(params, state, inputs) -> Outputs``, a function that compares equal between
        teachers of one kind.
      params: Arrays.
      state: Arrays, batch statistics for example.
      classes: The names of the classes in the order of the logits, where they are known.
      missing: Whether its inputs may hold NaN, for missing values.
      exact_inputs: Whether its inputs must not be rounded to a smaller dtype, because it compares
        them with written thresholds.
      outputs: What its logits mean, an :data:`~distill_jax.types.OutputKind`. A student must have
        outputs of the same kind.
    """

    predict: Callable[[Params, State, Any], Outputs]
    params: Params
    state: State = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    missing: bool = False
    exact_inputs: bool = False
    outputs: OutputKind = "softmax"

    def __post_init__(self) -> None:
        _checks.choice(get_args(OutputKind), outputs=self.outputs)
        if self.classes is not None:  # a list would have no hash
            object.__setattr__(self, "classes", _checks.names("classes", self.classes))

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, and so must be called with a key."""
        return _keys.draw(self.state)

    def __call__(self, inputs: Any, *, key: Array | None = None) -> Outputs:
        state = self.state if key is None else _keys.keyed(self.state, key)
        return jax.lax.stop_gradient(self.predict(self.params, state, inputs))


@checked
def teacher(model: Model, params: Params, state: State) -> Teacher:
    """A model with its variables, as a teacher.

    Args:
      model: Any model.
      params: Its params.
      state: Its state.

    Returns:
      A teacher with the logits, features, classes and kind of outputs of ``model`` in evaluation
      mode.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> model, inputs = logistic_regression(3), jnp.ones((2, 4))
      >>> wise = teacher(model, *model.init(jax.random.key(0), inputs))
      >>> jax.jit(lambda teacher, inputs: teacher(inputs).logits)(wise, inputs).shape
      (2, 3)
    """
    return Teacher(
        model.predict,
        params,
        state,
        model.classes,
        model.missing,
        model.exact_inputs,
        model.outputs,
    )


@checked
def from_function(
    predict: Callable[[Params, Any], Array | Outputs],
    params: Params,
    *,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
    missing: bool = False,
    exact_inputs: bool = False,
) -> Teacher:
    """Any function ``(params, inputs) -> logits or Outputs`` as a teacher.

    Args:
      predict: Returns logits ``[batch, ..., classes]`` or :class:`~distill_jax.types.Outputs`. A
        single output ``z`` of kind ``"softmax"`` becomes the logits ``[0, z]``. Define it once, at
        module level for example: a new lambda is a new function each time, and is compiled again.
      params: A pytree of arrays.
      classes: The names of the classes in the order of the logits.
      outputs: What the logits mean, an :data:`~distill_jax.types.OutputKind`.
      missing: Whether ``predict`` handles NaN in ``inputs``, a missing value.
      exact_inputs: Whether ``inputs`` must not be rounded to a smaller dtype, because ``predict``
        compares them with written thresholds.

    Returns:
      A teacher without state.

    Example:
      >>> linear = from_function(lambda params, inputs: inputs @ params, jnp.ones((4, 3)))
      >>> linear(jnp.ones((2, 4))).logits.shape
      (2, 3)
    """
    return Teacher(_Function(predict, outputs), params, {}, classes, missing, exact_inputs, outputs)


@checked
def ensemble(
    teachers: Sequence[Teacher],
    weights: Sequence[float] | Float[Array, " teachers"] | None = None,
    *,
    mix: Literal["probability", "log"] = "probability",
) -> Teacher:
    r"""Several teachers as one, which averages what they predict.

    What is averaged depends on what the outputs of its members mean:

    - Of classes (``"softmax"``), ``mix="probability"`` has the logits
      :math:`\log \sum_m w_m p_m(k)`: a class is possible if it is possible to any member. ``"log"``
      has :math:`\sum_m w_m \log p_m(k)`, the unnormalised geometric mean: a class is impossible if
      it is impossible to any member. If every class is impossible to some member, it leaves no
      distribution.
    - Of labels (``"multi_label"``), each label is averaged on its own. ``"probability"`` has the
      log-odds of :math:`\sum_m w_m \sigma(z_m)`, ``"log"`` the mean :math:`\sum_m w_m z_m` of the
      log-odds, which is the normalised geometric mean.
    - Of numbers and vectors (``"regression"``, ``"embedding"``), it is the mean
      :math:`\sum_m w_m z_m`.

    Members of weight 0 are ignored. An ensemble of one teacher is that teacher.

    Args:
      teachers: One or more, with the same classes in the same order, and outputs of one kind.
      weights: One per teacher (``[teachers]``), >= 0, divided by their sum; equal by default. They
        are leaves of the result, and may be traced.
      mix: Whether to average probabilities or their logarithms.

    Returns:
      A teacher with logits ``[batch, ..., classes]`` in float32 or better, of the kind of its
      members, and without features. Its params are ``{"members": [...], "weights": ...}``.

    Raises:
      ValueError: if there are no teachers, if their classes or kinds differ, if the weights are not
        one per teacher, finite, >= 0 and not all 0, or for ``mix="log"`` of numbers or vectors.

    Example:
      >>> sure = from_function(lambda params, inputs: inputs + params, jnp.array([[0.0, 50.0]]))
      >>> unsure = from_function(lambda params, inputs: inputs + params, jnp.zeros((1, 2)))
      >>> both = ensemble([sure, unsure], [1.0, 3.0])
      >>> print(jax.nn.softmax(both(jnp.zeros((1, 2))).logits))
      [[0.375 0.625]]
    """
    teachers = tuple(teachers)
    if not teachers:
        raise ValueError("teachers must be one or more, got none")
    declared = [(i, t.classes) for i, t in enumerate(teachers) if t.classes is not None]
    classes = declared[0][1] if declared else None
    for i, others in declared:
        if others != classes:
            raise ValueError(
                f"teachers must have the same classes in the same order: teachers[{i}] has "
                f"{others}, teachers[{declared[0][0]}] {classes}; see reorder"
            )
    kind = teachers[0].outputs
    for i, member in enumerate(teachers):
        if member.outputs != kind:
            raise ValueError(
                f"teachers must have outputs of one kind: teachers[{i}] has {member.outputs!r}, "
                f"teachers[0] {kind!r}"
            )
    check_mix(mix, kind, "teachers")
    return Teacher(
        _Ensemble(tuple(t.predict for t in teachers), mix, kind),
        {
            "members": [t.params for t in teachers],
            "weights": _normalised(weights, len(teachers)),
        },
        [t.state for t in teachers],
        classes,
        all(t.missing for t in teachers),
        any(t.exact_inputs for t in teachers),
        kind,
    )


@checked
def reorder(teacher: Teacher, classes: Sequence[str]) -> Teacher:
    """The same teacher with its classes in another order.

    Args:
      teacher: One that declares its classes.
      classes: The same names in the new order.

    Returns:
      A teacher whose logits ``[batch, ..., classes]`` are permuted; features stay as they are.

    Raises:
      ValueError: if the teacher declares no classes, or different ones.

    Example:
      >>> pets = from_function(lambda params, inputs: inputs + params, 0.0, classes=("cat", "dog"))
      >>> print(reorder(pets, ["dog", "cat"])(jnp.array([[1.0, 2.0]])).logits)
      [[2. 1.]]
    """
    classes = _checks.names("classes", classes)
    if teacher.classes is None:
        raise ValueError(
            "teacher must declare its classes to be reordered: make it with classes=(...)"
        )
    if sorted(classes) != sorted(teacher.classes):
        raise ValueError(
            f"classes must be those of the teacher, {list(teacher.classes)}, in another order, "
            f"got {list(classes)}"
        )
    order = jnp.asarray([teacher.classes.index(name) for name in classes])
    # The order is part of the state: jax.grad refuses integers among the params.
    state = {"teacher": teacher.state, "order": order}
    return dataclasses.replace(
        teacher, predict=_Reorder(teacher.predict), state=state, classes=classes
    )


@checked
def start_average(params: PyTree) -> PyTree:
    """The start of a moving average: a copy of ``params`` with floats as float32 or better.

    It starts at the params themselves and not at 0, so there is no bias to correct.

    Args:
      params: Any pytree of arrays.

    Returns:
      The same structure and shapes; integers, booleans and keys as they are.
    """
    _checks.arrays(params=params)
    return jax.tree.map(wide, params)


@checked
def update_average(average: PyTree, params: PyTree, decay: float | Float[Array, ""]) -> PyTree:
    """One step of an exponential moving average, ``decay * average + (1 - decay) * params``.

    To forget the random start sooner, begin with a smaller decay, as ``training.warmed_up`` does:
    ``decay=jnp.minimum(decay, (1 + step) / (10 + step))``. To average batch statistics as well,
    average ``(params, state)``.

    Args:
      average: From :func:`start_average`, or the last call.
      params: The current values, same structure and shapes. Integers, booleans and keys are
        copied.
      decay: A scalar in [0, 1]; may be traced.

    Returns:
      The new average, with floats in the dtype of ``average``.

    Raises:
      ValueError: if the structures differ, or a decay known beforehand is out of range.

    Example:
      >>> average = start_average({"kernel": jnp.zeros(2, jnp.bfloat16)})
      >>> update_average(average, {"kernel": jnp.ones(2, jnp.bfloat16)}, 0.75)
      {'kernel': Array([0.25, 0.25], dtype=float32)}
    """
    _checks.scalar(decay=decay)
    _checks.between(0.0, 1.0, decay=decay)
    if jax.tree.structure(average) != jax.tree.structure(params):
        raise ValueError(
            f"params must have the structure of average, {jax.tree.structure(average)}, "
            f"got {jax.tree.structure(params)}"
        )

    def step(old: Array, new: Array) -> Array:
        _checks.same_shape(average=old, params=new)
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        # As a difference, so that equal values stay equal bit for bit.
        return (old + (1.0 - decay) * (new - old)).astype(old.dtype)

    return jax.tree.map(step, average, params)


@checked
def precompute(
    teacher: Teacher, inputs: Any, *, batch_size: int = 1024, key: Array | None = None
) -> Float[np.ndarray, "n ... classes"]:
    """A teacher's logits for a whole data set, in host memory.

    An array does not say what its numbers mean: train a student of the teacher's kind of outputs
    with them.

    Runs compiled, batch by batch. The last batch is padded with its own last row, so that all
    batches share one program.

    Args:
      teacher: Any teacher.
      inputs: An array or a pytree of arrays, ``[n, ...]``.
      batch_size: Rows per batch; changes memory and speed only, and what a teacher draws.
      key: For a teacher that draws; each batch has a key of its own, from this one.

    Returns:
      Logits ``[n, ..., classes]`` in the teacher's dtype.

    Raises:
      ValueError: if there are no rows, if arrays differ in length, if ``batch_size < 1``, or if the
        teacher draws and there is no key.

    Example:
      >>> double = from_function(lambda params, inputs: inputs * params, 2.0)
      >>> precompute(double, jnp.ones((3, 2)), batch_size=2).shape
      (3, 2)
    """
    batch_size = _checks.count("batch_size", batch_size)
    arrays = dict(_batches.named("inputs", inputs))
    lengths = {name: np.shape(x)[:1] for name, x in arrays.items()}
    n = sum(max(lengths.values(), default=()))
    if set(lengths.values()) != {(n,)} or n == 0:
        raise ValueError(
            f"inputs must be arrays [n, ...] with one n > 0, got the leading axes {lengths}"
        )
    _checks.fits_device(**arrays)
    batch_size = min(batch_size, n)
    batches = []
    for number, start in enumerate(range(0, n, batch_size)):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], inputs)
        own = None if key is None else jax.random.fold_in(key, number)
        batches.append(np.asarray(_logits(teacher, batch, own)))
    return np.concatenate(batches)[:n]


@jax.jit
def _logits(teacher: Teacher, inputs: Any, key: Array | None) -> Array:
    return teacher(inputs, key=key).logits


@dataclasses.dataclass(frozen=True)
class _Function:
    predict: Callable[[Params, Any], Array | Outputs]
    kind: OutputKind

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        made = self.predict(params, inputs)
        outputs = made if isinstance(made, Outputs) else Outputs(made)
        return outputs._replace(logits=as_logits(outputs.logits, self.kind))


@dataclasses.dataclass(frozen=True)
class _Reorder:
    predict: Callable[..., Outputs]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        outputs = self.predict(params, state["teacher"], inputs)
        _checks.shape((*outputs.logits.shape[:-1], len(state["order"])), logits=outputs.logits)
        return outputs._replace(logits=jnp.take(outputs.logits, state["order"], axis=-1))


@dataclasses.dataclass(frozen=True)
class _Ensemble:
    members: tuple[Callable[..., Outputs], ...]
    mix: str
    kind: OutputKind

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        outputs = [
            predict(p, s, inputs)
            for predict, p, s in zip(self.members, params["members"], state, strict=True)
        ]
        logits = {f"logits of teachers[{i}]": o.logits for i, o in enumerate(outputs)}
        _checks.same_shape(**logits)
        z = jnp.stack([wide(o.logits) for o in outputs])
        return Outputs(mixed(z, self.mix, self.kind, params["weights"]))


def _normalised(weights: Any, number: int) -> Float[Array, " teachers"]:
    weights = jnp.ones(number) if weights is None else jnp.asarray(weights)
    _checks.shape((number,), weights=weights)
    _checks.at_least(0.0, weights=weights)
    value = _checks.known(weights)
    if value is not None and not value.sum() > 0:
        raise ValueError(f"weights must not all be 0, got {value}")
    weights = wide(weights.astype(jnp.result_type(weights, jnp.float32)))
    return weights / weights.sum()
