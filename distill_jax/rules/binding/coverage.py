"""Where rules overlap, and where none of them applies: for decision tables and other rule lists.

A rule *applies* where its body holds. Bodies are unions of boxes over columns, as conflicts are, so
overlaps are intersections of boxes, and gaps are what is left of the table when all are taken away.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding import _regions
from distill_jax.rules.binding._places import beside
from distill_jax.rules.binding.binding import RuleWarning, bind
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import Column, Schema
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.language.parsing import parse

MOST_CASES = 1_000
"""Boxes per rule that are looked at."""
MOST_STEPS = 20_000
"""Boxes that are taken apart in search of gaps."""
MOST_TRIED = 20
"""Pairs of boxes of two rules for which an example row is sought."""


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Two rules that both apply somewhere.

    Attributes:
      rules: Their names, or their texts without one, in the order given.
      indices: Their indices.
      region: Where both apply, or a part of that, as the text of a formula; empty for everywhere.
      example: A row where both apply, as values by column; None if none was found, since arithmetic
        or tests of text may exclude each other there.
      same_head: Whether both rules have the same head, so that they agree.
    """

    rules: tuple[str, str]
    indices: tuple[int, int]
    region: str
    example: dict[str, Any] | None
    same_head: bool

    def __str__(self) -> str:
        where = f"where {self.region}" if self.region else "everywhere"
        verb = "both apply" if self.example is not None else "may both apply"
        first, second = self.rules
        return f"{first!r} and {second!r} {verb} {where}{_for_example(self.example)}"


@dataclasses.dataclass(frozen=True)
class Gap:
    """A region where no rule applies.

    Attributes:
      region: The text of a formula over columns; empty for everywhere.
      example: A row in it, as values by column; None if none was found, since arithmetic or tests
        of text may exclude each other there.
    """

    region: str
    example: dict[str, Any] | None

    def __str__(self) -> str:
        where = f"where {self.region}" if self.region else "anywhere"
        verb = "no rule applies" if self.example is not None else "perhaps no rule applies"
        return f"{verb} {where}{_for_example(self.example)}"


@checked
def overlaps(
    rules: str | Sequence[f.Rule], schema: Schema | None = None, *, most: int = 100
) -> list[Overlap]:
    """Finds rules that apply to the same rows, whatever their groups; ``else`` is left out.

    Args:
      rules: Rules ``body => head`` whose bodies are about columns alone.
      schema: The columns, whose categories are then all that there are. If None, each column is
        what the bodies compare it with: numbers, texts, times; and a category that no rule names
        may occur, too. Needed for ordered categories.
      most: How many overlaps to find at most.

    Returns:
      One overlap per pair of rules, in the order of the rules.

    Raises:
      RuleError: for a rule that is no implication, or not over columns alone.

    Warns:
      RuleWarning: if a rule has too many cases for all to be compared.

    Example:
      >>> text = '''
      ... young: age < 30 => low
      ... middle: age between 25 and 60 and sex == 'F' => high
      ... '''
      >>> (found,) = overlaps(text)
      >>> found.region, found.example
      ("25 <= age < 30 and sex == 'F'", {'age': 27.0, 'sex': 'F'})
    """
    rules = _parsed(rules)
    bodies = _Bodies(rules, schema)
    low, high = bodies.low, bodies.high
    found: dict[tuple[int, int], Overlap] = {}
    tried: dict[tuple[int, int], int] = {}
    for k in range(len(bodies.boxes)):
        meets = (np.maximum(low[k + 1 :], low[k]) <= np.minimum(high[k + 1 :], high[k])).all(1)
        for m in (np.flatnonzero(meets) + k + 1).tolist():
            pair = (bodies.owner[k], bodies.owner[m])
            certain = pair in found and found[pair].example is not None
            if pair[0] == pair[1] or certain or tried.get(pair, 0) >= MOST_TRIED:
                continue
            if pair not in found and len(found) >= most:
                continue
            tried[pair] = tried.get(pair, 0) + 1
            box = _regions.intersection(bodies.boxes[k], bodies.boxes[m])
            assert box is not None
            first, second = rules[pair[0]].formula, rules[pair[1]].formula
            assert isinstance(first, f.Implies) and isinstance(second, f.Implies)
            found[pair] = Overlap(
                (_title(rules[pair[0]]), _title(rules[pair[1]])),
                pair,
                *bodies.shown(box),
                first.head == second.head,
            )
    return [found[pair] for pair in sorted(found)]


