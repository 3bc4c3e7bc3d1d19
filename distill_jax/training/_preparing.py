"""What ``run``, ``fit`` and ``breakdown`` do with their arguments before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from distill_jax import _batches, _checks, _fingerprints, _programs, models
from distill_jax import data as data_
from distill_jax.data.batching import check_named, columns_of
from distill_jax.objectives import Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _late_rows
from distill_jax.training.averaging import as_argument
from distill_jax.training.checkpoints._configuration import configuration
from distill_jax.training.devices import Layout
from distill_jax.training.step import Recipe, TrainState, _compiled
from distill_jax.training.step._checking import check, check_initial, starting, student_shapes
from distill_jax.training.step._forward import VIEW, Augment, is_input
from distill_jax.training.step._freezing import chosen
from distill_jax.training.step._gradients import divides
from distill_jax.training.step._updating import Optimizer, accepted
from distill_jax.types import Batch, Model, Params, State


class InMemory:
    """Arrays in memory, cut into shuffled batches.

    Attributes:
      columns: All rows, arrays ``[rows, ...]`` or trees of them, which every process holds.
      rows: Rows of a batch.
    """

    in_memory = True

    def __init__(self, columns: Batch, batch_size: int):
        self.columns, self.rows = columns, batch_size

    def check(self, check: Callable[[Batch], None]) -> None:
        """``check(columns)``, which raises ValueError for a value that is wrong."""
        check(self.columns)

    def batches(self, position: Any, prepared: Prepared) -> Iterator[tuple[Batch, Any]]:
        """``(batch, position after it)`` from a position, or from the beginning if it is None."""
        stream = data_.batches(
            self.columns,
            key=prepared.key_order,
            batch_size=self.rows,
            start=prepared.steps_before,
        )
        return data_.positions(stream, position=position)


class Stream:
    """A stream of batches, of which the first has been drawn.

    Attributes:
      columns: The first batch.
      rows: Rows of it, in this process.
    """

    in_memory = False

    def __init__(self, data: Iterable[Batch] | Callable[[int], Iterable[Batch]]):
        self._data = data
        self._stream: Any = iter(data) if isinstance(data, Iterable) else data
        self._pairs = data_.positions(self._stream)
        self._first = next(self._pairs)

    @property
    def columns(self) -> Batch:
        return self._first[0]

    @property
    def rows(self) -> int:
        return _batches.rows(self.columns)

    def check(self, check: Callable[[Batch], None]) -> None:
        """``check(columns)``, whose ValueError names the batch and the row."""
        _late_rows.check_rows(self.columns, check, 0)

    def batches(self, position: Any, prepared: Prepared) -> Iterator[tuple[Batch, Any]]:
        """``(batch, position after it)`` from a position, or from the beginning if it is None."""
        if position is None:
            return itertools.chain([self._first], self._pairs)
        # A stream that can go to the position does; any other is drawn from its beginning.
        drawn = hasattr(self._stream, "__next__") and not hasattr(self._stream, "set_state")
        again = itertools.chain(self._first[:1], self._stream) if drawn else self._stream
        return data_.positions(again, position=position)

    def close(self) -> None:
        """Closes the threads and files that iterating over the data has opened."""
        if self._stream is not self._data and hasattr(self._stream, "close"):
            # A thread that was stopped may still be drawing its last batch: then the stream is
            # closed when its last reference goes.
            with contextlib.suppress(ValueError):
                self._stream.close()


Source = InMemory | Stream
"""Where batches come from: what can be checked of it before the first step, and the batches."""


@contextlib.contextmanager
def opened(
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]], batch_size: int | None
) -> Iterator[Source]:
    """The source of ``fit``'s batches, closed at the end."""
    if isinstance(data, Mapping):
        named: Mapping[str, Any] = data  # pyright: ignore[reportAssignmentType]
        if batch_size is None:
            raise ValueError("batch_size must be given for arrays in memory, got None")
        columns = _batches.mapped(np.asarray, columns_of(named))
        yield InMemory(columns, _checks.count("batch_size", batch_size))
        return
    check_named(data)
    if batch_size is not None:
        raise ValueError(
            f"batch_size is for arrays in memory; the batches of data, a {type(data).__name__}, "
            "have a size of their own: leave batch_size out"
        )
    with contextlib.closing(Stream(data)) as stream:
        yield stream


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run whose parts fit together, ready for its first step.

    Attributes:
      recipe: What is fixed in the step's program.
      objective, teachers, decay, key: Arguments of the programs, placed as ``layout`` says.
      key_order: Decides the order of rows in memory.
      row: A first example, ``[1, ...]`` per column.
      rows: Rows of a batch, those of all processes together.
      layout: Which device holds what, or None.
      initial: The state to continue from, or None.
      weights: The student's ``(params, state)`` to start from, or None for those of its model.
      source: Where batches come from.
      given: ``(objective, teachers, decay)`` before they were placed.
      num_outputs: Of the student.
    """

    recipe: Recipe
    objective: Objective
    teachers: Mapping[str, Teacher]
    decay: Array | Partial | None
    key: Array
    key_order: Array
    row: Batch
    rows: int
    layout: Layout | None
    initial: TrainState | None
    weights: tuple[Params, State] | None
    source: Source
    given: tuple[Objective, Mapping[str, Teacher], Array | Partial | None]
    num_outputs: int

    @property
    def steps_before(self) -> Any:
        """Steps that ``initial`` has taken; traced where that state is."""
        step = 0 if self.initial is None else self.initial.step
        return step if isinstance(step, jax.core.Tracer) else int(step)

    @functools.cached_property
    def expected(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        start = functools.partial(_compiled.start, self.recipe)
        state = jax.eval_shape(
            start, self.objective, self.row, self.teachers, self.key, self.weights
        )
        if self.layout is None:
            return state
        return jax.tree.map(_with_sharding, state, self.layout.shardings(state))

    def start(self, *, copied: bool = True) -> TrainState:
        """The state before the first step; if ``copied``, the caller may donate it."""
        if self.initial is not None:
            return self._placed(self.initial, copied)
        weights = None
        if self.weights is not None:
            weights = tuple(self._placed(tree, copied) for tree in self.weights)
        return _compiled.init(
            self.recipe, self.layout, self.objective, self.row, self.teachers, self.key, weights
        )

    def _placed(self, tree: Any, copied: bool) -> Any:
        tree = jax.tree.map(jnp.copy, tree) if copied else tree
        return tree if self.layout is None else self.layout.place(tree)

    def batches(self, position: Any) -> Iterator[tuple[Batch, Any]]:
        """``(batch, position after it)`` from a position; the values of a stream are checked."""
        pairs = self.source.batches(position, self)
        if self.source.in_memory:
            return pairs
        objective = self.given[0] if self.recipe.augment is None else None
        return _late_rows.checked(pairs, self.check_values, objective, self.num_outputs)

    def check_values(self, batch: Batch) -> None:
        """Raises ValueError for values that models or terms read, in the rows that count."""
        objective, teachers, _ = self.given
        _check_inputs(self.recipe.model, teachers, batch)
        if self.recipe.augment is None:
            objective.check(batch, self.num_outputs, self.recipe.model.outputs)

    def put(self, batch: Batch) -> dict[str, Any]:
        """A batch of this process on the devices.

        Raises:
          ValueError: for a number that does not fit in the type in which JAX holds it.
        """
        arrays = _batches.arrays(batch).values()
        if not self.source.in_memory and any(map(_checks.outside_device, arrays)):
            # Not only in a column that nothing reads, or in rows that do not count?
            self.check_values(batch)
        if self.layout is None:
            return jax.device_put(dict(batch))
        in_memory = self.source.in_memory
        return (self.layout.whole_batch if in_memory else self.layout.local_batch)(batch)

    def batch_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of a batch of all processes."""
        sharding = None if self.layout is None else self.layout.replicated

        def whole(x: Any) -> jax.ShapeDtypeStruct:
            dtype = _programs.described(x).dtype
            return jax.ShapeDtypeStruct((self.rows, *x.shape[1:]), dtype, sharding=sharding)

        return _batches.mapped(whole, self.row)

    def is_slow_in_a_scan(self) -> bool:
        """Whether a step should be a program of its own: on CPU, if it holds a convolution.

        False inside another program, of which the step is a part.
        """
        if jax.default_backend() != "cpu":
            return False
        given = self.initial, self.weights
        arguments = self.row, self.objective, self.teachers, self.decay, self.key, given
        if has_tracers(arguments):
            return False
        step = functools.partial(_compiled.step, self.recipe)
        arguments = self.batch_shapes(), self.objective, self.teachers, self.decay
        traced = jax.make_jaxpr(step)(self.expected, *arguments)
        # The optimizer may close over a traced learning rate.
        return not has_tracers(traced.consts) and _programs.has_convolution(traced)

    def configuration(self, key: Array, **settings: Any) -> dict[str, Any]:
        """What a resumed run must share with this one, and every process with the others."""
        columns = self.source.columns
        objective, teachers, decay = self.given
        return configuration(
            self.recipe,
            objective,
            teachers,
            self.batch_shapes(),
            state=self.expected,
            programs=self._hashes(),
            key=key,
            decay=decay,
            data=_fingerprints.rows_and_digest(columns) if self.source.in_memory else None,
            initial=_fingerprint_of_state(self.initial),
            start=None if self.weights is None else _fingerprints.digest(self.weights),
            **settings,
        )

    def _hashes(self) -> list[str]:
        """Hashes of the programs that make the state and take a step.

        They must not depend on the layout, which may change: shardings are taken away, and
        teachers are as they were given, not gathered.
        """
        objective, teachers, decay = jax.tree.map(_without_sharding, self.given)
        key, row, state, batch, weights = jax.tree.map(
            _without_sharding,
            (self.key, self.row, self.expected, self.batch_shapes(), self.weights),
        )
        start = functools.partial(_compiled.start, self.recipe)
        step = functools.partial(_compiled.step, self.recipe)
        traced = (
            jax.make_jaxpr(start)(objective, row, teachers, key, weights),
            jax.make_jaxpr(step)(state, batch, objective, teachers, decay),
        )
        return [_fingerprints.program(x) for x in traced]


