"""Explanations of single predictions: which rules fired, and how each changed the prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding._tables import one_row
from distill_jax.rules.binding.book import Book, encode, encoded_rows
from distill_jax.rules.binding.schema import is_array, unmasked
from distill_jax.rules.inspection.checking import crisp
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import fires, violation


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The results of ``explain``, as plain data that can be written as JSON.

    Attributes:
      rows: One mapping per rule that fires, those with the largest effect first, then one per rule
        that is silent because of a missing value.
      summary: The predictions and probabilities before and after the rules.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@checked
def explain(
    book: Book,
    example: Any,
    logits: Any,
    *,
    strengths: Any = None,
    views: Views | None = None,
) -> Explanation:
    """Which rules fired on one example, and how much each changed the prediction.

    Every row holds ``rule``, ``text``, ``strength`` (log-odds, or "hard") and ``silent``: whether
    the rule does not fire but would for some value in place of a missing one.

    With exclusive classes the prediction is that of ``project``: the model's probabilities p,
    corrected to q by the rules. Each row also holds

    - ``violated``: whether the class that the model alone predicts violates the rule (a number, the
      violation, if it depends on another view or a soft comparison);
    - ``against``: the classes that violate it;
    - ``moved``: the log-odds that it adds to the corrected prediction relative to the next best
      class; None for a hard rule, whose log-odds are infinite;
    - ``probability`` of the corrected prediction under q, the same ``without`` this rule, and their
      difference, ``change``.

    The summary holds ``prediction`` and ``next_best`` under q, ``before``, the prediction under p,
    both ``probabilities`` and ``probabilities_before``, by class, and ``no_class_left``: whether
    hard rules forbid every class, and are ignored.

    With label sets nothing is corrected. The rows hold whether the rule is ``violated`` by the
    labels with a logit above 0, its ``violation`` at the model's probabilities, and the effect of
    one gradient step on strength · violation with respect to the logits: the ``label`` whose logit
    changes most, and by how much it has ``moved`` (a hard rule counts as one of strength 1). The
    summary holds ``prediction``, the labels with a logit above 0, and ``probabilities``.

    Args:
      book: The rules.
      example: A row: a mapping from columns to values, a pandas Series such as ``df.iloc[i]`` (read
        by its labels), a named tuple or a row of a structured array; or a table with one row; or
        columns from ``encode``, ``[columns]`` or ``[1, columns]``.
      logits: The model's logits, ``[classes]``.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``.
      views: The model's logits on other views, ``[classes]`` each, by name, if the rules use them.

    Returns:
      An ``Explanation``: a row per rule that fires or is silent, and a summary.

    Raises:
      ValueError: if there is more than one row, a column is missing or there twice, for other
        shapes, or a missing view.

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
    z, columns, view_logits = _inputs.prepared(
        book, jnp.asarray(logits)[None], columns, batched, name="logits"
    )
    strengths = _checks.numbers("strengths", book.strengths if strengths is None else strengths)
    _checks.shape((len(book),), strengths=strengths)
    _checks.finite(strengths=strengths)
    hard = np.asarray(book.hard)
    strengths = np.where(hard, 0.0, strengths)
    fired, possible = (np.asarray(x[0]) for x in _fires_and_may_fire(book, columns))
    if book.schema.exclusive:
        logits = np.asarray(z[0], np.float64)
        rows, summary = _of_classes(book, columns, logits, strengths, view_logits)
    else:
        finite = np.where(hard, 1.0, strengths)
        rows, summary = _of_labels(book, columns, z, finite, view_logits)
    names = book.names
    kept = []
    for i, row in enumerate(rows):
        silent = bool(possible[i] and not fired[i])
        # With soft comparisons, a rule also has an effect near the rows where it fires.
        if not (fired[i] or silent or row["moved"]):
            continue
        common = {
            "rule": names[i],
            "text": str(book.rules[i]),
            "strength": "hard" if hard[i] else float(strengths[i]),
            "silent": silent,
        }
        kept.append(common | row)
    kept.sort(key=lambda row: (row["silent"], -abs(row.get("change", row["moved"] or 0.0))))
    return Explanation(kept, summary)


