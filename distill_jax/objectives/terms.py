"""A loss with a name, a weight, a mask and options."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.core
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

DivideBy = Literal["weights", "rows"]
"""What a sum of weighted rows is divided by: the sum of their weights, or their number."""


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
      static: Options that were named as such: name, value, and how the value is written, since 1,
        1.0 and True are equal.
      sample_weight: The column of weights that multiply the rows, or None.
      divide_by: What the sum of weighted rows is divided by.
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
    static: tuple = dataclasses.field(default=(), metadata={"static": True})
    sample_weight: str | None = dataclasses.field(default=None, metadata={"static": True})
    divide_by: DivideBy = dataclasses.field(default="weights", metadata={"static": True})

    @property
    def fixed(self) -> dict[str, Any]:
        """The options that are fixed in the program."""
        return {**dict(self.settings), **{name: value for name, value, _ in self.static}}

    def mask(self, batch: Batch) -> Any:
        """The rows that count and have a weight other than 0, booleans ``[batch, ...]``.

        From the batch alone; None if all do. A mask may have fewer axes than the loss's rows.
        """
        kept, weights = self.kept(batch), self.row_weights(batch)
        if weights is None:
            return kept
        heavy = weights != 0
        if kept is None:
            return heavy
        return _joined(f"sample_weight of term {self.name!r}", heavy, "its mask", kept)

    def kept(self, batch: Batch) -> Any:
        """The rows that ``where`` and the batch's column ``where`` keep; None if these are all."""
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
        who = f"where of term {self.name!r}"
        return _joined(who, own, "the column 'where'", everywhere)

    def row_weights(self, batch: Batch) -> Any:
        """The weights of the rows, floats ``[batch, ...]``, or None."""
        if self.sample_weight is None:
            return None
        who = f"sample_weight of term {self.name!r}"
        weights = column_of(batch, self.sample_weight, who)
        _check_weights(who, weights)
        return jnp.asarray(weights, _checks.wide_dtype(weights))

    def count(self, batch: Batch) -> Float[Array, ""]:
        """What the sum of rows is divided by: their number, or that of their weights.

        Needs no forward pass. Counted along the axes that mask and weights have; where the loss's
        rows have more, each of these stands for as many (see ``entries``).
        """
        kept, weights = self.kept(batch), self.row_weights(batch)
        if weights is None or self.divide_by == "rows":
            if kept is None:
                return jnp.asarray(number_of_rows(batch), jnp.float32)
            return jnp.asarray(kept.sum(dtype=jnp.float32))
        if kept is not None:
            _check_axes(f"sample_weight of term {self.name!r}", weights, "its mask", kept)
            kept, weights = jnp.broadcast_arrays(*_with_axes(jnp.asarray(kept), weights))
            weights = jnp.where(kept, weights, 0.0)
        return weights.sum()

    def entries(self, rows: tuple[int, ...], batch: Batch) -> int:
        """For how many of the loss's rows, of this shape, one that is counted stands."""
        kept, weights = self.kept(batch), self.row_weights(batch)
        counted = [1 if kept is None else kept.ndim]
        if weights is not None and self.divide_by == "weights":
            counted.append(weights.ndim)
        return math.prod(rows[max(counted) :])

    @property
    def parameters(self) -> Parameters:
        """What the loss reads from the context, by the names of its parameters."""
        given = {*self.options, *self.fixed, *dict(self.schedules)}
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
        """The loss of each example times its weight, ``[batch, ...]``, and the term's new state.

        Masked rows are 0, and so are rows of weight 0.

        What the loss reads is 0 in masked rows, and no gradient passes at weight 0.
        """
        mask = self.mask(context.batch)
        self._check_coupling(mask)
        guard = Guard(mask, is_off(self.weight_at(context.step)))
        read, reads = self.parameters, dict(self.reads)
        values = _reading.read_all(self.name, read, self.loss, reads, context, guard)
        values |= {**guard.cut(self.options), **self.fixed}
        values |= {name: schedule(context.step) for name, schedule in self.schedules}
        own = () if self.init is None else (guard.cut(params), state)
        if "where" in inspect.signature(self.loss).parameters:
            values["where"] = self._mask_of_rows(mask, context, own, values)
        try:
            made = _reading.call(self.loss, own, values)
        except (TypeError, IndexError) as error:
            options = self.options.items()
            numbers = tuple(name for name, x in options if getattr(x, "shape", None) == ())
            words = ("integer", "static", "unhashable", "traced")  # how JAX asks for an int
            if numbers and any(word in str(error) for word in words):
                error.add_note(
                    f"The numeric options of term {self.name!r} are floating arrays. One that "
                    f"decides a shape is named in static=, as in term(..., static={numbers})"
                )
            raise
        rows, state = made if self.init is not None else (made, state)
        self._check_rows(rows, (number_of_rows(context.batch),) if mask is None else mask.shape)
        if mask is not None:
            rows = jnp.where(_over(rows.shape, mask), rows, 0.0)
        weights = self.row_weights(context.batch)
        if weights is None:
            return rows, state
        self._check_rows(rows, weights.shape, "sample_weight")
        wide = _checks.wide_dtype(rows)
        assert mask is not None  # it holds at least where the weights are 0
        weights = jnp.where(mask, _over(mask.shape, weights.astype(wide)), 0.0)
        return rows.astype(wide) * _over(rows.shape, weights), state

    def _mask_of_rows(self, mask: Any, context: Context, own: Any, values: Any) -> Any:
        """The mask with the axes of the student's predictions, if these are those of the rows."""
        shape = jnp.shape(context.student.logits)[:-1]
        if mask is None or len(shape) <= mask.ndim or shape[: mask.ndim] != mask.shape:
            return mask
        full = jnp.broadcast_to(_over(shape, jnp.asarray(mask)), shape)
        try:
            made = jax.eval_shape(lambda: _reading.call(self.loss, own, values | {"where": full}))
        except Exception:  # its rows have other axes, or it says itself what is wrong
            return mask
        rows = made[0] if self.init is not None else made
        return full if jnp.shape(rows) == shape else mask

    def _check_coupling(self, mask: Any) -> None:
        names = inspect.signature(self.loss).parameters
        if self.coupled and mask is not None and not {"where", "context"} & names.keys():
            raise ValueError(
                f"term {self.name!r} couples the examples of a batch, and rows that where= masks "
                "would have an influence on the others: its loss must take where, and leave out "
                "the rows at which it is False (they hold 0)"
            )

    def _check_rows(self, rows: Any, expected: tuple[int, ...], what: str = "mask") -> None:
        if jnp.shape(rows)[: len(expected)] != expected:
            raise ValueError(
                f"term {self.name!r} gave rows of shape {jnp.shape(rows)}, its {what} has "
                f"{expected}: a loss returns one value for each row, and a mask or weights have "
                "the axes of the rows or the first of them, [batch] or [batch, time]"
            )
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            raise TypeError(
                f"term {self.name!r} gave rows of dtype {rows.dtype}, through which no gradient "
                "passes: return probabilities or distances in place of decisions and counts, or "
                "rows.astype(jnp.float32) if the term only watches"
            )


