"""A loss with a name, a weight, a mask and options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.objectives import _reading
from distill_jax.objectives._guarding import Guard, is_off
from distill_jax.objectives._reading import Parameters, column_of, number_of_rows
from distill_jax.objectives.context import Context
from distill_jax.types import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of an objective; made by ``term``.

    Attributes:
      weight: A scalar leaf, or a schedule ``step -> value``.
      options: The loss's numeric options, as leaves.
      name: In metrics and messages.
      loss: What gives the rows.
      where: The rows that count: None, a column's name, or a function of the batch.
      init: What makes the term's own parameters and state, or None.
      coupled: Whether a row depends on other examples of the batch.
      reads: Where parameters come from, if not by their names, as sorted pairs.
      schedules: Options that are functions of the step, as sorted pairs.
      settings: Options that are fixed in the program, as sorted pairs.
    """

    weight: Any
    options: dict[str, Any]
    name: str = dataclasses.field(metadata={"static": True})
    loss: Callable = dataclasses.field(metadata={"static": True})
    where: Any = dataclasses.field(metadata={"static": True})
    init: Callable | None = dataclasses.field(metadata={"static": True})
    coupled: bool = dataclasses.field(metadata={"static": True})
    reads: tuple = dataclasses.field(metadata={"static": True})
    schedules: tuple = dataclasses.field(metadata={"static": True})
    settings: tuple = dataclasses.field(metadata={"static": True})

    def mask(self, batch: Batch) -> Any:
        """The rows that count, booleans ``[batch, ...]``, from the batch alone; None if all do."""
        own: Any = None
        everywhere = batch.get("where")
        if callable(self.where):
            own = self.where(batch)
        elif self.where is not None:
            own = column_of(batch, self.where, f"where of term {self.name!r}")
        for name, x in ((f"where of term {self.name!r}", own), ("where", everywhere)):
            if x is not None:
                _checks.boolean(**{name: x})
        if own is None or everywhere is None:
            return everywhere if own is None else own
        axes = min(own.ndim, everywhere.ndim)
        if own.shape[:axes] != everywhere.shape[:axes]:
            raise ValueError(
                f"where of term {self.name!r} has shape {own.shape}, the column 'where' "
                f"{everywhere.shape}: they must begin with the same axes"
            )
        longest = max(own.ndim, everywhere.ndim)
        own, everywhere = (
            x.reshape(x.shape + (1,) * (longest - x.ndim)) for x in (own, everywhere)
        )
        return own & everywhere

    def count(self, batch: Batch) -> Float[Array, ""]:
        """Number of rows that count; needs no forward pass."""
        mask = self.mask(batch)
        if mask is None:
            return jnp.asarray(number_of_rows(batch), jnp.float32)
        return mask.sum(dtype=jnp.float32)

    @property
    def parameters(self) -> Parameters:
        """What the loss reads from the context, by the names of its parameters."""
        given = {*self.options, *dict(self.settings), *dict(self.schedules)}
        return _reading.parameters(self.loss, own=0 if self.init is None else 2, given=given)

    def start(self, key: Array, context: Context) -> tuple[PyTree, PyTree]:
        """The term's own parameters and state; of ``context`` only shapes and dtypes matter."""
        if self.init is None:
            raise ValueError(f"term {self.name!r} owns no parameters: it has no init")
        init, reads = self.init, dict(self.reads)
        names = _reading.parameters(init, own=1)

        def read(context):
            return _reading.read_all(self.name, names, init, reads, context, Guard())

        return _reading.call(init, (key,), jax.eval_shape(read, context))

    def weight_at(self, step: Any) -> Any:
        weight = self.weight(step) if callable(self.weight) else self.weight
        _checks.scalar(**{f"weight of term {self.name!r}": weight})
        return weight

    def rows(self, params: PyTree, state: PyTree, context: Context) -> tuple[Array, PyTree]:
        """The loss of each example, ``[batch, ...]``, 0 where masked, and the term's new state.

        What the loss reads is 0 in masked rows, and no gradient passes at weight 0.
        """
        mask = self.mask(context.batch)
        self._check_coupling(mask)
        guard = Guard(mask, is_off(self.weight_at(context.step)))
        read, reads = self.parameters, dict(self.reads)
        values = _reading.read_all(self.name, read, self.loss, reads, context, guard)
        values |= {**guard.cut(self.options), **dict(self.settings)}
        values |= {name: schedule(context.step) for name, schedule in self.schedules}
        if "where" in inspect.signature(self.loss).parameters:
            values["where"] = mask
        if self.init is not None:
            rows, state = _reading.call(self.loss, (guard.cut(params), state), values)
        else:
            rows = _reading.call(self.loss, (), values)
        self._check_rows(rows, (number_of_rows(context.batch),) if mask is None else mask.shape)
        return (rows if mask is None else jnp.where(mask, rows, 0.0)), state

    def _check_coupling(self, mask: Any) -> None:
        names = inspect.signature(self.loss).parameters
        if self.coupled and mask is not None and not {"where", "context"} & names.keys():
            raise ValueError(
                f"term {self.name!r} couples the examples of a batch, and rows that where= masks "
                "would have an influence on the others: its loss must take where, and leave out "
                "the rows at which it is False (they hold 0)"
            )

    def _check_rows(self, rows: Any, expected: tuple[int, ...]) -> None:
        if jnp.shape(rows) != expected:
            raise ValueError(
                f"term {self.name!r} gave rows of shape {jnp.shape(rows)}, its mask has "
                f"{expected}: a loss returns one value for each row that where= counts; for rows "
                "with more axes than [batch] name a column of that shape as where="
            )
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            raise TypeError(
                f"term {self.name!r} gave rows of dtype {rows.dtype}, through which no gradient "
                "passes: return probabilities or distances in place of decisions and counts, or "
                "rows.astype(jnp.float32) if the term only watches"
            )


