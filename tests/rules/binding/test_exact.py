"""Comparisons are those of exact numbers, whatever float32 holds: against Python's own."""

from __future__ import annotations

import datetime
import operator
import warnings
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from distill_jax.rules import (
    Column,
    RuleError,
    RuleWarning,
    Schema,
    bind,
    check,
    conflicts,
    encode,
    encode_columns,
    explain,
    fires,
    infer_schema,
    to_logistic_regression,
    violation,
)
from distill_jax.rules.binding._computing import computed
from distill_jax.rules.binding._places import placed, placed_thresholds, unplaced
from distill_jax.rules.binding._tables import Cells
from distill_jax.rules.circuits._registers import registers
from distill_jax.rules.language import formulas as f

CLASSES = ("well", "ill")
OPERATORS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip

# Numbers that float32 tells apart, and numbers that it does not.
dense = (
    st.integers(20240100, 20240110)
    | st.integers(10**17, 10**17 + 30)
    | st.integers(-5, 5)
    | st.integers(-(2**63), 2**63 - 1)
)
small = st.floats(-1e-40, 1e-40) | st.sampled_from([1e-50, 1e-60, 0.0, -1e-50, 0.05, 1234567.89])
floats = small | st.floats(-3e38, 3e38) | dense.map(float) | st.floats(0.999999, 1.000001)
thresholds = dense | floats | st.sampled_from([1e39, -1e300, 2**90, 0.1, 0.1 + 1e-12])


def array(values: list[Any], dtype: Any) -> np.ndarray:
    out = np.empty(len(values), dtype)
    out[:] = values
    return out


@pytest.mark.quick
@pytest.mark.parametrize(
    ("dtype", "elements"),
    [
        (np.int64, dense),
        (np.float64, floats),
        (object, st.integers(-(2**80), 2**80) | st.fractions() | floats | dense),
        (np.uint8, st.integers(0, 255)),
    ],
    ids=["int64", "float64", "object", "uint8"],
)
def test_placed_numbers_compare_as_exact_ones(dtype: Any, elements: Any) -> None:
    @given(st.lists(elements, min_size=1, max_size=6), st.lists(thresholds, max_size=6))
    @settings(max_examples=150, database=None)
    def law(values: list[Any], wanted: list[Any]) -> None:
        wanted = sorted(set(wanted))
        found, numbers = placed(array(values, dtype), wanted), placed_thresholds(wanted)
        assert np.isfinite(found).all() and np.isfinite(numbers).all()
        exact = [[(v > t) - (v < t) for t in wanted] for v in values]
        got = np.sign(found.astype(np.float64)[:, None] - numbers[None, :].astype(np.float64))
        np.testing.assert_array_equal(got, np.reshape(exact, got.shape))
        # A number beside a threshold, as in a region, has a value there that is placed on it.
        back = array(unplaced(found, wanted), object)
        np.testing.assert_array_equal(placed(back, wanted), found)

    law()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
       st.lists(st.integers(-9, 9).map(lambda n: n / 4), max_size=4))  # fmt: skip