@checked
def gaps(
    rules: str | Sequence[f.Rule], schema: Schema | None = None, *, most: int = 100
) -> list[Gap]:
    """Finds where no rule applies although all values are known.

    Args:
      rules: As for ``overlaps``. With an ``else`` there are no gaps.
      schema: As for ``overlaps``.
      most: How many gaps to find at most.

    Returns:
      Regions that do not overlap.

    Raises:
      RuleError: as ``overlaps``.

    Warns:
      RuleWarning: if the search for gaps is cut short.

    Example:
      >>> (found,) = gaps("age < 30 => low\\nage > 60 => high")
      >>> print(found)
      no rule applies where 30 <= age <= 60: for example age 45.0
    """
    rules = _parsed(rules)
    if any(isinstance(x, f.Implies) and isinstance(x.body, f.Else) for x in _formulas(rules)):
        return []
    bodies = _Bodies(rules, schema)
    search = _Gaps(bodies, most)
    boxes = _merged(list(search.run()), bodies.whole)
    if search.unfinished:
        warnings.warn(
            "the rules have too many cases for all gaps to be found", RuleWarning, stacklevel=3
        )
    return [Gap(*bodies.shown(bodies.box(low, high))) for low, high in boxes]


def _parsed(rules: str | Sequence[f.Rule]) -> tuple[f.Rule, ...]:
    return parse(rules) if isinstance(rules, str) else tuple(rules)


def _formulas(rules: Sequence[f.Rule]) -> Iterator[f.Formula]:
    return (rule.formula for rule in rules)


def _title(rule: f.Rule) -> str:
    return rule.name or str(rule.formula)


def _for_example(example: dict[str, Any] | None) -> str:
    if not example:
        return ""
    return ": for example " + ", ".join(f"{name} {value}" for name, value in example.items())


class _Bodies:
    """The boxes in which the bodies of rules hold.

    Attributes:
      boxes: All boxes.
      owner: The index of each box's rule.
      registers: The registers that any box bounds.
      low, high: The bounds of each box, ``[boxes, registers]``.
      whole: Whether each register holds integers.
      least, most: What each register may hold where all values are known.
    """

    def __init__(self, rules: Sequence[f.Rule], schema: Schema | None):
        own = [i for i, rule in enumerate(rules) if not _is_else(rule)]
        self.book = _book_of([rules[i] for i in own], schema)
        cases = _regions.Cases(self.book, MOST_CASES)
        self.boxes: list[_regions.Box] = []
        self.owner: list[int] = []
        for i, node in zip(own, np.asarray(self.book.fires).tolist(), strict=True):
            found = cases.boxes(int(node))
            if cases.truncated:
                warnings.warn(
                    f"the rule {_title(rules[i])!r} has too many cases for all to be compared",
                    RuleWarning,
                    stacklevel=4,
                )
            if schema is not None:
                found = [box for box in map(self._declared, found) if box is not None]
            self.boxes += found
            self.owner += [i] * len(found)
        self.registers = sorted({bound[0] for box in self.boxes for bound in box})
        place = {register: k for k, register in enumerate(self.registers)}
        shape = (len(self.boxes), len(self.registers))
        self.low, self.high = np.full(shape, -np.inf), np.full(shape, np.inf)
        for k, box in enumerate(self.boxes):
            for register, low, high in box:
                self.low[k, place[register]], self.high[k, place[register]] = low, high
        ends = [_known(self.book, cases, r, schema is not None) for r in self.registers]
        self.least, self.most = np.reshape(np.array(ends, float), (-1, 2)).T
        self.whole = np.array([r in cases.whole for r in self.registers], bool)

    def _declared(self, box: _regions.Box) -> _regions.Box | None:
        """A box without categories that the schema does not have; None if nothing is left."""
        bounds = []
        for register, low, high in box:
            encoded = self.book.schema.encoded
            column = self.book.schema.column(encoded[register]) if register < len(encoded) else None
            if column is not None and column.categories and high == len(column.categories):
                high -= 1.0
                if low > high:
                    return None
            bounds.append((register, low, high))
        return tuple(bounds)

    def box(self, low: np.ndarray, high: np.ndarray) -> _regions.Box:
        """A box, without bounds where all known values lie between them."""
        narrow = (low > self.least) | (high < self.most)
        bounds = zip(self.registers, low.tolist(), high.tolist(), narrow, strict=True)
        return tuple((r, a, b) for r, a, b, bounded in bounds if bounded)

    def shown(self, box: _regions.Box) -> tuple[str, dict[str, Any] | None]:
        """A box as a text, and an example row in it."""
        return _regions.text(self.book, box), _regions.example(self.book, box)


