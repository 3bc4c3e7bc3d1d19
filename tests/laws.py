"""The property battery: what every loss promises, as laws that run over one list.

A new loss joins by an entry in ``LOSSES``, with its reference in ``tests/references.py``; the laws
that apply to it (``laws_of``) then run in ``tests/losses/test_laws.py``, one test a pair.

A law is a function of an entry that raises if it does not hold. Compiling is what costs, so the
laws share a few compiled functions a loss, all at one small shape; options are traced, so entries
that differ in options share them too, and chex sees to it that none is traced twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from distill_jax import losses
from tests import references

SHAPE = (4, 10)
MANY = 131_072


@dataclasses.dataclass(frozen=True)
class Entry:
    """A loss at one setting of its options, and what it promises there.

    Attributes:
      loss: ``loss(student_logits, against, *, where=None, **options)``.
      options: Scalar options by name.
      kind: What comes second: ``"teacher"`` logits, ``"targets"`` (probabilities), ``"labels"``,
        ``"answers"`` (0 or 1 for each output), ``"ranks"`` (0 to the number of outputs) or
        ``"numbers"``.
      swapped: The loss and its options that give the same value with student and teacher swapped;
        None where there are none.
      bound: No value lies above it.
      shift_invariant: A constant added to all of an example's logits changes nothing.
      t2_scaled: Carries T², so the gradient's size does not move with the temperature.
      couples_examples: An example's loss depends on the others of its batch.
      smooth: Has second derivatives everywhere.
      one_output: Takes a single output too.
      zero_at_equality: Of a loss with teacher logits, whether 0 means that they are equal.
      refused: Values that an option must refuse, by option.
    """

    loss: Callable[..., Any]
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kind: str = "teacher"
    swapped: tuple[Callable[..., Any], Mapping[str, float]] | None = None
    bound: float = math.inf
    shift_invariant: bool = True
    t2_scaled: bool = False
    couples_examples: bool = False
    smooth: bool = True
    one_output: bool = False
    zero_at_equality: bool = True
    refused: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v:g}" for k, v in self.options.items())])

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def scores(self) -> bool:
        """Compares two rows of logits, so that 0 means equal."""
        return self.kind == "teacher" and self.zero_at_equality

    @property
    def integers(self) -> bool:
        """What comes second has no gradient."""
        return self.kind in ("labels", "answers", "ranks")

    def second(self, rng: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
        """What comes second, made of logits ``[..., classes]``."""
        classes = numbers.shape[-1]
        if self.kind == "answers":
            return (numbers > 0).astype(np.int32)
        if self.integers:
            most = classes + (self.kind == "ranks")
            return rng.integers(0, most, numbers.shape[:-1]).astype(np.int32)
        return softmax(numbers, -1) if self.kind == "targets" else numbers

    def reference(self, student: Any, against: Any) -> np.ndarray:
        return getattr(references, self.name)(student, against, **self.options)


def _entropy(share: float) -> float:
    return -sum(x * math.log(x) for x in (share, 1 - share) if x > 0)


def _entries() -> Iterable[Entry]:
    yield Entry(losses.forward_kl, swapped=(losses.reverse_kl, {}))
    yield Entry(losses.reverse_kl, swapped=(losses.forward_kl, {}))
    yield Entry(losses.symmetric_kl, swapped=(losses.symmetric_kl, {}))
    yield Entry(
        losses.total_variation, swapped=(losses.total_variation, {}), bound=1.0, smooth=False
    )
    yield Entry(
        losses.squared_error,
        swapped=(losses.squared_error, {}),
        shift_invariant=False,
        one_output=True,
    )
    outside = (-0.1, 1.5, math.nan)
    for beta in (0.0, 1e-4, 0.1, 0.5, 0.9, 1.0):
        other = {"beta": 1.0 - beta}
        yield Entry(
            losses.jensen_shannon,
            {"beta": beta},
            swapped=(losses.jensen_shannon, other),
            bound=_entropy(beta),
            refused={"beta": outside},
        )
        yield Entry(
            losses.scaled_jensen_shannon,
            {"beta": beta},
            swapped=(losses.scaled_jensen_shannon, other),
            bound=_entropy(beta) / (beta * (1 - beta)) if 0 < beta < 1 else math.inf,
            refused={"beta": outside},
        )
    for alpha in (0.0, 0.1, 0.9, 1.0):
        for loss, other in (
            (losses.skew_kl, losses.skew_reverse_kl),
            (losses.skew_reverse_kl, losses.skew_kl),
        ):
            yield Entry(
                loss,
                {"alpha": alpha},
                swapped=(other, {"alpha": alpha}),
                bound=-math.log(alpha) if alpha else math.inf,
                refused={"alpha": outside},
            )
    for alpha, beta in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.2, 0.7), (0.5, 0.0)):
        yield Entry(
            losses.alpha_beta,
            {"alpha": alpha, "beta": beta},
            swapped=(losses.alpha_beta, {"alpha": beta, "beta": alpha}),
            bound=1.0 / (alpha * beta) if alpha * beta and alpha + beta >= 1 else math.inf,
            refused={"alpha": (-0.1, math.inf), "beta": (-0.1, math.nan)},
        )
    for alpha in (0.3, 0.5, 1.0, 2.0):
        yield Entry(losses.renyi, {"alpha": alpha}, refused={"alpha": (0.0, -1.0, math.inf)})
    for temperature in (1.0, 4.0, 20.0):
        option = {"temperature": temperature}
        refused = {"temperature": (0.0, -1.0, math.inf)}
        yield Entry(losses.soft_targets, option, t2_scaled=True, refused=refused)
        yield Entry(
            losses.soft_targets_multilabel,
            option,
            shift_invariant=False,
            t2_scaled=True,
            one_output=True,
            refused=refused,
        )
    for smoothing in (0.0, 0.1, 1.0):
        yield Entry(
            losses.cross_entropy,
            {"label_smoothing": smoothing},
            kind="labels",
            refused={"label_smoothing": outside},
        )
    yield Entry(losses.cross_entropy_with_targets, kind="targets")
    plain = functools.partial(Entry, shift_invariant=False, one_output=True)
    yield plain(losses.binary_cross_entropy, kind="answers")
    yield plain(losses.ordinal_cross_entropy, kind="ranks")
    yield plain(losses.squared_error_with_targets, kind="numbers")
    yield plain(losses.absolute_error, kind="numbers", smooth=False)
    for delta in (0.5, 3.0):
        refused = {"delta": (0.0, -1.0, math.inf)}
        yield plain(losses.huber, {"delta": delta}, kind="numbers", smooth=False, refused=refused)
    taken = functools.partial(Entry, zero_at_equality=False)
    for threshold in (0.2, 0.4):  # of the rows of data, the first keeps all, the second half
        option, refused = {"threshold": threshold}, {"threshold": outside}
        yield taken(losses.pseudo_labels, option, refused=refused)
        option, refused = option | {"temperature": 0.5}, refused | {"temperature": (0.0, -1.0)}
        yield taken(losses.sharpened_targets, option, refused=refused)


LOSSES: list[Entry] = list(_entries())


# What the laws share: data, compiled functions, numerical gradients.


def data(entry: Entry, seed: int = 0, *, shape=SHAPE, scale: float = 2.0) -> tuple[Any, Any]:
    """Student logits and what they are compared with, float32 NumPy."""
    rng = np.random.default_rng(seed)
    student, teacher = (scale * rng.standard_normal((2, *shape))).astype(np.float32)
    return student, entry.second(rng, teacher)


def arrays(options: Mapping[str, float]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(option, jnp.float32) for name, option in options.items()}


def _once(function: Callable, name: str, *, quick: bool = False) -> Callable:
    """Jitted, and a failure if it is ever traced a second time; ``quick`` compiles in half the time
    what runs as it is elsewhere: XLA's own steps stay, the machine code is not polished."""
    function.__name__ = name  # chex counts by name
    options = {"xla_backend_optimization_level": 0} if quick else None
    return jax.jit(chex.assert_max_traces(function, n=1), compiler_options=options)


