"""What is wrong with a rule, with the place in its text."""

from __future__ import annotations

import unicodedata


class RuleError(ValueError):
    """What is wrong with a rule's text or meaning, with its line and a caret where known."""


def error_at(message: str, source: str, line: int, offset: int) -> RuleError:
    """An error that shows where in a text it is.

    Args:
      message: What was expected, what came, and what to do.
      source: A text of one line or more.
      line: The number of its first line, from 1; 0 for a text that stands in no file.
      offset: Where in ``source`` the caret goes.
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
    """The text without characters that a terminal might obey."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def _width(c: str) -> int:
    """How many places a character takes in a terminal."""
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
