"""Errors in rules, with their position in the text."""

from __future__ import annotations

import unicodedata


class RuleError(ValueError):
    """An error in a rule's syntax or meaning, with line, column and a caret where known.

    A subclass of ``ValueError``, raised by ``parse``, ``bind`` and the readers of rule files. What
    it shows of a rule is safe to print, and of bounded length.

    Example:
      >>> from distill_jax.rules import RuleError, parse
      >>> try:
      ...     parse("age > 60 & smoker => sick")
      ... except RuleError as error:
      ...     print(error)
      line 1, column 10: & is not known here: write and
          age > 60 & smoker => sick
                   ^
    """

    def __init__(self, message: str):
        text = visible(message)
        half = MOST_SHOWN // 2
        super().__init__(text if len(text) <= MOST_SHOWN else f"{text[:half]} … {text[-half:]}")


MOST_SHOWN = 2_000
"""Characters of a message, at most."""


def error_at(message: str, source: str, line: int, offset: int) -> RuleError:
    """Returns a ``RuleError`` that shows the line of the text, with a caret.

    Args:
      message: What was expected, what was found, and how to fix it.
      source: Text of one or more lines.
      line: Line number of its first line, from 1; 0 if unknown.
      offset: Position of the caret in ``source``.
    """
    offset = min(max(offset, 0), len(source))
    start = source.rfind("\n", 0, offset) + 1
    stop = source.find("\n", offset)
    shown = source[start : len(source) if stop < 0 else stop]
    column = offset - start
    row = line + source.count("\n", 0, start)
    where = f"line {row}, column {column + 1}: " if line else ""
    low, high = max(column - 70, 0), column + 50  # a long line is shown in part
    before, after = visible(shown[low:column]), visible(shown[column:high])
    before, after = "…" * (low > 0) + before, after + "…" * (len(shown) > high)
    indent = "".join(c if c == "\t" else " " * _width(c) for c in before)
    return RuleError(f"{where}{message}\n    {before}{after}\n    {indent}^")


def visible(text: str) -> str:
    """The text with control characters replaced, so that it is safe to print."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\n" else "\ufffd" for c in text)


def shortened(text: str, most: int = 40) -> str:
    """The text, or the start of it: a message is not as long as what was wrong."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _width(c: str) -> int:
    """How many terminal columns a character occupies."""
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