@functools.cache
def _probe(loss: Callable, tag: str, differentiable: bool) -> Callable:
    def probe(student, against, options, where):
        def total(student, against, options):
            rows = loss(student, against, where=where, **options)
            return rows.sum(), rows

        wrt = (0, 1, 2) if differentiable else (0, 2)
        grads, rows = jax.grad(total, wrt, has_aux=True)(student, against, options)
        return rows, grads if differentiable else (grads[0], None, grads[1])

    return _once(probe, f"probe {loss.__name__} {tag}", quick=tag != f"float32 {SHAPE}")


def probe(entry: Entry, student, against, where=None, options=None) -> tuple[Any, tuple]:
    """Rows, and the gradients of their sum to student, against (or None) and options."""
    student, against = jnp.asarray(student), jnp.asarray(against)
    where = jnp.ones(student.shape[:-1], bool) if where is None else jnp.asarray(where)
    tag = f"{student.dtype} {student.shape}"
    run = _probe(entry.loss, tag, not entry.integers)
    options = entry.options if options is None else options
    return jax.tree.map(np.asarray, run(student, against, arrays(options), where))


@functools.cache
def _value(loss: Callable, tag: str) -> Callable:
    def value(student, against, options):
        return loss(student, against, **options)

    return _once(value, f"value {loss.__name__} {tag}")


def value(entry: Entry, student, against) -> np.ndarray:
    student, against = jnp.asarray(student), jnp.asarray(against)
    run = _value(entry.loss, f"{student.dtype} {student.shape}")
    return np.asarray(run(student, against, arrays(entry.options)))


def derivative(function: Callable[[float], Any], step: float, side: int = 0) -> Any:
    """Of a function of one number at 0, of fourth order; ``side`` 1 or -1 stays on that side."""
    with np.errstate(invalid="ignore"):
        if side == 0:
            f = [function(k * step) for k in (-2, -1, 1, 2)]
            return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
        f = [function(side * k * step) for k in range(5)]
        total = -25 * f[0] + 48 * f[1] - 36 * f[2] + 16 * f[3] - 3 * f[4]
        return side * total / (12 * step)