def _over(shape: tuple[int, ...], x: Array) -> Array:
    """An array whose axes are the first ones of ``shape``, with axes of length 1 for the others."""
    return x.reshape(x.shape + (1,) * (len(shape) - x.ndim))


def _with_axes(*arrays: Any) -> list[Any]:
    """The arrays with axes of length 1 added at their ends, up to the same number."""
    longest = max(x.ndim for x in arrays)
    return [x.reshape(x.shape + (1,) * (longest - x.ndim)) for x in arrays]


def _check_axes(who: str, x: Any, other: str, y: Any) -> None:
    axes = min(x.ndim, y.ndim)
    if x.shape[:axes] != y.shape[:axes]:
        raise ValueError(
            f"{who} has shape {x.shape}, {other} {y.shape}: they must begin with the same axes"
        )


def _joined(who: str, x: Any, other: str, y: Any) -> Any:
    """The rows that two masks keep, of which one may have more axes than the other."""
    _check_axes(who, x, other, y)
    x, y = _with_axes(x, y)
    return x & y


def _check_weights(who: str, weights: Any) -> None:
    """Raises TypeError for a column that holds no numbers, ValueError for one without rows."""
    if not (hasattr(weights, "dtype") and hasattr(weights, "shape")):
        raise TypeError(f"{who} must be one array of numbers, got {type(weights).__name__}")
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(
            f"{who} must be numbers >= 0, got {weights.dtype}: rows that do not count are masked "
            "with where="
        )
    if not weights.ndim:
        raise ValueError(f"{who} must have a leading axis of rows, got a scalar")


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
    sample_weight: str | None = None,
    divide_by: DivideBy = "weights",
    static: str | Sequence[str] = (),
    **options: Any,
) -> Term:
    r"""A loss with a name and a weight.

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
      where: The rows that count: a boolean column of the batch, or a function of the batch. (An
        array in a column's tree is named by its path, here, in ``sample_weight`` and in ``reads``:
        ``"inputs['mask']"``.) Rows
        that the batch's own column ``where`` leaves out never count. A mask has the axes of the
        loss's rows or the first of them: for rows ``[batch, time]``, ``[batch, time]`` or
        ``[batch]``. The mean is over all entries of the rows that count.
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
      sample_weight: A column of numbers >= 0 that multiply the rows, with the axes of the rows or
        the first of them. A row of weight 0 contributes nothing, whatever it holds. ``evaluate``
        reads such a column under the name ``weights``.
      divide_by: What the sum of weighted rows is divided by. ``"weights"``: the sum of weights,
        :math:`\sum_i w_i l_i / \sum_i w_i`, a weighted mean, in which only ratios of weights
        matter. ``"rows"``: the number of rows that ``where`` counts, of weight 0 or not,
        :math:`\sum_i w_i l_i / n`, so that larger weights make a larger loss.
      static: Names of options that are fixed in the program: integers that decide a shape (the k of
        top-k), functions that are no schedules (an activation). They need a hash, and another value
        compiles another program.
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
        (``rng``, ``train``), if a loss with ``init`` does not take ``params`` and ``state`` first,
        or if a static option has no hash.
      ValueError: if the weight is not finite, an option is out of the loss's range, or ``static``
        names an option that is not given.

    Example:
      >>> from distill_jax.losses import cross_entropy, soft_targets
      >>> from distill_jax.objectives import weighted_sum
      >>> labels = term("labels", 0.1, cross_entropy)
      >>> teacher = term("teacher", 0.9, soft_targets, temperature=4.0)
      >>> [t.name for t in weighted_sum(labels, teacher).terms]
      ['labels', 'teacher']

      Weights of the rows, and an option that is a function:

      >>> def bent(student_logits, targets, *, activation):
      ...     return ((activation(student_logits) - targets) ** 2).sum(-1)
      >>> bending = term(
      ...     "bent", 1.0, bent, activation=jnp.tanh, static=("activation",), sample_weight="trust"
      ... )

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
    if sample_weight is not None and not isinstance(sample_weight, str):
        raise TypeError(
            f"sample_weight of term {name!r} must be the name of a column of the batch, got "
            f"{type(sample_weight).__name__}: put the weights into the data"
        )
    _checks.choice(get_args(DivideBy), divide_by=divide_by)
    if sample_weight is None and divide_by != "weights":
        raise ValueError(
            f"divide_by of term {name!r} is {divide_by!r}, and it has no weights: pass "
            "sample_weight="
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
    chosen = (static,) if isinstance(static, str) else tuple(static)
    for option in chosen:
        if option not in options:
            known = [p for p in accepted if p not in (*own, *read.required, "where")]
            raise ValueError(
                f"static of term {name!r} names {option!r}, which is none of the options that it "
                f"is given, {list(options)}; its loss has {known}"
            )
    _reading.check_filled(f"the loss of term {name!r}", loss, read, reads)
    if init is not None:
        _reading.check_filled(f"init of term {name!r}", init, wanted, reads)
    if init is None:
        _probe(name, loss, list(read.required), options)
    schedules, settings, leaves = {}, {}, {}
    for option, value in options.items():
        who = f"option {option!r} of term {name!r}"
        if option in chosen:
            continue
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
        coupled=coupled or _couples(loss, {**settings, **{o: options[o] for o in chosen}}),
        reads=tuple(sorted(reads.items())),
        schedules=tuple(sorted(schedules.items())),
        settings=tuple(sorted(settings.items())),
        static=tuple(_fixed(name, option, options[option]) for option in sorted(chosen)),
        sample_weight=sample_weight,
        divide_by=divide_by,
    )


def _fixed(name: str, option: str, value: Any) -> tuple[str, Any, str]:
    """A static option: its name, its value, and how that is written."""
    value = tuple(value) if isinstance(value, list) else value
    value = value.item() if isinstance(value, np.generic) else value
    try:
        hash(value)
        hashed = not isinstance(value, jax.core.Tracer | jax.Array)
    except TypeError:
        hashed = False
    if not hashed:
        raise TypeError(
            f"option {option!r} of term {name!r} is static, so it must have a hash, got "
            f"{type(value).__name__}: arrays and traced values are passed without static="
        )
    written = repr(value) if isinstance(value, bool | int | float | str | tuple) else ""
    return option, value, written


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
        "a function is read as a schedule, step -> value; to pass one to the loss itself, name the "
        "option in static="
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
