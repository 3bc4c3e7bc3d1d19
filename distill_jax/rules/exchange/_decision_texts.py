"""Conditions on one column as the text of a cell: the inverse of ``_decision_cells``."""

from __future__ import annotations

import re

from distill_jax.rules.exchange._decision_cells import CellProblem, Subject, condition, pieces
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._spelling import escaped, quoted
from distill_jax.rules.language._times import DAY, SECOND, clock, spelled


def cell_text(x: f.Formula, name: str) -> str:
    """The text of a cell that says ``x`` of a column.

    Raises:
      ValueError: if there is none.
    """
    subject = Subject(f.Name(name))
    text = _unary(x, subject.value)
    try:
        if text is not None and condition(text, subject) == x:
            return text
    except CellProblem:  # not(…) does not stand within a list
        pass
    return _question(x, name)


def _unary(x: f.Formula, column: f.Value) -> str | None:
    """A formula as unary tests of DMN; None if it is none."""
    match x:
        case f.Name() if x == column:
            return "true"
        case f.Not(f.Name() as inner) if inner == column:
            return "false"
        case f.Missing(value, negated) if value == column:
            return "not(null)" if negated else "null"
        case f.Compare((value, other), (sign,)) if value == column:
            text = _literal_text(other)
            if text is None or sign == "==":
                return text
            return f"not({text})" if sign == "!=" else f"{sign} {text}"
        case f.Compare((low, value, high), (below, above)) if value == column:
            ends = _literal_text(low), _literal_text(high)
            if None in ends or not {below, above} <= {"<", "<="}:
                return None
            opened, closed = "[" if below == "<=" else "(", "]" if above == "<=" else ")"
            return f"{opened}{ends[0]}..{ends[1]}{closed}"
        case f.In(value, choices, negated) if value == column and len(choices) > 1:
            texts = [_literal_text(choice) for choice in choices]
            if None in texts:
                return None
            joined = ", ".join(filter(None, texts))
            return f"not({joined})" if negated else joined
        case f.Or(parts):
            texts = [_unary(part, column) for part in parts]
            return None if None in texts else ", ".join(filter(None, texts))
        case f.Not(part):
            text = _unary(part, column)
            return None if text is None else f"not({text})"
    return None


def _literal_text(x: f.Value) -> str | None:
    match x:
        case f.Number():
            return str(x)
        case f.String(text):
            return escaped(text, '"') if text.isprintable() else None
        case f.Time(instant, zoned):
            try:
                kind, text = spelled(instant, zoned).split(" ", 1)
            except (OverflowError, ValueError):
                return None
            return f'{"date" if kind == "date" else "date and time"}("{text[1:-1]}")'
        case f.TimeOfDay(instant) if 0 <= instant < DAY:
            return f'time("{clock(instant)}")'
        case f.Duration(length):
            return f'duration("{_iso(length)}")'
    return None


def _iso(length: int) -> str:
    """A duration as in ISO 8601, which DMN reads."""
    days, rest = divmod(abs(length), DAY)
    hours, rest = divmod(rest, 3600 * SECOND)
    minutes, rest = divmod(rest, 60 * SECOND)
    seconds, fraction = divmod(rest, SECOND)
    parts = "".join(f"{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M")) if n)
    if seconds or fraction or not (days or parts):
        parts += f"{seconds}" + (f".{fraction:09}".rstrip("0") if fraction else "") + "S"
    return (
        ("-" if length < 0 else "")
        + "P"
        + (f"{days}D" if days else "")
        + ("T" + parts) * bool(parts)
    )


def _question(x: f.Formula, name: str) -> str:
    """A formula with ``?`` for the column."""
    written, parts = quoted(name), pieces(str(x))
    if written.startswith("`"):
        return "".join("?" if part == written else part for part in parts)
    word = re.compile(rf"(?<![\w`]){re.escape(written)}(?![\w`])")
    parts[::2] = [word.sub("?", part) for part in parts[::2]]
    return "".join(parts)
