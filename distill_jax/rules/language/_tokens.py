"""The tokenizer: splits a text of rules into tokens with their positions."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from distill_jax.rules.language._spelling import KEYWORDS, run_end, word_end
from distill_jax.rules.language.errors import error_at, shortened

# Operators of other languages, and how they are written here.
_ADVICE = {
    "&": "write and",
    "&&": "write and",
    "∧": "write and",
    "|": "write or",
    "||": "write or",
    "∨": "write or",
    "~": "write not",
    "!": "write not",
    "¬": "write not",
    "\\+": "write not",
    "->": "write =>",
    "→": "write =>",
    "⇒": "write =>",
    "↔": "write <=>",
    "⇔": "write <=>",
    "≥": "write >=",
    "≤": "write <=",
    "≠": "write !=",
    "<>": "write !=",
    "===": "write ==",
    "−": "write - (a hyphen; this character only looks like one)",
    "–": "write - (a hyphen; this character only looks like one)",
    "“": "write a straight quote",
    "”": "write a straight quote",
    "‘": "write a straight quote",
    "’": "write a straight quote",
    "**": "there are no powers: multiply",
    "//": "there is no integer division",
    "%": "there is no remainder (comments start with #; % starts one only in a text of Horn "
    "clauses alone; a column's name is quoted, `% change`)",
    ";": "write one rule per line",
    "\\": "a rule continues on the next line only inside parentheses",
    "{": "write a list as [a, b]",
}

_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DATE = re.compile(
    r"(?:[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{4}-(?:0[1-9]|1[0-2])|[0-9]{4}/[0-9]{1,2}/[0-9]{1,2}"
    r"|[0-9]{1,2}([./])[0-9]{1,2}\1[0-9]{4})(?![0-9.])"
)
_SIGN = re.compile(r"<=>|===|=>|:-|->|==|!=|<=|>=|<>|&&|\|\||\*\*|//|\\\+|[-+*/<>=()\[\],.:]")
_QUOTED = {quote: re.compile(rf"{quote}(?:[^{quote}\\\n]|\\[^\n])*+{quote}") for quote in "'\"`"}
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"', "`": "`"}
# A line that contains :- outside quotes and comments. The alternatives start with distinct
# characters and the repetition is possessive (*+), so matching takes linear time.
_CLAUSE = re.compile(
    r"(?:[^'\"`#%:\n]|:(?!-)"
    + "".join("|" + pattern.pattern for pattern in _QUOTED.values())
    + r")*+:-"
)


class Token(NamedTuple):
    """A token of the text, from ``start`` up to, not including, ``end``.

    ``kind`` is ``name``, ``quoted`` (a name in back-ticks), ``number``, ``string``, ``line`` (the
    end of a line), ``period`` (the end of a clause) or ``end`` (of the text); for a keyword or an
    operator it is the token's own text.
    """

    kind: str
    value: str
    start: int
    end: int


def tokenize(text: str, *, horn: bool = False) -> list[Token]:
    """The tokens of a text, the last one of kind ``end``.

    A line break inside brackets, or before the period of a clause, yields no ``line`` token. ``#``
    starts a comment everywhere, ``%`` in a clause and after it on its line. A line that begins with
    ``%`` is a comment only in a text of clauses alone: elsewhere it may be a rule about a column
    such as "% change".

    Args:
      text: The rules.
      horn: Whether the text holds clauses alone, whatever it looks like.

    Raises:
      RuleError: for an invalid character, number or quoted text.
    """
    tokens: list[Token] = []
    percent, clauses, plain = -1, False, False  # the first such line; which rules there are
    depth, clause, line_start, i = 0, False, True, 0  # line_start: at the start of a line
    while i < len(text):
        if line_start and not depth and not clause:
            clause = _CLAUSE.match(text, i) is not None
            clauses |= clause
        line_start = False
        c = text[i]
        if c == "\n":
            if depth == 0 and not (clause and tokens and tokens[-1].kind not in ("period", "line")):
                tokens.append(Token("line", c, i, i + 1))
                clause = False
            i, line_start = i + 1, True
        elif c.isspace() or c == "\ufeff":  # a byte order mark
            i += 1
        elif c == "#" or (c == "%" and (clause or horn or _first_in_line(text, i))):
            if c == "%" and not clause and percent < 0:
                percent = i
            i = text.find("\n", i) if text.find("\n", i) >= 0 else len(text)
        else:
            tokens.append(_token(text, i, clause, tokens))
            plain |= not clause
            kind, i = tokens[-1].kind, tokens[-1].end
            depth = max(depth + (kind in ("(", "[")) - (kind in (")", "]")), 0)
    if percent >= 0 and not horn and (plain or not clauses):
        message = (
            "% starts a comment only in a text of Horn clauses alone, and this line would be lost: "
            "write # for a comment, or quote the name of a column, `% change`"
        )
        raise error_at(message, text, 1, percent)
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


def _first_in_line(text: str, i: int) -> bool:
    return not text[text.rfind("\n", 0, i) + 1 : i].strip()


def _token(text: str, i: int, clause: bool, before: list[Token]) -> Token:
    c = text[i]
    last = before[-1] if before else None
    adjacent = last is not None and last.end == i and last.kind in ("name", "quoted", "number", ")")
    raw = c == "r" and text[i + 1 : i + 2] in ("'", '"')
    if c in _QUOTED or raw:
        return _quoted(text, i, raw)
    end = word_end(text, i, hyphens=clause)
    if end > i:
        word = text[i:end]
        return Token(word if word in KEYWORDS else "name", word, i, end)
    if (match := _NUMBER.match(text, i)) and not (c == "." and adjacent):
        return _number(text, match)
    if match := _SIGN.match(text, i):
        sign = match[0]
        after = text[i + 1 : i + 2]
        ends = sign == "." and clause and (not after or after.isspace() or after in "#%")
        if sign not in _ADVICE:
            return Token("period" if ends else sign, sign, i, match.end())
        c = sign
    if c in _ADVICE:
        raise error_at(f"{c} is not known here: {_ADVICE[c]}", text, 1, i)
    shown = c if c.isprintable() else ""
    raise error_at(f"the character {shown} (U+{ord(c):04X}) is not known here", text, 1, i)


def _number(text: str, match: re.Match[str]) -> Token:
    start, end = match.span()
    if date := _DATE.match(text, start):
        raise error_at(
            f"{date[0]} is not read as a date: write date '2024-01-31' for one, in the order year, "
            "month, day; for arithmetic, leave spaces around the signs",
            text,
            1,
            start,
        )
    if match[0][0] == "0" and match[0][1:2].isdecimal():
        raise error_at(
            f"{shortened(match[0])} begins with zeros, which a number would lose: quote it, as in "
            "code == '007', or omit the zeros",
            text,
            1,
            start,
        )
    if word_end(text, end) > end:
        word = shortened(text[start : run_end(text, end)])
        raise error_at(
            f"a number touches a name: leave a space, or quote the name, `{word}`",
            text,
            1,
            start,
        )
    if not math.isfinite(float(match[0])):
        raise error_at("this number is too large: numbers must be finite", text, 1, start)
    if underflows(match[0]):
        raise error_at("this number is too small: it would become 0", text, 1, start)
    return Token("number", match[0], start, end)


def underflows(number: str) -> bool:
    """Whether the text of a number other than 0 is below double precision."""
    mantissa = number.lower().partition("e")[0]
    return float(number) == 0 and mantissa.strip("+-.0") != ""


def _quoted(text: str, start: int, raw: bool) -> Token:
    quote = text[start + raw]
    match = _QUOTED[quote].match(text, start + raw)
    if match is None:
        what = "back-tick" if quote == "`" else "quote"
        raise error_at(f"the {what} {quote} is not closed on its line", text, 1, start)
    inner = match[0][1:-1]
    if not raw:
        inner = _ESCAPE.sub(lambda m: _unescaped(text, start + 1, m), inner)
    return Token("quoted" if quote == "`" else "string", inner, start, match.end())


def _unescaped(text: str, start: int, match: re.Match[str]) -> str:
    escape = match[0][1:]
    if escape in _ESCAPED:
        return _ESCAPED[escape]
    if len(escape) > 1 and (code := int(escape[1:], 16)) <= 0x10FFFF:
        return chr(code)
    raise error_at(
        f"the escape {match[0]} is not known: write \\\\ for a backslash, or a regular expression "
        'as r"..."',
        text,
        1,
        start + match.start(),
    )
