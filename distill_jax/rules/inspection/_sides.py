"""How the gradient of a rule's violation is divided between head and body."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.rules.binding.book import Book
from distill_jax.rules.language import formulas as f
from distill_jax.rules.logic import _predictions
from distill_jax.rules.logic.evaluation import violation

MOST_ROWS = 256
"""Rows over which gradients are summed, at most."""


def shares(book: Book, data: Mapping[str, Any]) -> list[tuple[float | None, float | None]]:
    """The shares of the gradient of each rule's violation that reach its head and its body.

    Args:
      book: The rules, with the widths of soft comparisons.
      data: ``columns`` and, where given, ``logits`` and ``views`` (logits by name).

    Returns:
      ``(head, body)`` per rule, which sum to 1; ``(None, None)`` for a rule without gradient.
    """
    columns = data["columns"]
    some = np.linspace(0, len(columns) - 1, min(len(columns), MOST_ROWS)).astype(int)
    logits = data.get("logits", np.zeros((len(columns), len(book.schema.classes)), np.float32))
    views = {name: x[some] for name, x in data.get("views", {}).items()}
    by_label, by_comparison = jax.device_get(_gradients(book, columns[some], logits[some], views))
    if book.schema.exclusive:
        in_head = np.ones(by_label.shape)
        in_body = np.zeros(by_label.shape)
    else:
        in_head, in_body = _labels_in_head_and_body(book)
    head = (by_label * in_head).sum(1)
    body = (by_label * in_body).sum(1) + by_comparison
    total = head + body
    return [
        (float(h / t), float(b / t)) if t > 0 else (None, None)
        for h, b, t in zip(head, body, total, strict=True)
    ]


@jax.jit
def _gradients(book: Book, columns: Any, logits: Any, views: Any) -> tuple[Any, Any]:
    """Σ |∂ violation / ∂ x| over rows, for the probability of each label and the soft comparisons.

    Returns:
      ``[rules, classes]`` for the labels, and ``[rules]`` for the sum over comparisons, where x is
      a shift of the threshold in widths.
    """
    circuit = book.circuit
    batch, soft = columns.shape[0], book.info.soft

    def of_row(p: Any, shift: Any, x: Any, view_logits: Any) -> Any:
        shifted = book
        if soft:
            by = shift * circuit.width
            shifted = dataclasses.replace(
                book, circuit=dataclasses.replace(circuit, low=circuit.low - by,
                                                  high=circuit.high - by)
            )  # fmt: skip
        single = {name: z[None] for name, z in view_logits.items()}
        return violation(shifted, x[None], p[None], views=single)[0]

    shifts = jnp.zeros((batch, circuit.width.shape[0] if soft else 0))

    def of_rule(rule: Any) -> tuple[Any, Any]:
        def total(p: Any, shift: Any) -> Any:
            return jax.vmap(of_row)(p, shift, columns, views)[:, rule].sum()

        by_p, by_shift = jax.grad(total, argnums=(0, 1))(
            _predictions.probabilities(book, logits), shifts
        )
        return jnp.abs(by_p).sum(0), jnp.abs(by_shift).sum()

    return jax.lax.map(of_rule, jnp.arange(len(book)))


def _labels_in_head_and_body(book: Book) -> tuple[np.ndarray, np.ndarray]:
    """Which labels occur in each rule's head and body, as 0 and 1, ``[rules, labels]`` each."""
    clauses: dict[str, list[f.Formula]] = {}
    for clause in book.info.definitions:
        formula = clause.formula
        if isinstance(formula, f.Implies) and isinstance(formula.head, f.Name):
            clauses.setdefault(formula.head.name, []).append(formula.body)
    head, body = (np.zeros((len(book), len(book.schema.classes))) for _ in range(2))
    for i, rule in enumerate(book.rules):
        formula = rule.formula
        if isinstance(formula, f.Implies):
            sides = formula.head, formula.body
        else:
            sides = formula, None
        for side, found in zip(sides, (head, body), strict=True):
            for name in _names(side, clauses):
                if name in book.schema.classes:
                    found[i, book.schema.classes.index(name)] = 1
    return head, body


def _names(tree: Any, clauses: Mapping[str, list[f.Formula]]) -> set[str]:
    """The names in a formula, and in the clauses that define them."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        tree = waiting.pop()
        if isinstance(tree, f.Name) and tree.name not in found:
            found.add(tree.name)
            waiting += clauses.get(tree.name, [])
        elif isinstance(tree, f.Tree) and not isinstance(tree, f.Name | f.Of):
            for part in vars(tree).values():
                waiting += part if isinstance(part, tuple) else (part,)
    return found
