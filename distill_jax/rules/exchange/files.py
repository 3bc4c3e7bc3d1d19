"""Rules in files: text, tables, Horn clauses, DIMACS CNF, and regular expressions.

The suffix of a file determines its format. Files are written atomically.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_jax import _checks, _files, _text
from distill_jax._arguments import checked
from distill_jax.rules.exchange._dimacs import from_dimacs, to_dimacs
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import pattern_problem, search
from distill_jax.rules.language._spelling import number as number_text
from distill_jax.rules.language._spelling import quoted
from distill_jax.rules.language.errors import RuleError, error_at, shortened
from distill_jax.rules.language.parsing import parse, parse_clauses

COLUMNS: tuple[str, ...] = ("rule", "name", "strength")
GROUPS: tuple[str, ...] = ("first", "group", "priority")
"""Further columns of tables with rules in groups."""

_PLAIN, _HORN = (".rules", ".txt"), (".pl", ".horn")
_SUFFIXES = (*_PLAIN, *_HORN, ".csv", ".json", ".cnf", ".tsv")


@checked
def read_rules(
    path: str | pathlib.Path, *, names: Sequence[str] | None = None, column: str | None = None
) -> tuple[f.Rule, ...]:
    """Reads rules from a file.

    ==================  ===========================================================================
    suffix              format
    ==================  ===========================================================================
    ``.rules .txt``     text, as ``parse`` reads it
    ``.pl .horn``       Horn clauses only
    ``.csv .json``      a table, see ``from_table``; in JSON a list of objects
    ``.cnf``            DIMACS CNF: every clause is a hard rule; ``c 3 name`` names variable 3
    ``.tsv``            per line a regular expression, a label, and optionally an example text that
                        the expression must match, separated by tabs
    ==================  ===========================================================================

    Args:
      path: The file, encoded in UTF-8.
      names: Names of the variables of a ``.cnf`` file. By default its comments name them, and
        variable 3 is ``x3`` without one.
      column: The text column that the regular expressions of a ``.tsv`` file are searched in.

    Returns:
      The rules, in the order of the file.

    Raises:
      RuleError: for text that is not valid in the format, with file, line and column.
      ValueError: for an unknown suffix, a ``.tsv`` file without ``column``, or ``names`` whose
        number differs from the number of variables.
    """
    path = pathlib.Path(path)
    suffix = _suffix(path)
    if suffix == ".tsv" and column is None:
        raise ValueError(f"column must name the text column for {path.name}, got None")
    if names is not None:
        names = _checks.names("names", names)
    if not (column is None or isinstance(column, str)):
        raise TypeError(f"column must be the name of a column, got {column!r}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if suffix in _PLAIN:
            return parse(text)
        if suffix in _HORN:
            return _clauses(text)
        if suffix in (".csv", ".json"):
            return _from_rows(_csv_rows(text) if suffix == ".csv" else _json_rows(text))
        return from_dimacs(text, names) if suffix == ".cnf" else _from_patterns(text, str(column))
    except UnicodeDecodeError as error:
        raise RuleError(f"{path}: not in UTF-8: {error}") from None
    except RuleError as error:
        raise RuleError(f"{path}, {error}") from None


@checked
def write_rules(rules: Sequence[f.Rule], path: str | pathlib.Path) -> None:
    """Writes rules to a file from which ``read_rules`` reads equal rules.

    Args:
      rules: The rules. A ``.pl`` file can only hold Horn clauses, a ``.cnf`` file hard disjunctions
        of names, and a ``.tsv`` file rules such as ``text matches r"..." => label`` without a
        strength.
      path: The file; its suffix determines the format, as in ``read_rules``. An existing file is
        replaced atomically.

    Raises:
      ValueError: for an unknown suffix, or a rule that the format cannot hold.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "disease.rules"
      ...     write_rules(parse("[w=2] old: age > 60 => disease"), path)
      ...     print(*read_rules(path))
      [w=2] old: age > 60 => disease
    """
    path = pathlib.Path(path)
    suffix = _suffix(path)
    if suffix in _HORN:
        for rule in rules:
            if not rule.definition:
                raise ValueError(
                    f"a {suffix} file can only hold clauses, head :- body., got "
                    f"{shortened(str(rule), 200)}"
                )
    if suffix == ".csv":
        out, table = io.StringIO(newline=""), to_table(rules)
        writer = csv.DictWriter(out, list(table[0]) if table else COLUMNS, lineterminator="\n")
        writer.writeheader()
        cells = [{n: x and _text.to_cell(x) for n, x in row.items()} for row in table]
        writer.writerows(cells)
        text = out.getvalue()
    elif suffix == ".json":
        text = json.dumps(to_table(rules), ensure_ascii=False, indent=1) + "\n"
    elif suffix == ".cnf":
        text = to_dimacs(rules)
    elif suffix == ".tsv":
        text = "".join(_pattern_line(rule) for rule in rules)
    else:
        text = "".join(f"{rule}\n" for rule in rules)
    data = text.encode("utf-8")  # raises for a lone surrogate, before a file is opened
    with _files.replacing(path) as file:
        file.write(data)


@checked
def to_table(rules: Sequence[f.Rule]) -> list[dict[str, str | None]]:
    """Rules as rows of a table, for a data frame, CSV or JSON.

    Args:
      rules: The rules.

    Returns:
      One mapping per rule: ``rule``, its text; ``name``, or None; and ``strength``: ``w=2``,
      ``p=0.9``, ``hard``, ``learn``, ``budget``, or None. If a rule is in a group, all of them also
      have ``first``, ``group`` and ``priority``, as text, or None. ``from_table`` reads them back.

    Example:
      >>> to_table(parse("[p=0.9] old: age > 60 => disease"))
      [{'rule': 'age > 60 => disease', 'name': 'old', 'strength': 'p=0.9'}]
    """
    grouped = any(rule.group is not None for rule in rules)
    return [_to_row(rule, grouped) for rule in rules]


@checked
def from_table(rows: Iterable[Mapping[str, Any]]) -> tuple[f.Rule, ...]:
    """Rules from the rows of a table, such as ``dataframe.to_dict("records")``.

    Args:
      rows: Mappings with ``rule``, a text as ``parse`` reads it, and optionally ``name`` and
        ``strength``: ``w=2``, ``p=0.9``, ``hard``, ``learn`` or ``budget``; and for a rule of a
        group ``first``, the name of a group in the order of the rows, or ``priority``, a number,
        and ``group``. Empty strings, None and NaN count as missing.

    Returns:
      One rule per row, in the same order.

    Raises:
      RuleError: for a row without a valid rule, with the row's number, counted from 1.

    Example:
      >>> (rule,) = from_table([{"rule": "age > 60 => disease", "strength": "w=2"}])
      >>> print(rule)
      [w=2] age > 60 => disease
    """
    return _from_rows((f"row {i}", i, row) for i, row in enumerate(rows, 1))


def _suffix(path: pathlib.Path) -> str:
    """The suffix in lower case, if it is known."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(_SUFFIXES)}, got {path.name}")
    return suffix


