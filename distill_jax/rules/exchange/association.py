"""Association rules, as mlxtend, arules and efficient-apriori mine them from transactions."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding._tables import column_names, columns_of
from distill_jax.rules.exchange._decision_cells import CellProblem, Subject, condition
from distill_jax.rules.exchange.mined import smoothed
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError, shortened

_SIDES = (("antecedents", "consequents"), ("lhs", "rhs"), ("LHS", "RHS"))
_TEXTS = ("rules", "rule")
_INTERVAL = re.compile(r"([\[(])\s*([^\s,]+)\s*,\s*([^\s,]+)\s*([\])])")


@checked
def from_association_rules(
    frame: Any,
    *,
    items: Literal["columns", "values"] = "columns",
    label: str = "{}",
    relative: bool = False,
    transactions: int | None = None,
) -> tuple[f.Rule, ...]:
    """Rules from a table of association rules, ``{bread, milk} => {butter}``.

    The table is what ``association_rules`` of mlxtend returns (``antecedents`` and ``consequents``
    as frozensets), also after CSV, or what arules writes (``LHS`` and ``RHS``, ``lhs`` and ``rhs``,
    or ``rules``, as text ``{bread,milk}``), with ``confidence``.

    An item before ``=>`` is a column: what is known of a transaction. One behind it is a label:
    what is predicted. Columns and labels have distinct names in a schema, so where an item is both,
    ``label`` names the labels: with ``label="buys {}"``, the label of butter is ``buys butter``,
    and the schema of a basket is ``Schema(columns, ["buys bread", …], exclusive=False)``.

    The confidence is the probability of the consequents where the antecedents hold, ``[p=...]``.
    One of 1 would be infinite log-odds, and is brought to 0.999, or smoothed by Laplace's rule of
    succession where the number of rows behind it is known: from arules' ``count``, or from
    ``transactions`` and mlxtend's ``antecedent support``. A confidence of 0.3 speaks against the
    consequents, as it is below one half, even where they are much rarer otherwise: with
    ``relative``, the strength is how much more likely they are, ``[w=...]`` of the log-odds of the
    confidence less those of the consequents' own support, which is confidence / lift. This is for
    a model that knows the base rates, as by its bias. Support, leverage, conviction and other
    measures are not kept.

    Args:
      frame: A data frame, or a dictionary of columns.
      items: ``"columns"``: an item is the name of a 0/1 column, as in mlxtend. ``"values"``: an
        item is ``column=value``, as in arules: ``sex=F`` is ``sex == 'F'``, ``age=[20,30)`` is ``20
        <= age < 30``; behind ``=>``, ``disease=yes`` is ``disease == 'yes'``, for a schema with the
        ``target`` disease.
      label: The name of an item's label, with ``{}`` for the item.
      relative: Whether strengths are relative to the consequents' support; needs ``lift``.
      transactions: The number of transactions that the rules were mined from.

    Returns:
      One rule per row, ``a and b => c``; ``a => c and d`` for several consequents, which all hold.

    Raises:
      RuleError: for a row whose sides or numbers cannot be read, with its number, counted from 1,
        and for items that would be column and label under one name.
      ValueError: for a table without these columns.

    Example:
      >>> frame = {
      ...     "antecedents": [frozenset({"milk", "bread"}), frozenset({"butter"})],
      ...     "consequents": [frozenset({"butter"}), frozenset({"bread"})],
      ...     "confidence": [0.8, 0.75],
      ... }
      >>> for rule in from_association_rules(frame, label="buys {}"):
      ...     print(rule)
      [p=0.8] bread and milk => `buys butter`
      [p=0.75] butter => `buys bread`
    """
    if label.replace("{}", "", 1).count("{") or "{}" not in label:
        raise ValueError(f"label must have one {{}}, for the item, got {label!r}")
    if transactions is not None and transactions < 1:
        raise ValueError(f"transactions must be >= 1, got {transactions}")
    table = _Table(frame)
    sides = [table.sides(i) for i in range(table.rows)]
    if items == "columns":
        known = {x for left, _ in sides for x in left}
        both = sorted({x for _, right in sides for x in right if label.replace("{}", x) in known})
        if both:
            raise RuleError(
                f"the items {both[:8]} are columns in some rules and labels in others, and in a "
                "schema these have distinct names: name the labels, as by label='buys {}'"
            )
    rules = []
    for i, (left, right) in enumerate(sides):
        where = f"row {i + 1}"
        if not right:
            raise RuleError(f"{where}: a rule needs a consequent")
        if items == "columns":
            body = [f.Name(x) for x in left]
            head: list[f.Formula] = [f.Name(label.replace("{}", x)) for x in right]
        else:
            body = [_value(where, x) for x in left]
            head = [_class(where, x, label) for x in right]
        whole = _all(head)
        formula = f.Implies(_all(body), whole) if body else whole
        strength = table.strength(i, relative, transactions)
        found = f.Rule(formula, None, strength, line=i + 1)
        rules.append(found)
    return tuple(rules)


def _all(parts: Sequence[f.Formula]) -> f.Formula:
    return parts[0] if len(parts) == 1 else f.And(tuple(parts))


class _Table:
    """The columns of a table of association rules.

    Attributes:
      rows: The number of rows.
    """

    def __init__(self, frame: Any):
        if isinstance(frame, np.ndarray) and frame.dtype.names is None:
            raise TypeError(
                "frame must be a data frame or a dictionary of columns, got an array without names"
            )
        names = column_names(frame)
        self._sides = next((x for x in _SIDES if set(x) <= set(names)), None)
        texts = next((x for x in _TEXTS if x in names), None)
        wanted = list(self._sides or filter(None, [texts]))
        if not wanted or "confidence" not in names:
            raise ValueError(
                "frame must have the columns antecedents and consequents (or lhs and rhs, or "
                f"rules), and confidence, got {names}"
            )
        others = ("confidence", "lift", "count", "antecedent support")
        held = columns_of(frame, [*wanted, *(x for x in others if x in names)])
        self._columns = {name: list(x) for name, x in held.items()}
        lengths = {name: len(x) for name, x in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of frame must have one length, got {lengths}")
        self._texts = texts
        self.rows = lengths["confidence"]

    def sides(self, i: int) -> tuple[list[str], list[str]]:
        """The antecedents and consequents of a row, sorted."""
        if self._sides is not None:
            left, right = (self._columns[name][i] for name in self._sides)
        else:
            text = str(self._columns[str(self._texts)][i])
            left, arrow, right = text.partition("=>")
            if not arrow:
                raise RuleError(
                    f"row {i + 1}: expected {{a,b}} => {{c}}, got {shortened(text, 80)!r}"
                )
        return _items(f"row {i + 1}", left), _items(f"row {i + 1}", right)

    def strength(self, i: int, relative: bool, transactions: int | None) -> f.Strength:
        confidence = self._number("confidence", i)
        if not 0.0 <= confidence <= 1.0:
            raise RuleError(f"row {i + 1}: confidence must lie between 0 and 1, got {confidence}")
        count = None
        if "count" in self._columns and confidence > 0:
            count = self._number("count", i) / confidence
        elif transactions is not None:
            if "antecedent support" not in self._columns:
                raise ValueError("transactions needs the column 'antecedent support' of mlxtend")
            count = self._number("antecedent support", i) * transactions
        p = smoothed(f"row {i + 1}", confidence, count)
        if not relative:
            return f.Strength("p", p)
        if "lift" not in self._columns:
            raise ValueError("relative=True needs the column 'lift'")
        lift = self._number("lift", i)
        base = confidence / lift if lift > 0 else math.nan
        if not 0.0 < base < 1.0:
            raise RuleError(
                f"row {i + 1}: with the confidence {confidence} and the lift {lift}, the support "
                "of the consequents is not between 0 and 1, so that nothing is relative to it"
            )
        return f.Strength("w", round(math.log(p / (1 - p)) - math.log(base / (1 - base)), 4))

    def _number(self, name: str, i: int) -> float:
        try:
            found = float(self._columns[name][i])
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise RuleError(
                f"row {i + 1}, column {name!r}: expected a number, got {self._columns[name][i]!r}"
            )
        return found


def _items(where: str, side: Any) -> list[str]:
    """The items of a side: a set, a list, or the text of one."""
    if isinstance(side, str):
        return sorted(_of_text(where, side.strip()))
    if isinstance(side, Iterable) and not isinstance(side, bytes):
        found = [str(x) for x in side]
        if all(found):
            return sorted(found)
    raise RuleError(f"{where}: expected a set of items, got {shortened(repr(side), 80)}")


def _of_text(where: str, text: str) -> list[str]:
    """The items of ``{a,b}``, ``frozenset({'a', 'b'})``, or ``a``."""
    made = re.fullmatch(r"(?:frozenset|set|tuple|list)\((.*)\)", text, re.DOTALL)
    inner = text if made is None else made[1] or "()"
    if made is not None or re.match(r"[{(\[]\s*(?:['\"]|[)\]])", inner):
        try:
            found = ast.literal_eval(inner)  # literals alone: nothing is called
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if isinstance(found, set | frozenset | tuple | list):
            return [str(x) for x in found]
        raise RuleError(f"{where}: expected a set of items, got {shortened(text, 80)!r}")
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    # A comma within an interval, age=[20,30), separates nothing.
    found = [x.strip() for x in re.split(r",(?![^\[(]*[\])])", inner)]
    if found == [""]:
        return []
    if not all(found):
        raise RuleError(f"{where}: expected items between commas, got {shortened(text, 80)!r}")
    return found


def _split(where: str, item: str) -> tuple[str, str]:
    name, sign, value = item.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise RuleError(
            f"{where}: expected an item column=value, got {shortened(item, 80)!r}: pass "
            "items='columns' for items that are 0/1 columns"
        )
    return name.strip(), value.strip()


def _value(where: str, item: str) -> f.Formula:
    """``sex=F`` or ``age=[20,30)`` as a condition on a column."""
    name, value = _split(where, item)
    column = f.Name(name)
    if (match := _INTERVAL.fullmatch(value)) is None:
        return f.Compare((column, f.String(value)), ("==",))
    opened, low, high, closed = match.groups()
    ends = [None if re.fullmatch(r"[-+]?Inf(inity)?", x, re.IGNORECASE) else x for x in (low, high)]
    if None not in ends:
        cell = f"{opened}{low}..{high}{closed}"
    elif ends[0] is None and ends[1] is not None:
        cell = f"{'<=' if closed == ']' else '<'} {high}"
    elif ends[0] is not None:
        cell = f"{'>=' if opened == '[' else '>'} {low}"
    else:
        cell = "not(null)"
    try:
        found = condition(cell, Subject(column))
    except CellProblem as error:
        raise RuleError(f"{where}, item {item!r}: {error}") from None
    assert found is not None
    return found


def _class(where: str, item: str, label: str) -> f.Formula:
    """``disease=yes`` as the class of an example; a label if ``label`` gives it a name."""
    if label != "{}":
        return f.Name(label.replace("{}", item))
    name, value = _split(where, item)
    return f.Compare((f.Name(name), f.String(value)), ("==",))
