"""Errors about a rule: its text, with a caret under the offending name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._spelling import quoted
from distill_jax.rules.language._tokens import Token, tokenize
from distill_jax.rules.language.errors import RuleError, error_at


def rule_error(rule: f.Rule, message: str, name: str | None = None) -> RuleError:
    """A ``RuleError`` that shows the rule, with a caret under ``name`` if its text is known."""
    if rule.source:
        offset = name_offset(rule.source, name) if name else None
        return error_at(message, rule.source, rule.line, offset or 0)
    return RuleError(f"{message}; in the rule: {rule}")


def name_offset(source: str, name: str) -> int | None:
    """The offset of a name in a rule's source; None if it does not occur.

    If no name matches, a string with that content does: classes are often written as strings. The
    rule's own name and its strength are skipped.
    """
    try:
        tokens = tokenize(source, horn=True)
    except RuleError:
        return None
    first = _formula_start(tokens)
    for kinds in (("name", "quoted"), ("string",)):
        for token, after in zip(tokens[first:], tokens[first + 1 :], strict=False):
            if token.kind in kinds and token.value == name and after.kind != "(":
                return token.start
    return None


def _formula_start(tokens: list[Token]) -> int:
    kinds = [token.kind for token in tokens]
    start = kinds.index("]") + 1 if kinds[0] == "[" and "]" in kinds else 0
    named = kinds[start] in ("name", "quoted") and kinds[start + 1] == ":"
    return start + 2 * named


def unknown_name(rule: f.Rule, name: str, known: Sequence[str]) -> RuleError:
    """A ``RuleError`` for an unknown name, with the closest known names.

    Args:
      rule: The rule; one built in Python is shown as text.
      name: The unknown name.
      known: The names that the rule may use.
    """
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    if name.lower() in ("none", "nan", "null", "na"):
        advice = "for a missing value, write x is missing"
    elif near:
        advice = "did you mean " + " or ".join(quoted(lower[x]) for x in near) + "?"
    elif known:
        more = ", …" if len(known) > 8 else ""
        advice = "known are " + ", ".join(quoted(x) for x in known[:8]) + more
    else:
        advice = "no names are known: the schema has no columns or classes"
    source = rule.source or str(rule)
    offset = name_offset(source, name)
    message = f"unknown name {quoted(name)}: {advice}"
    return error_at(message, source, rule.line, 0 if offset is None else offset)