def _is_else(rule: f.Rule) -> bool:
    return isinstance(rule.formula, f.Implies) and isinstance(rule.formula.body, f.Else)


def _book_of(rules: Sequence[f.Rule], schema: Schema | None) -> Book:
    """A book whose rules fire where the bodies hold: each has a label of its own."""
    for rule in rules:
        if rule.definition or not isinstance(rule.formula, f.Implies):
            raise rule_error(rule, "overlaps and gaps are those of rules body => head")
    bodies = [rule.formula.body for rule in rules if isinstance(rule.formula, f.Implies)]
    columns = _columns_of(rules) if schema is None else schema.columns
    prefix = "applies"
    while any(column.name.startswith(prefix) for column in columns):
        prefix += "_"
    labels = tuple(f"{prefix}{i}" for i in range(len(rules)))
    alone = [
        f.Rule(f.Implies(body, f.Name(label)), rule.name, line=rule.line, source=rule.source)
        for rule, body, label in zip(rules, bodies, labels, strict=True)
    ]
    with warnings.catch_warnings():  # a rule that never applies is bind's to tell
        warnings.simplefilter("ignore", RuleWarning)
        return bind(
            alone, Schema(columns, labels or (prefix,), exclusive=False), conflicts="ignore"
        )


def _known(book: Book, cases: _regions.Cases, register: int, declared: bool) -> tuple[float, float]:
    """The range of a register where all values are known."""
    least, most = cases.domains[register]
    encoded, tests = book.schema.encoded, book.info.tests
    if register < len(encoded):
        column = book.schema.column(encoded[register])
        return (
            (least, len(column.categories) - 1.0)
            if declared and column.categories
            else (
                least,
                most,
            )
        )
    if register < len(encoded) + len(tests) and isinstance(
        tests[register - len(encoded)], f.Missing
    ):
        return 0.0, 0.0
    return least, most


Bounds = tuple[np.ndarray, np.ndarray]
"""The low and high ends of a box, ``[registers]``."""


class _Gaps:
    """Takes the boxes of all rules away from the box of all known values."""

    def __init__(self, bodies: _Bodies, most: int):
        self.bodies, self.most = bodies, most
        self.unfinished = False

    def run(self) -> Iterator[Bounds]:
        bodies, found, steps = self.bodies, 0, 0
        stack: list[tuple[np.ndarray, np.ndarray, int]] = [(bodies.least, bodies.most, 0)]
        while stack and found < self.most:
            low, high, first = stack.pop()
            steps += 1
            if steps > MOST_STEPS:
                self.unfinished = True
                return
            own_low, own_high = bodies.low[first:], bodies.high[first:]
            meets = (np.maximum(own_low, low) <= np.minimum(own_high, high)).all(1)
            if not meets.any():
                found += 1
                yield low, high
                continue
            k = first + int(meets.argmax())
            stack += [(*piece, k + 1) for piece in reversed(list(self._outside(low, high, k)))]

    def _outside(self, low: np.ndarray, high: np.ndarray, k: int) -> Iterator[Bounds]:
        """Boxes that make up what lies outside of a rule's box."""
        bodies = self.bodies
        low, high = low.copy(), high.copy()
        for r in range(len(low)):
            least, most = bodies.low[k, r], bodies.high[k, r]
            if least > low[r]:
                below = high.copy()
                below[r] = _beside(least, -1, bool(bodies.whole[r]))
                yield low.copy(), below
                low[r] = least
            if most < high[r]:
                above = low.copy()
                above[r] = _beside(most, 1, bool(bodies.whole[r]))
                yield above, high.copy()
                high[r] = most


def _beside(x: float, side: int, whole: bool) -> float:
    """The next value of a register."""
    if whole:
        return x + side
    return float(beside(np.array([x], np.float32), np.array([side]))[0])


