"""Tables: kinds that are inferred, numbers that are encoded, and what is wrong with a table."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from distill_jax.rules import Column, Schema, encode_columns, infer_schema

CLASSES = ("well", "ill")

TABLE = {
    "age": [50, 61, None],
    "sex": ["F", None, "M"],
    "smoker": [True, None, False],
    "stage": [1, 2, 1],
    "seen": [0, 1, 1],
    "note": ["a", "b", "c"],
}
KINDS = {"note": "text", "stage": "categorical"}
ENCODED = [[50, 0, 1, 0, 0], [61, np.nan, np.nan, 1, 1], [np.nan, 1, 0, 0, 1]]


def structured() -> np.ndarray:
    kinds = [("age", float), ("sex", object), ("smoker", object), ("stage", int), ("seen", int)]
    rows = list(zip(*TABLE.values(), strict=True))
    return np.array(rows, [*kinds, ("note", object)])


@pytest.mark.quick
@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        {name: np.array(values, object) for name, values in TABLE.items()},
        pd.DataFrame(TABLE),
        pd.DataFrame(TABLE).convert_dtypes(),
        structured(),
    ],
    ids=["lists", "arrays", "pandas", "pandas with NA", "structured"],
)
def test_every_kind_of_table_is_read_alike(table) -> None:
    schema = infer_schema(table, CLASSES, kinds=KINDS)
    kinds = {column.name: column.kind for column in schema.columns}
    assert kinds == {
        "age": "numeric", "sex": "categorical", "smoker": "boolean", "stage": "categorical",
        "seen": "boolean", "note": "text",
    }  # fmt: skip
    assert schema.encoded == ("age", "sex", "smoker", "stage", "seen")
    assert schema.column("sex").categories == ("F", "M")
    assert schema.column("stage").categories == ("1", "2")
    age = schema.column("age")
    np.testing.assert_allclose([age.mean, age.std], [55.5, 5.5])
    columns = encode_columns(schema, table)
    assert columns.dtype == np.float32
    np.testing.assert_array_equal(columns, ENCODED)


def test_categories_of_the_future_and_columns_that_nobody_asked_for() -> None:
    schema = infer_schema({"sex": ["F", "M"]}, CLASSES)
    later = pd.DataFrame({"id": [1, 2], "sex": ["X", "M"]}, index=[7, 3])
    np.testing.assert_array_equal(encode_columns(schema, later), [[2], [1]])


@pytest.mark.quick
def test_what_pandas_declares_a_category_is_one() -> None:
    frame = pd.DataFrame({"stage": pd.Categorical([3, 1, None])})
    (column,) = infer_schema(frame, CLASSES).columns
    assert (column.kind, column.categories) == ("categorical", ("1", "3"))
    np.testing.assert_array_equal(
        encode_columns(infer_schema(frame, CLASSES), frame), [[1], [0], [np.nan]]
    )


def test_many_strings_are_text_and_the_target_is_left_out() -> None:
    table = {"note": [f"case {i}" for i in range(60)], "state": ["well", "ill"] * 30}
    schema = infer_schema(table, CLASSES, target="state")
    assert [(column.name, column.kind) for column in schema.columns] == [("note", "text")]
    assert encode_columns(schema, table).shape == (60, 0)


def test_an_array_that_is_encoded_already_passes() -> None:
    schema = Schema((Column("a"), Column("t", "text"), Column("b")), CLASSES)
    x = np.array([[1.0, np.nan]])
    np.testing.assert_array_equal(encode_columns(schema, x), x)
    with pytest.raises(
        ValueError, match=r"\[batch, 2\] for the columns \['a', 'b'\], got \(1, 1\)"
    ):
        encode_columns(schema, x[:, :1])
    with pytest.raises(ValueError, match="finite or NaN"):
        encode_columns(schema, np.array([[np.inf, 0.0]]))


def infer(values, **options):
    return infer_schema({"x": values}, CLASSES, **options)


def encode(values, kind="numeric", **options):
    return encode_columns(Schema((Column("x", kind, **options),), CLASSES), {"x": values})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: infer([None, np.nan]), "'x' has only missing values"),
        (lambda: infer([1.0, np.inf]), "'x' must be finite or NaN"),
        (lambda: infer([1.0, 1e39]), "'x' must fit float32"),
        (lambda: infer(np.zeros((2, 2))), r"'x' must have shape \[batch\], got \(2, 2\)"),
        (lambda: infer(["a", "b"], kinds={"x": "numeric"}), "must hold numbers to be numeric"),
        (lambda: infer([1, 2], kinds={"x": "boolean"}), "must be boolean, 0 or 1, got 2"),
        (
            lambda: infer([1, 2], kinds={"X": "text"}),
            "'X', which is not a column; did you mean 'x'",
        ),
        (lambda: infer([1, 2], kinds={"x": "real"}), "kind of column 'x' must be one of"),
        (lambda: encode([datetime.date(2020, 1, 1)]), "'x' must hold numbers, got .*of type date"),
        (lambda: encode(np.array(["2020-01-01"], "M8[D]")), "declare it as .*'datetime'"),
        (lambda: encode(["a"]), "'x' must hold numbers"),
        (lambda: encode([2.0], "boolean"), "'x' must be boolean, 0 or 1, got 2"),
        (lambda: encode([[1.0]]), r"'x' must have shape \[batch\]"),
        (lambda: Column("x", "categorical"), "has 0 categories"),
        (lambda: Column("x", "categorical", ("a", "a")), r"each category once, got \['a', 'a'\]"),
        (lambda: Column("x", std=0.0), "a std > 0"),
        (lambda: Schema((), CLASSES, views=("v", "v")), r"distinct names, got \['v', 'v'\]"),
        (lambda: Schema((Column("ill"),), CLASSES), r"got twice: \['ill'\]"),
        (lambda: Schema((), ("one",)), "two or more"),
        (lambda: Schema((), CLASSES, exclusive=False, target="y"), "leave it out"),
        (lambda: Schema((Column("age"),), CLASSES).column("aeg"), "did you mean 'age'"),
        (
            lambda: encode_columns(
                Schema((Column("x"), Column("y")), CLASSES), {"x": [1], "y": [1, 2]}
            ),
            "must have one length, got {'x': 1, 'y': 2}",
        ),
        (
            lambda: encode_columns(Schema((Column("age"),), CLASSES), {"Age": [1]}),
            "no column 'age'; did you mean 'Age'",
        ),
    ],
)
def test_what_is_wrong_is_named(made, message: str, library_errors) -> None:
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize("table", [np.zeros((2, 2)), [1, 2]])
def test_a_table_has_names(table, library_errors) -> None:
    with pytest.raises(TypeError, match="columns"):
        infer_schema(table, CLASSES)
    with pytest.raises(TypeError, match="tuple of names"):
        Schema((), "ab")


def test_names_are_strings(library_errors) -> None:
    with pytest.raises(TypeError, match="columns must be Column"):
        Schema(("age",), CLASSES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="classes must have strings as names, got 0"):
        Schema((), (0, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="classes must be a tuple of names, got the string 'ab'"):
        infer_schema({"x": [1, 2]}, "ab")
    with pytest.raises(TypeError, match="categories must have strings as names, got 1"):
        Column("x", "categorical", (1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="columns of the table must have strings as names, got 0"):
        infer_schema(pd.DataFrame(np.ones((2, 2))), CLASSES)
    with pytest.raises(ValueError, match="the table has no column 'x'"):
        encode_columns(Schema((Column("x"),), CLASSES), pd.DataFrame(np.ones((2, 2))))
