"""Rules and formulas as text: the inverse of ``parse``, exactly."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax._arguments import checked
from distill_jax.rules.language import formulas as f


@checked
def to_text(what: f.Tree | f.Rule | Sequence[f.Rule]) -> str:
    """Prints a formula, a value or a rule as text; several rules one per line.

    Args:
      what: A formula, a value, a rule, or a sequence of rules.

    Returns:
      Text that parses to an equal tree or equal rules.

    Raises:
      ValueError: for a tree without a textual form: an empty list, an ``And`` with one part, an
        unknown operator, a Horn clause whose formula is not ``body => name``, or more than
        ``formulas.MAX_DEPTH`` levels of nesting.
      TypeError: if ``what`` is anything else.

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
    raise TypeError(f"what must be a rule, a sequence of rules, or a formula, got {what!r}")