def numerical_gradients(
    entry: Entry, student, against, step: float = 1e-3, *, option_step: float = 1e-4
) -> tuple:
    """Of the reference, by differences in float64: to student, against and options."""
    step *= 1.0 if entry.smooth else 1e-4  # so small that it does not reach the next kink
    student = np.asarray(student).astype(np.float64)
    unit = np.eye(student.shape[-1])
    to_student = np.stack(
        [derivative(lambda h, e=e: entry.reference(student + h * e, against), step) for e in unit],
        -1,
    )
    to_against = None
    if not entry.integers:
        wide = np.asarray(against).astype(np.float64)
        to_against = np.stack(
            [derivative(lambda h, e=e: entry.reference(student, wide + h * e), step) for e in unit],
            -1,
        )
    slopes = {n: _option_slope(entry, n, student, against, option_step) for n in entry.options}
    return to_student, to_against, slopes


def side_of(entry: Entry, name: str) -> int:
    """1 where an option is at the lower end of its range, -1 at the upper end, else 0."""
    x = entry.options[name]
    upper = any(value == 1.5 for value in entry.refused.get(name, ()))
    return 1 if x == 0 else -1 if x == 1 and upper else 0


def _option_slope(
    entry: Entry,
    name: str,
    student,
    against,
    step: float = 1e-4,
    *,
    each: bool = False,
    side: int | None = None,
) -> Any:
    x = entry.options[name]

    def at(h: float) -> Any:
        moved = dataclasses.replace(entry, options={**entry.options, name: x + h})
        rows = moved.reference(student, against)
        return rows if each else np.float64(rows.sum())

    side = side_of(entry, name) if side is None else side
    upper = any(value == 1.5 for value in entry.refused.get(name, ()))
    room = min(x, 1 - x) if upper else x
    return derivative(at, step if side else min(step * max(1.0, x), room / 4), side)


def close(got: Any, want: Any, *, rtol: float, atol: float = 0.0, what: str = "") -> None:
    np.testing.assert_allclose(
        np.asarray(got, np.float64),
        np.asarray(want, np.float64),
        rtol=rtol,
        atol=atol,
        err_msg=what,
    )


def finite(tree: Any, what: str) -> None:
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        assert np.isfinite(x).all(), f"{what}{jax.tree_util.keystr(path)} is not finite: {x}"


# The laws. First: the right values and gradients.


def reference(entry: Entry) -> None:
    """Equals the float64 reference, on anything."""
    numbers = hnp.arrays(np.float32, SHAPE, elements=st.floats(-30, 30, width=32))

    @settings(max_examples=25)
    @given(numbers, numbers)
    def check(student, teacher):
        against = teacher
        if entry.kind == "targets":
            against = softmax(teacher, -1)
        elif entry.integers:
            against = entry.second(np.random.default_rng(0), teacher)
        rows, grads = probe(entry, student, against)
        want = entry.reference(student, against)
        assert rows.dtype == np.float32
        close(rows, want, rtol=2e-5, atol=2e-6 * max(1.0, np.abs(want).max()))
        finite(grads, "gradient")

    check()


def gradient(entry: Entry) -> None:
    """Gradients to student, teacher and options equal numerical ones of the reference."""
    for seed, scale in ((0, 2.0), (1, 0.3), (2, 6.0)):
        student, against = data(entry, seed, scale=scale)
        _, (to_student, to_against, to_options) = probe(entry, student, against)
        want_student, want_against, want_options = numerical_gradients(entry, student, against)
        size = np.abs(want_student).max()
        close(to_student, want_student, rtol=2e-4, atol=1e-5 * size, what="student")
        if want_against is not None:
            size = max(np.abs(want_against).max(), 1e-3)  # of what has no slope, rounding is left
            close(to_against, want_against, rtol=2e-4, atol=1e-5 * size, what="against")
        size = np.abs(entry.reference(student, against)).sum()
        if scale > 1.0 and any(x in (0.0, 1.0) or x < 1e-3 for x in entry.options.values()):
            continue  # the reference bends too sharply there for a difference quotient
        for name, slope in want_options.items():
            close(to_options[name], slope, rtol=1e-3, atol=1e-4 * size + 1e-6, what=name)


@functools.cache
def _transforms(loss: Callable, differentiable: bool) -> Callable:
    def transforms(student, against, options, direction):
        def rows(student, moving, options):
            return loss(student, moving if differentiable else against, **options)

        point = (student, against if differentiable else jnp.zeros(()), options)
        plain, slope = jax.jvp(rows, point, direction)
        mapped = jax.vmap(lambda s, a: loss(s, a, **options))(student, against)
        gradient = jax.grad(lambda *x: rows(*x).sum(), (0, 1, 2))
        grads, turn = jax.jvp(gradient, point, direction)
        return plain, slope, mapped, grads, turn

    return _once(transforms, f"transforms {loss.__name__}", quick=True)


def run_transforms(entry: Entry, student, against, direction) -> tuple:
    run = _transforms(entry.loss, not entry.integers)
    return run(jnp.asarray(student), jnp.asarray(against), arrays(entry.options), tuple(direction))


