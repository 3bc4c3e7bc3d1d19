"""Tables of every library: what is missing, and what a cell says, is the same everywhere."""

from __future__ import annotations

import collections
import datetime
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from distill_jax.rules import (
    Column,
    Schema,
    bind,
    check,
    encode,
    encode_columns,
    explain,
    fires,
    infer_schema,
)
from distill_jax.rules.binding._tables import cells, is_missing, text_of

CLASSES = ("well", "ill")


class ArrowColumn:
    """What a column of Arrow is to those who do not import it: ``is_null`` and ``drop_null``."""

    def __init__(self, values: list[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def is_null(self) -> np.ndarray:
        return np.array([x is None for x in self.values])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        kinds = {type(x) for x in self.values}
        return np.array([np.nan if x is None and str not in kinds else x for x in self.values])

    def drop_null(self) -> ArrowColumn:
        return ArrowColumn([x for x in self.values if x is not None])


class PolarsColumn(ArrowColumn):
    """The same of Polars: ``drop_nulls``, and a NaN that is not null."""

    def drop_nulls(self) -> PolarsColumn:
        return PolarsColumn([x for x in self.values if x is not None])

    drop_null = None  # type: ignore[assignment]


class ArrowTable:
    """A table whose ``columns`` are the data, as in Arrow."""

    def __init__(self, table: dict[str, list[Any]]):
        self.table = table

    @property
    def column_names(self) -> list[str]:
        return list(self.table)

    @property
    def columns(self) -> list[ArrowColumn]:
        return [ArrowColumn(x) for x in self.table.values()]

    def __getitem__(self, name: str) -> ArrowColumn:
        return ArrowColumn(self.table[name])


def strings_of(na: Any) -> np.ndarray:
    return np.array(["F", na, "M"], np.dtypes.StringDType(na_object=na))


STRINGS = {
    "list with None": ["F", None, "M"],
    "list with NaN": ["F", float("nan"), "M"],
    "list with a NumPy NaN": ["F", np.float32("nan"), "M"],
    "list with NA": ["F", pd.NA, "M"],
    "list with a masked entry": ["F", np.ma.masked, "M"],
    "list with NaT": ["F", np.datetime64("NaT", "ns"), "M"],
    "objects": np.array(["F", np.nan, "M"], object),
    "masked": np.ma.array(["F", "X", "M"], mask=[0, 1, 0]),
    "masked objects": np.ma.array(["F", 3, "M"], mask=[0, 1, 0], dtype=object),
    "bytes": [b"F", None, b"M"],
    "masked bytes": np.ma.array([b"F", b"X", b"M"], mask=[0, 1, 0]),
    "NumPy strings, NaN": strings_of(np.nan),
    "NumPy strings, None": strings_of(None),
    "NumPy strings, another string": strings_of("nothing"),
    "pandas": pd.Series(["F", None, "M"], index=[5, 5, 5]),
    "pandas string": pd.Series(["F", pd.NA, "M"], dtype="string"),
    "pandas category": pd.Series(["F", None, "M"], dtype="category"),
    "pandas array": pd.array(["F", None, "M"]),
    "Arrow": ArrowColumn(["F", None, "M"]),
    "Polars": PolarsColumn(["F", None, "M"]),
}
NUMBERS = {
    "list with None": [2, None, 7],
    "list with NaN": [2.0, float("nan"), 7.0],
    "half precision": np.array([2, np.nan, 7], np.float16),
    "masked": np.ma.array([2, 999, 7], mask=[0, 1, 0]),
    "masked floats with NaN": np.ma.array([2.0, np.nan, 7.0], mask=[0, 0, 0]),
    "masked entry": np.ma.array([2, 7, 7], mask=[0, 1, 0], dtype=object),
    "nullable": pd.array([2, None, 7], dtype="Int64"),
    "nullable series": pd.Series([2, pd.NA, 7], dtype="UInt8"),
    "nullable floats": pd.Series([2, pd.NA, 7], dtype="Float32"),
    "decimals": [Decimal(2), Decimal("NaN"), Decimal(7)],
    "signalling decimals": [Decimal(2), Decimal("sNaN"), Decimal(7)],
    "fractions": [Fraction(2), None, Fraction(7)],
    "sparse": pd.Series(pd.arrays.SparseArray([2.0, np.nan, 7.0])),
    "bfloat16": jnp.array([2, jnp.nan, 7], jnp.bfloat16),
    "Arrow": ArrowColumn([2, None, 7]),
    "Polars": PolarsColumn([2.0, float("nan"), 7.0]),
}


@pytest.mark.quick
@pytest.mark.parametrize("values", STRINGS.values(), ids=STRINGS)
def test_a_missing_string_is_missing_everywhere(values: Any) -> None:
    schema = infer_schema({"x": values}, CLASSES)
    assert schema.column("x") == Column("x", "categorical", ("F", "M"))
    book = bind("x is missing => ill\nx == 'M' => ill\nx matches r'^[FM]$' => ill", schema)
    np.testing.assert_array_equal(encode(book, {"x": values}), [[0, 1], [np.nan, np.nan], [1, 1]])
    text = bind(
        "x is missing => ill\nx matches r'^M$' => ill", Schema((Column("x", "text"),), CLASSES)
    )
    np.testing.assert_array_equal(encode(text, {"x": values}), [[0, 0], [1, np.nan], [0, 1]])


@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS)
def test_a_missing_number_is_missing_everywhere(values: Any) -> None:
    schema = infer_schema({"x": values}, CLASSES)
    assert schema.column("x") == Column("x", "numeric", (), 4.5, 2.5)
    np.testing.assert_array_equal(encode_columns(schema, {"x": values}), [[2], [np.nan], [7]])
    book = bind("x > 5 => ill", schema)
    found = check(book, {"x": values}).rows[0]
    assert (found["fires"], found["silent"]) == (1, 1)


def test_a_missing_time_and_a_missing_boolean() -> None:
    times = [datetime.date(2024, 1, 1), pd.NaT, None, np.datetime64("NaT", "ns")]
    assert cells("x", times).missing.tolist() == [False, True, True, True]
    flags = pd.Series([True, pd.NA, False], dtype="boolean")
    schema = infer_schema({"x": flags}, CLASSES)
    assert schema.column("x").kind == "boolean"
    np.testing.assert_array_equal(encode_columns(schema, {"x": flags}), [[1], [np.nan], [0]])


def test_masked_entries_of_encoded_columns_are_missing() -> None:
    book = bind("x > 5 => ill", Schema((Column("x"),), CLASSES))
    for dtype in (np.float32, np.float64, np.int64):
        columns = np.ma.array([[7], [999]], mask=[[0], [1]], dtype=dtype)
        np.testing.assert_array_equal(encode(book, columns), [[7], [np.nan]])
        np.testing.assert_array_equal(encode_columns(book.schema, columns), [[7], [np.nan]])
        if columns.dtype.kind == "f":
            np.testing.assert_array_equal(fires(book, columns), [[True], [False]])
        assert check(book, columns).rows[0]["silent"] == 1
        assert explain(book, columns[1], jnp.zeros(2)).rows[0]["silent"]


def test_what_is_not_missing() -> None:
    for x in ("", "nan", "NA", b"", 0, False, 0.0, np.inf, [np.nan, 1.0], np.array([np.nan, 1.0])):
        assert not is_missing(x)


@pytest.mark.quick
def test_big_integers_beside_a_missing_value_keep_their_digits() -> None:
    code = 123456789012345678
    for values in (
        [code, None],
        pd.array([code, None], dtype="Int64"),
        pd.Series([code, None], dtype=object),
        pd.Series(pd.Categorical([code, None])),
        np.ma.array([code, 0], mask=[0, 1]),
        ArrowColumn([code, None]),
    ):
        assert cells("x", values).present.tolist() == [code]


@pytest.mark.parametrize("make", [ArrowTable, pd.DataFrame, dict], ids=["Arrow", "pandas", "dict"])
def test_tables_of_other_libraries(make: Any) -> None:
    table = {"age": [70, None, 20], "sex": ["F", "M", None]}
    schema = infer_schema(make(table), CLASSES)
    assert [column.kind for column in schema.columns] == ["numeric", "categorical"]
    book = bind("age > 60 and sex == 'F' => ill", schema)
    np.testing.assert_array_equal(encode(book, make(table)), [[70, 0], [np.nan, 1], [20, np.nan]])


def test_the_interface_of_polars_as_narwhals_has_it() -> None:
    narwhals = pytest.importorskip("narwhals")
    table = narwhals.from_native(
        pd.DataFrame({"age": pd.array([70, None], "Int64"), "s": ["a", None]})
    )
    schema = infer_schema(table, CLASSES)
    assert [column.kind for column in schema.columns] == ["numeric", "categorical"]
    np.testing.assert_array_equal(encode_columns(schema, table), [[70, 0], [np.nan, np.nan]])


# Cells


CELLS = {
    "3": [3, 3.0, np.float32(3), np.int8(3), "3", b"3", np.bytes_(b"3"), Decimal("3.00"),
          Fraction(3)],
    "0.1": [0.1, np.float32(0.1), np.float16(0.1), "0.1", Decimal("0.1")],
    "True": [True, np.bool_(True), "True", b"True"],
    "-0": ["-0"], "0": [-0.0, 0],
    "é": ["é", "é".encode()],
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("text", CELLS)
def test_a_cell_has_one_text(text: str) -> None:
    for x in CELLS[text]:
        assert text_of("x", x) == text
        if text == "True" and not isinstance(x, str | bytes):
            assert text_of("x", np.array([x])[0]) == text
    categories = (text, "other")
    pattern = text.replace(".", r"\.")
    both = f"x == '{text}' => ill\nx matches r'^{pattern}$' => ill"
    book = bind(both, Schema((Column("x", "categorical", categories),), CLASSES))
    np.testing.assert_array_equal(encode(book, {"x": CELLS[text]}), [[0, 1]] * len(CELLS[text]))


def test_bytes_that_are_no_text_are_refused_by_name() -> None:
    for kind in ("text", "categorical"):
        with pytest.raises(ValueError, match="'x' holds bytes that are not UTF-8"):
            column = Column("x", kind, ("a",) if kind == "categorical" else ())
            encode(bind("x matches r'a' => ill", Schema((column,), CLASSES)), {"x": [b"\xff"]})
    with pytest.raises(ValueError, match="'x' holds bytes that are not UTF-8"):
        infer_schema({"x": [b"\xff", b"a"]}, CLASSES)


@pytest.mark.parametrize("kind", ["numeric", "boolean"])
@pytest.mark.parametrize("values", [["1", "0"], [b"1"], ["True"], np.array(["1"]), [1, "0"]])
def test_a_string_is_never_a_number(kind: str, values: Any) -> None:
    with pytest.raises(ValueError, match="'x' must .*got (the string|bytes)"):
        encode_columns(Schema((Column("x", kind),), CLASSES), {"x": values})


def test_true_and_one_are_the_same_boolean() -> None:
    schema = Schema((Column("x", "boolean"),), CLASSES)
    for values in ([True, False], [1, 0], [1.0, 0.0], np.array([1, 0], np.int8), [np.True_, 0]):
        np.testing.assert_array_equal(encode_columns(schema, {"x": values}), [[1], [0]])


# Rows

SCHEMA = Schema(
    (Column("z"), Column("age"), Column("sex", "categorical", ("F", "M")), Column("note", "text")),
    CLASSES,
)
FRAME = pd.DataFrame({"note": ["call", "x"], "sex": ["F", "M"], "age": [70, 20], "z": [1.0, 2.0]})
Row = collections.namedtuple("Row", ["sex", "note", "z", "age"])  # noqa: PYI024
STRUCTURED = np.array(
    [("F", "call", 1.0, 70)], [("sex", "U1"), ("note", "O"), ("z", float), ("age", int)]
)
ROWS = {
    "Series": FRAME.iloc[0],
    "Series in another order": FRAME[["sex", "z", "age", "note"]].iloc[0],
    "data frame": FRAME.iloc[:1],
    "named tuple": Row("F", "call", 1.0, 70),
    "row of itertuples": next(FRAME.itertuples()),
    "structured row": STRUCTURED[0],
    "structured array": STRUCTURED,
    "scalars": {"age": 70, "z": np.float32(1), "sex": b"F", "note": "call"},
    "0-dimensional": {
        "age": np.array(70),
        "z": jnp.array(1.0),
        "sex": np.str_("F"),
        "note": "call",
    },
    "one-row columns": {"age": [70], "z": np.ones(1), "sex": ["F"], "note": pd.Series(["call"])},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_is_read_by_its_names(row: Any) -> None:
    text = "[w=2] age > 60 and sex == 'F' => ill\n[w=1] note matches r'call' and z < age => ill"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = explain(bind(text, SCHEMA), row, jnp.zeros(2)).rows
    assert [row["strength"] for row in rows] == [2.0, 1.0]
    assert not any(row["silent"] for row in rows)


def test_a_numeric_series_is_no_array_of_columns() -> None:
    schema = Schema((Column("age"), Column("z")), CLASSES)
    book = bind("[w=2] age > 60 => ill", schema)
    frame = pd.DataFrame({"z": [1.0], "age": [70.0]})
    (row,) = explain(book, frame.iloc[0], jnp.zeros(2)).rows
    assert row["strength"] == 2.0
    close = bind("[w=2] age > 0.1 => ill", schema)  # its float32 stays a float32
    frame = pd.DataFrame({"z": [1.0], "age": [0.1]}, dtype=np.float32)
    assert not explain(close, frame.iloc[0], jnp.zeros(2)).rows
    assert not np.asarray(fires(close, encode(close, frame))).any()


def test_names_that_are_there_twice_are_refused() -> None:
    twice = pd.DataFrame([[1.0, 70.0, 2.0]], columns=["age", "age", "z"])
    book = bind("[w=2] age > 60 => ill", Schema((Column("age"), Column("z")), CLASSES))
    for use in (
        lambda: encode(book, twice),
        lambda: infer_schema(twice, CLASSES),
        lambda: check(book, twice),
        lambda: explain(book, twice, jnp.zeros(2)),
    ):
        with pytest.raises(ValueError, match="2 columns named 'age'"):
            use()
    with pytest.raises(ValueError, match=r"labels \['age'\] twice"):
        explain(book, twice.iloc[0], jnp.zeros(2))


def test_columns_named_like_attributes_are_columns() -> None:
    frame = pd.DataFrame({"dtype": [70.0], "shape": [1.0], "columns": [2.0], "index": [3.0]})
    schema = infer_schema(frame, CLASSES, kinds=dict.fromkeys(frame, "numeric"))
    book = bind("[w=2] dtype > 60 and index > 2 => ill", schema)
    assert check(book, frame).rows[0]["fires"] == 1
    for row in (frame, frame.iloc[0], frame.iloc[0].to_dict()):
        assert explain(book, row, jnp.zeros(2)).rows


def test_a_time_or_decimal_has_one_text_whatever_holds_it():
    noon = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    days = [np.datetime64("2024-01-31", unit) for unit in ("D", "s", "us", "ns")]
    days += [pd.Timestamp("2024-01-31"), datetime.date(2024, 1, 31)]
    assert {text_of("x", day) for day in days} == {"2024-01-31"}
    zoned = pd.Timestamp(noon).tz_convert("America/New_York")
    assert {text_of("x", x) for x in (noon, zoned)} == {"2024-01-31T12:00:00Z"}
    assert [text_of("x", x) for x in (Decimal("2.50"), 2.5, Decimal("1E+2"))] == [
        "2.5",
        "2.5",
        "100",
    ]


def test_rows_and_tables_that_were_misread():
    book = bind("x > 5 => a", Schema((Column("x"),), ("a", "b")))
    masked = np.ma.array([(7.0,)], mask=[(True,)], dtype=[("x", "f8")])[0]
    (row,) = explain(book, masked, np.zeros(2, np.float32)).rows
    assert row["silent"]
    wide = [np.longdouble(5), np.nextafter(np.longdouble(5), np.longdouble(6))]
    assert np.asarray(fires(book, encode(book, {"x": wide})))[:, 0].tolist() == [False, True]

    class Lazy:
        columns = property(lambda self: ["x"])

        def collect(self):
            raise AssertionError

    with pytest.raises(TypeError, match=r"table is a lazy Lazy: pass table.collect\(\)"):
        encode(book, Lazy())
    with pytest.raises(ValueError, match=r"column 'x': these have no unit"):
        infer_schema({"x": np.array([1, 2], "m8")}, ["a", "b"])


def test_columns_that_their_library_cannot_filter():
    class View:  # as Arrow's strings in views
        def __len__(self):
            return 3

        def is_null(self):
            return [False, True, False]

        def drop_null(self):
            raise NotImplementedError("no kernel")

        def to_pylist(self):
            return ["u", None, "v"]

    assert infer_schema({"x": View()}, ["a", "b"]).columns[0].categories == ("u", "v")


def test_a_table_lists_its_columns_a_few_times_and_reads_each_once():
    class Table:
        listed, read = 0, 0

        @property
        def columns(self):
            Table.listed += 1
            return [*(f"c{i}" for i in range(50)), "t"]

        def __getitem__(self, name):
            Table.read += 1
            return ["u", "v"] if name == "t" else [1.0, 2.0]

    schema = infer_schema(Table(), ["a", "b"], kinds={"t": "text"})
    rules = "\n".join(f"t matches 'u{i}' => a" for i in range(20)) + "\nc3 > 1 => a"
    book, before = bind(rules, schema), Table.read
    encode(book, Table())
    assert Table.listed < 10
    assert (before, Table.read - before) == (51, 51)