@checked
def term(
    name: str,
    weight: Any,
    loss: Callable,
    *,
    where: str | Callable[[Batch], Array] | None = None,
    init: Callable | None = None,
    coupled: bool = False,
    reads: Mapping[str, str | Callable[[Context], Any]] | None = None,
    **options: Any,
) -> Term:
    """A loss with a name and a weight.

    The names of the loss's parameters determine what it is given:

    - ``student_logits``: ``[batch, ..., classes]``;
    - ``teacher_logits``: of the teacher that has the term's name, or else of the only teacher, or
      else the batch's column of that name (logits computed beforehand);
    - ``student_features``, ``teacher_features``: hidden arrays, whose path ``reads`` gives;
    - ``views``: the student's outputs on other views of the examples, by name;
    - ``context``: the whole ``Context``;
    - any other name: the batch's column of that name (``labels``, ``targets``), or else, for
      ``key`` and ``step``, a random key of this step and the number of steps taken.

    A parameter with a default (``labels=None``) is given the same where it is there, and keeps its
    default otherwise. Options come first: what ``term`` is given by name is not read.

    Rows that do not count, and terms of weight 0, never reach a parameter. Whatever a loss reads is
    0 in the rows that ``where`` masks, so a loss need not take ``where`` itself, unless it couples
    the rows. A mask ``[batch, time]`` sets entries of logits and features ``[batch, time, n]`` and
    of columns ``[batch, time, ...]`` to 0; of other arrays, rows in which no entry counts. At
    weight 0 a term has no gradient, even if its loss or its slopes are infinite or NaN. (Nor has
    the gradient a slope with respect to that weight: to learn a weight by differentiating a whole
    run, begin above 0. And a slope that is infinite inside the student, in a feature that only such
    a term reads, is not the term's: give the feature a finite one.)

    A loss with parameters of its own (a projector, a learned temperature), or with state (a memory
    bank), takes them first, ``loss(params, state, student_logits, labels)``, and returns the new
    state beside its rows. ``init`` makes them, and names what it needs in the same way:
    ``init(key, student_features)``.

    Args:
      name: The term's name, in metrics and messages.
      weight: Its factor: a number, a traced value, or a schedule ``step -> value``.
      loss: ``loss(..., **options) -> rows [batch]``, unreduced. With ``init``:
        ``loss(params, state, ..., **options) -> (rows, state)``. A loss with a keyword ``where`` is
        given the mask, or None. Rows are floats: through booleans or integers passes no gradient.
      where: The rows that count: a boolean column of the batch, or a function of the batch. Rows
        that the batch's own column ``where`` leaves out never count.
      init: ``(key, ...) -> (params, state)`` for a term that owns parameters, which are trained
        with the student, or state. What it reads comes as ``jax.ShapeDtypeStruct``: only shapes
        and dtypes are known.
      coupled: Whether a row depends on other examples of the batch. A batch in pieces then has all
        its outputs computed before the term sees them. Losses of this package say so themselves.
      reads: Where parameters come from, if not by the rule above, for the loss and for ``init``:
        for ``teacher_logits`` a teacher's name, or ``"view:weak"``, the student's own prediction on
        the view ``inputs:weak``, without gradient; for ``student_features`` a path of the student's
        features, ``"hidden/0"``; for ``teacher_features`` a teacher and a path, ``"big:hidden/1"``,
        or the path alone of the teacher that has the term's name, or of the only one; for other
        names a column; for any a function of the context.
      **options: The loss's options. Numbers, integers too, become floating leaves; arrays stay as
        they are; a function is a schedule ``step -> value`` of numbers or arrays; strings,
        booleans, None and tuples of them are fixed in the program. An option may be a pytree of
        arrays. If it has an attribute ``classes`` (a tuple of names), training refuses a student
        whose declared classes differ; if it has a method ``describe() -> values of JSON``,
        checkpoints list what it returns.

    Returns:
      A term, to be joined with others by ``weighted_sum``.

    Raises:
      TypeError: if the loss has no such option, if an option is neither numbers nor a setting nor
        a schedule, if the loss has a parameter that looks as if it were filled and is not
        (``rng``, ``train``), or if a loss with ``init`` does not take ``params`` and ``state``
        first.
      ValueError: if the weight is not finite, or an option is out of the loss's range.

    Example:
      >>> from distill_jax.losses import cross_entropy, soft_targets
      >>> from distill_jax.objectives import weighted_sum
      >>> labels = term("labels", 0.1, cross_entropy)
      >>> teacher = term("teacher", 0.9, soft_targets, temperature=4.0)
      >>> [t.name for t in weighted_sum(labels, teacher).terms]
      ['labels', 'teacher']

      A projector, trained with the student, from its hidden layer to a teacher's:

      >>> def start(key, student_features, teacher_features):
      ...     shape = student_features.shape[-1], teacher_features.shape[-1]
      ...     return jax.nn.initializers.lecun_normal()(key, shape), None
      >>> def hint(params, state, student_features, teacher_features):
      ...     return ((student_features @ params - teacher_features) ** 2).mean(-1), state
      >>> paths = {"student_features": "hidden/0", "teacher_features": "big:hidden/1"}
      >>> hints = term("hints", 1.0, hint, init=start, reads=paths)
    """
    if name in ("loss", "evaluated_at"):
        raise ValueError(f"a term may not be named {name!r}: metrics have that name already")
    if callable(weight):
        _check_schedule(f"weight of term {name!r}", weight, None)
    else:
        _checks.scalar(**{f"weight of term {name!r}": weight})
        _checks.finite(**{f"weight of term {name!r}": weight})
        weight = _leaf(weight)
    if where is not None and not (isinstance(where, str) or callable(where)):
        raise TypeError(
            f"where of term {name!r} must be the name of a boolean column or a function of the "
            f"batch, got {type(where).__name__}"
        )
    reads = dict(reads or {})
    own = _own(name, loss, init)
    read = _reading.parameters(loss, own=len(own), given=options)
    wanted = Parameters((), ()) if init is None else _reading.parameters(init, own=1)
    parameters = list(dict.fromkeys((*read.all, *wanted.all)))
    for parameter in reads:
        if parameter not in parameters:
            raise ValueError(
                f"reads of term {name!r} names {parameter!r}; its loss has {parameters}"
            )
        if parameter in ("context", "student_logits") and not callable(reads[parameter]):
            raise TypeError(
                f"reads[{parameter!r}] of term {name!r} must be a function of the context, got "
                f"{reads[parameter]!r}"
            )
    accepted = inspect.signature(loss).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for option in options:
            if option not in accepted or option in own:
                raise TypeError(
                    f"the loss of term {name!r} has no option {option!r}; it has "
                    f"{[p for p in accepted if p not in (*own, *read.required, 'where')]}"
                )
    _reading.check_filled(f"the loss of term {name!r}", loss, read, reads)
    if init is not None:
        _reading.check_filled(f"init of term {name!r}", init, wanted, reads)
    if init is None:
        _probe(name, loss, list(read.required), options)
    schedules, settings, leaves = {}, {}, {}
    for option, value in options.items():
        who = f"option {option!r} of term {name!r}"
        if callable(value) and jax.tree_util.all_leaves([value]):
            default = accepted[option].default if option in accepted else None
            _check_schedule(who, value, default)
            schedules[option] = value
        elif all(isinstance(x, bool | np.bool_ | str) for x in jax.tree.leaves(value)):
            settings[option] = tuple(value) if isinstance(value, list) else value
        else:
            leaves[option] = jax.tree.map(_leaf, value)
            _check_leaves(who, leaves[option])
    return Term(
        weight=weight if not callable(weight) else _Static(weight),
        options=leaves,
        name=name,
        loss=loss,
        where=where,
        init=init,
        coupled=coupled or _couples(loss, settings),
        reads=tuple(sorted(reads.items())),
        schedules=tuple(sorted(schedules.items())),
        settings=tuple(sorted(settings.items())),
    )


