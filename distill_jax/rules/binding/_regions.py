"""Regions of a table where a formula holds: boxes over columns, with a text and an example row.

A region bounds the registers of a circuit (columns, constants, results of arithmetic):
``low <= value <= high``. A missing value is represented by inf, so one pair of bounds is enough:
``(-MAX, MAX)`` is any number, ``(inf, inf)`` missing, ``(-inf, inf)`` either. Columns of booleans,
categories and tests of text have integer bounds. Other bounds are float32 numbers of thresholds as
``_places`` has them, or the numbers next to these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from distill_jax.rules.binding._places import Exact, beside, placed_thresholds, unplaced
from distill_jax.rules.binding._tables import MAX, Cells
from distill_jax.rules.binding._texts import Test, column_of, holds, literal_of, size
from distill_jax.rules.binding.book import Book, encode_exact, number_of_columns, text_columns
from distill_jax.rules.binding.schema import Column, unit_of
from distill_jax.rules.circuits._graph import nodes_of
from distill_jax.rules.circuits._registers import registers
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._times import DAY, SECOND, clock, spelled

MISSING, NUMBER, ANYTHING = (math.inf, math.inf), (-MAX, MAX), (-math.inf, math.inf)
WORK = 100_000
"""Maximum number of pairs of boxes to intersect per book, about one second."""
DRAWS = 512
"""Random rows to try if registers depend on one another, through arithmetic or text."""

MOST_PADDED = 10_000
"""Characters or words of an example's text, at most."""

_END_OF_DAY = 1 - 2**-24
"""The last part of a day before the next, in float32."""

_MOST_DRAWN = 100_000.0
"""Days of a time or duration that is drawn without a bound, at most: 64-bit nanoseconds hold it."""

Box = tuple[tuple[int, float, float], ...]
"""``(register, low, high)`` in ascending order; unbounded registers are left out."""


class Cases:
    """The nodes of a book's circuit as disjunctions of boxes.

    Labels are registers after all others: 1 where the label holds, else 0.
    """

    def __init__(self, book: Book, most: int):
        circuit = book.circuit
        self.most = most
        self.work = 0
        self.truncated = False  # whether the last call of ``boxes`` was cut at ``most``
        columns, constants = (
            number_of_columns(book),
            [float(x) for x in np.asarray(circuit.constants)],
        )
        steps = sum(step.operator.shape[0] for step in circuit.arithmetic)
        self.domains = [_domain(book, i) for i in range(columns)]
        self.domains += [(x, x) for x in constants] + [NUMBER] * steps
        self.registers = len(self.domains)
        self.whole = {i for i in range(columns) if self.domains[i][1] < MAX}
        self._nodes = nodes_of(circuit)
        fields = (circuit.register, circuit.low, circuit.high, circuit.inverted)
        self._intervals = list(zip(*(np.asarray(x).tolist() for x in fields), strict=True))
        fields = (circuit.label, circuit.negated)
        self._labels = list(zip(*(np.asarray(x).tolist() for x in fields), strict=True))
        self._cache: dict[int, tuple[list[Box], bool]] = {}

    def boxes(self, node: int) -> list[Box]:
        """Boxes whose union is exactly where a node holds; the first ``most`` of them."""
        found, self.truncated = self._expand(node)
        return found

    def _expand(self, node: int) -> tuple[list[Box], bool]:
        if node not in self._cache:
            self._cache[node] = self._boxes_of(node)
        return self._cache[node]

    def _boxes_of(self, node: int) -> tuple[list[Box], bool]:
        kind, place, children = self._nodes[node]
        if kind == "interval":
            box = self._interval(*self._intervals[place])
            return ([] if box is None else [box]), False
        if kind == "label":
            label, negated = self._labels[place]
            wanted = 0.0 if negated else 1.0
            return [((self.registers + label, wanted, wanted),)], False
        parts = [self._expand(child) for child in children]
        truncated = any(cut for _, cut in parts)
        if kind == "or":
            boxes = list(dict.fromkeys(box for part, _ in parts for box in part))
        else:
            boxes: list[Box] = [()]
            for part, _ in sorted(parts, key=lambda x: len(x[0])):
                boxes, cut = self._intersections(boxes, part)
                truncated |= cut
        return boxes[: self.most], truncated or len(boxes) > self.most

    def _intersections(self, left: list[Box], right: list[Box]) -> tuple[list[Box], bool]:
        """The non-empty pairwise intersections; only the first if there are too many."""
        found: dict[Box, None] = {}
        for a, b in itertools.product(left, right):
            if len(found) == self.most or self.work == WORK:
                return list(found), True
            self.work += 1
            both = intersection(a, b)
            if both is not None:
                found[both] = None
        return list(found), False

    def _interval(self, register: int, low: float, high: float, inverted: bool) -> Box | None:
        """The bounds of a feature literal, tightened to the domain of its register."""
        if inverted:
            least, most = self.domains[register]
            constant = least == most and register not in self.whole
            return None if constant else ((register, *MISSING),)
        least, most = self.domains[register]
        low, high = max(low, least), min(high, most)
        if register in self.whole:
            low, high = math.ceil(low), math.floor(high)
        return ((register, float(low), float(high)),) if low <= high else None