def _clauses(text: str) -> tuple[f.Rule, ...]:
    """The Horn clauses of a text, which must hold nothing else."""
    rules = parse_clauses(text)
    for rule in rules:
        if not rule.definition:
            start = len(rule.source) - len(rule.source.lstrip())
            message = (
                "expected a clause, head :- body., got a rule: use the suffix .rules for this file"
            )
            raise error_at(message, rule.source, rule.line, start)
    return rules


# Tables


def _to_row(rule: f.Rule, grouped: bool) -> dict[str, str | None]:
    alone = dataclasses.replace(rule, name=None, strength=f.Strength(), group=None, priority=None)
    row = {
        "rule": str(alone),
        "name": rule.name,
        "strength": str(rule.strength).strip("[]") or None,
    }
    if grouped:
        first = rule.priority is None
        row |= {
            "first": rule.group if first else None,
            "group": None if first else rule.group or None,
            "priority": None if rule.priority is None else number_text(rule.priority),
        }
    return row


def _from_rows(rows: Iterable[tuple[str, int, Any]]) -> tuple[f.Rule, ...]:
    return tuple(_from_row(where, line, row) for where, line, row in rows)


def _from_row(where: str, line: int, row: Any) -> f.Rule:
    if not isinstance(row, Mapping):
        raise RuleError(f"{where}: expected a row with {', '.join(COLUMNS)}, got {_shown(row)}")
    unknown = [key for key in row if key not in (*COLUMNS, *GROUPS)]
    if unknown:
        known = ", ".join((*COLUMNS, *GROUPS))
        raise RuleError(f"{where}: unknown column {_shown(unknown[0])}, expected {known}")
    text, name, strength = (_cell(where, column, row.get(column)) for column in COLUMNS)
    if text is None:
        raise RuleError(f"{where}: no rule")
    if tags := _group_tags(where, row):  # before the text: else has no meaning without a group
        opened, inner = text.lstrip().startswith("["), text.lstrip()[1:]
        text = f"[{tags}, {inner}" if opened else f"[{tags}] {text}"
    rules = _in_cell(f"{where}, rule", text)
    if len(rules) != 1:
        raise RuleError(f"{where}: expected one rule, got {len(rules)} in {_shown(text)}")
    rule = dataclasses.replace(rules[0], line=line)
    if name is not None:
        if rule.name not in (None, name):
            raise RuleError(
                f"{where}: the rule is named twice, {_shown(rule.name)} and {_shown(name)}"
            )
        rule = dataclasses.replace(rule, name=name)
    if strength is not None:
        if rule.strength.kind:
            raise RuleError(
                f"{where}: the rule's text already holds a strength, besides {_shown(strength)}"
            )
        inner = strength.strip().removeprefix("[").removesuffix("]")
        if not inner.strip() or set("[],#%\r\n") & set(inner):
            raise RuleError(
                f"{where}, strength: expected w=number, p=number, hard, learn or budget, got "
                f"{_shown(strength)}"
            )
        (parsed,) = _in_cell(f"{where}, strength", f"[{inner}] x")
        rule = dataclasses.replace(rule, strength=parsed.strength)
    return rule


