"""Rules and formulas as text: the inverse of ``parse``, exactly."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.rules.language import formulas as f


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
    if isinstance(what, f.Rule | f.Tree):
        return str(what)
    if isinstance(what, Sequence) and all(isinstance(rule, f.Rule) for rule in what):
        return "\n".join(map(str, what))
    raise TypeError(f"a rule, several rules, or a formula was expected, got {what!r}")