def intersection(a: Box, b: Box) -> Box | None:
    """The intersection of two boxes; None if it is empty."""
    ends = {register: (low, high) for register, low, high in a}
    for register, low, high in b:
        old = ends.get(register, ANYTHING)
        low, high = max(low, old[0]), min(high, old[1])
        if low > high:
            return None
        ends[register] = (low, high)
    return tuple((register, *ends[register]) for register in sorted(ends))


def text(book: Book, box: Box) -> str:
    """A region as the text of a formula; empty if it is everywhere."""
    parts = [_bound_formula(book, *bound) for bound in box]
    parts = [part for part in parts if part is not None]
    if not parts:
        return ""
    return str(f.And(tuple(parts)) if len(parts) > 1 else parts[0])


def example(book: Book, box: Box) -> dict[str, Any] | None:
    """A row that lies in a region, as values by column; None if none was found.

    If only numeric, boolean and categorical columns are bounded, a row is always found. For
    arithmetic and text, random rows from a fixed seed are tried.
    """
    ends = {register: (low, high) for register, low, high in box}
    schema, plain = book.schema, _number_of_plain_columns(book)
    texts = _fitting_texts(book, ends)
    if texts is None:
        return None
    computed_bounds = {register: bound for register, bound in ends.items() if register >= plain}
    draws = DRAWS if computed_bounds else 1
    random = np.random.default_rng(0)
    exact: dict[str, Cells] = {}
    for i, name in enumerate(schema.encoded):
        bound = ends.get(i, ANYTHING)
        column = schema.column(name)
        if name in texts and column.kind == "categorical":
            code = None if texts[name] is None else column.categories.index(texts[name])
            bound = MISSING if code is None else (float(code), float(code))
        values = _sampled_values(
            book, name, bound, draws, random, may_miss=MISSING in computed_bounds.values()
        )
        missing = np.isnan(values)
        unit = unit_of(column)
        found = unplaced(values[~missing], book.info.thresholds[i], unit)
        if unit == 1:  # beside a threshold at the end of the range of float32
            found = [min(max(x, -MAX), MAX) for x in found]
        elif column.kind == "time":
            found = [min(x, DAY - 1) for x in found]
        exact[name] = Cells(_tight(found), missing)
    chosen = 0
    if computed_bounds:
        fits = _fits(book, exact, texts, computed_bounds, draws)
        if not fits.any():
            return None
        chosen = int(fits.argmax())
    row: dict[str, Any] = {}
    for column in schema.columns:
        if column.kind == "text":
            row[column.name] = texts.get(column.name, "")
            continue
        present, missing = exact[column.name]
        value = None if missing[chosen] else present[int((~missing[:chosen]).sum())]
        try:
            row[column.name] = _decoded(column, value)
        except (OverflowError, ValueError):  # no column of times can hold it
            return None
    return row