def transforms(entry: Entry) -> None:
    """``jit``, ``vmap``, ``grad``, ``jvp`` and their compositions agree, with each other, with the
    function as called plainly, and with numerical second derivatives."""
    student, against = data(entry)
    rng = np.random.default_rng(7)
    differentiable = not entry.integers
    direction = (
        rng.standard_normal(SHAPE).astype(np.float32),
        (0.1 * rng.standard_normal(SHAPE if differentiable else ())).astype(np.float32),
        arrays(dict.fromkeys(entry.options, 0.0)),
    )
    if entry.kind == "targets":
        direction = (direction[0], np.zeros(SHAPE, np.float32), direction[2])
    inputs = jnp.asarray(student), jnp.asarray(against)
    plain = entry.loss(*inputs, **entry.options)
    rows, (to_student, to_against, _) = probe(entry, student, against)
    out = jax.tree.map(np.asarray, run_transforms(entry, student, against, direction))
    primal, slope, mapped, grads, turn = out
    for what, x in (("plain", plain), ("jvp", primal), ("vmap", mapped)):
        close(x, rows, rtol=2e-6, atol=2e-6, what=what)
    close(grads[0], to_student, rtol=1e-5, atol=1e-6, what="grad to the student")
    if differentiable:
        close(grads[1], to_against, rtol=1e-5, atol=1e-6, what="grad to the teacher")
    moved = slice(2 if differentiable else 1)

    def along(tree):  # one value an example
        return sum((x * v).sum(-1) for x, v in zip(tree[moved], direction[moved], strict=True))

    close(slope, along(grads), rtol=1e-4, atol=1e-5, what="jvp against grad")
    if not entry.smooth:
        return
    finite(turn, "second derivative")

    def at(h):
        v = direction[0].astype(np.float64), direction[1].astype(np.float64)
        return entry.reference(
            student + h * v[0], against + h * v[1] if differentiable else against
        )

    h = 1e-4
    curvature = (at(h) - 2 * at(0.0) + at(-h)) / h**2
    size = np.abs(curvature).max()
    close(
        along(turn), curvature, rtol=1e-3, atol=1e-4 * size, what="jvp of grad, twice the reference"
    )


def second_order(entry: Entry) -> None:
    """Second derivatives in all arguments together, options included, equal differences of the
    reference: with classes at -inf, and 44 and 100 nats below the others, on both sides."""
    student, against = data(entry, 11, scale=0.7)
    below = np.array([0.0, np.inf, 44.0, 100.0], np.float32) * entry.options.get("temperature", 1.0)
    student[:, 3] -= below
    if entry.kind == "labels":
        against[against == 3] = 4
    elif entry.kind == "targets":
        against[1:, 3] = 0.0
    elif entry.kind == "answers":
        against[:, 3] = 0
    elif entry.kind == "ranks":
        against = np.minimum(against, 3)
    else:
        against[:, 3] -= below
    ends = {name: side_of(entry, name) for name in entry.options}
    steps = {n: 0.1 * ends[n] or 0.5 * min(x, 1.0) for n, x in entry.options.items()}
    rng = np.random.default_rng(12)
    direction = [rng.standard_normal(SHAPE), rng.standard_normal(SHAPE), steps]
    if entry.integers:
        direction[1] = np.zeros(())
    elif entry.kind == "targets":
        direction[1] = direction[1] * (against > 0)

    def gradients(h: float) -> tuple:
        options = {n: x + h * steps[n] for n, x in entry.options.items()}
        moved = against if entry.integers else against + h * direction[1]
        at = dataclasses.replace(entry, options=options)
        moved = student + h * direction[0], moved
        to_student, to_against, _ = numerical_gradients(at, *moved)
        # The direction leaves an end, so there the slope stays one-sided.
        slopes = [_option_slope(at, n, *moved, side=ends[n]) for n in sorted(ends)]
        parts = [to_student, to_against, np.array(slopes)]
        return np.concatenate([np.ravel(x) for x in parts if x is not None])

    side = 1 if any(ends.values()) else 0
    want = derivative(gradients, 1e-3, side)
    with_options = [*(jnp.asarray(x, jnp.float32) for x in direction[:2]), arrays(steps)]
    turn = jax.tree.map(np.asarray, run_transforms(entry, student, against, with_options)[-1])
    finite(turn, "second derivative")
    parts = [turn[0], *([] if entry.integers else [turn[1]])]
    got = [*(np.ravel(x) for x in parts), np.array([turn[2][n] for n in sorted(entry.options)])]
    rounding = 1e-6 * max(1e-3, np.abs(want[np.isfinite(want)]).max())
    for block in np.split(np.arange(len(want)), np.cumsum([len(x) for x in got])[:-1]):
        if len(block):
            values = np.concatenate(got)[block]
            known = np.isfinite(want[block])  # not so for a target on a forbidden class
            size = np.abs(want[block][known]).max()
            close(values[known], want[block][known], rtol=2e-3, atol=1e-3 * size + rounding)