def _merged(boxes: list[Bounds], whole: np.ndarray) -> list[Bounds]:
    """The boxes, joined where two differ in one register alone and lie side by side in it."""
    merged = True
    while merged:
        merged = False
        for i, j in ((i, j) for i in range(len(boxes)) for j in range(len(boxes)) if i != j):
            (low, high), (other_low, other_high) = boxes[i], boxes[j]
            differ = np.flatnonzero((low != other_low) | (high != other_high))
            if len(differ) == 1:
                r = int(differ[0])
                if _beside(float(high[r]), 1, bool(whole[r])) == other_low[r]:
                    joined = high.copy()
                    joined[r] = other_high[r]
                    boxes[i] = (low, joined)
                    del boxes[j]
                    merged = True
                    break
    return sorted(boxes, key=lambda bounds: (bounds[0].tolist(), bounds[1].tolist()))


# What each column is, if no schema says so


class _Use(NamedTuple):
    """How a body uses a column: as what kind, compared with which texts; weak if it may be any."""

    name: str
    kind: Any
    texts: tuple[str, ...] = ()


def _columns_of(rules: Sequence[f.Rule]) -> tuple[Column, ...]:
    """The columns that bodies name, as what they are compared with."""
    kinds: dict[str, Any] = {}
    categories: dict[str, dict[str, None]] = {}
    for rule in rules:
        assert isinstance(rule.formula, f.Implies)
        for use in _uses(rule.formula.body, rule):
            known = kinds.get(use.name)
            both = {known, use.kind}
            if known is None or use.kind is None or known == use.kind:
                kinds[use.name] = known or use.kind
            elif both == {"text", "categorical"}:
                kinds[use.name] = "text"
            else:
                raise rule_error(
                    rule,
                    f"the column {use.name!r} is {use.kind} here, and {known} in another rule: "
                    "pass the schema",
                    use.name,
                )
            categories.setdefault(use.name, {}).update(dict.fromkeys(use.texts))
    return tuple(
        Column(
            name,
            kind or "numeric",
            tuple(categories[name]) if kind == "categorical" else (),
        )
        for name, kind in kinds.items()
    )


def _uses(x: f.Formula, rule: f.Rule) -> Iterator[_Use]:
    match x:
        case f.Name(name):
            yield _Use(name, "boolean")
        case f.Compare(operands, signs):
            yield from _compared(operands, not set(signs) <= {"==", "!="}, rule)
        case f.In(value, choices):
            yield from _compared((value, *choices), False, rule)
        case f.Between(value, low, high):
            yield from _compared((value, low, high), True, rule)
        case f.Missing(value):
            yield from (_Use(y.name, None) for y in f.trees(value) if isinstance(y, f.Name))
        case f.Matches(value) | f.Contains(value=value):
            yield from (_Use(y.name, "text") for y in f.trees(value) if isinstance(y, f.Name))
        case f.Connective():
            for part in f.operands(x):
                yield from _uses(part, rule)


def _compared(operands: Sequence[f.Value], ordered: bool, rule: f.Rule) -> Iterator[_Use]:
    texts = tuple(x.value for x in operands if isinstance(x, f.String))
    kinds = {f.Time: "datetime", f.TimeOfDay: "time", f.Duration: "duration"}
    kind = next((kinds[type(x)] for x in operands if type(x) in kinds), "numeric")
    for x in operands:
        if isinstance(x, f.Name) and texts:
            if ordered:
                raise rule_error(
                    rule,
                    f"the order of the categories of {x.name!r} is not known: pass the schema, in "
                    "which the column is ordered",
                    x.name,
                )
            yield _Use(x.name, "categorical", texts)
        elif isinstance(x, f.Score):
            for part in x.parts:
                yield from _uses(part.condition, rule)
        else:
            yield from _in_value(x, kind)


def _in_value(x: f.Value, kind: str) -> Iterator[_Use]:
    match x:
        case f.Name(name):
            yield _Use(name, kind)
        case f.Size(value=value) | f.Recased(value=value):
            yield from _in_value(value, "text")
        case f.Days(value):
            yield from _in_value(value, "duration")
        case f.Arithmetic("-", left, right) if kind == "duration":
            yield from _in_value(left, "datetime")
            yield from _in_value(right, "datetime")
        case f.Arithmetic(_, left, right):
            yield from _in_value(left, kind)
            yield from _in_value(right, "duration" if kind == "datetime" else kind)
        case f.Negative(value):
            yield from _in_value(value, kind)
