"""Rules as decision tables: the inverse of ``decision_tables``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax._arguments import checked
from distill_jax.rules.exchange._decision_cells import says_nothing
from distill_jax.rules.exchange._decision_texts import cell_text
from distill_jax.rules.exchange.decision_tables import from_decision_table
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError, shortened


@checked
def to_decision_table(
    rules: Sequence[f.Rule], *, conclusion: str = "conclusion"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rules as a decision table: the inverse of ``from_decision_table``.

    Args:
      rules: Rules ``body => head``, all in one group or all in none. A head is a class or label, or
        several of them, some negated; a body is a conjunction.
      conclusion: The name of the column of classes.

    Returns:
      ``(rows, arguments)``: a dictionary of cells for each rule, for a data frame or CSV, and what
      else ``from_decision_table(rows, **arguments)`` needs to read equal rules back. The conditions
      of a rule come back in the order of the table's columns. Rules of no group have the hit
      policy ``"collect"``.

    Raises:
      ValueError: for a rule that no row says, by its text.

    Example:
      >>> from distill_jax.rules import parse
      >>> rules = parse('''
      ... [first=t] age < 18 => clinic
      ... [first=t] 18 <= age < 65 and sex in ['F', 'M'] => ward
      ... [first=t] else => home
      ... ''')
      >>> rows, arguments = to_decision_table(rules)
      >>> for row in rows:
      ...     print(row)
      {'age': '< 18', 'sex': '-', 'conclusion': 'clinic'}
      {'age': '[18..65)', 'sex': '"F", "M"', 'conclusion': 'ward'}
      {'age': '-', 'sex': '-', 'conclusion': 'home'}
      >>> arguments
      {'hit_policy': 'first', 'conclusions': ['conclusion'], 'group': 't'}
      >>> from_decision_table(rows, **arguments) == rules
      True
    """
    rules = tuple(rules)
    if not rules:
        raise ValueError("rules must hold at least one rule, got none")
    groups = {rule.group for rule in rules}
    if len(groups) > 1 or len({rule.priority is None for rule in rules}) > 1:
        raise ValueError(
            "a decision table holds the rules of one group, or rules without one, got those of "
            f"{sorted(map(str, groups))}: write a table per group"
        )
    bodies = [_by_column(rule) for rule in rules]
    heads = [_concluded(rule) for rule in rules]
    columns = _column_order(bodies)
    if not columns:
        raise ValueError("a decision table needs a condition, and no rule has one")
    simple = all(len(head) == 1 and next(iter(head.values())) for head in heads) and not any(
        name.lower() in ("true", "false") for head in heads for name in head
    )
    labels = list(dict.fromkeys(name for head in heads for name in head))
    taken = set(columns)
    conclusions = [_free(conclusion, taken)] if simple else labels
    if not simple and taken & set(labels):
        raise ValueError(f"{sorted(taken & set(labels))} are both columns and labels of the rules")
    taken |= set(conclusions)
    arguments: dict[str, Any] = {"hit_policy": "collect", "conclusions": conclusions}
    further: dict[str, list[Any]] = {}
    group = rules[0].group
    if group is not None:
        arguments["hit_policy"] = "first" if rules[0].priority is None else "priority"
        arguments["group"] = group
        if rules[0].priority is not None:
            arguments["priority"] = _free("priority", taken)
            further[arguments["priority"]] = [rule.priority for rule in rules]
    if any(rule.name is not None for rule in rules):
        arguments["names"] = _free("name", taken)
        further[arguments["names"]] = [rule.name for rule in rules]
    for kind, given in _strengths_of(rules).items():
        if isinstance(given, list):
            arguments[kind] = _free(kind, taken)
            further[arguments[kind]] = given
        else:
            arguments[kind] = given
    rows = []
    for i, (body, head) in enumerate(zip(bodies, heads, strict=True)):
        row: dict[str, Any] = {
            name: _cell_of(rules[i], body[name], name) if name in body else "-" for name in columns
        }
        row |= (
            {conclusions[0]: _quoted_name(next(iter(head)))}
            if simple
            else {name: head.get(name) for name in labels}
        )
        rows.append(row | {name: values[i] for name, values in further.items()})
    _check_read_back(rules, rows, arguments)
    return rows, arguments