def _group_tags(where: str, row: Mapping[str, Any]) -> str:
    """A row's group as it is written in brackets; empty without one."""
    first, group, priority = (_cell(where, column, row.get(column)) for column in GROUPS)
    tags = [f"first={quoted(first)}"] if first is not None else []
    tags += [f"group={quoted(group)}"] if group is not None else []
    if priority is not None:
        if set("[],#%\r\n") & set(priority):
            raise RuleError(f"{where}, priority: expected a number, got {_shown(priority)}")
        tags.append(f"priority={priority}")
    if tags:
        _in_cell(f"{where}, {'priority' if first is None else 'first'}", f"[{', '.join(tags)}] x")
    return ", ".join(tags)


def _cell(where: str, column: str, value: Any) -> str | None:
    """A cell as text; None if it is empty."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RuleError(f"{where}, {column}: expected text, got {_shown(value)}")
    if value == "" or value != value:  # NaN, too, is a missing cell
        return None
    try:
        return str(value)
    except ValueError:  # an integer with thousands of digits
        raise RuleError(
            f"{where}, {column}: expected text, got a number that is too long"
        ) from None


def _shown(value: Any) -> str:
    """A value for a message, however long it is."""
    try:
        return shortened(repr(value), 80)
    except ValueError:  # an integer with thousands of digits
        return f"a {type(value).__name__} that is too long to show"


def _in_cell(where: str, text: str) -> tuple[f.Rule, ...]:
    """The rules in a cell; errors start with where the cell is."""
    try:
        return parse(text)
    except RuleError as error:
        raise RuleError(f"{where}, {str(error).removeprefix('line 1, ')}") from None


def _csv_rows(text: str) -> Iterable[tuple[str, int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # A rule may be longer than the 131,072 characters that Python's reader takes by default.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if "rule" not in header or len(set(header)) < len(header):
                    expected = "a header with the columns rule, name, strength, each once"
                    raise RuleError(f"{where}: expected {expected}, got {','.join(header)}")
            elif len(cells) != len(header):
                got = f"{len(cells)} cells under {len(header)} columns"
                raise RuleError(f"{where}: {got}: quote a rule that contains a comma")
            else:
                values = map(_text.from_cell, cells)
                yield where, reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise RuleError(f"line {reader.line_num}: not valid CSV: {error}") from None


def _json_rows(text: str) -> Iterable[tuple[str, int, Any]]:
    try:
        rows = json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RuleError(f"{where}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise RuleError(f"JSON that cannot be read: {error}") from None
    if not isinstance(rows, list):
        raise RuleError(f"expected a list of objects with {', '.join(COLUMNS)}")
    return [(f"row {i}", i, row) for i, row in enumerate(rows, 1)]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose names is there twice: one of them would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RuleError(f"an object has {_shown(twice)} twice")
    return found


# Lines of regular expression, label, example


def _from_patterns(text: str, column: str) -> tuple[f.Rule, ...]:
    """One rule per line, ``column matches r"..." => label``."""
    found = []
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) not in (2, 3) or not cells[1].strip():
            message = "expected a regular expression, a tab, a label, and optionally a tab and an "
            raise error_at(message + "example", line, number, 0)
        pattern, label = cells[0], cells[1].strip()
        if (problem := pattern_problem(pattern)) is not None:
            raise error_at(f"not a regular expression: {problem}", line, number, 0)
        if len(cells) == 3 and cells[2] and not search(pattern, cells[2]):
            message = "the regular expression does not match this example"
            raise error_at(message, line, number, len(cells[0]) + len(cells[1]) + 2)
        formula = f.Implies(f.Matches(f.Name(column), pattern), f.Name(label))
        found.append(f.Rule(formula, line=number, source=str(formula)))
    return tuple(found)


def _pattern_line(rule: f.Rule) -> str:
    """A rule as a line of a ``.tsv`` file."""
    match rule:
        case f.Rule(
            f.Implies(f.Matches(f.Name(), pattern), f.Name(label)), None, f.Strength(""), group=None
        ):
            line = f"{pattern}\t{label}\n"
            if line.count("\t") == 1 and len(line.splitlines()) == 1 and not line.startswith("#"):
                return line
    raise ValueError(
        'a .tsv file can only hold rules such as text matches r"..." => label, got '
        f"{shortened(str(rule), 200)}"
    )