def _fits(
    book: Book,
    exact: dict[str, Cells],
    texts: Mapping[str, str | None],
    wanted: Mapping[int, tuple[float, float]],
    rows: int,
) -> np.ndarray:
    """Which rows lie within the bounds of registers that are computed, ``[rows]``."""
    read_as_text = {name: _repeated(texts.get(name, ""), rows) for name in text_columns(book)}
    fits = np.ones(rows, bool)
    try:
        columns = encode_exact(book, exact, read_as_text, rows)
    except ValueError:  # beyond double precision
        return ~fits
    with np.errstate(all="ignore"):
        computed = registers(jax.tree.map(np.asarray, book.circuit), columns)
    for register, (low, high) in wanted.items():
        x = computed[register]
        fits &= np.isnan(x) if (low, high) == MISSING else (low <= x) & (x <= high)
    return fits


def _repeated(text: str | None, rows: int) -> Cells:
    """A column with the same text, or a missing one, in every row."""
    missing = np.full(rows, text is None)
    return Cells(np.full(int((~missing).sum()), text, object), missing)


def _tight(values: list[Exact]) -> np.ndarray:
    """Exact values as an array; of float64 where that holds them."""
    if all(isinstance(x, float) or x == float(x) for x in values):
        return np.array(values, np.float64)
    out = np.empty(len(values), object)
    out[:] = values
    return out


# The registers of a book's circuit


def _number_of_plain_columns(book: Book) -> int:
    """The number of columns before those of arithmetic."""
    return len(book.schema.encoded) + len(book.info.tests)


def _domain(book: Book, register: int) -> tuple[float, float]:
    """The range of values of a column."""
    encoded = book.schema.encoded
    if register >= len(encoded):
        return (0.0, 1.0) if register < _number_of_plain_columns(book) else NUMBER
    column = book.schema.column(encoded[register])
    if column.kind == "categorical":  # the code after the last stands for unknown categories
        return 0.0, float(len(column.categories) - column.ordered)
    if column.kind == "time":
        return 0.0, MAX
    return (0.0, 1.0) if column.kind == "boolean" else NUMBER


def _expression(book: Book, register: int) -> f.Value:
    """The expression that a register holds."""
    encoded, plain = book.schema.encoded, _number_of_plain_columns(book)
    if register < len(encoded):
        return f.Name(encoded[register])
    if register < number_of_columns(book):
        return book.info.computed[register - plain][0]
    register -= number_of_columns(book)
    constants = np.asarray(book.circuit.constants)
    if register < len(constants):
        return f.Number(_shortest_decimal(constants[register]))
    register -= len(constants)
    for step in book.circuit.arithmetic:
        if register < len(step.operator):
            left, right = (_expression(book, int(x[register])) for x in (step.left, step.right))
            return f.Arithmetic(f.ARITHMETIC[int(step.operator[register])], left, right)
        register -= len(step.operator)
    raise IndexError(f"no such register: {register}")


# Text


def _bound_formula(book: Book, register: int, low: float, high: float) -> f.Formula | None:
    encoded = book.schema.encoded
    if len(encoded) <= register < _number_of_plain_columns(book):
        return _test_formula(book.info.tests[register - len(encoded)], low, high)
    value = _expression(book, register)
    if (low, high) == ANYTHING:
        return None
    if (low, high) == MISSING:
        return f.Missing(value)
    column = book.schema.column(encoded[register]) if register < len(encoded) else None
    if column is not None and column.kind in ("boolean", "categorical"):
        if (low, high) == _domain(book, register):
            return f.Missing(value, negated=True)
        if column.kind == "boolean":
            return f.Name(column.name) if low == 1 else f.Not(f.Name(column.name))
        if column.ordered:
            return _rank_formula(value, column.categories, int(low), int(high))
        return _category_formula(value, column.categories, int(low), int(high))
    return _range_formula(book, register, value, low, high)


