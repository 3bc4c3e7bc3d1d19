"""Atoms over features: comparisons with columns become intervals over registers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from distill_jax.rules.binding._places import Exact, beside, placed_thresholds
from distill_jax.rules.binding._tables import MAX, nearest, text_of
from distill_jax.rules.binding.book import Info
from distill_jax.rules.binding.schema import Schema, unit_of
from distill_jax.rules.circuits._building import Builder, Interval
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error, unknown_name
from distill_jax.rules.language._times import DAY
from distill_jax.rules.language.errors import RuleError

NEGATION = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}

_LEAST, _MOST = (-math.inf, 0), (math.inf, 0)
_MOST_DAYS = 2**63 - 1
"""Days that a duration can have at most, in NumPy."""


def _ends(operator: str, t: Exact) -> list[tuple[Any, Any]]:
    """The intervals where a comparison holds: one, or two for ``!=``.

    Each end is a threshold and a side: 0 for the threshold itself, 1 just after it, -1 before.
    """
    ranges: dict[str, list[tuple[Any, Any]]] = {
        "<": [(_LEAST, (t, -1))],
        "<=": [(_LEAST, (t, 0))],
        ">": [((t, 1), _MOST)],
        ">=": [((t, 0), _MOST)],
        "==": [((t, 0), (t, 0))],
        "!=": [(_LEAST, (t, -1)), ((t, 1), _MOST)],
    }
    return ranges[operator]


def _meets(low: tuple[Any, Any], high: tuple[Any, Any], most: Exact) -> bool:
    """Whether an interval holds a number from ``-most`` to ``most``."""
    return low <= (most, 0) and high >= (-most, 0)


def _reached(low: Any, high: Any, most: Exact) -> tuple[Any, Any]:
    """An interval without the ends that no number from ``-most`` to ``most`` lies beyond."""
    return _LEAST if low <= (-most, 0) else low, _MOST if high >= (most, 0) else high


class Columns:
    """The columns of a book: those of its schema, then those computed on the host.

    Attributes:
      places: The index of each encoded column of the schema.
      by_name: The schema's columns by name, including text columns.
      defined: Predicates that clauses define.
      patterns: Columns computed from text: a column's name and a regular expression, or None for
        whether the text is missing.
      computed: Columns computed by arithmetic: an expression, and what one unit of the encoded
        column is in units of the exact value.
      thresholds: What each column is compared with, exactly; computed columns count down from -1.
      compared, softened: Values that rules compare with ``< <= > >=``, and those with a width.
    """

    def __init__(
        self,
        schema: Schema,
        defined: Sequence[str],
        widths: Mapping[str, float],
        like: Info | None = None,
    ):
        self.schema = schema
        self.places = {name: i for i, name in enumerate(schema.encoded)}
        self.by_name = {column.name: column for column in schema.columns}
        self.defined = tuple(defined)
        self.patterns: list[tuple[str, str | None]] = []
        self.computed: list[tuple[f.Value, int]] = []
        self.thresholds: dict[int, set[Exact]] = {
            place: {0, 1}
            for name, place in self.places.items()
            if self.by_name[name].kind == "boolean"
        }
        self.widths = dict(widths)
        self.softened: set[str] = set()
        self.compared: set[str] = set()
        self._places: dict[Any, int] = {}  # of patterns and of expressions
        self._like: Info | None = None
        if like is not None:  # the Info of a book: the same columns, with the same thresholds
            for column, pattern in like.patterns:
                self.place_of_pattern(column, pattern)
            for tree, unit in like.computed:
                self.place_of_computed(tree, unit)
            self._like = like

    def __len__(self) -> int:
        return len(self.places) + len(self.patterns)

    def add_patterns(self, rules: Sequence[f.Rule]) -> None:
        """Adds a column for each test of a text column in the rules."""
        for rule in rules:
            for tree in f.trees(rule.formula):
                if isinstance(tree, f.Matches | f.Missing) and isinstance(tree.value, f.Name):
                    column = self.by_name.get(tree.value.name)
                    text = column is not None and column.kind == "text"
                    pattern = tree.pattern if isinstance(tree, f.Matches) else None
                    if column is not None and (pattern is not None or text):
                        self.place_of_pattern(column.name, pattern)

    def place_of_pattern(self, column: str, pattern: str | None) -> int:
        """The index of a column computed on the host from a text column; added if new."""
        key = (column, pattern)
        if key not in self._places:
            self._places[key] = len(self)
            self.thresholds[len(self)] = {0, 1}
            self.patterns.append(key)
        return self._places[key]

    def place_of_computed(self, tree: f.Value, unit: int) -> int | None:
        """The place of a column computed by arithmetic, from -1 downwards; added if new.

        None if the columns are those of another book, which lacks it.
        """
        key = (tree, unit)
        if key not in self._places and self._like is not None:
            return None
        if key not in self._places:
            self.computed.append(key)
            self._places[key] = -len(self.computed)
        return self._places[key]

    def all_thresholds(self) -> tuple[tuple[Exact, ...], ...]:
        """What each column is compared with, ascending, for all columns of the encoded table."""
        every = [*range(len(self)), *(-1 - i for i in range(len(self.computed)))]
        return tuple(map(self._ascending, every))

    def ends(self, literals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
        """The ends of intervals as float32 numbers; see ``_places``."""
        own: dict[int, set[Exact]] = {}
        for x in literals:  # registers of arithmetic on the device
            if x.register >= len(self):
                own.setdefault(x.register, set()).update(
                    t for t, _ in (x.low, x.high) if not _is_infinite(t)
                )
        numbers: dict[int, dict[Exact, np.float32]] = {}
        for register in {x.register for x in literals}:
            ladder = sorted(own[register]) if register in own else self._ascending(register)
            near = placed_thresholds(ladder, self._unit(register)) if ladder else ()
            numbers[register] = dict(zip(ladder, near, strict=True))
        found = []
        for side in ("low", "high"):
            pairs = [getattr(x, side) for x in literals]
            number = [
                0.0 if _is_infinite(t) else numbers[x.register][t]
                for x, (t, _) in zip(literals, pairs, strict=True)
            ]
            infinite = np.array([t if _is_infinite(t) else 0.0 for t, _ in pairs], np.float32)
            near = beside(np.array(number, np.float32), np.array([s for _, s in pairs], np.int64))
            found.append(np.where(infinite == 0, near, infinite))
        return found[0], found[1]

    def _ascending(self, place: int) -> tuple[Exact, ...]:
        if self._like is None:
            return tuple(sorted(self.thresholds.get(place, ())))
        return self._like.thresholds[place if place >= 0 else len(self) - 1 - place]

    def most(self, place: int) -> Exact | None:
        """The largest number that a column of the schema can hold, in units of its exact values.

        None for other registers.
        """
        if not 0 <= place < len(self.places):
            return None
        return _MOST_DAYS * DAY if self._unit(place) == DAY else MAX

    def _unit(self, place: int) -> int:
        if place < 0:
            return self.computed[-1 - place][1]
        if place < len(self.places):
            return unit_of(self.by_name[self.schema.encoded[place]])
        return 1

    def names(self) -> list[str]:
        """All names that rules may use."""
        target = [] if self.schema.target is None else [self.schema.target]
        return [*self.by_name, *self.schema.classes, *target, *self.defined]


@dataclasses.dataclass(frozen=True)
class FeatureAtoms:
    """Builds the circuit nodes of a rule's conditions on columns.

    Attributes:
      columns: The columns.
      builder: Creates the nodes.
      rule: The rule being compiled, for messages.
    """

    columns: Columns
    builder: Builder
    rule: f.Rule

    def comparison(self, left: f.Value, operator: str, right: f.Value, positive: bool) -> int:
        """The node of ``left operator right``, or of its negation if not ``positive``."""
        if _is_constant(left) and not _is_constant(right):
            left, operator, right = right, FLIPPED[operator], left
        if _is_constant(left):
            raise self.error(f"{left} {operator} {right} compares two constants")
        kinds = [self._kind(left), self._kind(right)]
        if "text" in kinds:
            name = left if kinds[0] == "text" else right
            raise self.error(
                f'column {name} is text: test it with {name} matches r"…", or declare it '
                "categorical"
            )
        if "categorical" in kinds:
            return self._category_comparison(left, operator, right, positive)
        if kinds[0] in _OF_TIME or kinds[1] in _OF_TIME:
            if kinds[0] != kinds[1]:
                of_time, kind = (left, kinds[0]) if kinds[0] in _OF_TIME else (right, kinds[1])
                raise self.error(f"{of_time} is a {kind}: {_OF_TIME[kind].format(of_time)}")
        elif isinstance(right, f.String):
            raise self.error(
                f"{left} is {kinds[0]} and {right} is a string: compare it with a number"
            )
        operator = operator if positive else NEGATION[operator]
        if isinstance(right, f.Time):
            register = self._place(left)
            return self._interval_node(register, operator, right.nanoseconds, left)
        number = self._constant(right)
        if number is None:
            difference = f.Arithmetic("-", left, right)
            return self._interval_node(self._place(difference), operator, 0, difference)
        threshold = _scaled(number) if isinstance(left, f.Days) else number
        return self._interval_node(self._place(left), operator, threshold, left)

    def _category_comparison(
        self, left: f.Value, operator: str, right: f.Value, positive: bool
    ) -> int:
        if self._kind(left) != "categorical":
            left, operator, right = right, FLIPPED[operator], left
        assert isinstance(left, f.Name)
        column = self.columns.by_name[left.name]
        if operator not in ("==", "!="):
            raise self.error(
                f"column {left} is categorical and has no order: compare it with == or !=, not "
                f"{operator}; its categories are {list(column.categories)}",
                left.name,
            )
        operator = operator if positive else NEGATION[operator]
        if isinstance(right, f.Name) and right.name in self.columns.by_name:
            other = self.columns.by_name[right.name]
            if other.categories != column.categories:
                raise self.error(
                    f"columns {left} and {right} have different categories: "
                    f"{list(column.categories)} and {list(other.categories)}"
                )
            place = self.columns.places[left.name]
            difference = self.builder.arithmetic("-", place, self.columns.places[right.name])
            # Categories unknown to the schema share a code, but are never equal.
            same, known = ("==", "<") if operator == "==" else ("!=", ">=")
            join = self.builder.all if operator == "==" else self.builder.any
            return join(
                [
                    self._interval_node(difference, same, 0),
                    self._interval_node(place, known, len(column.categories)),
                ]
            )
        value = None if isinstance(right, f.Name) else class_or_category(right)
        if value is None:
            raise self.error(f"column {left} is categorical: compare it with a string")
        if value not in column.categories:
            raise self.error(
                f"column {left} has no category {value!r}; {nearest(value, column.categories)}",
                value,
            )
        place = self.columns.places[left.name]
        return self._interval_node(place, operator, column.categories.index(value))

    def _interval_node(
        self, register: int, operator: str, threshold: Exact, value: f.Value | None = None
    ) -> int:
        width = 0.0
        if self.columns.widths and value is not None and operator not in ("==", "!="):
            text = str(value)
            self.columns.compared.add(text)
            if text in self.columns.widths:
                self.columns.softened.add(text)
                width = self.columns.widths[text]
        ends = _ends(operator, threshold)
        most = self.columns.most(register)
        if most is not None and abs(threshold) >= most:
            if width:
                raise self.error(f"{threshold} does not fit float32: rescale the column {value}")
            ends = [_reached(low, high, most) for low, high in ends if _meets(low, high, most)]
        if register < len(self.columns):
            found = {t for end in ends for t, _ in end if not _is_infinite(t)}
            self.columns.thresholds.setdefault(register, set()).update(found)
        nodes = [self.builder.interval(Interval(register, *end, False, width)) for end in ends]
        return self.builder.any(nodes)

    def boolean(self, name: str, positive: bool) -> int:
        """The node of a boolean column, or of its negation."""
        return self._interval_node(self.columns.places[name], "==", 1 if positive else 0)

    def missing(self, x: f.Missing, positive: bool) -> int:
        """The node of ``x is missing`` or ``x is not missing``, or of its negation."""
        wanted = positive != x.negated
        kind = self._kind(x.value)
        if kind == "text":
            assert isinstance(x.value, f.Name)
            place = self.columns.place_of_pattern(x.value.name, None)
            return self._interval_node(place, "==", 1 if wanted else 0)
        if kind == "categorical":
            assert isinstance(x.value, f.Name)
            register = self.columns.places[x.value.name]
        elif _is_constant(x.value):
            raise self.error(f"{x.value} is a constant, so it is never missing")
        else:
            register = self._place(x.value)
        everything = Interval(register, _LEAST, _MOST, wanted)
        return self.builder.interval(everything)

    def matches(self, x: f.Matches, positive: bool) -> int:
        """The node of ``x matches pattern``, or of its negation."""
        if self._kind(x.value) not in ("text", "categorical"):
            raise self.error(
                f"{x.value} holds no text: matches is for text and categorical columns"
            )
        assert isinstance(x.value, f.Name)
        place = self.columns.place_of_pattern(x.value.name, x.pattern)
        return self._interval_node(place, "==", 1 if positive else 0)

    def _kind(self, x: f.Value) -> str:
        """The kind of a value: constant, or a kind of column."""
        if isinstance(x, f.Time):
            return "datetime"
        if isinstance(x, f.String | f.Number):
            return "constant"
        if isinstance(x, f.Name):
            if x.name in self.columns.by_name:
                return self.columns.by_name[x.name].kind
            if x.name in self.columns.defined:
                raise self.error(f"{x.name!r} is defined by clauses: it has no value", x.name)
            raise unknown_name(self.rule, x.name, self.columns.names())
        if isinstance(x, f.Call):
            raise self.error(f"{x} is a budget, which is parsed but not built yet")
        if isinstance(x, f.Days):
            kind = self._kind(x.value)
            if kind != "duration":
                raise self.error(
                    f"days(…) takes a duration, such as the difference of two columns of times, "
                    f"and {x.value} is {'a constant' if kind == 'constant' else kind}"
                )
            return "numeric"
        if isinstance(x, f.Negative):
            self._check_operand(x.value, self._kind(x.value))
        if isinstance(x, f.Arithmetic):
            kinds = self._kind(x.left), self._kind(x.right)
            if x.operator == "-" and kinds == ("datetime", "datetime"):
                return "duration"
            if x.operator in "+-" and kinds == ("duration", "duration"):
                return "duration"
            self._check_operand(x.left, kinds[0])
            self._check_operand(x.right, kinds[1])
        return "numeric"

    def _check_operand(self, x: f.Value, kind: str) -> None:
        """Raises unless a value of this kind takes part in arithmetic."""
        if kind in _OF_TIME:
            raise self.error(f"{x} is a {kind}: {_OF_TIME[kind].format(x)}")
        if kind not in ("numeric", "boolean", "constant") or isinstance(x, f.String):
            shown = "a string" if isinstance(x, f.String) else kind
            raise self.error(f"{x} is {shown}: arithmetic takes numbers")

    def _place(self, x: f.Value) -> int:
        """The register of a value: a column, which the host may have to compute, or arithmetic."""
        kind = self._kind(x)
        if isinstance(x, f.Days) and isinstance(x.value, f.Name):
            x = x.value  # a column of durations is encoded as days
        if isinstance(x, f.Name):
            return self.columns.places[x.name]
        unit = DAY if isinstance(x, f.Days) or kind == "duration" else 1
        if isinstance(x, f.Days) or not self.columns.widths or str(x) not in self.columns.widths:
            for part in f.trees(x):
                if isinstance(part, f.Value):
                    self._constant(part)
            place = self.columns.place_of_computed(x, unit)
            if place is not None:
                return place
        return self._register(x)

    def _register(self, x: f.Value) -> int:
        """The register of arithmetic on the device, through which gradients reach the columns."""
        number = self._constant(x)
        if number is not None:
            if abs(number) > MAX:
                raise self.error(
                    f"{x} does not fit float32, in which an expression with a width is computed: "
                    "rescale its columns"
                )
            return self.builder.constant(float(number))
        if isinstance(x, f.Negative):
            return self.builder.arithmetic("-", self.builder.constant(0.0), self._register(x.value))
        if isinstance(x, f.Arithmetic):
            return self.builder.arithmetic(
                x.operator, self._register(x.left), self._register(x.right)
            )
        return self._place(x)

    def _constant(self, x: f.Value) -> int | float | None:
        """The number that a constant expression is; None if it depends on columns."""
        number = _constant_value(x)
        if isinstance(number, float) and not math.isfinite(number):
            raise self.error(f"{x} is beyond double precision: numbers must be finite")
        return number

    def error(self, message: str, name: str | None = None) -> RuleError:
        """A ``RuleError`` about the rule, with a caret under ``name``."""
        return rule_error(self.rule, message, name)


_OF_TIME = {
    "datetime": "compare it with date '2024-01-31' or datetime '2024-01-31T12:00:00Z', or with "
    "another column of times",
    "duration": "days({}) is its number of days",
}


def _is_infinite(t: Exact) -> bool:
    return isinstance(t, float) and math.isinf(t)


def _is_constant(x: f.Value) -> bool:
    return isinstance(x, f.String | f.Time) or _constant_value(x) is not None


def _scaled(days: int | float) -> Exact:
    """Days as nanoseconds; a decimal number is taken as it is written."""
    exact = (days if isinstance(days, int) else Fraction(repr(days))) * DAY
    return exact.numerator if exact.denominator == 1 else exact


def _constant_value(x: f.Value) -> int | float | None:
    """The number that a constant expression is; infinite beyond double precision."""
    if isinstance(x, f.Number):
        return x.value
    if isinstance(x, f.Negative):
        inner = _constant_value(x.value)
        return None if inner is None else -inner
    if not isinstance(x, f.Arithmetic):
        return None
    left, right = _constant_value(x.left), _constant_value(x.right)
    if left is None or right is None or (x.operator == "/" and right == 0):
        return None
    try:
        if x.operator == "/":
            whole = isinstance(left, int) and isinstance(right, int) and left % right == 0
            found = left // right if whole else left / right
        else:
            found = {"+": left + right, "-": left - right, "*": left * right}[x.operator]
        float(found)
    except OverflowError:
        return math.inf
    return found


def class_or_category(x: f.Value) -> str | None:
    """The class or category that a value stands for; None if it is a computed value."""
    number = _constant_value(x)
    if number is not None:
        return text_of("", number)
    if isinstance(x, f.Name):
        return x.name
    return x.value if isinstance(x, f.String) else None
