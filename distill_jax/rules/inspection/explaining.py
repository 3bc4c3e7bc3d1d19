"""Why a prediction came out as it did: which rules fired, and what each one changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import _checks
from distill_jax.rules.binding.book import Book, encode, number_of_columns
from distill_jax.rules.inspection.checking import crisp
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import fires, violation


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ``explain`` found, as plain data that JSON can hold.

    Attributes:
      rows: One mapping for each rule that fires, the most effective first, then for each that is
        silent because of a missing value.
      summary: Probabilities before and after the rules, and the predictions.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def explain(
    book: Book,
    example: Any,
    logits: Any,
    *,
    strengths: Any = None,
    views: Views | None = None,
) -> Explanation:
    """Which rules fired on one example, and by how much each moved the prediction.

    With exclusive classes the prediction is that of ``project``: the model's probabilities p,
    corrected to q by the rules. For each rule that fires:

    - ``violated``: whether the class that the model alone predicts violates it (its violation, if
      it depends on another view or a soft comparison);
    - ``against``: the classes that violate it;
    - ``moved``: log-odds that it adds to the corrected prediction against the next best class; None
      for a hard rule, whose log-odds are infinite where it forbids;
    - ``probability`` of the corrected prediction under q, ``without`` this rule alone, and the
      ``change``, the difference.

    With label sets nothing is corrected; the rows say which rules are ``violated`` by the labels
    with a logit above 0, the ``violation`` at the model's probabilities, and, to first order, the
    label that the rule pushes most (``label``) and how far (``moved``: the log-odds by which one
    step down strength · violation moves it; a hard rule is taken to have strength 1).

    Args:
      book: The rules.
      example: A row by column, a table with one row, or columns from ``encode``: ``[columns]`` or
        ``[1, columns]``.
      logits: What the model says, ``[classes]``.
      strengths: In place of the book's own, ``[rules]``.
      views: The model's logits on other views, ``[classes]``, where the rules use them.

    Raises:
      ValueError: if there is more than one row, or a shape does not fit.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("[w=2] old: age > 60 => sick", schema)
      >>> (row,) = explain(book, {"age": 70}, jnp.array([1.0, 0.0])).rows
      >>> row["rule"], row["violated"], row["moved"], f"{row['change']:.3f}"
      ('old', True, 2.0, '0.462')
    """
    columns = _row(book, example)
    classes = len(book.schema.classes)
    _checks.shape((classes,), logits=logits)
    _inputs.check_views(book, views)
    single = {name: getattr(view, "logits", view) for name, view in (views or {}).items()}
    _checks.shape((classes,), **{f"views[{name!r}]": x for name, x in single.items()})
    batched = {name: jnp.asarray(x)[None] for name, x in single.items()}
    z, columns, seen = _inputs.prepared(book, jnp.asarray(logits)[None], columns, batched)
    strengths = np.asarray(book.strengths if strengths is None else strengths, np.float64)
    _checks.shape((len(book),), strengths=strengths)
    _checks.finite(strengths=strengths)
    hard = np.asarray(book.hard)
    strengths = np.where(hard, 0.0, strengths)
    fired = np.asarray(fires(book, columns)[0])
    possible = np.asarray(fires(book, columns, unknown=True)[0])
    if book.schema.exclusive:
        found = _classes(book, columns, np.asarray(z[0], np.float64), strengths, seen)
    else:
        found = _labels(book, columns, z, np.where(hard, 1.0, strengths), seen)
    rows, summary = found
    names = book.names
    kept = []
    for i, row in enumerate(rows):
        silent = bool(possible[i] and not fired[i])
        # Soft comparisons reach beyond where a rule fires.
        if not (fired[i] or silent or row["moved"]):
            continue
        said = "hard" if hard[i] else float(strengths[i])
        kept.append(
            {"rule": names[i], "text": str(book.rules[i]), "strength": said, "silent": silent} | row
        )
    kept.sort(key=lambda row: (row["silent"], -abs(row.get("change", row["moved"] or 0.0))))
    return Explanation(kept, summary)


def _row(book: Book, example: Any) -> np.ndarray:
    """Encoded columns of one example, ``[1, columns]``."""
    if isinstance(example, Mapping):
        example = {
            name: x if np.ndim(x) == 1 else np.array([x], None if isinstance(x, str) else object)
            for name, x in example.items()
        }
    if hasattr(example, "dtype") and getattr(example.dtype, "names", None) is None:
        columns = np.atleast_2d(np.asarray(example, np.float32))
    else:
        columns = encode(book, example)
    expected = (1, number_of_columns(book))
    if columns.shape != expected:
        raise ValueError(
            f"example must be one row, with {expected[1]} encoded columns, got {columns.shape}"
        )
    return columns


def _classes(
    book: Book, columns: Any, z: np.ndarray, strengths: np.ndarray, seen: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    classes, hard = book.schema.classes, np.asarray(book.hard)
    k = len(classes)
    repeated = {name: jnp.repeat(x, k, 0) for name, x in seen.items()}
    by_class = _violations(book, jnp.repeat(columns, k, 0), jnp.eye(k), repeated)
    violated = np.asarray(by_class, np.float64)  # [classes, rules]
    if book.info.soft:  # what hard rules forbid is crisp
        by_class = _violations(crisp(book), jnp.repeat(columns, k, 0), jnp.eye(k), repeated)
        violated = np.where(hard, by_class, violated)

    def corrected(use: np.ndarray) -> np.ndarray:
        """Probabilities with some of the rules; hard ones that leave nothing are ignored."""
        scores = z - violated @ np.where(use, strengths, 0.0)
        out = (violated[:, use & hard] > 0.5).any(1)
        if (~out & ~np.isneginf(scores)).any():
            scores = np.where(out, -np.inf, scores)
        odds = np.exp(scores - scores.max())
        return odds / odds.sum()

    everything = np.ones(len(book), bool)
    before, after = corrected(~everything), corrected(everything)
    best = int(after.argmax())
    rival = int(np.where(np.arange(k) == best, -1.0, after).argmax())
    rows = []
    for i in range(len(book)):
        without = corrected(everything & (np.arange(len(book)) != i))
        own = violated[int(before.argmax()), i]
        decided = own in (0.0, 1.0)
        moved = float(strengths[i] * (violated[rival, i] - violated[best, i]))
        rows.append(
            {
                "violated": bool(own) if decided else float(own),
                "against": [classes[j] for j in range(k) if violated[j, i] > 0],
                "moved": None if hard[i] else moved,
                "probability": float(after[best]),
                "without": float(without[best]),
                "change": float(after[best] - without[best]),
            }
        )
    summary = {
        "prediction": classes[best],
        "next_best": classes[rival],
        "before": classes[int(before.argmax())],
        "probabilities": dict(zip(classes, after.tolist(), strict=True)),
        "probabilities_before": dict(zip(classes, before.tolist(), strict=True)),
        "hopeless": bool((violated[:, hard] > 0.5).any(1).all()),
    }
    return rows, summary


def _labels(
    book: Book, columns: Any, z: Any, strengths: np.ndarray, seen: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    classes = book.schema.classes
    p = _predictions.probabilities(book, z)
    predicted = _predictions.predicted(book, z).astype(jnp.float32)
    by_view = {name: _predictions.predicted(book, x) for name, x in seen.items()}
    shown = {name: _predictions.certain(book, x) for name, x in by_view.items()}
    broken = np.asarray(_violations(book, columns, predicted, shown)[0])
    now, pulls = jax.device_get(_pulls(book, columns, z, dict(seen)))
    rows = []
    for i in range(len(book)):
        push = -strengths[i] * pulls[i]
        most = int(np.abs(push).argmax())
        rows.append(
            {
                "violated": bool(broken[i] > 0.5),
                "violation": float(now[i]),
                "label": classes[most] if push[most] else None,
                "moved": float(push[most]),
            }
        )
    summary = {
        "prediction": [n for n, x in zip(classes, np.asarray(predicted[0]), strict=True) if x],
        "probabilities": dict(zip(classes, np.asarray(p[0]).tolist(), strict=True)),
    }
    return rows, summary


@jax.jit
def _violations(book: Book, columns: Any, probabilities: Any, views: Any) -> Any:
    return violation(book, columns, probabilities, views=views)


@jax.jit
def _pulls(book: Book, columns: Any, z: Any, views: Any) -> tuple[Any, Any]:
    """Violation of each rule, ``[rules]``, and its derivatives by the logits."""

    def at(z: Any) -> Any:
        return violation(book, columns, _predictions.probabilities(book, z), views=views)[0]

    now, back = jax.vjp(at, z)
    return now, jax.lax.map(lambda row: back(row)[0][0], jnp.eye(len(book)))
