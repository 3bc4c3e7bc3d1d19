"""Rules and formulas as text: the inverse of ``syntax.parse``, exactly.

Parentheses stand only where the text would be read as another tree without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._words import escaped, is_word, number, quoted
from distill_jax.rules.language.errors import RuleError

_IFF, _IMPLIES, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _MINUS, _ATOM = range(1, 11)


def to_text(what: f.Tree | f.Rule | Sequence[f.Rule]) -> str:
    """The text of a formula, a value, a rule, or of rules, one a line.

    Parsed again it is the same tree.

    Raises:
      ValueError: for a tree that has no text: an empty list or ``And`` with one part, an unknown
        operator, a Horn clause whose formula is no implication of a name, or nesting beyond
        ``formulas.MAX_DEPTH``.
      TypeError: for anything else than rules and trees.

    Example:
      >>> from distill_jax.rules.language import formulas as f
      >>> a, b = f.Name("a"), f.Name("b c")
      >>> print(to_text(f.And((f.Or((a, b)), f.Compare((a, f.Number(3)), (">=",))))))
      (a or `b c`) and a >= 3
    """
    if isinstance(what, f.Rule):
        return _rule(what)
    if isinstance(what, f.Tree):
        _check_depth(what)
        return _text(what, False)
    if isinstance(what, Sequence) and all(isinstance(rule, f.Rule) for rule in what):
        return "\n".join(_rule(rule) for rule in what)
    raise TypeError(f"a rule, several rules, or a formula was expected, got {what!r}")


def strength(what: f.Strength) -> str:
    """``[w=2]``, or an empty text where nothing is to be written."""
    if what.kind in ("w", "p"):
        return f"[{what.kind}={number(float(what.number or 0.0))}]"
    return f"[{what.kind}]" if what.kind else ""


def _rule(rule: f.Rule) -> str:
    _check_depth(rule.formula)
    before = strength(rule.strength) + " " * bool(rule.strength.kind)
    before += "" if rule.name is None else f"{quoted(rule.name)}: "
    if not rule.definition:
        return before + _text(rule.formula, False)
    formula = rule.formula
    if not (isinstance(formula, f.Implies) and isinstance(formula.head, f.Name)):
        raise ValueError(f"a Horn clause must say body => name, got {to_text(formula)}")
    parts = _parts(formula.body) if isinstance(formula.body, f.And) else (formula.body,)
    body = _join(", ", parts, True, _NOT)
    return f"{before}{_name(formula.head.name, True)} :- {body}."


def _check_depth(tree: f.Tree) -> None:
    if f.depth(tree) > f.MAX_DEPTH:
        raise RuleError(
            f"the formula has more than {f.MAX_DEPTH} levels of nesting: split it into rules, or "
            "group a long sum"
        )


def _name(name: str, clause: bool) -> str:
    return name if is_word(name, hyphens=clause) else escaped(name, "`")


def _parts(tree: f.And | f.Or) -> tuple[f.Formula, ...]:
    if len(tree.parts) < 2:
        raise ValueError(f"And and Or need two parts or more, got {tree!r}")
    return tree.parts


def _text(tree: f.Tree, clause: bool, level: int = 0) -> str:
    """The text, in parentheses if it binds more loosely than ``level``."""
    own = _ATOM
    match tree:
        case f.Name(name):
            text = _name(name, clause)
        case f.Number(value):
            text, own = number(value), _MINUS
        case f.String(value):
            text = escaped(value, '"' if "'" in value and '"' not in value else "'")
        case f.Of(view, name):
            owner = "p" if view is None else f"view({_name(view, clause)})"
            text = f"{owner}.{_name(name, clause)}"
        case f.Negative(value):
            # -3 is the number itself, so its negative stands in parentheses.
            inner = _ATOM if isinstance(value, f.Number) else _MINUS
            text, own = f"-{_text(value, clause, inner)}", _MINUS
        case f.Arithmetic(sign, left, right) if sign in f.ARITHMETIC:
            own = _SUM if sign in "+-" else _PRODUCT
            text = f"{_text(left, clause, own)} {sign} {_text(right, clause, own + 1)}"
        case f.Call(function, value, where) if function in f.AVERAGES:
            option = "" if where is None else f", where={_text(where, clause)}"
            text = f"{function}({_text(value, clause, _SUM)}{option})"
        case f.Compare(operands, signs) if len(operands) == len(signs) + 1 >= 2:
            text, own = _compare(operands, signs, clause), _COMPARISON
        case f.In(value, choices, negated) if choices:
            sign, own = "not in" if negated else "in", _COMPARISON
            text = f"{_text(value, clause, _SUM)} {sign} [{_join(', ', choices, clause, _SUM)}]"
        case f.Between(value, low, high):
            ends = _join(" and ", (low, high), clause, _SUM)
            text, own = f"{_text(value, clause, _SUM)} between {ends}", _COMPARISON
        case f.Missing(value, negated):
            sign, own = "is not missing" if negated else "is missing", _COMPARISON
            text = f"{_text(value, clause, _SUM)} {sign}"
        case f.Matches(value, pattern):
            text, own = f"{_text(value, clause, _SUM)} matches {_pattern(pattern)}", _COMPARISON
        case f.Not(part):
            text, own = f"not {_text(part, clause, _NOT)}", _NOT
        case f.And():
            text, own = _join(" and ", _parts(tree), clause, _AND + 1), _AND
        case f.Or():
            text, own = _join(" or ", _parts(tree), clause, _OR + 1), _OR
        case f.Implies(body, head):
            own = _IMPLIES
            text = f"{_text(body, clause, own + 1)} => {_text(head, clause, own)}"
        case f.Iff(left, right):
            text, own = _join(" <=> ", (left, right), clause, _IFF + 1), _IFF
        case f.Count(kind, count, parts) if (
            parts and kind in f.COUNTS and (count is not None) == kind.startswith("at_")
        ):
            first = "" if count is None else f"{count}, "
            text = f"{kind}({first}{_join(', ', parts, clause, 0)})"
        case f.Trend(kind, value, by) if kind in f.TRENDS:
            text = f"{kind}({_text(value, clause, _SUM)}, by={_text(by, clause, _SUM)})"
        case _:
            raise ValueError(f"no text says {tree!r}")
    return text if own >= level else f"({text})"


def _join(sign: str, parts: Sequence[f.Tree], clause: bool, level: int) -> str:
    return sign.join([_text(part, clause, level) for part in parts])


def _compare(operands: Sequence[f.Value], signs: Sequence[str], clause: bool) -> str:
    if not set(signs) <= set(f.COMPARISONS):
        raise ValueError(f"a comparison is one of {f.COMPARISONS}, got {signs}")
    if clause and signs[0] == "==":  # the form of Horn clauses: p-37=c
        match operands:
            case (f.Name(name), f.String(word)) if is_word(name, hyphens=True) and is_word(
                word, hyphens=True
            ):
                return f"{name}={word}"
    text = _text(operands[0], clause, _SUM)
    for sign, operand in zip(signs, operands[1:], strict=True):
        text += f" {sign} {_text(operand, clause, _SUM)}"
    return text


def _pattern(pattern: str) -> str:
    for quote in ("'", '"')[::-1]:
        raw = f"r{quote}{pattern}{quote}"
        if pattern.isprintable() and re.fullmatch(rf"(?:[^{quote}\\]|\\.)*+", pattern):
            return raw
    return escaped(pattern, '"')