def _refused(rule: f.Rule, why: str) -> ValueError:
    return ValueError(f"no row of a decision table says {shortened(str(rule), 200)}: {why}")


def _by_column(rule: f.Rule) -> dict[str, list[f.Formula]]:
    """The conditions of a rule by column; empty for a rule that has none."""
    if rule.definition:
        raise _refused(rule, "a clause defines a predicate, or is a rule body => head")
    x = rule.formula
    if not isinstance(x, f.Implies) or isinstance(x.body, f.Else):
        return {}
    if isinstance(x.body, f.Unless):
        raise _refused(rule, "write a and not c => b for a => b unless c")
    found: dict[str, list[f.Formula]] = {}
    for part in x.body.parts if isinstance(x.body, f.And) else (x.body,):
        names = [y for y in f.trees(part) if isinstance(y, f.Name | f.Of)]
        first = next((y for y in names if isinstance(y, f.Name)), None)
        if first is None or any(isinstance(y, f.Of) for y in names):
            raise _refused(rule, f"{part} is not about a column")
        found.setdefault(first.name, []).append(part)
    return found


def _concluded(rule: f.Rule) -> dict[str, bool]:
    """The classes and labels of a rule's head, and whether each holds."""
    head = rule.formula.head if isinstance(rule.formula, f.Implies) else rule.formula
    found: dict[str, bool] = {}
    for part in head.parts if type(head) is f.And else (head,):
        match part:
            case f.Name(name) if name not in found:
                found[name] = True
            case f.Not(f.Name(name)) if name not in found:
                found[name] = False
            case _:
                raise _refused(rule, f"a conclusion is a class or label, got {part}")
    return found


def _column_order(bodies: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rules, in an order that is that of each rule where there is one."""
    after: dict[str, set[str]] = {name: set() for body in bodies for name in body}
    for body in bodies:
        names = list(body)
        for first, second in zip(names, names[1:], strict=False):
            after[second].add(first)
    order: list[str] = []
    while len(order) < len(after):
        left = [name for name in after if name not in order]
        order.append(next((x for x in left if not after[x] - set(order)), left[0]))
    return order


def _free(name: str, taken: set[str]) -> str:
    """A name of a column that is not taken yet, and is then."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _strengths_of(rules: Sequence[f.Rule]) -> dict[str, Any]:
    """The strengths by kind: one for all rules, or a list with None."""
    kinds = dict.fromkeys(rule.strength.kind for rule in rules if rule.strength.kind)
    if "budget" in kinds:
        budget = next(rule for rule in rules if rule.strength.kind == "budget")
        raise _refused(budget, "a budget is over all examples")
    found: dict[str, Any] = {}
    for kind in kinds:
        values = [
            None
            if rule.strength.kind != kind
            else (True if rule.strength.number is None else rule.strength.number)
            for rule in rules
        ]
        found[kind] = values[0] if len(set(values)) == 1 else values
    return found


def _cell_of(rule: f.Rule, parts: Sequence[f.Formula], name: str) -> str:
    try:
        return cell_text(parts[0] if len(parts) == 1 else f.And(tuple(parts)), name)
    except ValueError as error:
        raise _refused(rule, str(error)) from None


def _quoted_name(name: str) -> str:
    """A class's name as a cell of conclusions."""
    if name == name.strip() and not set(name) & set('",()') and not says_nothing(name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_read_back(
    rules: Sequence[f.Rule], rows: list[dict[str, Any]], arguments: dict[str, Any]
) -> None:
    """Raises a ``ValueError`` for a rule that comes back as more than reordered."""
    try:
        found = from_decision_table(rows, **arguments)
    except RuleError as error:
        raise ValueError(f"no decision table says these rules: {error}") from None
    for rule, back in zip(rules, found, strict=True):
        if _unordered(rule) != _unordered(back):
            raise _refused(rule, f"it would be read back as {shortened(str(back), 200)}")


def _unordered(rule: f.Rule) -> f.Rule:
    """A rule whose conditions and conclusions are in the order of their texts."""

    def sort(x: f.Formula) -> f.Formula:
        return f.And(tuple(sorted(x.parts, key=str))) if type(x) is f.And else x

    x = rule.formula
    made = f.Implies(sort(x.body), sort(x.head)) if isinstance(x, f.Implies) else sort(x)
    return dataclasses.replace(rule, formula=made)
