"""How names, strings and numbers are spelled in a rule's text."""

from __future__ import annotations

import re

KEYWORDS = frozenset("and or not in between is matches unless else true false True False".split())


_WORD = re.compile(r"[A-Za-z0-9_]*")


def run_end(text: str, i: int) -> int:
    """The end of the run of name characters that starts at ``i``."""
    i = _WORD.match(text, i).end()  # type: ignore[union-attr]  # it matches the empty text too
    while i < len(text) and text[i] > "\x7f" and ("_" + text[i]).isidentifier():
        i = _WORD.match(text, i + 1).end()  # type: ignore[union-attr]
    return i


def word_end(text: str, i: int, *, hyphens: bool = False) -> int:
    """The end of the name that starts at ``i``; ``i`` if none starts there.

    With ``hyphens``, as in Horn clauses, ``p-37`` is one name.
    """
    if not text[i : i + 1].isidentifier():
        return i
    end = run_end(text, i)
    while hyphens and text[end : end + 1] == "-" and run_end(text, end + 1) > end + 1:
        end = run_end(text, end + 1)
    return end


def is_word(name: str, *, hyphens: bool = False) -> bool:
    """Whether a name can be written without back-ticks."""
    return name != "" and name not in KEYWORDS and word_end(name, 0, hyphens=hyphens) == len(name)


def escaped(text: str, quote: str) -> str:
    """The text in quotes, as the tokenizer reads it back."""
    return quote + "".join(_escaped(c, quote) for c in text) + quote


def _escaped(c: str, quote: str) -> str:
    if c in ("\\", quote):
        return "\\" + c
    if c.isprintable():
        return c
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(c)
    wide = f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return short.get(c) or (f"\\x{code:02x}" if code <= 0xFF else wide)


def quoted(name: str, *, hyphens: bool = False) -> str:
    """A name as written in a rule, in back-ticks if it needs them."""
    return name if is_word(name, hyphens=hyphens) else escaped(name, "`")


def number(value: int | float) -> str:
    """A number as text that parses to an equal one."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def string(text: str) -> str:
    """A string literal, in the quotes that need fewer escapes."""
    return escaped(text, '"' if "'" in text and '"' not in text else "'")


def pattern(text: str) -> str:
    """A regular expression as a literal, raw if possible."""
    for quote in ('"', "'"):
        raw = f"r{quote}{text}{quote}"
        if text.isprintable() and re.fullmatch(rf"(?:[^{quote}\\]|\\.)*+", text):
            return raw
    return escaped(text, '"')