def ends(entry: Entry) -> None:
    """The slope to an option at an end of its range is the one-sided one, wherever there is one:
    also with a class that one side excludes, or that lies 44 nats below on both."""
    student, against = data(entry, 5)
    student[1, 2] = student[3, 2] = -np.inf
    if entry.kind == "teacher":
        against[2, 2] = against[3, 2] = -np.inf
        student[0, 1] -= 44.0
        against[0, 1] -= 44.0
    elif entry.kind == "targets":
        against[1:, 2] = 0.0
    else:
        against[against == 2] = 4
    for name in entry.options:
        if not side_of(entry, name):
            continue
        steps = 10.0 ** -np.arange(3, 9)
        slopes = np.stack(
            [_option_slope(entry, name, student, against, step, each=True) for step in steps]
        )
        with np.errstate(invalid="ignore"):
            change = np.abs(np.diff(slopes, axis=0)) / (np.abs(slopes[1:]) + 1e-3)
        change = np.where(np.isnan(change), np.inf, change)
        best = change.argmin(0)
        checked = 0
        for row in range(len(student)):
            only = np.arange(len(student)) == row
            got = probe(entry, student, against, where=only)[1][2][name]
            assert np.isfinite(got)
            if change[best[row], row] < 1e-4:  # else infinite
                want = slopes[best[row] + 1, row]
                close(got, want, rtol=1e-3, atol=1e-5, what=f"{name}, row {row}")
                checked += 1
        assert checked >= 2


def ties(entry: Entry) -> None:
    """Where some classes have the same probability on both sides, the gradients are still those of
    central differences: the part of |p - q| for such a class has slope 0, on both sides."""
    student, against = data(entry)
    if entry.kind == "teacher":
        student = against.copy()
        student[:, [0, 1, 2, 3]] = against[:, [1, 0, 3, 2]]
        against[2] = np.round(16.0 * against[2]) / 16.0
        student[2] = against[2] - 40.0 * entry.shift_invariant
    elif entry.kind == "targets":
        against = softmax(student, -1)
    got = probe(entry, student, against)[1][:2]
    for x, want in zip(got, numerical_gradients(entry, student, against)[:2], strict=True):
        if want is not None:
            close(x, want, rtol=2e-4, atol=2e-5 * max(1e-3, np.abs(want).max()))


def equality(entry: Entry) -> None:
    """0 where student and teacher are equal, exactly, with gradients exactly 0."""
    for seed, scale in ((0, 2.0), (1, 0.0), (2, 100.0)):
        _, teacher = data(entry, seed, scale=scale)
        teacher[1, 3:5] = -np.inf
        rows, (to_student, to_teacher, to_options) = probe(entry, teacher, teacher)
        for x in (rows, to_student, to_teacher, *to_options.values()):
            assert (x == 0).all(), x


def near_equality(entry: Entry) -> None:
    """Right to 1e-5 at a KL divergence of about 4e-7, also where supports differ."""
    for seed, shift in ((0, 0.0), (1, 40.0 if entry.shift_invariant else 0.0)):
        student, teacher = nearly_equal(SHAPE, seed, entry.options.get("temperature", 1.0))
        student, teacher = student + np.float32(shift), teacher + np.float32(shift)
        rows, grads = probe(entry, student, teacher)
        want = entry.reference(student, teacher)
        close(rows, want, rtol=1e-5, atol=1e-16)  # the rounding of the reference
        finite(grads, "gradient")


def gradients_near_equality(entry: Entry) -> None:
    """Gradients keep their digits: at divergences of about 1e-5 and 1e-11 those to the logits are
    right to 1e-5, relative to the row's largest; so are at 1e-5 the slopes to options."""
    t = entry.options.get("temperature", 1.0)
    for seed, size in ((0, 5e-3), (1, 5e-6)):
        rng = np.random.default_rng(seed)
        teacher = (2 * t * rng.standard_normal(SHAPE)).astype(np.float32)
        teacher[1] = (0.1 * teacher[1]).astype(np.float32)
        student = teacher + (size * t * rng.standard_normal(SHAPE)).astype(np.float32)
        got = probe(entry, student, teacher)[1]
        step = 1e-3 * t if entry.smooth else size
        want = numerical_gradients(entry, student, teacher, step, option_step=1e-2)
        rounding = 1e-15 / step * t * t  # of the difference quotient
        for x, y in zip(got[:2], want[:2], strict=True):
            error = np.abs(x - y).max(-1) - rounding
            assert (error < 1e-5 * np.abs(y).max(-1)).all(), error / np.abs(y).max(-1)
        if size > 1e-4:
            for name, slope in want[2].items():
                size = entry.reference(student, teacher).sum()  # some slopes are far smaller
                close(got[2][name], slope, rtol=1e-4, atol=1e-6 * size + 1e-12, what=name)


def near_equality_many_classes(entry: Entry) -> None:
    """The same, with 128 thousand classes."""
    student, teacher = nearly_equal((2, MANY), 2, entry.options.get("temperature", 1.0))
    want = entry.reference(student, teacher)
    close(value(entry, student, teacher), want, rtol=1e-5, atol=1e-16)


