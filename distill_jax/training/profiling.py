"""Where the time of a step goes: a breakdown from one profiled step, and traces of whole calls.

A compiled program has its operations in an order, and fused, as suits the device, so its parts
cannot be timed one after another. They carry names, though: ``Recipe.step`` computes under
``teacher``, ``student``, ``loss`` and ``update`` (``jax.named_scope``), the backward pass of a part
keeps its name, and a profile says when each operation ran.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from distill_jax.objectives import Context, Objective
from distill_jax.teachers import Teacher
from distill_jax.training import _input
from distill_jax.training.accumulation import divides, gradients
from distill_jax.training.compiled import init, steps_of
from distill_jax.training.layout import Layout
from distill_jax.training.step import Augment, Recipe, TrainState, check, check_initial
from distill_jax.types import Batch, Model

PARTS = ("input", "teacher", "student", "loss", "update", "other")


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Seconds of one step by part.

    Attributes:
      seconds: ``input`` (drawing a batch and moving it to the device), ``teacher``, ``student`` and
        ``loss`` (forward and backward), ``update`` (optimizer and moving average) and ``other``
        (whatever bears no name, and times at which the device did nothing), in that order.
      method: ``"profile"``, or ``"parts"`` where the profile of this device tells nothing about
        operations: then parts were compiled and timed alone, and differences taken.
    """

    seconds: dict[str, float]
    method: str

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())

    def rows(self) -> list[dict[str, Any]]:
        """``{"part", "ms", "share"}`` by part and for the step, for ``report.show``."""
        parts = {**self.seconds, "step": self.step}
        return [
            {"part": name, "ms": 1e3 * seconds, "share": seconds / self.step}
            for name, seconds in parts.items()
        ]


def breakdown(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    data: Batch | Iterable[Batch] | Callable[[int], Iterable[Batch]],
    *,
    key: Array,
    batch_size: int | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    initial: TrainState | None = None,
    average_decay: float | Float[Array, ""] | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    compute_dtype: Any = None,
    remat: bool = False,
    layout: Layout | None = None,
) -> Breakdown:
    """Where the time of a step goes, from one step that is run under the profiler.

    Takes what ``fit`` takes, and runs three steps of the same program, which train nothing that is
    kept. Every instant of the third is given to the operations that run at it on the first device,
    in equal shares where there are several. A fused operation belongs to the part of its result, a
    collective to the part that needs it. The input is timed by itself, though ``fit`` can draw
    batches ahead while the device computes.

    Args:
      model, objective, optimizer, key, batch_size, teachers, initial, average_decay, augment,
        microbatches, compute_dtype, remat, layout: As in ``fit``.
      data: As in ``fit``; of a stream the first two batches are drawn.

    Returns:
      Seconds by part.

    Raises:
      ValueError: as in ``fit``, for what does not fit together.

    Example::

        found = training.breakdown(model, objective, optimizer, data, key=key, batch_size=128)
        report.show(found.rows())
    """
    teachers = _input.named(teachers)
    model = _input.wrapped(model, compute_dtype, remat)
    key_init, key_order = _input.keys(key, None)
    may_miss = functools.partial(_input.may_miss, model, teachers)
    source = _input.source(data, key_order, batch_size, 2, 0, may_miss)
    recipe = Recipe(model, optimizer, augment, average_decay is not None, microbatches)
    check(recipe, objective, source.seen, teachers)
    decay = _input.moving(average_decay)
    rows = source.rows
    put: Callable[[Batch], Any] = jax.device_put
    if layout is not None:
        rows *= 1 if source.whole else layout.processes
        layout.check(rows, microbatches=microbatches)
        put = layout.whole_batch if source.whole else layout.local_batch
        teachers = layout.place_teachers(teachers)
        objective, decay, key_init = Layout(layout.mesh, batch=layout.batch).place(
            (objective, decay, key_init)
        )
    divides(microbatches, rows)

    row = {name: column[:1] for name, column in source.seen.items()}
    if initial is None:
        state = init(recipe, layout, objective, row, teachers, key_init)
    else:
        check_initial(initial, jax.eval_shape(recipe.init, objective, row, teachers, key_init))
        state = jax.tree.map(jnp.copy, initial if layout is None else layout.place(initial))
    stream = (batch for batch, _ in source.open(None))
    batch = put(next(stream))
    rest = objective, teachers, decay
    step = steps_of.lower(recipe, 1, layout, state, [batch], *rest).compile()
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, [batch], *rest))

    started = time.perf_counter()
    second = jax.block_until_ready(put(next(stream, source.seen)))
    seconds = {"input": time.perf_counter() - started}
    if jax.tree.map(jnp.shape, second) == jax.tree.map(jnp.shape, batch):
        batch = second  # or else it is a shorter one, or there is none
    (state, _), whole, found = _profiled(lambda: step(state, [batch], *rest), step.as_text() or "")
    method = "profile"
    if not found:
        found = _alone(recipe, whole, state, batch, objective, teachers)
        method = "parts"
    seconds |= {name: found.get(name, 0.0) for name in PARTS[1:-1]}
    seconds["other"] = max(0.0, whole - sum(found.values()))
    return Breakdown(seconds, method)