def _couples(loss: Callable, settings: Mapping[str, Any]) -> bool:
    """Whether a loss says of itself that with these settings its rows depend on each other."""
    couples = getattr(loss, "couples", None)
    return couples is not None and couples(settings)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A schedule in the place of a leaf."""

    schedule: Callable

    def __call__(self, step: Any) -> Any:
        return self.schedule(step)


def _own(name: str, loss: Callable, init: Callable | None) -> list[str]:
    """The parameters of a loss that are the term's own."""
    if init is None:
        return []
    own = _reading.first_positional(loss, 2)
    if len(own) < 2:
        raise TypeError(
            f"the loss of term {name!r} must take the term's own params and state first, since "
            f"init is given: loss(params, state, ...), got the parameters {own}"
        )
    if not _reading.first_positional(init, 1):
        raise TypeError(f"init of term {name!r} must take a key first, got no parameters")
    return own


def _check_schedule(who: str, schedule: Callable, default: Any) -> None:
    """Raises TypeError for a function that is no schedule of an option."""
    advice = (
        "a function is read as a schedule, step -> value; to pass one to the loss itself, use "
        "functools.partial(loss, ...)"
    )
    if isinstance(schedule, type):
        raise TypeError(f"{who} must not be a class, got {schedule.__name__}: {advice}")
    fixed = default is not inspect.Parameter.empty and callable(default)
    if fixed or isinstance(default, str | bool):
        raise TypeError(
            f"{who} is fixed in the program (its default is {default!r}), got a function: {advice}"
        )
    try:
        made = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except TypeError as error:
        why = str(error).partition("\n")[0][:200]
        raise TypeError(
            f"{who} must give numbers for a step, got a function that does not ({why}): {advice}"
        ) from error
    _check_leaves(who, made)


def _check_leaves(who: str, tree: Any) -> None:
    for x in jax.tree.leaves(tree):
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise TypeError(
                f"{who} must be numbers or arrays, or else strings, booleans and None, or a "
                f"schedule step -> value; got {x!r}"
            )


def _leaf(value: Any) -> Any:
    """A Python number as an array: a float and a float32 array would be traced twice."""
    if isinstance(value, float | int | np.number):
        return jnp.asarray(value, jnp.result_type(float))
    return value


def _probe(name: str, loss: Callable, parameters: list[str], options: Mapping[str, Any]) -> None:
    """Lets a loss of this package check its options while they are known, on shapes alone."""
    logits = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    known = {
        "student_logits": logits,
        "teacher_logits": logits,
        "targets": logits,
        "labels": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    ours = str(getattr(loss, "__module__", None)).startswith("distill_jax.losses")
    if not ours or any(p not in known for p in parameters):
        return
    numbers = {n: v for n, v in options.items() if not callable(v)}
    if not numbers:
        return
    try:
        jax.eval_shape(lambda *a: loss(*a, **numbers), *(known[p] for p in parameters))
    except ValueError as error:
        raise ValueError(f"term {name!r}: {error}") from error
