"""What the levels share: logits, columns and views as the rules' functions take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.rules.binding.book import Book

Views = Mapping[str, Any]
"""Logits ``[batch, classes]`` of other views of the examples, or ``Outputs``, by name."""


def clean(
    book: Book,
    student_logits: Any,
    columns: Any,
    views: Views | None,
    where: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch classes"], Array, dict[str, Array]]:
    """Logits, columns and the views' logits: checked, float32 or better, with masked rows at 0.

    Masked rows are replaced before anything sees them, so that whatever they hold, NaN included,
    reaches neither value nor gradient.
    """
    _checks.floating(student_logits=student_logits, columns=columns)
    logits, columns = wide(student_logits), wide(columns)
    batch, classes = columns.shape[:1], len(book.schema.classes)
    if logits.shape != (*batch, classes):
        raise ValueError(
            f"student_logits must have shape [batch, classes] with the {classes} classes of the "
            f"rules' schema and the {sum(batch)} rows of columns, got {logits.shape}"
        )
    arrays = {name: getattr(view, "logits", view) for name, view in (views or {}).items()}
    _checks.floating(**{f"views[{name!r}]": x for name, x in arrays.items()})
    arrays = {name: jax.lax.stop_gradient(wide(x)) for name, x in arrays.items()}
    if where is None:
        return logits, columns, arrays
    _checks.boolean(where=where)
    _checks.shape(batch, where=where)
    keep = jnp.asarray(where)[:, None]
    kept = {name: jnp.where(keep, x, 0.0) for name, x in arrays.items()}
    return jnp.where(keep, logits, 0.0), jnp.where(keep, columns, 0.0), kept


def masked(rows: Array, where: Any) -> Array:
    """Rows that do not count become 0."""
    return rows if where is None else jnp.where(where, rows, 0.0)


def probabilities(book: Book, logits: Array) -> Array:
    """Of classes, or of labels."""
    if book.schema.exclusive:
        return jax.nn.softmax(logits, axis=-1)
    return jax.nn.sigmoid(logits)


def seen(book: Book, views: Mapping[str, Array]) -> dict[str, Array]:
    """The views' probabilities."""
    return {name: probabilities(book, x) for name, x in views.items()}


def log_sigmoid(x: Array) -> Array:
    """Also at infinity, with gradient 0 there."""
    finite = jnp.isfinite(x)
    ends = jnp.where(x > 0, 0.0, x)  # NaN stays NaN
    return jnp.where(finite, jax.nn.log_sigmoid(jnp.where(finite, x, 0.0)), ends)


def wide(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def exclusive(book: Book, who: str) -> None:
    """Raises for a book over label sets."""
    if not book.schema.exclusive:
        raise ValueError(
            f"{who} is for exclusive classes, and the book's schema has label sets: their joint "
            "distribution has no closed form; hold these rules with encourage or dual_ascent"
        )


def has_views(book: Book, views: Views | None) -> None:
    """Raises if a view that the book speaks of is missing."""
    if missing := set(book.schema.views) - set(views or {}):
        raise ValueError(
            f"views must hold the model's logits on {sorted(missing)}, got {sorted(views or {})}"
        )


def without_views(book: Book, who: str) -> None:
    """Raises for a book that speaks of other views."""
    if book.schema.views:
        raise ValueError(
            f"{who} sees one input of an example, and the book speaks of the views "
            f"{list(book.schema.views)}: bind its other rules to a schema without views"
        )


def identity(inputs: Any) -> Any:
    """Inputs that are the encoded columns."""
    return inputs