def prepared(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    source: Source,
    *,
    key: Array,
    order_key: Array | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    start: Any = None,
    trainable: Any = None,
    average_decay: Any = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    compute_dtype: Any = None,
    remat: bool = False,
    layout: Layout | None = None,
) -> Prepared:
    """Checks that everything fits together, data included, and places it on its devices.

    Args:
      source: Where batches come from; its columns are checked here, once.
      model, objective, optimizer, key, order_key, teachers, initial, start, trainable,
        average_decay, augment, microbatches, compute_dtype, remat, layout: As in ``fit``.

    Raises:
      TypeError, ValueError: as in ``fit``.
    """
    given = _named(teachers)
    microbatches = _checks.count("microbatches", microbatches)
    model = _wrapped(model, compute_dtype, remat)
    if initial is not None and not isinstance(initial, TrainState):
        raise TypeError(
            f"initial must be a TrainState, got {type(initial).__name__}: weights to start anew "
            "from are start=(params, state)"
        )
    if initial is not None and start is not None:
        raise ValueError(
            "initial is a state to continue from and start are weights to start anew from: pass "
            "one of the two"
        )
    decay = as_argument(average_decay)
    columns = source.columns
    batch_size = source.rows if source.in_memory else None
    source.check(lambda batch: _check_inputs(model, given, batch, batch_size))
    rows = source.rows
    if layout is not None:
        rows *= 1 if source.in_memory else layout.processes
        layout.check(rows, microbatches=microbatches)
    if augment is not None:
        _checks.takes("(key, batch)", augment=augment)
    else:  # otherwise augmentation may change the number of rows
        divides(microbatches, rows)
    recipe = Recipe(model, accepted(optimizer), augment, decay is not None, microbatches)
    num_outputs = check(recipe, objective, columns, given)
    if augment is None:  # otherwise columns may come from augmentation
        source.check(lambda batch: objective.check(batch, num_outputs, model.outputs))
        if source.in_memory:
            objective.check_masks(columns)
    row = _batches.mapped(lambda x: x[:1], columns)
    if start is not None or trainable is not None:
        own = student_shapes(recipe, row)
        if start is not None:
            start = starting(start, own)
        if trainable is not None:
            recipe = dataclasses.replace(recipe, trains=chosen(trainable, own[0]))

    key_init, key_order = jax.random.split(key)
    as_given = objective, given, decay
    placed = given
    if layout is not None:
        placed = layout.place_teachers(given)
        objective, decay, key_init = layout.place_whole((objective, decay, key_init))
    found = Prepared(
        recipe=recipe,
        objective=objective,
        teachers=placed,
        decay=decay,
        key=key_init,
        key_order=key_order if order_key is None else order_key,
        row=row,
        rows=rows,
        layout=layout,
        initial=initial,
        weights=start,
        source=source,
        given=as_given,
        num_outputs=num_outputs,
    )
    if initial is not None:
        check_initial(initial, found.expected)
    if layout is not None:
        layout.check_params(found.expected.params, found.expected.term_params, given)
    return found