@settings(max_examples=60, database=None)
def test_what_float32_holds_is_left_alone(values: list[float], wanted: list[float]) -> None:
    normal = [0.0 if abs(v) < 1e-37 else v for v in values]  # compiled code flushes smaller ones
    wanted = sorted(set(wanted))
    far = [v for v in normal if all(v == t or abs(v - t) > 1e-6 for t in wanted)]
    np.testing.assert_array_equal(placed(array(far, np.float64), wanted), array(far, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_decimal_number_is_read_in_the_dtype_of_its_column(dtype: Any) -> None:
    values = np.array([0.1, 0.2, 0.3, 0.0], dtype)
    wanted = [1e-50, 0.1, 0.2]
    found, numbers = placed(values, wanted), placed_thresholds(wanted)
    for t, number in zip(wanted, numbers, strict=True):
        less = values < (dtype(t) if t > 1e-9 else np.float64(t))
        np.testing.assert_array_equal(found < number, less)
        np.testing.assert_array_equal(found == number, values == (dtype(t) or -1))


# Whole books


def held(book: Any, table: Any) -> np.ndarray:
    """Where each rule fires, ``[batch, rules]``, on the host: nothing is compiled."""
    circuit = jax.tree.map(np.asarray, book.circuit)
    with np.errstate(all="ignore"):
        x = registers(circuit, encode(book, table))[circuit.register]
    inside = (circuit.low[:, None] <= x) & (x <= circuit.high[:, None])
    inside ^= circuit.inverted[:, None]
    nodes = np.concatenate([np.zeros_like(inside[:1]), np.ones_like(inside[:1]), inside])
    for level in circuit.levels:
        for children, join in ((level.ands, np.all), (level.ors, np.any)):
            if children is not None and len(children):
                nodes = np.concatenate([nodes, join(nodes[children], axis=1)])
    return nodes[book.fires].T


def fired(text: str, **columns: Any) -> list[bool]:
    """Where one condition holds on the device."""
    schema = Schema(tuple(Column(name) for name in columns), CLASSES)
    book = bind(f"{text} => ill", schema)
    return np.asarray(fires(book, encode(book, columns)))[:, 0].tolist()


@pytest.mark.quick
def test_numbers_that_float32_merges() -> None:
    days = [20240102, 20240103, 20240104]
    assert fired("x == 20240103", x=days) == [False, True, False]
    assert fired("x == 20240103", x=np.array(days, float)) == [False, True, False]
    assert fired("x < 1e-50", x=[1e-60, 0.0, 1e-40, None]) == [True, True, False, False]
    codes = [123456789012345677, 123456789012345678, None]
    assert fired("x == 123456789012345678", x=codes) == [False, True, False]
    assert fired("x in [123456789012345678]", x=pd.array(codes, "Int64")) == [False, True, False]
    assert fired("x > 1234567.89", x=[1234567.89, 1234567.90]) == [False, True]
    assert fired("x >= 1700000000", x=[1699999999, 1700000000]) == [False, True]
    assert fired("x < 1e39", x=[3.4e38]) == [True]
    assert fired("x * 1e39 > 5e38", x=[1.0, 0.1, -1.0]) == [True, False, False]


def test_two_columns_are_compared_exactly() -> None:
    close = [1.0, 1.0, 1.0 + 1e-15]
    assert fired("a < b", a=close, b=[1.0, 1.0 + 1e-15, 1.0]) == [False, True, False]
    near = np.array([2**62, 2**62 + 1], np.int64)
    assert fired("a == b", a=near, b=[2**62, 2**62]) == [True, False]
    # A float64 and an integer that no float64 holds.
    assert fired("a == b", a=np.array([2.0**60]), b=[2**60 + 1]) == [False]
    assert fired("a + 1 > b", a=np.array([255], np.uint8), b=[255]) == [True]  # no wrapping around
    # Single precision is that of the table: 0.1 + 0.2 is 0.3 there.
    tenths = np.array([0.1], np.float32), np.array([0.2], np.float32)
    assert fired("a + b == 0.3", a=tenths[0], b=tenths[1]) == [True]


def test_a_book_compares_as_python_does() -> None:
    @given(
        st.lists(thresholds.filter(lambda t: abs(t) < 1e308), min_size=1, max_size=3),
        st.lists(dense, min_size=4, max_size=4),
        st.lists(floats, min_size=4, max_size=4),
    )
    @settings(max_examples=25, database=None)
    def law(wanted: list[Any], whole: list[int], real: list[float]) -> None:
        conditions = [(x, op, t) for x in "nx" for op in OPERATORS for t in wanted]
        rules = [f.Compare((f.Name(x), f.Number(t)), (op,)) for x, op, t in conditions]
        rules += [f.Compare((f.Name("n"), f.Name("x")), (op,)) for op in OPERATORS]
        ill = f.Name("ill")
        with warnings.catch_warnings():  # no column holds numbers beyond float32
            warnings.simplefilter("ignore", RuleWarning)
            book = bind([f.Rule(f.Implies(rule, ill)) for rule in rules], schema)
        values = {"n": whole, "x": real}
        want = [[OPERATORS[op](v, t) for v in values[x]] for x, op, t in conditions]
        want += [[OPERATORS[op](a, b) for a, b in zip(whole, real, strict=True)]
                 for op in OPERATORS]  # fmt: skip
        table = {"n": np.array(whole, np.int64), "x": np.array(real)}
        np.testing.assert_array_equal(held(book, table), np.array(want).T)

    schema = Schema((Column("n"), Column("x")), CLASSES)
    law()


def test_one_row_whose_code_was_rounded_before_gives_a_warning() -> None:
    frame = pd.DataFrame({"x": [123456789012345679], "y": [0.5]})
    with pytest.warns(UserWarning, match=r"'x' is float64, which cannot hold \[1234567890123456"):
        fired("x == 123456789012345679", x=frame.iloc[0].to_numpy()[:1])


def test_half_precision_beside_constants_beyond_its_range() -> None:
    half = np.array([0.1, 65504, -65504], np.float16)
    assert fired("x < 123456789012345679 and x > -123456789012345679", x=half) == [True] * 3


def test_what_holds_in_a_row_does_not_depend_on_other_rows() -> None:
    assert fired("x / 10 == 0.3", x=[3]) == [True]
    assert fired("x / 10 == 0.3", x=[3, 2**53 + 1]) == [True, False]
    assert fired("x / 10 == 0.3", x=[3, Fraction(1, 3), 0.5]) == [True, False, False]
    half = np.array([0.1, 300], np.float16)  # whose square is beyond float16
    assert fired("x * x < 0.0099952 and x * x > 0.009995", x=half)[0]
    assert fired("x * x < 0.0099952 and x * x > 0.009995", x=half[:1])[0]
    with pytest.raises(ValueError, match="beyond double precision in row 1"):
        fired("x * 1e300 * y > 1", x=[2**60 + 1, 3], y=[1.0, 1e30])


def test_arithmetic_is_exact_over_integers_and_float64_otherwise() -> None:
    tree = st.recursive(
        st.sampled_from([f.Name("a"), f.Name("b")]) | st.integers(-9, 2**40).map(f.Number),
        lambda x: st.builds(f.Arithmetic, st.sampled_from("+-*/"), x, x) | x.map(f.Negative),
        max_leaves=5,
    )

    def value(x: Any, row: dict[str, Any]) -> Any:
        if isinstance(x, f.Number):
            return x.value
        if isinstance(x, f.Name):
            return row[x.name]
        if isinstance(x, f.Negative):
            return -value(x.value, row)
        left, right = value(x.left, row), value(x.right, row)
        if x.operator == "/":
            exact = isinstance(left, float) or isinstance(right, float)
            return left / right if exact else Fraction(left) / right
        return {"+": operator.add, "-": operator.sub, "*": operator.mul}[x.operator](left, right)

    @given(tree, st.lists(st.tuples(dense, dense | st.just(0)), min_size=1, max_size=4))
    @settings(max_examples=100, database=None)
    def whole(tree: Any, rows: list[tuple[int, int]]) -> None:
        columns = {name: np.array(x, np.int64)
                   for name, x in zip("ab", zip(*rows, strict=True), strict=True)}  # fmt: skip
        cells = {name: Cells(x, np.zeros(len(x), bool)) for name, x in columns.items()}
        found = computed(tree, cells, len(rows))
        want = []
        for a, b in rows:
            try:
                want.append(value(tree, {"a": a, "b": b}))
            except ZeroDivisionError:
                want.append(None)
        assert found.missing.tolist() == [x is None for x in want]
        divides = any(getattr(x, "operator", "") == "/" for x in f.trees(tree))
        for got, exact in zip(found.present.tolist(), [x for x in want if x is not None],
                              strict=True):  # fmt: skip
            assert got == exact or (divides and isinstance(got, float) and got == pytest.approx(
                float(exact), rel=1e-9, abs=1e-9))  # fmt: skip

    whole()


def test_soft_arithmetic_is_computed_where_gradients_need_it() -> None:
    schema = Schema((Column("x"), Column("y")), CLASSES)
    book = bind("[w=1] x + y > 1 => ill", schema, widths={"x + y": 1.0})
    columns = jnp.array([[1.0, 2.0]])
    slope = jax.grad(lambda c: violation(book, c, jnp.array([[1.0, 0.0]])).sum())(columns)
    np.testing.assert_allclose(
        slope, np.full((1, 2), np.exp(-2) / (1 + np.exp(-2)) ** 2), rtol=1e-5
    )
    model = to_logistic_regression(book, features="atoms")
    params, state = model.init(jax.random.key(0), columns)
    z = model.predict(params, state, columns).logits
    assert z[0, 1] > z[0, 0]


def test_rules_that_never_meet_are_told_apart() -> None:
    schema = Schema((Column("day"),), CLASSES)
    assert not conflicts(
        bind("[hard] day == 20240103 => ill\n[hard] day == 20240104 => well", schema)
    )
    text = "[hard] day >= 20240103 => ill\n[hard] day < 20240104 => well"
    book = bind(text, schema, conflicts="ignore")
    (found,) = conflicts(book)
    assert found.region == "20240103 <= day < 20240104" and found.certain
    assert found.example is not None and 20240103 <= found.example["day"] < 20240104
    row = encode(book, {"day": [found.example["day"]]})
    assert np.asarray(fires(book, row)).all()
    # Arithmetic: the example is found by computing it, as encode does.
    text = "[hard] a - b > 16777216 => ill\n[hard] a - b < 16777217 => well"
    schema = Schema((Column("a"), Column("b")), CLASSES)
    assert not conflicts(bind(text.replace("16777217", "16777216"), schema))


def test_models_read_the_columns_of_their_book() -> None:
    schema = Schema((Column("day"), Column("note", "text"), Column("b")), CLASSES)
    text = "[w=3] day == 20240103 and b > 20240102 => ill\n[w=1] day > 20240104 => well"
    text += "\n[w=2] day < b and note matches r'x' => ill"
    book = bind(text, schema)
    model = to_logistic_regression(book, features="bodies")
    table = {"day": [20240103, 20240104, 20240102], "note": ["x"] * 3, "b": [20240103] * 3}
    columns = encode(book, table)
    params, state = model.init(jax.random.key(0), columns)
    z = model.predict(params, state, columns).logits
    np.testing.assert_allclose(z[:, 1] - z[:, 0], [3.0, 0.0, 2.0], atol=1e-5)


def test_float64_and_half_precision_are_refused_where_they_would_be_rounded() -> None:
    book = bind("age > 0.1 => ill", Schema((Column("age"),), CLASSES))
    assert fires(book, np.array([[0.5]])).all()  # float32 holds it
    for columns in (np.array([[0.1 + 1e-10]]), jnp.ones((1, 1), jnp.bfloat16)):
        with pytest.raises(TypeError, match=r"columns must be float32 as encode\(book, table\)"):
            fires(book, columns)
    with jax.enable_x64(True):
        with pytest.raises(TypeError, match="got float64"):
            jax.jit(lambda x: fires(book, x))(jnp.array([[0.1 + 1e-10]]))
    np.testing.assert_array_equal(held(book, np.array([[0.1 + 1e-10], [0.1]])), [[True], [False]])
    with pytest.raises(TypeError, match="got float64"):
        check(book, np.array([[0.1 + 1e-10]]))


def test_what_cannot_be_kept_is_named(library_errors: None) -> None:
    schema = Schema((Column("x"), Column("y")), CLASSES)
    book = bind("x * 1e300 * y > 1 => ill", schema)
    with pytest.raises(ValueError, match=r"1e\+300 \* y is beyond double precision in row 1"):
        encode(book, {"x": [1, 1e30], "y": [1, 1]})
    with pytest.raises(RuleError, match="beyond double precision"):
        bind("x > 1e308 * 10 => ill", schema)
    with pytest.raises(RuleError, match=r"1e\+39 does not fit float32"):
        bind("x * 1e39 > 1 => ill", schema, widths={"x * 1e+39": 1.0})
    with pytest.raises(ValueError, match="'x' must fit float32, got a value near 1e.39: rescale"):
        encode(book, {"x": [1e39], "y": [1]})
    with pytest.warns(UserWarning, match=r"columns \['x'\]: use encode\(book"):
        encode_columns(schema, {"x": [20240103], "y": [0.1]})


def test_a_column_that_was_rounded_before_is_named() -> None:
    book = bind("day == 20240103 => ill", Schema((Column("day"),), CLASSES))
    days = np.array([20240102, 20240103, 20240104])
    for table in ({"day": days.astype(np.float32)}, days.astype(np.float32)[:, None]):
        with pytest.warns(UserWarning, match=r"'day' is float32, which cannot hold \[20240103\]"):
            assert not np.asarray(fires(book, encode(book, table))).any()  # the 4th, all of them
    for table in ({"day": days}, {"day": days.astype(float)}, days[:, None]):
        assert np.asarray(fires(book, encode(book, table)))[:, 0].tolist() == [False, True, False]


# Times

DAY = datetime.date(2024, 1, 31)
TIMES = Schema((Column("start", "datetime"), Column("end", "datetime"), Column("stay", "duration"),
                Column("n")), CLASSES)  # fmt: skip
NOON = datetime.datetime(2024, 1, 31, 12)
ROWS = {
    "start": [NOON, NOON + datetime.timedelta(microseconds=1), DAY, None],
    "end": [datetime.date(2024, 3, 1)] * 4,
    "stay": [datetime.timedelta(days=3), datetime.timedelta(days=3, microseconds=1), None,
             np.timedelta64("NaT", "ns")],
    "n": [29.5, 29.5, 30, 1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("start == datetime '2024-01-31T12:00:00'", [1, 0, 0, 0]),
        ("start > datetime '2024-01-31T12:00Z'", [0, 1, 0, 0]),
        ("start >= datetime '2024-01-31T13:00:00.000001+01:00'", [0, 1, 0, 0]),
        ("start == date '2024-01-31'", [0, 0, 1, 0]),
        ("date '2024-01-31' <= start < date '2024-02-01'", [1, 1, 1, 0]),
        ("start between date '2024-01-01' and date '2024-01-31'", [0, 0, 1, 0]),
        ("start in [date '2024-01-31', date '2024-02-01']", [0, 0, 1, 0]),
        ("start < end", [1, 1, 1, 0]),
        ("days(end - start) == 29.5", [1, 0, 0, 0]),
        ("days(end - start) < 29.5", [0, 1, 0, 0]),
        ("days(end - start) == n", [1, 0, 1, 0]),
        ("24 * days(end - start) <= 708", [1, 1, 0, 0]),
        ("days(stay) > 3", [0, 1, 0, 0]),
        ("end - start > stay", [1, 1, 0, 0]),
        ("start is missing", [0, 0, 0, 1]),
        ("stay is missing", [0, 0, 1, 1]),
        ("days(date '2024-02-01' - start) <= 0.5", [1, 1, 0, 0]),
    ],
)
def test_times_are_compared_to_the_nanosecond(text: str, want: list[int]) -> None:
    book = bind(f"{text} => ill", TIMES)
    np.testing.assert_array_equal(held(book, ROWS)[:, 0], np.array(want, bool))
    assert bind(str(book), TIMES).rules == book.rules
    clause = bind(f"ill :- {text}.", TIMES)
    assert held(clause, ROWS)[:, 0].tolist() == held(book, ROWS)[:, 0].tolist()


def test_a_time_in_a_clause() -> None:
    (rule,) = bind("ill :- start=date '2024-01-31', n > 1.", TIMES).rules
    assert str(rule) == "ill :- start == date '2024-01-31', n > 1."


def zoned(texts: list[Any], zone: str) -> pd.Series:
    return pd.Series(texts, dtype="datetime64[us]").dt.tz_localize(zone)


@pytest.mark.parametrize(
    "values",
    [
        ["2024-01-31T12:00:00Z", "2024-01-31", None],
        [NOON, DAY, pd.NaT],
        np.array(["2024-01-31T12", "2024-01-31", "NaT"], "M8[h]"),
        pd.Series(["2024-01-31T12", "2024-01-31", None], dtype="datetime64[us]"),
        zoned(["2024-01-31T12", "2024-01-31T00", None], "UTC"),
        zoned(["2024-01-31T13", "2024-01-31T01", None], "CET"),
        [
            pd.Timestamp("2024-01-31T04", tz="US/Pacific"),
            pd.Timestamp("2024-01-30T16", tz="US/Pacific"),
            None,
        ],  # noqa: E501
    ],
    ids=["strings", "datetime", "numpy", "pandas", "UTC", "Zurich", "objects"],
)
def test_every_kind_of_time_is_read_alike(values: Any) -> None:
    schema = infer_schema({"x": values}, CLASSES, kinds={"x": "datetime"})
    assert schema == infer_schema({"x": values}, CLASSES) or isinstance(values[0], str)
    (column,) = schema.columns
    assert column.kind == "datetime" and column.mean == 19753.25 and column.std == 0.25
    np.testing.assert_array_equal(
        encode_columns(schema, {"x": values}), [[19753.5], [19753], [np.nan]]
    )
    book = bind("x > datetime '2024-01-31T11:59:59.999999999Z' => ill", schema)
    np.testing.assert_array_equal(held(book, {"x": values})[:, 0], [True, False, False])


def test_durations_and_times_beyond_nanoseconds() -> None:
    table = {"x": np.array([36, 48, "NaT"], "m8[h]"), "y": np.array([5000, 9999, 12], "M8[Y]")}
    schema = infer_schema(table, CLASSES)
    assert [column.kind for column in schema.columns] == ["duration", "datetime"]
    assert schema.column("x").mean == 1.75
    book = bind("days(x) >= 2 => ill\ny > date '6970-01-01' => ill", schema, conflicts="ignore")
    np.testing.assert_array_equal(held(book, table), [[0, 0], [1, 1], [0, 0]])


def test_models_standardise_times() -> None:
    table = {"x": np.array(["2024-01-30", "2024-02-01"], "M8[D]")}
    model = to_logistic_regression("x > date '2024-01-31' => ill", infer_schema(table, CLASSES))
    columns = encode_columns(infer_schema(table, CLASSES), table)
    params, state = model.init(jax.random.key(0), columns)
    params = jax.tree.map(jnp.ones_like, params)
    z = model.predict(params, state, columns).logits  # column, atom, body and bias
    np.testing.assert_allclose(z[:, 1] - z[:, 0], [-1 + 0 + 0 + 1, 1 + 1 + 1 + 1], atol=1e-4)


def test_regions_of_times_read_as_they_were_written() -> None:
    text = "[hard] start > date '2024-01-31' and days(stay) <= 2.5 => ill\n[hard] n > 1 => well"
    (found,) = conflicts(bind(text, TIMES, conflicts="ignore"))
    assert found.region == "start > date '2024-01-31' and days(stay) <= 2.5 and n > 1"
    row = found.example
    assert row is not None and row["start"] > np.datetime64("2024-01-31")
    book = bind(text, TIMES, conflicts="ignore")
    columns = encode(book, {name: [value] for name, value in row.items()})
    assert np.asarray(fires(book, columns)).all()
    (one, two) = explain(book, row, jnp.zeros(2)).rows
    assert not one["silent"] and not two["silent"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start > 2024-01-31", "(compare it with|write) date '2024-01-31'"),
        ("start > '2024-01-31'", "compare it with date"),
        ("end - start > 30", r"days\(end - start\) is its number of days"),
        ("stay > 30", r"days\(stay\) is its number of days"),
        ("n > date '2024-01-31'", "is a datetime"),
        ("start + end > 3", "start is a datetime"),
        ("days(n) > 3", "takes a duration"),
        ("days(start) > 3", "takes a duration"),
        ("start > date '2024-02-30'", "there is no such day"),
        ("start > date '31.1.2024'", "write date '2024-01-31'"),
        ("start > date '2024-01-31T12:00'", "datetime with a time of day"),
        ("start > datetime '2024-01-31T25:00'", "no such time of day"),
        ("start > datetime '2024-01-31'", "write datetime"),
        ("start > date('2024-01-31')", "without parentheses"),
        ("start matches r'2024'", "holds no text"),
    ],
)
def test_times_that_are_misread_are_refused(text: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        bind(f"{text} => ill", TIMES)
    with pytest.raises(ValueError, match="'start'.*with a time zone and times without"):
        aware = datetime.datetime(2024, 1, 31, tzinfo=datetime.UTC)
        encode_columns(TIMES, {**ROWS, "start": [NOON, aware, DAY, None]})


def test_decimal_numbers_of_days_are_taken_as_written() -> None:
    hours = np.array([144], "m8[m]")  # a tenth of a day
    schema = Schema((Column("stay", "duration"),), CLASSES)
    book = bind("days(stay) == 0.1 => ill", schema)
    assert held(book, {"stay": hours}).all()
    assert book.info.thresholds == ((Fraction(86_400, 10) * 10**9,),)