def _row(book: Book, example: Any) -> np.ndarray:
    """Encoded columns of one example, ``[1, columns]``."""
    if is_array(example):
        columns = np.asarray(unmasked(example))
        if columns.ndim > 2:
            raise ValueError(
                f"example must be encoded columns, [columns] or [1, columns], got {columns.shape}"
            )
        columns = encoded_rows(book, columns[None] if columns.ndim == 1 else columns)
    else:
        try:
            columns = encode(book, one_row(example))
        except TypeError as error:
            if "table must be" not in str(error):
                raise
            raise TypeError(
                "example must be a mapping from columns to values, a row of a data frame, a table "
                f"of one row or encoded columns, got {type(example).__name__}"
            ) from error
    if len(columns) != 1:
        raise ValueError(f"example must be one row, got {len(columns)}")
    return columns


def _of_classes(
    book: Book, columns: Any, z: np.ndarray, strengths: np.ndarray, views: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of all rules and the summary, over exclusive classes."""
    classes, hard = book.schema.classes, np.asarray(book.hard)
    k = len(classes)
    repeated = {name: jnp.repeat(x, k, 0) for name, x in views.items()}
    by_class = _violations(book, jnp.repeat(columns, k, 0), jnp.eye(k), repeated)
    violated = np.asarray(by_class, np.float64)  # [classes, rules]
    if book.info.soft:  # hard rules forbid by crisp comparisons
        by_class = _violations(crisp(book), jnp.repeat(columns, k, 0), jnp.eye(k), repeated)
        violated = np.where(hard, by_class, violated)

    def corrected(use: np.ndarray) -> np.ndarray:
        """Probabilities under some of the rules, as ``project`` has them."""
        out = (violated[:, use & hard] > 0.5).any(1)
        out &= not out.all()  # hard rules that leave no class are ignored
        kept = np.where(out, -np.inf, z)
        if np.isneginf(kept).all() and not np.isneginf(z).all():
            kept = np.where(out, -np.inf, 0.0)  # the model excludes all classes that are left
        if np.isposinf(kept).any():
            kept = np.where(np.isposinf(kept), 0.0, -np.inf)
        scores = kept - violated @ np.where(use, strengths, 0.0)
        with np.errstate(invalid="ignore"):  # NaN where the model's own logits are no distribution
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
        is_certain = own in (0.0, 1.0)
        moved = float(strengths[i] * (violated[rival, i] - violated[best, i]))
        rows.append(
            {
                "violated": bool(own) if is_certain else float(own),
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
        "no_class_left": bool((violated[:, hard] > 0.5).any(1).all()),
    }
    return rows, summary


def _of_labels(
    book: Book, columns: Any, z: Any, strengths: np.ndarray, views: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of all rules and the summary, over label sets."""
    classes = book.schema.classes
    p = _predictions.probabilities(book, z)
    predicted = _predictions.predicted(book, z).astype(jnp.float32)
    by_view = {name: _predictions.predicted(book, x) for name, x in views.items()}
    as_logits = {name: _predictions.certain(book, x) for name, x in by_view.items()}
    violated = np.asarray(_violations(book, columns, predicted, as_logits)[0])
    at_p, gradients = jax.device_get(_violation_and_gradient(book, columns, z, dict(views)))
    rows = []
    for i in range(len(book)):
        step = -strengths[i] * gradients[i]
        most = int(np.abs(step).argmax())
        rows.append(
            {
                "violated": bool(violated[i] > 0.5),
                "violation": float(at_p[i]),
                "label": classes[most] if step[most] else None,
                "moved": float(step[most]),
            }
        )
    summary = {
        "prediction": [n for n, x in zip(classes, np.asarray(predicted[0]), strict=True) if x],
        "probabilities": dict(zip(classes, np.asarray(p[0]).tolist(), strict=True)),
    }
    return rows, summary


@jax.jit
def _fires_and_may_fire(book: Book, columns: Any) -> tuple[Any, Any]:
    """Where rules fire, and where they would if atoms over missing values held."""
    return fires(book, columns), fires(book, columns, unknown=True)


@jax.jit
def _violations(book: Book, columns: Any, probabilities: Any, views: Any) -> Any:
    return violation(book, columns, probabilities, views=views)


@jax.jit
def _violation_and_gradient(book: Book, columns: Any, z: Any, views: Any) -> tuple[Any, Any]:
    """Each rule's violation, ``[rules]``, and its gradient to the logits, ``[rules, labels]``."""

    def at(z: Any) -> Any:
        return violation(book, columns, _predictions.probabilities(book, z), views=views)[0]

    value, pull_back = jax.vjp(at, z)
    return value, jax.lax.map(lambda row: pull_back(row)[0][0], jnp.eye(len(book)))