def _test_formula(test: Test, low: float, high: float) -> f.Formula | None:
    if isinstance(test, f.Missing):
        return None if low != high else f.Missing(test.value, negated=low == 0)
    missing = f.Missing(f.Name(column_of(test)))
    if (low, high) == MISSING:
        return missing
    if low != high:
        return dataclasses.replace(missing, negated=True) if low == 0 else None
    if low == 1:
        return test
    return f.Compare(test.operands, ("!=",)) if isinstance(test, f.Compare) else f.Not(test)


def _rank_formula(value: f.Value, categories: Sequence[str], low: int, high: int) -> f.Formula:
    least, most = f.String(categories[low]), f.String(categories[high])
    if low == high:
        return f.Compare((value, least), ("==",))
    if low == 0 or high == len(categories) - 1:
        return f.Compare((value, most if low == 0 else least), ("<=" if low == 0 else ">=",))
    return f.Compare((least, value, most), ("<=", "<="))


def _category_formula(value: f.Value, categories: Sequence[str], low: int, high: int) -> f.Formula:
    unknown = high == len(categories)
    names = categories[:low] if unknown else categories[low : high + 1]
    if len(names) == 1:
        return f.Compare((value, f.String(names[0])), ("!=" if unknown else "==",))
    return f.In(value, tuple(map(f.String, names)), negated=unknown)


def _range_formula(book: Book, register: int, value: f.Value, low: float, high: float) -> f.Formula:
    of_column = register < number_of_columns(book)

    def written(x: float, operator: str) -> tuple[f.Value, str]:
        if of_column:
            return _threshold(book, register, x, operator)
        least, sign = _as_written(x, operator)
        return f.Number(least), sign

    kind = book.schema.column(value.name).kind if isinstance(value, f.Name) else ""
    if kind == "duration":
        value = f.Days(value)
    operands, signs = [value], []
    if high < MAX:
        most, sign = written(high, "<")
        operands, signs = [value, most], [sign]
    if low > -MAX:
        least, sign = written(low, ">")
        if signs == ["<="] and sign == ">=" and least == operands[1]:
            return _compared(operands, ["=="])
        if not signs:
            return _compared([value, least], [sign])
        operands, signs = [least, *operands], [sign.replace(">", "<"), *signs]
    return _compared(operands, signs) if signs else f.Missing(value, negated=True)


def _compared(operands: list[f.Value], signs: list[str]) -> f.Formula:
    """The comparison; ``a < b`` for a difference of times that is compared with 0."""
    match operands:
        case [f.Arithmetic("-", left, right), f.Duration(0)]:
            return f.Compare((left, right), tuple(signs))
    return f.Compare(tuple(operands), tuple(signs))


def _threshold(book: Book, register: int, x: float, operator: str) -> tuple[f.Value, str]:
    """The constant at the end of a region, and ``operator`` with or without ``=``."""
    thresholds, plain = book.info.thresholds[register], _number_of_plain_columns(book)
    literal: Any = None
    unit = 1
    if register < len(book.schema.encoded):
        column = book.schema.column(book.schema.encoded[register])
        unit = unit_of(column)
        literal = {"datetime": f.Time, "time": f.TimeOfDay}.get(column.kind)
    elif register >= plain:
        tree, unit = book.info.computed[register - plain]
        if unit != 1 and not isinstance(tree, f.Days):
            literal = f.Time if _is_instant(book, tree) else f.Duration
    near = placed_thresholds(thresholds, unit)
    away = beside(near, np.full(len(near), 1 if operator == ">" else -1))
    for numbers, sign in ((near, operator + "="), (away, operator)):
        found = np.flatnonzero(numbers == np.float32(x))
        if len(found):
            t = thresholds[int(found[0])]
            if literal is f.Time:
                return f.Time(int(t), any(column.zone for column in book.schema.columns)), sign
            if literal is not None:
                return literal(int(t)), sign
            days = Fraction(t) / unit if unit != 1 else t
            if isinstance(days, Fraction):
                days = int(days) if days.denominator == 1 else float(days)
            return f.Number(days), sign
    raise AssertionError(f"no threshold at {x} of register {register}")