def nearly_equal(shape, seed, temperature=1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows at a KL of about 4e-7 when softened: from noise, and in the last row from a class of the
    student's that the teacher forbids."""
    rng = np.random.default_rng(seed)
    teacher = (2 * temperature * rng.standard_normal(shape)).astype(np.float32)
    student = teacher + (9e-4 * temperature * rng.standard_normal(shape)).astype(np.float32)
    top = np.log(np.exp(teacher[-1].astype(np.float64) / temperature).sum())
    student[-1] = teacher[-1]
    teacher[-1, 1], student[-1, 1] = -np.inf, temperature * (top + math.log(4e-7))
    return student, teacher


def non_negative(entry: Entry) -> None:
    """Never below 0: not far away, and not near equality, where rounding would show."""
    for seed, scale in ((0, 2.0), (1, 20.0), (2, 300.0)):
        student, against = data(entry, seed, scale=scale)
        assert (probe(entry, student, against)[0] >= 0).all()
        if entry.scores:
            rng = np.random.default_rng(seed)
            for size in (1e-6, 1e-4, 1e-2):
                noise = (size * rng.standard_normal(SHAPE)).astype(np.float32)
                assert (probe(entry, against + noise, against)[0] >= 0).all()


def bounded(entry: Entry) -> None:
    """Never above its bound, which is nearly reached where the two have nothing in common."""
    highest = 0.0
    for seed, scale in ((0, 2.0), (1, 20.0), (2, 300.0)):
        student, teacher = data(entry, seed, scale=scale)
        if seed == 2:
            student[:, ::2], teacher[:, 1::2] = -np.inf, -np.inf
        rows, grads = probe(entry, student, teacher)
        assert (rows <= entry.bound * (1 + 1e-6)).all(), rows
        finite(grads, "gradient")
        highest = max(highest, rows.max())
    assert highest >= 0.9 * entry.bound


def swap(entry: Entry) -> None:
    """Swapping student and teacher is the same as swapping what the entry says, gradients too."""
    assert entry.swapped is not None
    loss, options = entry.swapped
    partner = Entry(loss, options)
    student, teacher = data(entry)
    student[1, 2] = -np.inf
    rows, (to_student, to_teacher, _) = probe(entry, student, teacher)
    other, (to_first, to_second, _) = probe(partner, teacher, student)
    close(rows, other, rtol=1e-5, atol=1e-6)
    close(to_student, to_second, rtol=1e-4, atol=1e-5)
    close(to_teacher, to_first, rtol=1e-4, atol=1e-5)


def shift(entry: Entry) -> None:
    """A constant added to an example's logits changes neither value nor gradient."""
    student, against = data(entry)
    student, against = np.round(student, 2), np.round(against, 2) if entry.scores else against
    rows, (to_student, *_) = probe(entry, student, against)
    for by in (1.0, -50.0, 3000.0):
        # The reference sees what rounding leaves of the shifted logits.
        shifted = (student + np.float32(by)).astype(np.float32)
        moved, (to_shifted, *_) = probe(entry, shifted, against)
        close(moved, entry.reference(shifted, against), rtol=3e-5, atol=3e-6)
        close(moved, rows, rtol=3e-3, atol=1e-3)
        close(to_shifted, to_student, rtol=3e-3, atol=1e-3)
        if entry.scores:
            both, _ = probe(entry, shifted, against + np.float32(by))
            close(both, entry.reference(shifted, against + np.float32(by)), rtol=3e-5, atol=3e-6)


def permutation(entry: Entry) -> None:
    """Renaming the classes changes no value, and permutes the gradient."""
    student, against = data(entry)
    order = np.random.default_rng(3).permutation(SHAPE[-1])
    rows, (to_student, to_against, _) = probe(entry, student, against)
    by_number = entry.kind == "labels"
    renamed = np.argsort(order)[against].astype(np.int32) if by_number else against[:, order]
    other, (to_other, to_renamed, _) = probe(entry, student[:, order], renamed)
    close(other, rows, rtol=1e-5, atol=1e-6)
    close(to_other, to_student[:, order], rtol=1e-5, atol=1e-6)
    if to_against is not None:
        close(to_renamed, to_against[:, order], rtol=1e-5, atol=1e-6)


# Second: masks, padding, splits.


def masked_rows(entry: Entry) -> None:
    """``where`` equals dropping the rows, in value and gradient."""
    student, against = data(entry)
    keep = np.array([True, False, False, True])
    rows, grads = probe(entry, student, against, where=keep)
    fewer, less = probe(entry, student[keep], against[keep])
    assert (rows[~keep] == 0).all()
    close(rows[keep], fewer, rtol=1e-6)
    for x, y in zip(grads[:2], less[:2], strict=True):
        if x is not None:
            assert (x[~keep] == 0).all()
            close(x[keep], y, rtol=1e-5, atol=1e-7)
    for name, slope in grads[2].items():
        close(slope, less[2][name], rtol=1e-5, atol=1e-5)


def padding(entry: Entry) -> None:
    """Whatever a masked row holds, its value and gradient are exactly 0, and no other row moves."""
    student, against = data(entry)
    keep = np.array([True, False, True, False])
    rows, grads = probe(entry, student, against, where=keep)
    for junk in (np.nan, np.inf, -np.inf):
        dirty, junk_against = student.copy(), against.copy()
        dirty[~keep] = junk
        junk_against[~keep] = 999 if entry.integers else junk
        got, got_grads = probe(entry, dirty, junk_against, where=keep)
        chex.assert_trees_all_equal((got, got_grads), (rows, grads))
        assert (got[~keep] == 0).all() and (got_grads[0][~keep] == 0).all()
    dirty[:] = np.nan
    got, got_grads = probe(entry, dirty, junk_against, where=np.zeros(4, bool))
    for x in jax.tree.leaves((got, got_grads)):
        assert (x == 0).all()


def splits(entry: Entry) -> None:
    """Summed over pieces of a batch, value and gradients are those of the whole."""
    student, against = data(entry)
    rows, grads = probe(entry, student, against)
    first, second = (probe(entry, student[i : i + 2], against[i : i + 2]) for i in (0, 2))
    close(np.concatenate([first[0], second[0]]), rows, rtol=1e-6)
    for whole, a, b in zip(grads[:2], first[1][:2], second[1][:2], strict=True):
        if whole is not None:
            close(np.concatenate([a, b]), whole, rtol=1e-5, atol=1e-7)
    for name, slope in grads[2].items():
        close(first[1][2][name] + second[1][2][name], slope, rtol=1e-5, atol=1e-5)


def any_batch(entry: Entry) -> None:
    """No example, one example, several leading axes: rows have the shape of the batch."""
    student, against = data(entry, shape=(0, 10))
    assert value(entry, student, against).shape == (0,)
    for batch in ((), (3,), (2, 3)):
        student, against = map(jnp.asarray, data(entry, shape=(*batch, 10)))
        out = jax.eval_shape(entry.loss, student, against)
        assert (out.shape, out.dtype) == (batch, jnp.float32)


# Third: numbers at their edges.


def forbidden_classes(entry: Entry) -> None:
    """Classes at -inf in both, in the student, in the teacher: finite where the mathematics is,
    ``inf`` and not NaN elsewhere, and all gradients finite, and right where the value is finite."""
    for dead_student, dead_teacher in (([3, 7], [3, 7]), ([3, 7], []), ([], [3, 7]), ([3], [7])):
        student, against = data(entry)
        student[1:3, dead_student] = -np.inf
        student[3, 1:] = -np.inf
        if entry.kind == "teacher":
            against[1:3, dead_teacher] = -np.inf
            against[3, 1:] = -np.inf
        elif entry.kind == "targets":
            against[1:3, dead_teacher] = 0.0
            against[3] = np.eye(10)[0]
        elif entry.kind == "answers":
            against[1:3, dead_teacher], against[3] = 0, np.eye(10)[0]
        elif entry.kind == "ranks":
            against[1:] = [0, 3, 1] if dead_teacher else [9, 3, 1]
        else:
            against[1:] = [dead_teacher[0] if dead_teacher else 0, 1, 0]
        want = entry.reference(student, against)
        rows, grads = probe(entry, student, against)
        assert not np.isnan(want).any()
        close(rows, want, rtol=2e-5, atol=1e-6)
        finite(grads, "gradient")
        fine = np.isfinite(want)
        for got, slope in zip(
            grads[:2], numerical_gradients(entry, student, against)[:2], strict=True
        ):
            if slope is not None:
                # An infinitesimal target on a forbidden class is infinite: no numerical gradient.
                right = np.isfinite(slope[fine])
                close(got[fine][right], slope[fine][right], rtol=5e-4, atol=2e-5)


def no_distribution(entry: Entry) -> None:
    """A row with every class at -inf is NaN, on either side, and no other row is."""
    student, against = data(entry)
    student[1] = -np.inf
    if entry.kind == "teacher":
        against[2] = -np.inf
    rows, _ = probe(entry, student, against)
    np.testing.assert_array_equal(np.isnan(rows), [False, True, entry.kind == "teacher", False])


def extreme_gaps(entry: Entry) -> None:
    """Logits 1e4 and 1e9 apart: the right value and gradients."""
    student, against = data(entry)
    student[:, 0] += 1e4
    student[2] *= 1e3
    if entry.kind == "teacher":
        against[:, 1] += 1e4
        against[3, 2] -= 1e4
    rows, grads = probe(entry, student, against)
    close(rows, entry.reference(student, against), rtol=2e-5, atol=1e-5)
    finite(grads, "gradient")
    for far in (True, False):  # a class that one side all but excludes
        student, against = data(entry)
        (student if far or entry.kind != "teacher" else against)[:, 3] = -1e9
        if entry.kind == "targets":
            against[:, 3] = 0.0
        elif entry.kind == "labels":
            against[against == 3] = 4
        rows, grads = probe(entry, student, against)
        close(rows, entry.reference(student, against), rtol=2e-5, atol=1e-5)
        finite(grads, "gradient")
        step = 1e-2 * entry.options.get("temperature", 1.0)
        if not (entry.smooth or entry.shift_invariant):
            continue  # values of 1e9, whose rounding is larger than a step between two kinks
        want = numerical_gradients(entry, student, against, step)[:2]
        for x, y in zip(grads[:2], want, strict=True):
            if y is not None:
                close(x, y, rtol=1e-3, atol=1e-4 + 3e-5 * np.abs(y).max())


def low_precision(entry: Entry) -> None:
    """bfloat16 and float16 in: float32 out, equal to the float64 reference of the rounded inputs;
    the gradient is right to the rounding of its own storage."""
    for dtype, rounding in ((jnp.bfloat16, 2.0**-8), (jnp.float16, 2.0**-11)):
        student, against = (jnp.asarray(x) for x in data(entry))
        student = student.astype(dtype)
        against = against if entry.integers else against.astype(dtype)
        rows, (to_student, to_against, to_options) = probe(entry, student, against)
        assert rows.dtype == np.float32 and to_student.dtype == student.dtype
        plain = [
            np.asarray(x.astype(jnp.float32)) if x.dtype == dtype else x for x in (student, against)
        ]
        close(rows, entry.reference(*plain), rtol=1e-5, atol=2e-6)
        want = numerical_gradients(entry, *plain)
        floor = rounding * 1.01
        close(to_student, want[0], rtol=floor, atol=1e-5)
        if to_against is not None:
            close(to_against, want[1], rtol=floor, atol=1e-5)


def double_precision(entry: Entry) -> None:
    """float64 in, float64 out: nothing inside falls back to float32, and no series is too short."""
    with jax.enable_x64(True):
        for near in (False, True):
            student, against = data(entry)
            if near and entry.scores:
                student = np.float64(against) + 0.2 * np.float64(student)
            student = jnp.asarray(student, jnp.float64)
            against = jnp.asarray(against, jnp.int32 if entry.integers else jnp.float64)
            options = {name: jnp.asarray(x, jnp.float64) for name, x in entry.options.items()}
            got = _value(entry.loss, "float64")(student, against, options)
            assert got.dtype == np.float64
            close(got, entry.reference(student, against), rtol=1e-11, atol=1e-14)


def temperature(entry: Entry) -> None:
    """The gradient's size stays within 3% while T runs from 1 to 20, for small logits (0.1)."""
    student, teacher = data(entry, scale=0.1)
    sizes = [
        np.linalg.norm(probe(entry, student, teacher, options={"temperature": t})[1][0])
        for t in (1.0, 2.0, 5.0, 10.0, 20.0)
    ]
    close(sizes, sizes[-1], rtol=0.03)


# Fourth: bad input.


def complaints(entry: Entry) -> None:
    """Wrong shapes, dtypes and options raise, and the message names the argument."""
    student, against = (jnp.asarray(x) for x in data(entry))
    names = {"teacher": "teacher_logits", "targets": "targets", "numbers": "targets"}
    second = names.get(entry.kind, "labels")

    def refuses(error, match, *args, **kwargs):
        with pytest.raises(error, match=match):
            entry.loss(*args, **{**entry.options, **kwargs})

    refuses(ValueError, second, student, against[:3])
    refuses(ValueError, second, student[:, None], against)  # would broadcast
    refuses(TypeError, "student_logits", student.astype(jnp.int32), against)
    refuses(TypeError, "where", student, against, where=jnp.ones(4))
    refuses(ValueError, "where", student, against, where=jnp.ones((4, 1), bool))
    wrong = against.astype(jnp.float32 if entry.integers else jnp.int32)
    refuses(TypeError, second, student, wrong)
    if against.ndim == 2:
        refuses(ValueError, second, student, against[:, :9])
    few = (student[:, :1], against[:, :1] if against.ndim == 2 else against * 0)
    if entry.one_output:
        close(entry.loss(*few, **entry.options), entry.reference(*few), rtol=1e-5, atol=1e-6)
    else:
        refuses(ValueError, "student_logits", *few)
    refuses(ValueError, "student_logits", student[:, :0], few[1])
    for name, values in entry.refused.items():
        for x in values:
            refuses(ValueError, name, student, against, **{name: x})
        refuses(ValueError, name, student, against, **{name: jnp.full(4, 0.5)})
    assert set(entry.refused) == set(entry.options), "each option must refuse something"


LAWS: list[tuple[Callable[[Entry], None], Callable[[Entry], bool]]] = [
    (reference, lambda e: True),
    (gradient, lambda e: True),
    (transforms, lambda e: True),
    (second_order, lambda e: e.smooth),
    (ends, lambda e: any(side_of(e, name) for name in e.options)),
    (ties, lambda e: True),
    (equality, lambda e: e.scores),
    (near_equality, lambda e: e.scores),
    (gradients_near_equality, lambda e: e.scores),
    (near_equality_many_classes, lambda e: e.scores),
    (non_negative, lambda e: True),
    (bounded, lambda e: math.isfinite(e.bound)),
    (swap, lambda e: e.swapped is not None),
    (shift, lambda e: e.shift_invariant),
    (permutation, lambda e: e.kind != "ranks"),  # ordered
    (masked_rows, lambda e: True),
    (padding, lambda e: True),
    (splits, lambda e: not e.couples_examples),
    (any_batch, lambda e: True),
    (forbidden_classes, lambda e: e.kind != "numbers"),
    (no_distribution, lambda e: e.shift_invariant and e.options.get("threshold", 0) < 0.25),
    (extreme_gaps, lambda e: True),
    (low_precision, lambda e: True),
    (double_precision, lambda e: True),
    (temperature, lambda e: e.t2_scaled),
    (complaints, lambda e: True),
]


def pairs() -> list[tuple[Callable[[Entry], None], Entry]]:
    """Every law with every loss that it applies to, loss by loss so that compiled functions of one
    are used while they are warm."""
    return [(law, entry) for entry in LOSSES for law, applies in LAWS if applies(entry)]
