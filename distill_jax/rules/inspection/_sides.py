"""Which side of an implication the gradient of its violation reaches."""

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


def shares(book: Book, data: Mapping[str, Any]) -> list[tuple[float | None, float | None]]:
    """For each rule the shares of head and body; None for one that gets no gradient.

    Args:
      book: The rules, comparisons soft as they are.
      data: ``columns`` and, if there are any, ``logits`` and ``views``, logits by name.
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
        in_head, in_body = _places(book)
    head = (by_label * in_head).sum(1)
    body = (by_label * in_body).sum(1) + by_comparison
    total = head + body
    return [
        (float(h / t), float(b / t)) if t > 0 else (None, None)
        for h, b, t in zip(head, body, total, strict=True)
    ]


@jax.jit
def _gradients(book: Book, columns: Any, logits: Any, views: Any) -> tuple[Any, Any]:
    """Σ |∂ violation| by each label's probability, ``[rules, classes]``, and by comparisons."""
    circuit = book.circuit
    batch, soft = columns.shape[0], book.info.soft

    def one(p: Any, shift: Any, x: Any, seen: Any) -> Any:
        moved = book
        if soft:
            by = shift * circuit.width
            moved = dataclasses.replace(
                book, circuit=dataclasses.replace(circuit, low=circuit.low - by,
                                                  high=circuit.high - by)
            )  # fmt: skip
        return violation(moved, x[None], p[None], views={n: v[None] for n, v in seen.items()})[0]

    shifts = jnp.zeros((batch, circuit.width.shape[0] if soft else 0))

    def of_rule(rule: Any) -> tuple[Any, Any]:
        def total(p: Any, shift: Any) -> Any:
            return jax.vmap(one)(p, shift, columns, views)[:, rule].sum()

        by_p, by_shift = jax.grad(total, argnums=(0, 1))(
            _predictions.probabilities(book, logits), shifts
        )
        return jnp.abs(by_p).sum(0), jnp.abs(by_shift).sum()

    return jax.lax.map(of_rule, jnp.arange(len(book)))


def _places(book: Book) -> tuple[np.ndarray, np.ndarray]:
    """Which labels stand in each rule's head and body, ``[rules, labels]`` each."""
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
    """Names in a formula, with those in the clauses that define them."""
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