def _is_instant(book: Book, tree: f.Value) -> bool:
    """Whether arithmetic over times is a time, rather than a duration."""
    if isinstance(tree, f.Name):
        return book.schema.column(tree.name).kind == "datetime"
    if isinstance(tree, f.Arithmetic):
        left, right = _is_instant(book, tree.left), _is_instant(book, tree.right)
        return left != right if tree.operator == "-" else left or right
    return isinstance(tree, f.Time)


def _as_written(x: float, operator: str) -> tuple[float, str]:
    """A bound as it was probably written: 60 and > for the float32 after 60."""
    side = 1 if operator == ">" else -1
    beyond = float(beside(np.array([x], np.float32), np.array([-side]))[0])
    for t in (0.0, _shortest_decimal(beyond)):
        if math.isfinite(t) and np.float32(t) == np.float32(beyond):
            if len(repr(t)) < len(repr(_shortest_decimal(x))):
                return t, operator
    return _shortest_decimal(x), operator + "="


def _shortest_decimal(x: Any) -> float:
    """The shortest decimal number that rounds to this float32, and lies in its range."""
    shortest = float(str(np.float32(x)))
    return shortest if abs(shortest) <= MAX else float(np.float32(x))


# Rows


def _sampled_values(
    book: Book,
    name: str,
    bound: tuple[float, float],
    draws: int,
    random: np.random.Generator,
    *,
    may_miss: bool,
) -> np.ndarray:
    """Samples a column within its bounds, ``[draws]``; the first value is the roundest."""
    column = book.schema.column(name)
    if bound == MISSING:
        return np.full(draws, np.nan, np.float32)
    least, most = _domain(book, book.schema.encoded.index(name))
    low, high = max(bound[0], least), min(bound[1], most)
    if column.kind == "time":
        high = max(low, min(high, _END_OF_DAY))
    elif unit_of(column) != 1:  # columns of times hold fewer days than float32
        ends = [2 * abs(x) for x in bound if abs(x) < MAX]
        most = max(_MOST_DRAWN, *ends, 0.0)
        low, high = max(low, -most), min(high, most)
    if column.kind in ("boolean", "categorical"):
        out = random.integers(int(low), int(high) + 1, draws).astype(np.float32)
        out[0] = low
    else:
        middle = [low / 2 + high / 2] if low > -MAX and high < MAX else []
        ends = [low + 1] * (low > -MAX) + [high - 1] * (high < MAX)
        candidates = [column.mean, *middle, *ends]
        candidates = [y for x in candidates for y in (round(x), x)]
        first = next(x for x in map(np.float32, (*candidates, low)) if low <= x <= high)
        scale = column.std * 10.0 ** random.integers(-1, 4, draws)
        spread = (column.mean, float(first))
        start = np.where(random.random(draws) < 0.5, *spread)
        wide = start + scale * random.standard_normal(draws)
        wide[1::8], wide[2::8] = low, high  # bounds and integers are likely to fit
        wide[3::4] = np.round(wide[3::4])
        out = np.clip(wide, low, high).astype(np.float32)
        out[0] = first
    if may_miss and bound == ANYTHING:
        out[1:][random.random(draws - 1) < 0.3] = np.nan
    return out