class Tracer:
    """Hands calls through, and lets the profiler watch a few of them; see :func:`tracing`."""

    def __init__(self, folder: str | os.PathLike[str] | None, skip: int, calls: int):
        self.folder, self.skip, self.end = folder, skip, skip + calls
        self.number, self.active = 0, False

    def call(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``; ``step``, the first that it takes, is shown in the trace."""
        if self.folder is None:
            return function(*arguments)
        number, self.number = self.number, self.number + 1
        if number == self.skip:
            self._start()
        if not self.active:
            return function(*arguments)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if number == self.end - 1:
            jax.block_until_ready(result)
            self.stop()
        return result

    def _start(self) -> None:
        try:
            jax.profiler.start_trace(os.fspath(self.folder))  # type: ignore[arg-type]
            self.active = True
        except Exception as error:  # somebody else profiles, or the folder cannot be made
            self._fail(error)

    def stop(self) -> None:
        """Writes the trace, if one is under way."""
        if self.active:
            self.active = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # a full disk
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        warnings.warn(
            f"no trace could be written to {self.folder} ({error}): training goes on without one",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def tracing(
    folder: str | os.PathLike[str] | None, *, skip: int = 1, calls: int = 3
) -> Iterator[Tracer]:
    """A tracer of a few calls of a loop, for ``tensorboard --logdir folder`` or xprof.

    Args:
      folder: Where ``jax.profiler`` writes; None traces nothing. Of several processes the first
        writes.
      skip: Calls before the first that is traced; the first call compiles.
      calls: Calls that are traced. The last is waited for, once.

    Example::

        with tracing("trace") as tracer:
            for i in range(100):
                state = tracer.call(i, step, state)
    """
    tracer = Tracer(folder if jax.process_index() == 0 else None, skip, calls)
    try:
        yield tracer
    finally:
        tracer.stop()
    if tracer.folder is not None and tracer.number <= skip:
        warnings.warn(
            f"no trace was written to {folder}: the run ended before call {skip + 1}, the first "
            "that does not compile",
            RuntimeWarning,
            stacklevel=3,
        )


def _profiled(call: Callable[[], Any], program: str) -> tuple[Any, float, dict[str, float]]:
    """The call's result, its seconds and, by part, those of its operations, if the profile knows
    of any."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            started = time.perf_counter()
            result = jax.block_until_ready(call())
            whole = time.perf_counter() - started
        files = list(pathlib.Path(folder).rglob("*.xplane.pb"))
        profiles = [jax.profiler.ProfileData.from_file(str(file)) for file in files]
    names = parts_of(program)
    module = re.match(r"HloModule ([\w.\-]+)", program)
    spans: dict[Any, list[Span]] = {}
    for profile in profiles:
        for device, span in _spans(profile, names, module.group(1) if module else ""):
            spans.setdefault(device, []).append(span)
    if not any(span.part for of in spans.values() for span in of):
        return result, whole, {}
    nanoseconds = shared(spans[min(spans)])
    return result, whole, {part: 1e-9 * x for part, x in nanoseconds.items()}


class Span(NamedTuple):
    """When an operation ran, in nanoseconds, on which line of the profile, and its part."""

    start: float
    end: float
    line: Any
    part: str | None


def _spans(profile: Any, names: Mapping[str, str | None], module: str) -> Iterator[tuple]:
    """Operations with their devices. A device is a plane of its own, or on CPU, a number."""
    for plane in profile.planes:
        own = plane.name.startswith("/device:")
        lines = list(plane.lines)
        ops = [line for line in lines if line.name == "XLA Ops"]  # beside it, lines that sum it up
        for i, line in enumerate(ops or lines):
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op") or "")
                if not name and own:
                    name = event.name.lstrip("%").split(" ")[0]
                of = str(stats.get("hlo_module", module)).split("(")[0]
                if name in names and of == module:
                    device = (plane.name, int(stats.get("device_ordinal", 0)))
                    end = event.start_ns + event.duration_ns
                    yield device, Span(event.start_ns, end, i, names[name])


def shared(spans: Iterable[Span]) -> dict[str, float]:
    """Nanoseconds by part: each instant once, in equal shares for what runs on several lines.

    On one line, what begins later is part of what began before, and stands for it.
    """
    spans = list(spans)
    points = [(s.start, 1, i) for i, s in enumerate(spans)]
    points += [(s.end, 0, i) for i, s in enumerate(spans)]
    running: dict[Any, list[int]] = collections.defaultdict(list)
    total: dict[str, float] = collections.defaultdict(float)
    before = 0.0
    for now, begins, i in sorted(points):
        innermost = [stack[-1] for stack in running.values() if stack]
        for j in innermost:
            if (part := spans[j].part) is not None:
                total[part] += (now - before) / len(innermost)
        if begins:
            running[spans[i].line].append(i)
        elif i in running[spans[i].line]:
            running[spans[i].line].remove(i)
        before = now
    return dict(total)


_NAMED = re.compile(r"(?:^|/)(?:(?!p?jit\()\w+\()*(teacher|student|loss|update)\)*(?=/|$)")


def part_of(op_name: str) -> str | None:
    """The outermost part in a path of scopes.

    Example:
      >>> part_of("jit(step)/transpose(jvp(student))/loss/dot_general"), part_of("jit(update)/add")
      ('student', None)
    """
    found = _NAMED.search(op_name)
    return found.group(1) if found else None


def parts_of(program: str) -> dict[str, str | None]:
    """The part of each operation by its name, from the text of a compiled program.

    What bears no name of its own, as XLA's own inventions do, belongs to the part that most of its
    computation does, or its first operand. Loops and calls are left out: what they hold counts.
    """
    found: dict[str, str | None] = {}
    votes: collections.Counter[str] = collections.Counter()
    computation = ""
    for line in program.splitlines():
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
        if instruction is None:
            header = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header:
                computation, votes = header.group(1), collections.Counter()
            elif line.startswith("}") and votes:
                found[computation] = votes.most_common(1)[0][0]
            continue
        name, text = instruction.groups()
        if re.search(r" (?:while|conditional|call)\(", text):
            continue
        metadata = re.search(r'op_name="([^"]*)"', text)
        part = part_of(metadata.group(1)) if metadata else None
        if part is None:
            others = re.findall(r"[\w.\-]+", text.split(" metadata=")[0])
            called = re.findall(r"calls=%?([\w.\-]+)", text)
            part = next((found[x] for x in (*called, *others) if found.get(x)), None)
        found[name] = part
        if part is not None:
            votes[part] += 1
    return found


def _alone(
    recipe: Recipe, whole: float, state: TrainState, batch: Any, objective: Any, teachers: Any
) -> dict[str, float]:
    """Seconds of the parts of a step, compiled and timed alone; the rest of ``whole`` updates."""
    trainable = {"student": state.params, "terms": state.term_params}

    @jax.jit
    def teach(state, batch, teachers):
        columns = recipe._columns(batch, state.key)
        return recipe._forward(teachers, state.average).teach(columns)

    @jax.jit
    def student(state, batch):
        columns = recipe._columns(batch, state.key)
        forward = recipe._forward({}, state.average)
        views = forward.views(state.params, state.state, columns)
        return forward.student(state.params, state.state, columns, state.key)[0], views

    @jax.jit
    @functools.partial(jax.grad, allow_int=True)
    def loss(student, views, taught, state, batch, objective):
        columns = recipe._columns(batch, state.key)
        context = Context(student, taught, columns, state.step, state.key, views)
        return objective(state.term_params, state.term_state, context)[0]

    @jax.jit
    def gradient(trainable, state, batch, objective, teachers):
        columns = recipe._columns(batch, state.key)
        arguments = objective, trainable, state.state, state.term_state, columns, state.step
        forward = recipe._forward(teachers, state.average)
        return gradients(forward, *arguments, state.key, microbatches=recipe.microbatches)

    taught = teach(state, batch, teachers)
    outputs = student(state, batch)
    before_update = _least(gradient, trainable, state, batch, objective, teachers)
    found = {
        "teacher": _least(teach, state, batch, teachers) if teachers or recipe.averaging else 0.0,
        "loss": _least(loss, *outputs, taught, state, batch, objective),
        "update": max(0.0, whole - before_update),
    }
    found["student"] = max(0.0, before_update - found["teacher"] - found["loss"])
    return found


def _least(call: Callable[..., Any], *arguments: Any, times: int = 3) -> float:
    """The least seconds of a few calls, after one that may compile."""
    jax.block_until_ready(call(*arguments))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
