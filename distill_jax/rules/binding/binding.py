"""``bind``: compiles rules to a book of arrays, for the columns and classes of a schema."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding._atoms import Columns
from distill_jax.rules.binding._ground import Grounder, Piece, head_of
from distill_jax.rules.binding._groups import check_groups
from distill_jax.rules.binding._plans import plan
from distill_jax.rules.binding.book import Book, Info, Pieces
from distill_jax.rules.binding.contradictions import conflicts as find_conflicts
from distill_jax.rules.binding.schema import Schema
from distill_jax.rules.circuits._circuit import FALSE, TRUE
from distill_jax.rules.circuits.fuzzy_logics import Logic, LogicName, find_logic
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.language._spelling import is_word, quoted
from distill_jax.rules.language.building import Built, formula
from distill_jax.rules.language.errors import RuleError, shortened
from distill_jax.rules.language.parsing import parse


class RuleWarning(UserWarning):
    """A warning about valid rules that have no effect, or that may contradict each other.

    Issued by ``bind`` and by functions that bind rules for their caller. To turn it into an
    error: ``warnings.simplefilter("error", RuleWarning)``.
    """


@checked
def bind(
    rules: str | Sequence[str | f.Rule | f.Formula | Built],
    schema: Schema,
    *,
    logic: LogicName | Logic = "product",
    widths: Mapping[str, float] | None = None,
    conflicts: Literal["raise", "warn", "ignore"] = "raise",
) -> Book:
    """Binds rules to the columns and classes of a schema.

    Args:
      rules: A text with one rule per line, or a sequence of texts, rules and formulas, built in
        Python or parsed.
      schema: The columns and classes that the rules refer to by name.
      logic: For label sets, how truth is computed from probabilities: ``"product"``,
        ``"lukasiewicz"``, ``"godel"``, ``"sigmoidal"`` (see ``truth``), or your own ``Logic``.
        Not used for exclusive classes, whose truth is exact.
      widths: Makes comparisons with a numeric column soft, so that gradients reach the column:
        ``{"age": 2.0}`` gives ``age > 55`` the truth sigmoid((age − 55) / 2). Keys are column
        names, or arithmetic expressions as they are printed.
      conflicts: What to do about hard rules that contradict each other on some example: ``"raise"``
        (and warn about possible conflicts), ``"warn"``, or ``"ignore"`` (no search); see the
        function ``conflicts``.

    Returns:
      The book, which the functions of ``distill_jax.rules`` take; ``str`` of it is its text.

    Raises:
      RuleError: for unknown names, mismatched types, constants beyond double precision, cyclic
        clauses, unsatisfiable rules, hard rules that contradict each other, and parts of the
        language that are not built yet; with line and caret if the rule was written as text.
      TypeError: if ``rules`` or ``schema`` is of another type.
      ValueError: for an unknown ``logic`` or ``conflicts``, or ``widths`` that are not positive or
        not used.

    Warns:
      RuleWarning: for rules that can never be violated, and hard rules that may contradict each
        other.

    Example:
      >>> from distill_jax.rules import Column, Schema
      >>> schema = Schema((Column("age"), Column("smoker", "boolean")), ("healthy", "disease"))
      >>> book = bind("[w=2] smoking: smoker and age > 60 => disease", schema)
      >>> book
      <Book of 1 rules over 2 classes>
      >>> print(book)
      [w=2] smoking: smoker and age > 60 => disease
    """
    return _bound(rules, schema, logic=logic, widths=widths, conflicts=conflicts)


def bind_like(book: Book, rules: Sequence[f.Rule]) -> Book:
    """Binds rules that read a book's columns, as ``encode(book, table)`` places them; no views.

    Args:
      book: Its rules compare columns with all the constants that these rules do.
      rules: Without widths.
    """
    schema = dataclasses.replace(book.schema, views=())
    return _bound(rules, schema, like=book.info)


def _bound(
    rules: Any,
    schema: Schema,
    *,
    logic: LogicName | Logic = "product",
    widths: Mapping[str, float] | None = None,
    conflicts: Literal["raise", "warn", "ignore"] = "raise",
    like: Info | None = None,
) -> Book:
    """``bind``, to columns as they are encoded for another book if ``like`` is given."""
    chosen = find_logic(logic)
    _check_choices(schema, conflicts)
    written = as_rules(rules)
    definitions = tuple(rule for rule in written if _defines(rule, schema))
    kept = tuple(rule for rule in written if not _defines(rule, schema))
    _check_rules(kept, definitions, schema)
    widths = _checked_widths(widths, schema)
    grounder = Grounder(schema, written, definitions, widths, like)
    grounder.check()
    grounded = _grounded(grounder, kept)
    _warn_of_idle_rules(kept, grounded.fires)
    _check_widths_are_used(widths, grounder.columns)
    arrays = _arrays(grounder, kept, grounded)
    columns = grounder.columns
    info = Info(
        schema,
        kept,
        definitions,
        tests=tuple(columns.tests),
        computed=tuple(columns.computed),
        thresholds=columns.all_thresholds(),
        logic=chosen,
        soft=bool(widths),
    )
    # One call for the whole tree: separate transfers would each compile a program.
    book = jax.device_put(Book(**arrays, info=info))
    if conflicts != "ignore":
        _report_contradictions(book, conflicts == "raise")
    return book


class _Grounded(NamedTuple):
    """Rules as nodes of the builder's circuit.

    Attributes:
      fires: Nodes that hold where each rule can be violated, ``[rules]``.
      violated: For label sets, the node of each rule's violation, ``[rules]``; else empty.
      pieces: For exclusive classes, pairs of a rule's index and one of its pieces.
    """

    fires: list[int]
    violated: list[int]
    pieces: list[tuple[int, Piece]]


def _grounded(grounder: Grounder, rules: Sequence[f.Rule]) -> _Grounded:
    """Grounds every rule.

    Raises:
      RuleError: for an unsatisfiable rule.
    """
    if grounder.schema.exclusive:
        parts = [grounder.pieces(rule) for rule in rules]
        fires = [grounder.builder.any(piece.guard for piece in own) for own in parts]
        _check_satisfiable(rules, parts, len(grounder.schema.classes))
        return _Grounded(fires, [], [(i, piece) for i, own in enumerate(parts) for piece in own])
    pairs = [grounder.violated(rule) for rule in rules]
    violated, fires = [v for v, _ in pairs], [possible for _, possible in pairs]
    for rule, node in zip(rules, violated, strict=True):
        if node == TRUE:
            raise rule_error(rule, "nothing can satisfy this rule")
    return _Grounded(fires, violated, [])


def _arrays(grounder: Grounder, rules: Sequence[f.Rule], grounded: _Grounded) -> dict[str, Any]:
    """The arrays of a book."""
    schema, (fires, violated, pieces) = grounder.schema, grounded
    guards = [piece.guard for _, piece in pieces]
    circuit, places = grounder.circuit([*fires, *violated, *guards])
    fires, violated, guards = np.split(places, np.cumsum([len(fires), len(violated)]))
    classes, views = len(schema.classes), len(schema.views)
    seen = [[classes if s is None else s for s in piece.seen] for _, piece in pieces]
    table = [piece.table for _, piece in pieces]
    kinds = np.array([rule.strength.kind for rule in rules])
    odds = np.array([rule.strength.log_odds for rule in rules], np.float32)
    planned = not schema.exclusive and not grounder.columns.widths
    return dict(
        strengths=np.where(kinds == "hard", np.float32(0), odds),
        hard=kinds == "hard",
        learn=kinds == "learn",
        circuit=circuit,
        fires=fires,
        violated=violated,
        pieces=Pieces(
            guard=guards,
            rule=np.array([i for i, _ in pieces], np.int32),
            seen=np.array(seen, np.int32).reshape(len(pieces), views),
            table=np.array(table, np.float32).reshape(len(pieces), classes),
        ),
        plan=plan(circuit, violated, classes, views) if planned else None,
    )


# Checks


def _check_choices(schema: Schema, conflicts: str) -> None:
    if conflicts not in ("raise", "warn", "ignore"):
        raise ValueError(f"conflicts must be 'raise', 'warn' or 'ignore', got {conflicts!r}")
    if not isinstance(schema, Schema):
        raise TypeError(f"schema must be a Schema, got {type(schema).__name__}: see infer_schema")


def _defines(rule: f.Rule, schema: Schema) -> bool:
    """Whether a rule is a clause that defines a predicate, that is, its head is not a class."""
    return rule.definition and head_of(rule) not in schema.classes


def _check_widths_are_used(widths: Mapping[str, float], columns: Columns) -> None:
    unused = sorted(set(widths) - columns.softened)
    if unused:
        raise ValueError(
            f"widths has keys that no comparison with < <= > >= uses: {unused}; compared are "
            f"{sorted(columns.compared)}"
        )


def as_rules(rules: Any) -> tuple[f.Rule, ...]:
    """Rules as ``bind`` takes them: one text, or several texts, rules and formulas."""
    if isinstance(rules, str):
        found = parse(rules)
    elif isinstance(rules, Sequence):
        found = tuple(
            rule
            for x in rules
            for rule in (
                parse(x)
                if isinstance(x, str)
                else (x if isinstance(x, f.Rule) else f.Rule(formula(x)),)
            )
        )
    else:
        raise TypeError(
            f"rules must be a text or a list of rules and formulas, got {type(rules).__name__}"
        )
    if not found:
        raise RuleError("rules must be one or more, got none")
    if len({id(rule) for rule in found}) < len(found):  # groups tell rules apart by identity
        found = tuple(map(dataclasses.replace, found))
    return found


def _check_rules(kept: Sequence[f.Rule], definitions: Sequence[f.Rule], schema: Schema) -> None:
    if not kept:
        heads = sorted({head_of(r) for r in definitions})
        raise RuleError(
            f"no clause says anything about a class: they define {heads}, and the classes are "
            f"{list(schema.classes)}"
        )
    columns = {column.name for column in schema.columns}
    for rule in (*kept, *definitions):
        x = rule.formula
        if rule.definition and not (isinstance(x, f.Implies) and isinstance(x.head, f.Name)):
            raise RuleError(f"a Horn clause must say body => name, got {x}")
        if (
            abs(rule.strength.log_odds) > float(np.finfo(np.float32).max)
            and rule.strength.kind != "hard"
        ):
            raise rule_error(
                rule,
                f"w must fit float32, got {rule.strength.number:g}: a rule that always holds "
                "is [hard]",
            )
    for rule in definitions:
        if head_of(rule) in columns or head_of(rule) == schema.target:
            raise rule_error(
                rule, f"a clause may not define {head_of(rule)!r}, which is a column", head_of(rule)
            )
        if rule.strength.kind:
            raise rule_error(rule, "a clause that defines a predicate has no strength of its own")
    for rule in (*kept, *definitions):
        if f.depth(rule.formula) > f.MAX_DEPTH:
            raise RuleError(
                f"rules may have {f.MAX_DEPTH} levels of nesting, got one with "
                f"{f.depth(rule.formula)}: define parts of it as predicates by clauses"
            )
    check_groups(kept, definitions)
    _check_arithmetic(rules=(*kept, *definitions), columns=columns)
    names: set[str] = set()
    for rule in kept:
        if rule.name in names:
            raise rule_error(rule, f"two rules are named {rule.name!r}", rule.name)
        names |= {rule.name} if rule.name else set()
        if rule.strength.kind == "budget":
            raise rule_error(rule, "[budget] is parsed but not built yet")


def _check_arithmetic(rules: Sequence[f.Rule], columns: set[str]) -> None:
    """Raises where ``x-1`` is written for a difference, and is the name of a column as well."""
    odd = {name.replace(" ", ""): name for name in columns if not is_word(name)}
    for rule in rules if odd else ():
        for tree in f.trees(rule.formula):
            if isinstance(tree, f.Arithmetic):
                name = odd.get(str(tree).replace(" ", ""))
                if name is not None and name in rule.source.replace(quoted(name), ""):
                    raise rule_error(
                        rule,
                        f"{name} is arithmetic here, and there is a column of that name: write "
                        f"{quoted(name)} for the column, or other spaces for arithmetic",
                    )


def _check_satisfiable(
    rules: Sequence[f.Rule], pieces: Sequence[Sequence[Piece]], classes: int
) -> None:
    for rule, parts in zip(rules, pieces, strict=True):
        always = np.zeros(classes, bool)
        for piece in parts:
            if piece.guard == TRUE and all(s is None for s in piece.seen):
                always |= np.asarray(piece.table)
        if always.all():
            raise rule_error(rule, "nothing can satisfy this rule: every class violates it")
        views = any(s is not None for piece in parts for s in piece.seen)
        if rule.strength.kind == "hard" and views:
            raise rule_error(
                rule,
                "a hard rule may not depend on a view, whose class is itself uncertain: give it "
                "a strength, as in [w=6]",
            )


def _warn_of_idle_rules(rules: Sequence[f.Rule], fires: Sequence[int]) -> None:
    idle = [rule for rule, node in zip(rules, fires, strict=True) if node == FALSE]
    if idle:
        listed = "; ".join(
            (f"line {r.line}: " if r.line else "") + shortened(str(r), 200) for r in idle[:5]
        )
        more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
        warnings.warn(
            f"{len(idle)} of {len(rules)} rules can never be violated, since their bodies never "
            "hold, their heads always do, or rules before them in their group hide them: "
            f"{listed}{more}",
            RuleWarning,
            stacklevel=4,
        )


def _report_contradictions(book: Book, strict: bool) -> None:
    found = find_conflicts(book, most=10)
    for certain in (True, False):
        own = [conflict for conflict in found if conflict.certain == certain]
        if not own:
            continue
        shown = [
            f"{shortened(str(conflict), 1000)}{_lines_of(book, conflict.indices)}"
            for conflict in own[:5]
        ]
        more = [f"and {len(own) - 5} more conflicts"] if len(own) > 5 else []
        message = "\n".join([*shown, *more])
        if certain and strict:
            raise RuleError(
                f"{message}\nmake a rule soft with a strength, as in [w=6], or narrow it; "
                'bind(…, conflicts="warn") only warns'
            )
        warnings.warn(shortened(message, 4000), RuleWarning, stacklevel=4)


def _lines_of(book: Book, indices: Sequence[int]) -> str:
    written = [book.rules[i] for i in indices if book.rules[i].line]
    return "".join(f"\n  line {r.line}: {shortened(str(r), 200)}" for r in written[:5])


def _checked_widths(widths: Mapping[str, float] | None, schema: Schema) -> dict[str, float]:
    """The widths by the printed expression; a key that is a column's name stands for the column."""
    columns = {column.name for column in schema.columns}
    found = {}
    for name, width in (widths or {}).items():
        if not (np.isfinite(width) and width > 0):
            raise ValueError(f"widths[{name!r}] must be finite and > 0, got {width}")
        found[quoted(name) if name in columns else name] = width
    return found