def _check_inputs(
    model: Model, teachers: Mapping[str, Any], columns: Batch, batch_size: int | None = None
) -> None:
    data_.check(
        columns,
        batch_size=batch_size,
        values=[name for name in columns if is_input(name)],
        missing=_columns_that_may_miss(model, teachers, columns),
    )


def has_tracers(tree: Any) -> bool:
    """Whether any leaf is traced, so that its value is not known."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _with_sharding(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type)


def _without_sharding(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = jax.typeof(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)


def _columns_that_may_miss(model: Any, teachers: Mapping[str, Any], data: Batch) -> tuple[str, ...]:
    """Columns in which NaN is a missing value, for every model that reads them."""
    read_by_teachers = "teacher_inputs" if "teacher_inputs" in data else "inputs"
    own = [name for name in data if name == "inputs" or name.startswith(VIEW)]
    found = {**dict.fromkeys(own, getattr(model, "missing", False)), "teacher_inputs": True}
    if teachers and read_by_teachers in found:
        found[read_by_teachers] &= all(getattr(t, "missing", False) for t in teachers.values())
    return tuple(name for name, allowed in found.items() if allowed)


def _named(teachers: Any) -> dict[str, Any]:
    if teachers is not None and not isinstance(teachers, Mapping):
        raise TypeError(
            f"teachers must be a dictionary of teachers by name, got {type(teachers).__name__}: "
            'pass teachers={"teacher": teacher}'
        )
    return dict(teachers or {})


def _wrapped(model: Model, compute_dtype: Any, remat: bool) -> Model:
    """The student as the step computes it. Equal wraps of a model are equal."""
    if not isinstance(model, Model):
        return model  # check words the error
    if not isinstance(remat, bool):
        raise TypeError(f"remat must be True or False, got {remat!r}: see models.remat for more")
    if compute_dtype is not None:
        dtype = _checks.compute_dtype(compute_dtype, name="compute_dtype")
        model = models.cast(model, dtype)
    return models.remat(model) if remat else model


def _fingerprint_of_state(state: TrainState | None) -> list[Any] | None:
    """The step of a state and a hash of its arrays."""
    return None if state is None else [int(state.step), _fingerprints.digest(state)]
