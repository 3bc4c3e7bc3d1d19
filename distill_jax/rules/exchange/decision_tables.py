"""Decision tables: a row a rule, as DMN and spreadsheets have them.

The cells of a row are conditions on its columns, and its conclusions are classes or labels. How
several rows for one example go together is the table's hit policy, which becomes a group of rules.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding._tables import nearest
from distill_jax.rules.binding.binding import RuleWarning
from distill_jax.rules.binding.coverage import overlaps
from distill_jax.rules.binding.schema import FALSE_WORDS, TRUE_WORDS, Schema
from distill_jax.rules.exchange._decision_cells import (
    CellProblem,
    Subject,
    condition,
    says_nothing,
    text_of_python,
)
from distill_jax.rules.exchange._decision_inputs import (
    Layout,
    TableRow,
    is_empty,
    read_rows,
    sorted_columns,
)
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.building import Built, formula
from distill_jax.rules.language.errors import RuleError, shortened
from distill_jax.rules.language.parsing import parse_formula

HitPolicy = Literal["unique", "first", "priority", "collect"]
_POLICIES = ("unique", "first", "priority", "collect")
_STRENGTHS = ("w", "p", "hard", "learn")


@checked
def from_decision_table(
    table: Any,
    *,
    hit_policy: HitPolicy = "unique",
    conclusions: str | Sequence[str] | None = None,
    default: str | Mapping[str, Any] | Built | f.Formula | None = None,
    priority: str | Sequence[str] | None = None,
    schema: Schema | None = None,
    w: float | str | None = None,
    p: float | str | None = None,
    hard: bool | str = False,
    learn: bool | str = False,
    names: str | None = None,
    ignore: Sequence[str] = (),
    group: str = "table",
) -> tuple[f.Rule, ...]:
    """Rules from a decision table: a row a rule, a column a condition, a hit policy for them all.

    =====================  ========================================================================
    cell                   says of its column
    =====================  ========================================================================
    empty or ``-``         nothing
    ``> 3``, ``<= 5``      a comparison; ``> 3 and <= 5`` joins two
    ``[10..20)``           a range, with 10 and without 20; ``(10..20]`` and ``]10..20[`` likewise
    ``"a"`` or ``a``       this value; numbers, ``true``, ``false``, and ``null`` for missing, too
    ``"a", "b"``           one of these; tests may stand there as well: ``< 3, > 10``
    ``not("a", "b")``      none of these
    ``2024-01-31``         a date, also ``date("2024-01-31")``, ``date and time("…")``,
                           ``time("18:30")``, ``duration("P3D")``, ``@"2024-01-31"``
    ``contains(?, "x")``   any formula of the rule language, with ``?`` for the column
    =====================  ========================================================================

    Cells of data frames may also be numbers, booleans, dates, intervals of pandas and lists.

    =================  ============================================================================
    hit policy         which rows count for an example
    =================  ============================================================================
    ``"unique"``       the one that applies; that two may apply is an error with an example row
    ``"first"``        the first that applies
    ``"priority"``     those of the highest priority that apply, by ``priority``
    ``"collect"``      all that apply
    =================  ============================================================================

    A rule whose value is missing may be the one that applies: under ``"first"`` and ``"priority"``,
    no row after it counts then (as in any group of rules), and no default.

    Args:
      table: A data frame, a dictionary of columns, a list of dictionaries, or CSV: its path, or its
        text, with commas, semicolons or tabs.
      hit_policy: As above.
      conclusions: The columns that hold the conclusions; by default the last one. A cell holds a
        class or label; or the column is named like a label, and its cells are true, false, or
        empty. Several conclusions of a row hold together.
      default: What is concluded where no row applies: a class or label, a dictionary by column for
        several conclusions, or a formula. A last row without conditions says the same under
        ``"first"``.
      priority: For ``"priority"``: a column of numbers, of which the highest counts; or the classes
        in their order, the most important one first, as in DMN.
      schema: If given, cells are read as the kinds of its columns ask for, and classes and
        categories must be known. A column of the table may then also be an expression over the
        schema's columns, such as ``discharged - admitted``. Without, cells are what they look like.
      w, p, hard, learn: The strength of all rules, as for ``rule``; or, for each, the name of a
        column that holds it.
      names: A column with the names of the rules.
      ignore: Columns that are not used, such as remarks.
      group: The name of the group of rules that a table becomes; other tables in one book need
        other names. ``"unique"`` and ``"collect"`` need a group only for a default.

    Returns:
      One rule per row, and one for the default. Rows without any cell are left out.

    Raises:
      RuleError: for a cell that cannot be read, with its row, counted from 1 (in CSV, its line),
        and its column; for rows that overlap under ``"unique"``; and for a row without a condition
        that would hide the others.
      ValueError, TypeError: for arguments that name no column or do not go together.

    Warns:
      RuleWarning: where rows may overlap under ``"unique"``, but no example was found.

    Example:
      >>> table = {
      ...     "age": ["< 18", "[18..65)", ">= 65"],
      ...     "severity": ["-", "mild, severe", 'not("mild")'],
      ...     "advice": ["clinic", "ward", "ward"],
      ... }
      >>> for rule in from_decision_table(table, default="home"):
      ...     print(rule)
      [first=table] age < 18 => clinic
      [first=table] 18 <= age < 65 and severity in ['mild', 'severe'] => ward
      [first=table] age >= 65 and severity != 'mild' => ward
      [first=table] else => home
    """
    if hit_policy not in _POLICIES:
        raise ValueError(
            f"hit_policy must be one of {', '.join(_POLICIES)} ('collect' for rule order and any), "
            f"got {hit_policy!r}"
        )
    if (priority is None) != (hit_policy != "priority"):
        raise ValueError(
            "hit_policy='priority' needs priority=, a column of numbers or the classes in their "
            "order, and other hit policies take none"
        )
    read = read_rows(table)
    layout = sorted_columns(
        read, conclusions, priority, {"w": w, "p": p, "hard": hard, "learn": learn}, names, ignore
    )
    rows = [_Row(row, layout, schema) for row in read.rows if not is_empty(row)]
    if not rows:
        raise RuleError("the table has no rows")
    otherwise = _default(default, layout, schema)
    rules = _joined(rows, hit_policy, priority, otherwise, layout, group)
    if hit_policy == "unique" and len(rows) > 1:
        _check_unique(rows, rules, schema)
    return rules


# Rows


class _Row:
    """A row as the parts of a rule.

    Attributes:
      where, number: Where it is.
      conditions: What its cells say; empty if they say nothing.
      head: Its conclusions.
      name, strength, priority: Of its rule, if the table has them; None otherwise.
    """

    def __init__(self, row: TableRow, layout: Layout, schema: Schema | None):
        self.where, self.number = row.where, row.number
        self.conditions: list[f.Formula] = []
        for name in layout.conditions:
            found = self._in(name, condition, row.cells[name], _subject(name, schema))
            inner = found.parts if type(found) is f.And else (found,)
            self.conditions += [x for x in inner if x is not None]
        self.head = self._head(row, layout, schema)
        self.name = None
        if layout.names is not None and not says_nothing(row.cells[layout.names]):
            self.name = self._in(layout.names, text_of_python, row.cells[layout.names])
        self.priority = None
        if layout.priority is not None:
            self.priority = self._in(layout.priority, _number, row.cells[layout.priority])
        self.strength = self._strength(row, layout)

    def fail(self, name: str, problem: object) -> RuleError:
        return RuleError(f"{self.where}, column {name!r}: {problem}")

    def _in(self, name: str, read: Callable, *arguments: Any) -> Any:
        """What a cell holds; errors say where it is."""
        try:
            return read(*arguments)
        except (CellProblem, ValueError) as error:
            raise self.fail(name, error) from None

    def _head(self, row: TableRow, layout: Layout, schema: Schema | None) -> f.Formula:
        found: list[f.Formula] = []
        for name in layout.conclusions:
            found += self._in(name, _conclusion, row.cells[name], name, schema)
        if not found:
            shown = " and ".join(map(repr, layout.conclusions))
            raise RuleError(f"{self.where}: no conclusion: the cells of {shown} are empty")
        return found[0] if len(found) == 1 else f.And(tuple(found))

    def _strength(self, row: TableRow, layout: Layout) -> f.Strength:
        found = []
        for kind in _STRENGTHS:
            given: Any = layout.strengths.get(kind)
            if kind in layout.columns:
                cell = row.cells[given]
                if not says_nothing(cell):
                    made = self._in(given, _strength_in_cell, kind, cell)
                    found += [made] if made is not None else []
            elif given is not None:
                found.append(_strength(kind, given))
        if len(found) > 1:
            shown = " and ".join(map(str, found))
            raise RuleError(f"{self.where}: a rule has one strength, got {shown}")
        return found[0] if found else f.Strength()


def _strength(kind: str, given: Any) -> f.Strength:
    return f.Strength(kind, f.as_float(given) if kind in ("w", "p") else None)


def _strength_in_cell(kind: str, cell: Any) -> f.Strength | None:
    if kind in ("w", "p"):
        return _strength(kind, _number(cell))
    return f.Strength(kind) if _truth(cell) else None


def _number(cell: Any) -> int | float:
    """A number in a cell."""
    text = text_of_python(cell)
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?", text):
        raise CellProblem(f"a number was expected, got {shortened(repr(cell), 60)}")
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _truth(cell: Any) -> bool:
    """True or false in a cell, in any of the words for it."""
    text = text_of_python(cell).lower()
    if text in (*TRUE_WORDS, "1", "x"):
        return True
    if text in (*FALSE_WORDS, "0"):
        return False
    raise CellProblem(f"true or false was expected, got {shortened(repr(cell), 60)}")


def _subject(name: str, schema: Schema | None) -> Subject:
    """What the cells of a column are about."""
    if schema is None:
        return Subject(f.Name(name))
    known = {column.name: column for column in schema.columns}
    if name in known:
        return Subject(f.Name(name), known[name])
    try:
        found = parse_formula(f"({name}) == 0")
    except RuleError:
        found = None
    if isinstance(found, f.Compare):
        used = {x.name for x in f.trees(found) if isinstance(x, f.Name)}
        if used and used <= set(known):
            return Subject(found.operands[0])
    raise RuleError(
        f"column {name!r} of the table is no column of the schema, nor an expression over its "
        f"columns: name it in ignore or conclusions, or rename it; {nearest(name, list(known))}"
    )


def _conclusion(cell: Any, name: str, schema: Schema | None) -> list[f.Formula]:
    """What a cell concludes: classes and labels, or negations of them; empty for an empty cell."""
    if says_nothing(cell):
        return []
    text = text_of_python(cell)
    labelled = isinstance(cell, bool | np.bool_) or text.lower() in ("true", "false")
    if schema is not None:
        labelled = name in schema.classes
    if labelled:
        return [f.Name(name) if _truth(cell) else f.Not(f.Name(name))]
    whole = schema is not None and text in schema.classes
    names, negated = ([text], False) if whole else _names_in(text)
    for found in names:
        if schema is not None and found not in schema.classes:
            raise CellProblem(
                f"{found!r} is no class or label of the schema; {nearest(found, schema.classes)}"
            )
    if len(names) > 1 and not negated and schema is not None and schema.exclusive:
        raise CellProblem(f"an example has one class, got {', '.join(names)}")
    return [f.Not(f.Name(x)) if negated else f.Name(x) for x in names]


_NAME = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^",()]+?))\s*(?:,|$)')


def _names_in(text: str) -> tuple[list[str], bool]:
    """Names between commas, with or without quotes; whether ``not(…)`` is around them."""
    match = re.fullmatch(r"not\s*\((.*)\)", text, re.DOTALL)
    inner, i, found = match[1] if match else text, 0, []
    while i < len(inner):
        name = _NAME.match(inner, i)
        if name is None:
            raise CellProblem(
                "expected a class or label, several between commas, or not(...); quote a name with "
                f"commas or brackets, got {shortened(text, 80)!r}"
            )
        found.append(name[2] if name[1] is None else re.sub(r"\\(.)", r"\1", name[1]))
        i = name.end()
    if not all(found) or not found:
        raise CellProblem(f"expected a class or label, got {shortened(text, 80)!r}")
    return found, match is not None


def _default(default: Any, layout: Layout, schema: Schema | None) -> f.Formula | None:
    """What is concluded where no row applies.

    Raises:
      ValueError: for a default that does not fit the conclusions.
    """
    if default is None:
        return None
    if isinstance(default, Built | f.Formula):
        return formula(default)
    if isinstance(default, Mapping):
        if not default or not set(default) <= set(layout.conclusions):
            raise ValueError(
                f"default must name columns of conclusions, {layout.conclusions}, got "
                f"{list(default)}"
            )
        pairs = list(default.items())
    elif len(layout.conclusions) > 1:
        raise ValueError(
            f"default must be a dictionary with the conclusions {layout.conclusions}, got "
            f"{default!r}"
        )
    else:
        pairs = [(layout.conclusions[0], default)]
    try:
        found = [x for name, cell in pairs for x in _conclusion(cell, name, schema)]
    except CellProblem as error:
        raise ValueError(f"default: {error}") from None
    if not found:
        raise ValueError(f"default concludes nothing, got {default!r}")
    return found[0] if len(found) == 1 else f.And(tuple(found))


# Groups


def _joined(
    rows: Sequence[_Row],
    policy: str,
    priority: str | Sequence[str] | None,
    default: f.Formula | None,
    layout: Layout,
    group: str,
) -> tuple[f.Rule, ...]:
    """The rules of all rows, in a group if the hit policy or a default needs one."""
    ranks: list[int | float | None] = [None] * len(rows)
    if policy == "priority":
        ranks = [_rank(row, priority) for row in rows]
    elif policy == "collect" and default is not None:
        ranks = [1] * len(rows)
    grouped = policy in ("first", "priority") or default is not None
    own = group if grouped else None
    rules = []
    for i, row in enumerate(rows):
        if row.conditions:
            body = row.conditions[0] if len(row.conditions) == 1 else f.And(tuple(row.conditions))
            made: f.Formula = f.Implies(body, row.head)
        elif not grouped:
            if policy == "unique" and len(rows) > 1:
                raise RuleError(
                    f"{row.where}: it has no condition, and so overlaps all other rows: use "
                    "default= in place of it, or hit_policy='first'"
                )
            made = row.head
        else:
            lower = [r for k, r in enumerate(ranks) if k != i and r is not None]
            last = i == len(rows) - 1 if policy != "priority" else all(r > ranks[i] for r in lower)  # type: ignore[operator]
            if default is not None or policy not in ("first", "priority") or not last:
                place = (
                    "the last, without a default,"
                    if policy != "priority"
                    else "the one of the lowest priority, without a default,"
                )
                raise RuleError(
                    f"{row.where}: it has no condition, and hides all rows after it: only {place} "
                    "may have none"
                )
            made = f.Implies(f.Else(), row.head)
        rules.append(_rule(made, row.name, row.strength, own, ranks[i], row.number))
    if default is not None:
        kind = next((k for k in layout.strengths if k not in layout.columns), None)
        strength = f.Strength() if kind is None else _strength(kind, layout.strengths[kind])
        known = [r for r in ranks if r is not None]
        rank = min(known) - 1 if known else None
        rules.append(_rule(f.Implies(f.Else(), default), None, strength, own, rank, 0))
    return tuple(rules)


def _rule(
    made: f.Formula,
    name: str | None,
    strength: f.Strength,
    group: str | None,
    rank: int | float | None,
    line: int,
) -> f.Rule:
    found = f.Rule(made, name, strength, line=line, group=group, priority=rank)
    return dataclasses.replace(found, source=str(found))


def _rank(row: _Row, priority: str | Sequence[str] | None) -> int | float:
    """A row's priority: as its column has it, or by the order of its class."""
    if isinstance(priority, str) or priority is None:
        assert row.priority is not None
        return row.priority
    order = list(priority)
    if not isinstance(row.head, f.Name) or row.head.name not in order:
        raise RuleError(
            f"{row.where}: priority must list what each row concludes, got {order} and {row.head}"
        )
    return len(order) - order.index(row.head.name)


def _check_unique(rows: Sequence[_Row], rules: Sequence[f.Rule], schema: Schema | None) -> None:
    """Raises a ``RuleError`` if two rows may apply to one example."""
    own = [rule for rule in rules[: len(rows)] if isinstance(rule.formula, f.Implies)]
    found = overlaps(own, schema, most=20)
    shown = []
    for overlap in found:
        first, second = (rows[i] for i in overlap.indices)
        where = f"where {overlap.region}" if overlap.region else "everywhere"
        example = "" if overlap.example is None else f", for example {overlap.example}"
        shown.append(f"{first.where} and {second.where} overlap {where}{example}")
    certain = [text for text, x in zip(shown, found, strict=True) if x.example is not None]
    if certain:
        more = f"\nand {len(certain) - 5} more" if len(certain) > 5 else ""
        raise RuleError(
            "\n".join(certain[:5])
            + f"{more}\nmake them disjoint, or use hit_policy='first', 'priority' or 'collect'"
        )
    for text in shown[:5]:
        warnings.warn(f"{text}, perhaps: no example was found", RuleWarning, stacklevel=5)