def _fitting_texts(
    book: Book, ends: Mapping[int, tuple[float, float]]
) -> dict[str, str | None] | None:
    """Values of the columns with bounded tests and sizes: a text, or None for a missing one.

    None if no value was found that satisfies all bounds of a column.
    """
    encoded, plain = book.schema.encoded, _number_of_plain_columns(book)
    wanted: dict[str, list[tuple[Test | f.Size, tuple[float, float]]]] = {}
    sizes = ((plain + i, x) for i, (x, _) in enumerate(book.info.computed))
    for register, asked in (*enumerate(book.info.tests, len(encoded)), *sizes):
        bound = ends.get(register, ANYTHING)
        if bound != ANYTHING and isinstance(asked, Test | f.Size):
            wanted.setdefault(column_of(asked), []).append((asked, bound))
    found: dict[str, str | None] = {}
    for name, required in wanted.items():
        column = book.schema.column(name)
        if column.kind == "categorical":
            low, high = ends.get(encoded.index(name), ANYTHING)
            candidates = [x for i, x in enumerate(column.categories) if low <= i <= high]
            candidates += [None] * (high == math.inf)
        else:
            candidates = _candidates(required)
        fitting = [x for x in candidates if all(_is_within(x, a, b) for a, b in required)]
        if not fitting:
            return None
        found[name] = fitting[0]
    return found


def _candidates(required: Sequence[tuple[Test | f.Size, tuple[float, float]]]) -> list[str | None]:
    """Texts that may lie within bounds; None, for a missing one, is the last."""
    parts = {"starts_with": "", "contains": "", "ends_with": ""}
    literals = []
    for asked, (low, _) in required:
        if low != 1 or isinstance(asked, f.Missing | f.Size):
            continue
        pattern = asked.pattern if isinstance(asked, f.Matches) else ""
        literal = literal_of(asked) or re.sub(r"\\b|[\^$]|\\(?=\W)", "", pattern)
        literals.append(literal)
        where = asked.where if isinstance(asked, f.Contains) else "contains"
        parts[where] = " ".join(x for x in (parts[where], literal) if x)
    together = [x for x in parts.values() if x]
    texts = ["", *literals, " ".join(literals), " ".join(literals[::-1]), " ".join(together)]
    for asked, (low, high) in required:  # longer by letters, or by words
        if isinstance(asked, f.Size) and low <= MOST_PADDED and high >= 0:
            least = max(math.ceil(low), 0)
            for text in dict.fromkeys(texts):
                if asked.unit == "length":
                    texts.append(parts["starts_with"] + text + "x" * (least - len(text)))
                    texts.append("x" * (least - len(text)) + text)
                else:
                    more = ["x"] * (least - len(text.split()))
                    texts += [" ".join([text, *more]).strip(), " ".join([*more, text]).strip()]
    return [*dict.fromkeys(texts), None]


def _is_within(x: str | None, asked: Test | f.Size, bound: tuple[float, float]) -> bool:
    if isinstance(asked, f.Size):
        found = None if x is None else size(asked, x)
    else:
        found = holds(asked, x)
    return bound[0] <= (math.inf if found is None else float(found)) <= bound[1]


def _decoded(column: Column, x: Any) -> Any:
    """An exact value as a table holds it."""
    categories, kind = column.categories, column.kind
    if x is None:
        return None
    if kind == "categorical":
        other = next(name for name in map("other{}".format, ["", *range(99)]) if name not in
                     categories)  # fmt: skip
        return categories[int(x)] if x < len(categories) else other
    if kind in ("datetime", "duration"):
        if x != int(x):
            raise OverflowError("there is no whole nanosecond")
        if column.zone:  # without it, the time would be read as one of this zone
            return spelled(int(x), True).split("'")[1]
        return _as_numpy(int(x), np.datetime64 if kind == "datetime" else np.timedelta64)
    if kind == "time":
        return clock(int(x))
    if kind == "boolean":
        texts = column.true_values if x else column.false_values
        return texts[0] if texts else bool(x)
    return float(x) if x == float(x) else x


def _as_numpy(nanoseconds: int, kind: Any) -> Any:
    """A time or duration in the coarsest unit that holds it."""
    for length, unit in ((DAY, "D"), (SECOND, "s"), (1_000, "us")):
        if nanoseconds % length == 0:
            return kind(nanoseconds // length, unit)
    return kind(nanoseconds, "ns")
