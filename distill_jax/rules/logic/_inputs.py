"""Arguments that functions of rules share, checked at trace time: columns, logits, views, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.rules.binding.book import Book, check_placed, number_of_columns
from distill_jax.rules.binding.schema import unmasked

Views = Mapping[str, Any]
"""Logits ``[batch, classes]`` on other views of the examples, or ``Outputs`` with these logits, by
the view's name. A class with the logit ``-inf`` has probability 0. No gradient passes to them."""


def prepared(
    book: Book,
    logits: Any,
    columns: Any,
    views: Views | None,
    where: Bool[Array, " batch"] | None = None,
    *,
    name: str = "student_logits",
) -> tuple[Float[Array, "batch classes"], Array, dict[str, Array]]:
    """Logits, columns and the views' logits, float32 or wider, with masked rows at 0.

    Masked rows are replaced before anything is computed from them, so that they contribute neither
    value nor gradient, even if they hold NaN.

    Args:
      book: The rules.
      logits: ``[batch, classes]``.
      columns: From ``encode``, ``[batch, columns]``.
      views: See ``Views``; views that the book does not use are ignored.
      where: Rows that count, ``[batch]``.
      name: The name of the logits in error messages.

    Returns:
      Logits ``[batch, classes]``, columns ``[batch, columns]``, and the logits of each view that
      the book uses, ``[batch, classes]``.

    Raises:
      TypeError: for arrays that are not floating point.
      ValueError: for other shapes, or a missing view.
    """
    _checks.floating(**{name: logits, "columns": columns})
    columns = encoded_columns(book, columns=columns)
    logits = float32_or_wider(logits)
    shape = (columns.shape[0], len(book.schema.classes))
    hint = ", the rows of columns and the classes of the rules"
    _checks.shape(shape, hint=hint, **{name: logits})
    arrays = view_logits(book, views, shape)
    if where is None:
        return logits, columns, arrays
    _checks.boolean(where=where)
    _checks.shape(shape[:1], where=where)
    keep = jnp.asarray(where)[:, None]
    logits, columns, arrays = jax.tree.map(
        lambda x: jnp.where(keep, x, 0.0), (logits, columns, arrays)
    )
    return logits, columns, arrays


def encoded_columns(book: Book, **columns: Any) -> Float[Array, "batch columns"]:
    """Encoded columns in float32 or wider, passed by the name that error messages use.

    Wider ones are for gradients through soft comparisons.

    Raises:
      TypeError: for columns that are not floating point, or not float32 without soft comparisons.
      ValueError: if their number differs from that of ``encode(book, table)``.
    """
    expected = ("batch", number_of_columns(book))
    columns = {name: unmasked(x) for name, x in columns.items()}
    hint = " as encode(book, table) gives them"
    if book.info.computed:
        found = [str(tree) for tree, _ in book.info.computed[:5]]
        hint += f", with a column for each result of arithmetic (the last ones are {found})"
    _checks.shape(expected, hint=hint, **columns)
    _checks.floating(**columns)
    ((name, found),) = columns.items()
    if not book.info.soft:
        check_placed(found, name)
    return float32_or_wider(found)


def view_logits(book: Book, views: Views | None, shape: tuple[Any, ...]) -> dict[str, Array]:
    """Logits on the views that the book uses, float32 or wider, without gradient.

    Args:
      book: The rules.
      views: See ``Views``; views that the book does not use are ignored.
      shape: The shape that the logits of each view must have, ``[batch, classes]``.
    """
    check_views(book, views)
    found = {name: (views or {})[name] for name in book.schema.views}
    found = {name: getattr(view, "logits", view) for name, view in found.items()}
    named = {f"views[{name!r}]": x for name, x in found.items()}
    _checks.shape(shape, **named)
    _checks.floating(**named)
    return {name: jax.lax.stop_gradient(float32_or_wider(x)) for name, x in found.items()}


def float32_or_wider(x: Any) -> Array:
    """An array in float32, or in its own dtype where that is wider."""
    x = jnp.asarray(x)
    return x.astype(_checks.wide_dtype(x))


def rows_that_count(rows: Array, where: Any) -> Bool[Array, " batch"]:
    """``where``, or True for all rows if it is None."""
    return jnp.ones(rows.shape[:1], bool) if where is None else jnp.asarray(where)


def masked(rows: Float[Array, " batch"], where: Any) -> Float[Array, " batch"]:
    """Values of rows, with 0 in masked rows."""
    return rows if where is None else jnp.where(where, rows, 0.0)


def identity(inputs: Any) -> Any:
    """The inputs: the default for models and teachers whose inputs are the encoded columns."""
    return inputs


# Checks of a book


def check_exclusive(book: Book, who: str) -> None:
    """Raises for a book over label sets."""
    if not book.schema.exclusive:
        raise ValueError(
            f"{who} is for exclusive classes, and the book's schema has label sets: their joint "
            "distribution has no closed form; use encourage or dual_ascent for these rules"
        )


def check_views(book: Book, views: Views | None) -> None:
    """Raises if a view that the book uses is missing."""
    if missing := set(book.schema.views) - set(views or {}):
        raise ValueError(
            f"views must hold the model's logits on {sorted(missing)}, got {sorted(views or {})}"
        )


def check_no_views(book: Book, who: str) -> None:
    """Raises for a book that refers to other views."""
    if book.schema.views:
        raise ValueError(
            f"{who} takes one input per example, but the book refers to the views "
            f"{list(book.schema.views)}: bind its other rules to a schema without views"
        )
