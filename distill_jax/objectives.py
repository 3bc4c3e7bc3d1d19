"""Terms composed into one scalar.

A term is a loss with a name, a weight, a mask and options. An objective is a weighted sum of terms,
and divides each term's sum by its *count*, which depends on the batch alone and is therefore known
before the forward pass: the gradient is the same however a batch is cut into pieces, as long as all
pieces divide by the counts of the whole.

Both are pytrees. Weights and numeric options are leaves, so sweeping one never compiles anew.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from distill_jax import _checks
from distill_jax import data as data_
from distill_jax.types import Batch, Outputs


class Context(NamedTuple):
    """What a loss may look at.

    Attributes:
      student: The student's outputs, in training mode.
      teachers: Outputs of the named teachers; no gradient passes.
      batch: The batch.
      step: Number of optimizer steps taken so far, a scalar.
      key: A key of this step, for losses that draw, or None.
      views: The student's outputs on other views of the examples, by name, in evaluation mode; no
        gradient passes.
    """

    student: Outputs
    teachers: Mapping[str, Outputs] = {}
    batch: Batch = {}
    step: Any = 0
    key: Any = None
    views: Mapping[str, Outputs] = {}


class Part(NamedTuple):
    """A term's sum over the rows that count, unweighted, and how many they are."""

    sum: Float[Array, ""]
    count: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        return self.sum / jnp.maximum(self.count, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of an objective; made by ``term``."""

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
        """Which rows count, from the batch alone; None if all do."""
        own: Any = None
        everywhere = batch.get("where")
        if callable(self.where):
            own = self.where(batch)
        elif self.where is not None:
            own = _column(batch, self.where, f"where of term {self.name!r}")
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
            return jnp.asarray(_length(batch), jnp.float32)
        return mask.sum(dtype=jnp.float32)

    def weight_at(self, step: Any) -> Any:
        weight = self.weight(step) if callable(self.weight) else self.weight
        _checks.scalar(**{f"weight of term {self.name!r}": weight})
        return weight

    def rows(self, params: PyTree, state: PyTree, context: Context) -> tuple[Array, PyTree]:
        """The loss of each example, 0 where masked, and the term's new state."""
        mask = self.mask(context.batch)
        options = {**self.options, **dict(self.settings)}
        options |= {name: schedule(context.step) for name, schedule in self.schedules}
        if "where" in inspect.signature(self.loss).parameters:
            options["where"] = mask
        if self.init is not None:
            rows, state = self.loss(params, state, context, **options)
        else:
            rows = self.loss(*self._arguments(context), **options)
        expected = (_length(context.batch),) if mask is None else mask.shape
        if rows.shape != expected:
            raise ValueError(
                f"term {self.name!r} gave rows of shape {rows.shape}, its mask has {expected}: a "
                "loss returns one value for each row that where= counts; for rows with more axes "
                "than [batch] name a column of that shape as where="
            )
        return (rows if mask is None else jnp.where(mask, rows, 0.0)), state

    def _arguments(self, context: Context) -> list[Any]:
        return [_read(self, parameter, context) for parameter in _positional(self.loss)]


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

    The loss says by the names of its positional parameters what it compares:

    - ``context``: it takes the whole ``Context`` and finds its way itself;
    - ``student_logits``; ``teacher_logits``: of the teacher named like the term, or else of the
      only teacher, or else the batch's column of that name (a teacher cached beforehand);
    - ``student_features``, ``teacher_features``: need an entry in ``reads``;
    - ``views``: the student's outputs on other views of the examples, by name;
    - any other name: the batch's column of that name (``labels``, ``targets``).

    Args:
      name: The term's name, in metrics and messages.
      weight: Its factor: a number, a traced value, or a schedule ``step -> value``.
      loss: ``loss(..., **options) -> rows [batch]``, unreduced. With ``init``:
        ``loss(params, state, context, **options) -> (rows, state)``. A loss with a keyword
        ``where`` is handed the mask, and must let nothing through of the rows it leaves out.
      where: The rows that count: a boolean column of the batch, or a function of the batch. Rows
        that the batch's own column ``where`` leaves out never count.
      init: ``(key, context) -> (params, state)`` for a term that owns parameters, trained with the
        student, or state; of ``context`` only shapes and dtypes are known.
      coupled: Whether a row depends on other examples of the batch. A batch in pieces then has all
        its outputs computed before the term sees them (``training.accumulation``).
      reads: Where parameters come from, if not by the rule above: for ``teacher_logits`` a
        teacher's name, for ``student_features`` a path, for other names a column, for any a
        function of the context.
      **options: The loss's options. Numbers, integers too, become floating leaves; arrays stay as
        they are; a function is a schedule ``step -> value``; strings, booleans, None and tuples of
        them are fixed in the program.

    Raises:
      TypeError: if the loss has no such option.
      ValueError: if the weight is not finite, or an option is out of the loss's range.

    Example:
      >>> from distill_jax.losses import cross_entropy, soft_targets
      >>> labels = term("labels", 0.1, cross_entropy)
      >>> teacher = term("teacher", 0.9, soft_targets, temperature=4.0)
      >>> [t.name for t in weighted_sum(labels, teacher).terms]
      ['labels', 'teacher']
    """
    if name in ("loss", "evaluated_at"):
        raise ValueError(f"a term may not be named {name!r}: metrics have that name already")
    if not callable(weight):
        _checks.scalar(**{f"weight of term {name!r}": weight})
        _checks.finite(**{f"weight of term {name!r}": weight})
        weight = _leaf(weight)
    if where is not None and not (isinstance(where, str) or callable(where)):
        raise TypeError(
            f"where of term {name!r} must be the name of a boolean column or a function of the "
            f"batch, got {type(where).__name__}"
        )
    reads = dict(reads or {})
    parameters = [] if init else _positional(loss)
    for read in reads:
        if read not in parameters:
            raise ValueError(f"reads of term {name!r} names {read!r}; its loss has {parameters}")
        if read in ("context", "student_logits") and not callable(reads[read]):
            raise TypeError(
                f"reads[{read!r}] of term {name!r} must be a function of the context, got "
                f"{reads[read]!r}"
            )
    accepted = inspect.signature(loss).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for option in options:
            if option not in accepted:
                raise TypeError(
                    f"the loss of term {name!r} has no option {option!r}; it has "
                    f"{[p for p in accepted if p not in parameters and p != 'where']}"
                )
    _probe(name, loss, parameters, options)
    schedules, settings, leaves = {}, {}, {}
    for option, value in options.items():
        if callable(value) and jax.tree_util.all_leaves([value]):
            schedules[option] = value
        elif all(isinstance(x, bool | np.bool_ | str) for x in jax.tree.leaves(value)):
            settings[option] = tuple(value) if isinstance(value, list) else value
        else:
            leaves[option] = jax.tree.map(_leaf, value)
    return Term(
        weight=weight if not callable(weight) else _Static(weight),
        options=leaves,
        name=name,
        loss=loss,
        where=where,
        init=init,
        coupled=coupled,
        reads=tuple(sorted(reads.items())),
        schedules=tuple(sorted(schedules.items())),
        settings=tuple(sorted(settings.items())),
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A schedule in the place of a leaf."""

    schedule: Callable

    def __call__(self, step: Any) -> Any:
        return self.schedule(step)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; made by ``weighted_sum``."""

    terms: tuple[Term, ...]

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Rows that count for each term. For a batch in pieces, sum these over the pieces."""
        return {t.name: t.count(batch) for t in self.terms}

    def init(self, key: Array, context: Context) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Parameters and state of the terms that own any, by name."""
        pairs = {
            t.name: t.init(jax.random.fold_in(key, i), context)
            for i, t in enumerate(self.terms)
            if t.init is not None
        }
        return {n: p for n, (p, _) in pairs.items()}, {n: s for n, (_, s) in pairs.items()}

    def __call__(
        self,
        params: Mapping[str, PyTree],
        state: Mapping[str, PyTree],
        context: Context,
        denominators: Mapping[str, Float[Array, ""]] | None = None,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Part], dict[str, PyTree]]]:
        """The scalar, and what went into it.

        Args:
          params: The terms' own parameters, by term.
          state: The terms' own state, by term.
          context: What the losses look at. No gradient passes to its teachers.
          denominators: What to divide the sums by; the batch's own counts where None. When
            ``context`` holds a piece of a batch, the counts of the whole batch.

        Returns:
          ``(scalar, (parts, state))``: parts by term, as sum and count of this batch.

        Raises:
          ValueError: at trace time, if a term lacks what its loss reads, its rows and mask differ
            in shape, or a coupled term is given a piece of a batch.
        """
        context = context._replace(teachers=jax.lax.stop_gradient(dict(context.teachers)))
        counts = self.counts(context.batch)
        divisors = counts if denominators is None else denominators
        if missing := counts.keys() - divisors.keys():
            raise ValueError(f"denominators must have a count for each term, not {sorted(missing)}")
        total, parts, new_state = jnp.zeros(()), {}, dict(state)
        for t in self.terms:
            if t.coupled and denominators is not None:
                raise ValueError(
                    f"term {t.name!r} couples the examples of a batch, so it cannot be computed "
                    "on a piece of one: pass the whole batch, without denominators"
                )
            rows, own = t.rows(params.get(t.name), state.get(t.name), context)
            if t.init is not None:
                new_state[t.name] = own
            parts[t.name] = Part(rows.sum(), counts[t.name])
            mean = parts[t.name].sum / jnp.maximum(divisors[t.name], 1.0)
            weight = t.weight_at(context.step)
            total += jnp.where(weight == 0, 0.0, weight * mean)  # 0 times an infinite loss is 0
        return total, (parts, new_state)

    def check(self, data: Batch, num_classes: int) -> None:
        """Looks once, on the host, at what compiled code cannot raise for.

        Each column that a term reads must be finite, and labels in range, in the rows that the
        term counts; the other rows may hold anything.

        Args:
          data: All rows, or a batch; traced columns pass.
          num_classes: The student's number of classes.
        """
        for t in self.terms:
            if t.init is not None:
                continue
            for parameter in _positional(t.loss):
                name = dict(t.reads).get(parameter, parameter)
                column = data.get(name) if isinstance(name, str) else None
                if column is None:
                    continue  # not a column; one that is missing is an error of the first trace
                mask = t.mask(data)
                if mask is not None and mask.shape != column.shape[: mask.ndim]:
                    raise ValueError(
                        f"where of term {t.name!r} has shape {mask.shape}, its column {name!r} "
                        f"{column.shape}: they must begin with the same axes"
                    )
                checked = {name: column} if mask is None else {name: column, "where": mask}
                may_miss = (name,) if parameter == "columns" else ()
                data_.check(checked, values=(name,), missing=may_miss)
                if parameter == "labels":
                    _checks.integer(**{name: column})
                    values = _checks.known(column)
                    kept = np.ones(column.shape[:1], bool) if mask is None else _checks.known(mask)
                    if values is not None and kept is not None:
                        _checks.labels_below(num_classes, **{name: values[kept]})


def weighted_sum(*terms: Term) -> Objective:
    """Joins terms into one objective.

    Example:
      >>> import jax.numpy as jnp
      >>> from distill_jax.losses import cross_entropy
      >>> from distill_jax.types import Outputs
      >>> objective = weighted_sum(term("labels", 1.0, cross_entropy))
      >>> context = Context(Outputs(jnp.zeros((4, 2))), batch={"labels": jnp.array([0, 1, 1, 0])})
      >>> value, (parts, _) = objective({}, {}, context)
      >>> print(f"{value:.4f} over {parts['labels'].count:.0f} rows")
      0.6931 over 4 rows
    """
    if not terms:
        raise ValueError("weighted_sum needs one term or more")
    names = [t.name for t in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"terms must have names of their own, got {name!r} twice")
    return Objective(tuple(terms))


def _leaf(value: Any) -> Any:
    """A Python number as an array: a float and a float32 array would be traced twice."""
    if isinstance(value, float | int | np.number):
        return jnp.asarray(value, jnp.result_type(float))
    return value


def _positional(loss: Callable) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name
        for p in inspect.signature(loss).parameters.values()
        if p.kind in kinds and p.default is p.empty
    ]


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
    try:
        jax.eval_shape(lambda *a: loss(*a, **numbers), *(known[p] for p in parameters))
    except ValueError as error:
        raise ValueError(f"term {name!r}: {error}") from error


def _length(batch: Batch) -> int:
    return (batch["inputs"] if "inputs" in batch else next(iter(batch.values()))).shape[0]


def _column(batch: Batch, column: str, who: str) -> Any:
    if column not in batch:
        raise ValueError(f"{who} reads the column {column!r}; the batch has {sorted(batch)}")
    return batch[column]


def _read(t: Term, parameter: str, context: Context) -> Any:
    source = dict(t.reads).get(parameter)
    if callable(source):
        return source(context)
    if parameter == "context":
        return context
    if parameter == "student_logits":
        return context.student.logits
    if parameter == "views" and source is None:
        return context.views
    if parameter == "teacher_logits":
        return _teacher_logits(t.name, source, context)
    if parameter == "student_features" and source is not None:
        features = context.student.features
        if source not in features:
            raise ValueError(
                f"term {t.name!r} reads the student's features {source!r}; there are "
                f"{sorted(features)}"
            )
        return features[source]
    if parameter in ("student_features", "teacher_features"):
        raise ValueError(
            f"term {t.name!r} must say which features to compare, for example "
            f"reads={{{parameter!r}: lambda context: context.teachers['big'].features['hidden/0']}}"
        )
    return _column(context.batch, source or parameter, f"term {t.name!r}")


def _teacher_logits(name: str, source: str | None, context: Context) -> Array:
    teachers = context.teachers
    # The student's own average teaches only where it is asked for by name.
    others = [n for n in teachers if n != "average"]
    if source is None:
        source = name if name in teachers else others[0] if len(others) == 1 else None
    if source is not None and source in teachers:
        return teachers[source].logits
    if source is None and "teacher_logits" in context.batch and not others:
        return context.batch["teacher_logits"]
    raise ValueError(
        f"term {name!r} needs a teacher: the teachers are {sorted(teachers)}, the batch's columns "
        f"{sorted(context.batch)}. Pass teachers={{{name!r}: teacher}}, a column 'teacher_logits', "
        "or reads={'teacher_logits': name}"
    )
