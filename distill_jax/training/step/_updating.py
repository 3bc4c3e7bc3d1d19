"""Optimizers as a step calls them: which tree they see, and what they may ask about the loss.

Optax passes what it knows by name: ``update(grads, state, params, value=..., grad=...,
value_fn=...)``. Most optimizers need none of it; line searches, Polyak's step size, schedules that
wait for a plateau, sharpness-aware and second-order methods do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from distill_jax.training.step._freezing import join, like
from distill_jax.training.step._gradients import Gradients

Optimizer = optax.GradientTransformation | optax.MultiSteps | Mapping[str, Any]
"""What Optax makes, or ``{"student": ..., "terms": ...}`` with one of these each."""

OWNERS = ("student", "terms")


@dataclasses.dataclass(frozen=True)
class Apart:
    """One optimizer for the student's parameters, and one for those of terms."""

    student: Any
    terms: Any


class ApartState(NamedTuple):
    """The states of optimizers that were given apart."""

    student: Any
    terms: Any


class SlowState(NamedTuple):
    """The state of an optimizer that looks ahead, and its slow parameters."""

    inner: Any
    slow: PyTree


def accepted(optimizer: Any) -> Any:
    """The optimizer with a hash, so that equal ones share a program.

    Raises:
      TypeError: unless it is an Optax optimizer, or a mapping with one for each owner.
    """
    if isinstance(optimizer, Mapping):
        if set(optimizer) != set(OWNERS):
            raise TypeError(
                "optimizer as a mapping must have one optimizer each for 'student' and 'terms', "
                f"got the names {sorted(map(str, optimizer))}: for parts of the student, use "
                "optax.multi_transform"
            )
        return Apart(**{owner: accepted(optimizer[owner]) for owner in OWNERS})
    # Of Optax's own, MultiSteps is an object of another kind.
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        what = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise TypeError(
            f"optimizer must be an Optax optimizer with init and update, got {what}"
            + (": call it: optax.adam(1e-3)" if callable(optimizer) else "")
        )
    try:
        hash(optimizer)
    except TypeError as error:
        raise TypeError(
            f"optimizer must have a hash, got {type(optimizer).__name__} without one: it is fixed "
            "in the compiled step, and equal optimizers share a program"
        ) from error
    return optimizer


def start(optimizer: Any, trainable: Mapping[str, PyTree]) -> Any:
    """The optimizer's state before the first step; ``trainable`` is by owner."""
    if isinstance(optimizer, Apart):
        return ApartState(
            _start(optimizer.student, trainable["student"], "the student's parameters"),
            _start(optimizer.terms, trainable["terms"], "the parameters of terms, by term"),
        )
    owner, what = _only_owner(trainable), "the student's parameters"
    if owner is None:
        owners = [name for name, own in trainable["terms"].items() if _has_leaves(own)]
        what = (
            f"{{'student': ..., 'terms': ...}}, since the terms {owners} own parameters. For one "
            "that sees the student alone pass optimizer={'student': ..., 'terms': ...}, one "
            "optimizer each"
        )
    return _start(optimizer, _seen(owner, trainable), what)


def update(
    optimizer: Any,
    at: Callable[[Mapping[str, PyTree]], Gradients],
    found: Gradients,
    state: Any,
    trainable: Mapping[str, PyTree],
) -> tuple[dict[str, PyTree], Any]:
    """One update.

    Args:
      optimizer: From :func:`accepted`.
      at: The step's loss and gradient at other parameters: on the same batch, with the same key.
      found: What ``at`` gives for ``trainable``.
      state: The optimizer's.
      trainable: By owner.

    Returns:
      The new parameters by owner, and the optimizer's new state.
    """
    if isinstance(optimizer, Apart):
        new, states = dict(trainable), []
        for owner in OWNERS:
            own = getattr(optimizer, owner), owner, at, found, getattr(state, owner), trainable
            new[owner], after = _update(*own)
            states.append(after)
        return new, ApartState(*states)
    owner = _only_owner(trainable)
    made, after = _update(optimizer, owner, at, found, state, trainable)
    return _put(owner, made, trainable), after


def eval_params(params: PyTree, term_params: PyTree, state: Any) -> PyTree:
    """The student's parameters to evaluate with, where these are not the ones that are trained."""
    trainable = {"student": params, "terms": term_params}
    if isinstance(state, ApartState):
        owner, state = "student", state.student
    else:
        owner = _only_owner(trainable)
    tree = _seen(owner, trainable)
    own = (SlowState, optax.contrib.ScheduleFreeState)
    nodes = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, own))]
    node = next((x for x in nodes if isinstance(x, own)), None)
    if node is None:
        return params
    if isinstance(node, SlowState):
        return join(_put(owner, node.slow, trainable)["student"], params)
    with contextlib.suppress(ValueError):  # of another structure, see below
        tree = like(tree, node.z)
    if jax.tree.structure(node.z) != jax.tree.structure(tree):
        raise ValueError(
            "schedule_free must train all parameters to give those to evaluate with, got one "
            "inside a mask: use optax.contrib.schedule_free_eval_params on its own state"
        )
    made = optax.contrib.schedule_free_eval_params(node, tree)
    return join(_put(owner, made, trainable)["student"], params)


