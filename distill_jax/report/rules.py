"""The results of ``rules.check`` and ``rules.explain`` as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from distill_jax._arguments import checked
from distill_jax.report.tables import show
from distill_jax.rules import Check, Explanation

_CHECK = {
    "rule": "rule", "strength": "strength", "coverage": "coverage", "silent": "silent",
    "precision": "precision", "lift": "lift", "mean_violation": "mean violation",
    "violated": "violated", "contradicts_hard": "against hard", "hidden": "hidden",
    "stops": "stops", "head": "head", "body": "body", "note": "",
}  # fmt: skip
_PAIRS = {
    "rule": "rule", "other": "and", "together": "both fire", "jaccard": "overlap",
    "clash": "no class left",
}  # fmt: skip
_EXPLANATION = {
    "rule": "rule", "strength": "strength", "points": "points", "violated": "violated",
    "violation": "violation", "label": "label", "moved": "log-odds", "probability": "with",
    "without": "without it", "change": "change", "note": "",
}  # fmt: skip


@checked
def show_check(check: Check, *, pairs: bool = True, console: Console | None = None) -> None:
    """Prints what ``rules.check`` found: one row per rule, then pairs that contradict or overlap.

    Columns without information (no labels, no model, no hard rules) are left out; ``check.rows``
    has all values.

    Args:
      check: From ``rules.check``.
      pairs: Whether to print the pairs of rules as well.
      console: Where to print; see :func:`show`.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind, check
      >>> book = bind("old: age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> show_check(check(book, {"age": [70, 65, 50, 40]}, labels=[1, 0, 0, 0]))
      ┏━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┓
      ┃ rule ┃ strength ┃ coverage ┃ precision ┃  lift ┃
      ┡━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━┩
      │ old  │    1.000 │   0.5000 │    0.5000 │ 2.000 │
      └──────┴──────────┴──────────┴───────────┴───────┘
    """
    rows = [{**row, "note": _note(row)} for row in check.rows]
    # These columns are shown only if a rule has a value other than 0.
    rare = ("silent", "contradicts_hard", "hidden", "stops")
    hidden = {name for name in rare if not any(r[name] for r in rows)}
    hidden |= {"head", "body"} if not any(r["body"] for r in rows) else set()
    show(rows, columns=_filled_columns(rows, _CHECK, hidden), console=console)
    if pairs and check.pairs:
        show(check.pairs, columns=_filled_columns(check.pairs, _PAIRS), console=console)


@checked
def show_explanation(explanation: Explanation, *, console: Console | None = None) -> None:
    """Prints the result of ``rules.explain``: one row per rule that fired on the example.

    Args:
      explanation: From ``rules.explain``.
      console: Where to print; see :func:`show`.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind, explain
      >>> book = bind("[w=2] old: age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> show_explanation(explain(book, {"age": 70}, jnp.array([1.0, 0.0])))
                  prediction: sick (before the rules: well)
      ┏━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━┓
      ┃ rule ┃ strength ┃ violated ┃ log-odds ┃   with ┃ without it ┃ change ┃
      ┡━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━┩
      │ old  │    2.000 │ yes      │    2.000 │ 0.7311 │     0.2689 │ 0.4621 │
      └──────┴──────────┴──────────┴──────────┴────────┴────────────┴────────┘
    """
    predicted, before = (explanation.summary.get(name) for name in ("prediction", "before"))
    title = ", ".join(predicted) if isinstance(predicted, list) else str(predicted)
    if before is not None and before != predicted:
        title += f" (before the rules: {before})"
    rows = [
        {**row, "points": _points(row), "note": _why_silent(row)} for row in explanation.rows
    ] or [{"rule": "no rule says anything here"}]
    title = f"prediction: {title or 'no label'}"
    show(rows, title=title, columns=_filled_columns(rows, _EXPLANATION), console=console)


def _filled_columns(
    rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str], hidden: set[str] | None = None
) -> dict[str, str]:
    """The headings of the columns that have a value in some row."""
    return {
        name: heading
        for name, heading in headings.items()
        if name == "rule"
        or (name not in (hidden or ()) and any(row.get(name) is not None for row in rows))
    }


def _points(row: Mapping[str, Any]) -> str | None:
    """The points of a rule's scores, as ``3`` or ``1.5 to 3.5``."""
    if row["points"] is None:
        return None
    ends = [x if isinstance(x, list) else [x] for x in row["points"].values()]
    return ", ".join(" to ".join(f"{x:g}" for x in own) for own in ends)


def _why_silent(row: Mapping[str, Any]) -> str | None:
    if row["hidden_by"] is not None:
        return f"hidden by {row['hidden_by']}"
    if row["stopped_by"] is not None:
        return f"stopped by {row['stopped_by']}: a value is missing"
    return "a value is missing" if row["silent"] else None


def _note(row: Mapping[str, Any]) -> str | None:
    if row["fires"] == 0:
        return "never fires: always hidden" if row["hidden"] else "never fires"
    return "always holds" if row["always_holds"] else None
