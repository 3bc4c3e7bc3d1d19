"""Text from others on its way out: to a terminal, or into the cell of a spreadsheet."""

from __future__ import annotations

import re
import unicodedata

_TABLES = {"–": "-", "±": "+/-", "…": "..."}
"""Plain signs for those that tables use themselves."""

# Each turns what stands behind it around, so that another text is read than there is.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?|[+-]?(inf|nan)", re.IGNORECASE)


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""The text with its control characters escaped, and with those that ``encoding`` lacks.

    Names and rules may come from a stranger's file: an escape character in them would let that file
    command the terminal. Line breaks and tabs stay.

    Example:
      >>> print(printable("a\x1b[31m"), printable("größe ± 1", "ascii"))
      a\x1b[31m gr\xf6\xdfe +/- 1
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_escaped(c) if _is_control(c) else c for c in text)
        try:
            text.encode(encoding)
        except LookupError:
            return printable(text, "ascii")
        except UnicodeEncodeError:
            text = "".join(_TABLES.get(c, c) for c in text)
            text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def to_cell(text: str) -> str:
    """The text for a cell of CSV: a spreadsheet must not take it for a formula and run it.

    An apostrophe in front marks it as text, as in the spreadsheets themselves. Numbers stay.

    Example:
      >>> to_cell("=1+1"), to_cell("-1.5"), to_cell("age > 60")
      ("'=1+1", '-1.5', 'age > 60')
    """
    is_formula = _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
    return f"'{text}" if is_formula else text


def from_cell(text: str) -> str:
    """The inverse of :func:`to_cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _is_control(c: str) -> bool:
    return c not in "\n\t" and (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNS)


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode()