def _has_leaves(tree: PyTree) -> bool:
    return bool(jax.tree.leaves(tree))


def _only_owner(trainable: Mapping[str, PyTree]) -> str | None:
    """Whose own tree a single optimizer sees; None if it sees all of them, by owner."""
    return None if _has_leaves(trainable["terms"]) else "student"


def _seen(owner: str | None, by_owner: Mapping[str, PyTree]) -> PyTree:
    return dict(by_owner) if owner is None else by_owner[owner]


def _put(owner: str | None, seen: PyTree, trainable: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The parameters by owner, with what an optimizer sees in its place."""
    return dict(seen) if owner is None else {**trainable, owner: seen}


def _start(optimizer: Any, params: PyTree, what: str) -> Any:
    try:
        with _without_advice(), _standard_promotion():
            state = optimizer.init(params)
    except Exception as error:
        error.add_note(
            f"The optimizer sees {what}: masks and labels that are trees must have its structure."
        )
        raise
    if _holds(state, optax.contrib.DifferentiallyPrivateAggregateState):
        raise ValueError(
            "optimizer needs the gradient of each example (dpsgd, "
            "differentially_private_aggregate), and a step computes their mean: clip that with "
            "optax.clip_by_global_norm, or write this loop with jax.vmap(jax.grad(...))"
        )
    if not _holds(state, optax.LookaheadState):
        return state
    both = optax.LookaheadParams.init_synced(params)
    with _standard_promotion():
        return SlowState(optimizer.init(both), jax.tree.map(jnp.copy, params))


def _holds(state: Any, kind: type) -> bool:
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return any(isinstance(x, kind) for x in nodes)


def _update(
    optimizer: Any,
    owner: str | None,
    at: Callable[[Mapping[str, PyTree]], Gradients],
    found: Gradients,
    state: Any,
    trainable: Mapping[str, PyTree],
) -> tuple[Any, Any]:
    """An update of what the optimizer sees, and its new state."""
    params, grads = _seen(owner, trainable), _seen(owner, found.grads)

    def loss_and_gradient(params: PyTree) -> tuple[Array, PyTree]:
        made = at(_put(owner, params, trainable))
        return made.loss, _seen(owner, made.grads)

    value_fn = _differentiable(loss_and_gradient)
    offered = {
        "value": found.loss,
        "grad": grads,
        "value_fn": value_fn,
        "grad_fn": lambda params, *_: loss_and_gradient(params)[1],  # SAM
        "obj_fn": value_fn,  # Sophia
    }
    slow = isinstance(state, SlowState)
    given = optax.LookaheadParams(fast=params, slow=state.slow) if slow else params
    updates, after = _call(optimizer, grads, state.inner if slow else state, given, offered)
    new: Any = optax.apply_updates(given, updates)
    return (new.fast, SlowState(after, new.slow)) if slow else (new, after)


def _call(optimizer: Any, grads: PyTree, state: Any, params: PyTree, offered: dict) -> Any:
    """``optimizer.update`` with as much of what is offered as it takes.

    Which that is can only be found by trying: a chain passes everything on to all of its members,
    and some of Optax's refuse what they do not know.
    """
    if isinstance(optimizer, optax.GradientTransformation):  # what else there is takes keywords
        optimizer = optax.with_extra_args_support(optimizer)
    while True:
        try:
            with _standard_promotion():
                return optimizer.update(grads, state, params, **offered)
        except TypeError as error:
            text = str(error)
            refused = [name for name in offered if f"'{name}'" in text]
            # MultiSteps of Optax 0.2.4 takes arrays alone, and says so by the path of what is none.
            known = "nexpected keyword argument" in text or "extra_args[" in text
            if not known or not refused:
                raise
            offered = {name: x for name, x in offered.items() if name not in refused}


def _differentiable(evaluate: Callable[[PyTree], tuple[Array, PyTree]]) -> Callable:
    """The loss as a function with the gradient that a step computes.

    Differentiated as it stands, a batch in pieces would hold what all of them keep for their
    backward passes. The rule is linear, so forward mode, reverse mode and derivatives of the
    gradient go through it.
    """

    @jax.custom_jvp
    def value_fn(params: PyTree) -> Array:
        return evaluate(params)[0]

    @value_fn.defjvp
    def value_and_slope(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        value, grads = evaluate(*primals)
        slope = jnp.zeros_like(value)
        for g, t in zip(jax.tree.leaves(grads), jax.tree.leaves(*tangents), strict=True):
            if t.dtype != jax.dtypes.float0:  # the tangent of an integer
                slope += jnp.sum(g * t).real.astype(value.dtype)
        return value, slope

    return value_fn


def _standard_promotion() -> contextlib.AbstractContextManager:
    """Optax's own optimizers, Adam among them, do not run under strict promotion of dtypes."""
    return jax.numpy_dtype_promotion("standard")


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """``lookahead`` is first shown the parameters alone, to find it: it says so in a log."""

    def other(record: logging.LogRecord) -> bool:
        return "no attribute `fast`" not in str(record.msg)

    log = logging.getLogger("absl")
    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)
