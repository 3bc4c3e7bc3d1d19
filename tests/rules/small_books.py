"""What the tests of rules share: two small books, and what they mean in float64 NumPy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.objectives import Context
from distill_jax.rules import Book, Column, Schema, bind
from distill_jax.types import Outputs

COLUMNS = (Column("age"), Column("smoker", "boolean"))
CLASSES = ("well", "sick", "dead")

# Each rule, and which class violates it where: (age, smoker, class, class of the view).
RULES = (
    ("[w=2] age < 30 => not sick", lambda a, s, k, v: a < 30 and k == 1),
    ("[hard] smoker => not well", lambda a, s, k, v: s == 1 and k == 0),
    ("[learn] age > 60 and not smoker => sick", lambda a, s, k, v: a > 60 and s == 0 and k != 1),
    ("[w=0.5] well => age <= 50", lambda a, s, k, v: k == 0 and a > 50),
    ("[w=3] age > 40 => state == view(later).state", lambda a, s, k, v: a > 40 and k != v),
    ("[w=1] age > 70 => not (well or sick or dead)", lambda a, s, k, v: a > 70),
)
STRENGTHS = np.array([2.0, 0.0, 0.0, 0.5, 3.0, 1.0])
WEIGHTS = np.array([2.0, 10.0, 1.0, 0.5, 3.0, 1.0])
HARD = np.arange(6) == 1

# The same for label sets, where violation is a polynomial in the labels' probabilities.
LABEL_RULES = (
    ("[w=2] a => b", lambda a, s, p: p[0] * (1 - p[1])),
    ("[hard] smoker => a or c", lambda a, s, p: (s == 1) * (1 - p[0]) * (1 - p[2])),
    ("[w=1] not (a and b and c)", lambda a, s, p: p[0] * p[1] * p[2]),
    (
        "[w=4] age > 40 and c => b",
        lambda a, s, p: (a > 40) * p[2] * (1 - p[1]),
    ),
)

LABEL_WEIGHTS = np.array([2.0, 10.0, 1.0, 4.0])


@functools.cache
def book(order: tuple[str, ...] = CLASSES) -> Book:
    """Over exclusive classes."""
    schema = Schema(COLUMNS, order, target="state", views=("later",))
    with jax.ensure_compile_time_eval():  # whichever test comes first, in a traced function or not
        return bind("\n".join(text for text, _ in RULES), schema)


@functools.cache
def plain() -> Book:
    """The same without views, and without a rule that nothing satisfies."""
    with jax.ensure_compile_time_eval():  # whichever test comes first, in a traced function or not
        return bind("\n".join(text for text, _ in RULES[:4]), Schema(COLUMNS, CLASSES))


@functools.cache
def labels(logic: Any = "product") -> Book:
    """Over label sets."""
    schema = Schema(COLUMNS, ("a", "b", "c"), exclusive=False)
    with jax.ensure_compile_time_eval():  # whichever test comes first, in a traced function or not
        return bind("\n".join(text for text, _ in LABEL_RULES), schema, logic=logic)


def data(seed: int = 0, *, scale: float = 2.0) -> tuple[Any, Any, Any]:
    """Logits, columns and logits of the view: 8 rows, in which each rule fires, and values miss."""
    rng = np.random.default_rng(seed)
    columns = np.array(
        [[20, 0], [25, 1], [65, 0], [75, 0], [55, 1], [45, 0], [np.nan, 1], [80, np.nan]],
        np.float32,
    )
    logits, view = (scale * rng.standard_normal((2, 8, 3))).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(columns), {"later": Outputs(jnp.asarray(view))}


def softmax(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tables(columns: Any, view: Any, *, satisfied: bool = False) -> np.ndarray:
    """How far each class violates (or satisfies) each rule, ``[batch, rules, classes]``. NaN lies
    on no side of a comparison."""
    shown = softmax(view)
    return np.array(
        [
            [
                [
                    sum(shown[b, v] * (bool(rule(*row, k, v)) != satisfied) for v in range(3))
                    for k in range(3)
                ]
                for _, rule in RULES
            ]
            for b, row in enumerate(np.asarray(columns, np.float64))
        ]
    )


def violations(logits: Any, columns: Any, view: Any) -> np.ndarray:
    return (tables(columns, view) * softmax(logits)[:, None, :]).sum(-1)


def truths(logits: Any, columns: Any, view: Any) -> np.ndarray:
    return (tables(columns, view, satisfied=True) * softmax(logits)[:, None, :]).sum(-1)


def posterior(logits, columns, view, strengths=STRENGTHS):
    """What ``project`` makes of the logits: by its definition, ``[batch, classes]``.

    Hard rules are ignored where they leave no class.
    """
    against = tables(columns, view)
    p = softmax(logits)
    forbidden = (against[:, HARD] > 0).any(1)
    soft = p * np.exp(-(strengths * ~HARD)[None, :, None] * against).prod(1)
    q = soft * ~forbidden
    q = np.where(q.sum(1, keepdims=True) > 0, q, soft)
    return q / q.sum(1, keepdims=True)


def label_violations(logits: Any, columns: Any) -> np.ndarray:
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return np.array(
        [
            [float(rule(*row, p[b])) for _, rule in LABEL_RULES]
            for b, row in enumerate(np.asarray(columns, np.float64))
        ]
    )


def slopes(function: Any, x: Any, step: float = 1e-6) -> np.ndarray:
    """Numerical gradient of rows ``[batch]`` to ``x`` ``[batch, n]`` whose rows do not mix."""
    x = np.asarray(x, np.float64)
    columns = []
    for k in range(x.shape[1]):
        nudge = np.zeros(x.shape[1])
        nudge[k] = step
        with np.errstate(invalid="ignore"):
            columns.append((function(x + nudge) - function(x - nudge)) / (2 * step))
    return np.stack(columns, 1)


def quick(function: Any, **options: Any) -> Any:
    """Jitted, compiled in half the time: XLA's own steps stay, machine code is not polished."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def value_of(objective, params, logits, columns, views, *, state=None, denominators=None, **batch):
    """An objective at a student's outputs; a step and further columns of the batch by name."""
    step = batch.pop("step", 0)
    batch = {"inputs": columns, "columns": columns, **batch}
    context = Context(Outputs(logits), {}, batch, step, views=views)
    return objective(params, state or {}, context, denominators)
