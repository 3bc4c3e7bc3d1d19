"""Atoms over features: comparisons with columns become intervals over registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.rules.binding.schema import Schema, category, nearest
from distill_jax.rules.circuits._building import Builder, Interval, bounds
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error, unknown_name
from distill_jax.rules.language.errors import RuleError

NEGATION = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


class Columns:
    """The columns of a book: those of its schema, then those computed on the host from text.

    Attributes:
      places: The index of each encoded column of the schema.
      by_name: The schema's columns by name, including text columns.
      defined: Predicates that clauses define.
      patterns: Columns computed on the host: a column's name and a regular expression, or None for
        whether the text is missing.
      compared, softened: Values that rules compare with ``< <= > >=``, and those with a width.
    """

    def __init__(self, schema: Schema, defined: Sequence[str], widths: Mapping[str, float]):
        self.schema = schema
        self.places = {name: i for i, name in enumerate(schema.encoded)}
        self.by_name = {column.name: column for column in schema.columns}
        self.defined = tuple(defined)
        self._place_of_pattern: dict[tuple[str, str | None], int] = {}
        self.widths = dict(widths)
        self.softened: set[str] = set()
        self.compared: set[str] = set()

    @property
    def patterns(self) -> tuple[tuple[str, str | None], ...]:
        return tuple(self._place_of_pattern)

    def __len__(self) -> int:
        return len(self.places) + len(self._place_of_pattern)

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
        key = column, pattern
        return len(self.places) + self._place_of_pattern.setdefault(
            key, len(self._place_of_pattern)
        )

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
        if isinstance(left, f.String | f.Number) and not isinstance(right, f.String | f.Number):
            left, operator, right = right, FLIPPED[operator], left
        kinds = [self._kind(left), self._kind(right)]
        if kinds[0] == "constant":
            raise self.error(f"{left} {operator} {right} compares two constants")
        if "text" in kinds:
            name = left if kinds[0] == "text" else right
            raise self.error(
                f'column {name} is text: test it with {name} matches r"…", or declare it '
                "categorical"
            )
        if "categorical" in kinds:
            return self._category_comparison(left, operator, right, positive)
        if isinstance(right, f.String):
            raise self.error(
                f"{left} is {kinds[0]} and {right} is a string: compare it with a number"
            )
        operator = operator if positive else NEGATION[operator]
        number = _constant_value(right)
        if number is not None and not np.isfinite(number):
            raise self.error(f"{right} is too large for a number")
        if number is not None:
            return self._interval_node(self._register(left), operator, number, left)
        difference = f.Arithmetic("-", left, right)
        return self._interval_node(self._register(difference), operator, 0.0, difference)

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
                    self._interval_node(difference, same, 0.0),
                    self._interval_node(place, known, float(len(column.categories))),
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
        return self._interval_node(place, operator, float(column.categories.index(value)))

    def _interval_node(
        self, register: int, operator: str, threshold: float, value: f.Value | None = None
    ) -> int:
        width = 0.0
        if self.columns.widths and value is not None and operator not in ("==", "!="):
            text = str(value)
            self.columns.compared.add(text)
            if text in self.columns.widths:
                self.columns.softened.add(text)
                width = self.columns.widths[text]
        nodes = [
            self.builder.interval(Interval(register, low, high, False, width))
            for low, high in bounds(operator, threshold)
        ]
        return self.builder.any(nodes)

    def boolean(self, name: str, positive: bool) -> int:
        """The node of a boolean column, or of its negation."""
        return self._interval_node(self.columns.places[name], "==", 1.0 if positive else 0.0)

    def missing(self, x: f.Missing, positive: bool) -> int:
        """The node of ``x is missing`` or ``x is not missing``, or of its negation."""
        wanted = positive != x.negated
        kind = self._kind(x.value)
        if kind == "text":
            assert isinstance(x.value, f.Name)
            place = self.columns.place_of_pattern(x.value.name, None)
            return self._interval_node(place, "==", 1.0 if wanted else 0.0)
        if kind == "categorical":
            assert isinstance(x.value, f.Name)
            register = self.columns.places[x.value.name]
        else:
            register = self._register(x.value)
        everything = Interval(register, -np.inf, np.inf, wanted)
        return self.builder.interval(everything)

    def matches(self, x: f.Matches, positive: bool) -> int:
        """The node of ``x matches pattern``, or of its negation."""
        if self._kind(x.value) not in ("text", "categorical"):
            raise self.error(
                f"{x.value} holds no text: matches is for text and categorical columns"
            )
        assert isinstance(x.value, f.Name)
        place = self.columns.place_of_pattern(x.value.name, x.pattern)
        return self._interval_node(place, "==", 1.0 if positive else 0.0)

    def _kind(self, x: f.Value) -> str:
        """The kind of a value: constant, numeric, categorical, boolean or text."""
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
        return "numeric"

    def _register(self, x: f.Value) -> int:
        number = _constant_value(x)
        if number is not None:
            if abs(number) > float(np.finfo(np.float32).max):
                raise self.error(
                    f"arithmetic is done in float32, and {number:g} is beyond its range"
                )
            return self.builder.constant(number)
        if isinstance(x, f.Negative):
            return self.builder.arithmetic("-", self.builder.constant(0.0), self._register(x.value))
        if isinstance(x, f.Arithmetic):
            return self.builder.arithmetic(
                x.operator, self._register(x.left), self._register(x.right)
            )
        kind = self._kind(x)
        if kind not in ("numeric", "boolean") or not isinstance(x, f.Name):
            is_constant = isinstance(x, f.String)
            raise self.error(
                f"{x} is {'a string' if is_constant else kind}: arithmetic takes numbers"
            )
        return self.columns.places[x.name]

    def error(self, message: str, name: str | None = None) -> RuleError:
        """A ``RuleError`` about the rule, with a caret under ``name``."""
        return rule_error(self.rule, message, name)


def _constant_value(x: f.Value) -> float | None:
    if isinstance(x, f.Number):
        return x.value
    if isinstance(x, f.Negative):
        inner = _constant_value(x.value)
        return None if inner is None else -inner
    if isinstance(x, f.Arithmetic):
        left, right = _constant_value(x.left), _constant_value(x.right)
        if left is None or right is None or (x.operator == "/" and right == 0):
            return None
        return {"+": left + right, "-": left - right, "*": left * right}.get(
            x.operator, left / right if right else None
        )
    return None


def class_or_category(x: f.Value) -> str | None:
    """The class or category that a value stands for; None if it is a computed value."""
    number = _constant_value(x)
    if number is not None:
        return category(number)
    if isinstance(x, f.Name):
        return x.name
    return x.value if isinstance(x, f.String) else None
