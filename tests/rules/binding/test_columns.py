"""Columns of real tables: orders, yes and no, what a table declares, and which columns are used."""

from __future__ import annotations

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

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
    parse,
    to_logistic_regression,
)

CLASSES = ("home", "ward")
GRADES = ("mild", "moderate", "severe")
ORDINAL = Schema(
    (
        Column("severity", categories=GRADES, ordered=True),
        Column("before", categories=GRADES, ordered=True),
        Column("sex", categories=("F", "M")),
        Column("loose", categories=GRADES),
    ),
    CLASSES,
)
ROWS = {
    "severity": ["mild", "moderate", "severe", None],
    "before": ["severe", "moderate", "mild", "mild"],
    "sex": ["F", "M", "X", None],
    "loose": ["mild", "moderate", "severe", None],
}
IN_ORDER = {
    "severity >= 'moderate'": [0, 1, 1],
    "severity > 'moderate'": [0, 0, 1],
    "severity < 'moderate'": [1, 0, 0],
    "'mild' < severity <= 'severe'": [0, 1, 1],
    "'moderate' >= severity": [1, 1, 0],
    "severity between 'mild' and 'moderate'": [1, 1, 0],
    "severity == 'mild'": [1, 0, 0],
    "severity in ['mild', 'severe']": [1, 0, 1],
    "severity > before": [0, 0, 1],
    "severity <= before": [1, 1, 0],
    "severity != before": [1, 0, 1],
}


@pytest.mark.quick
def test_categories_in_an_order_are_compared_by_it() -> None:
    text = "\n".join(f"[w=1] {x} => ward\n[w=1] not ({x}) => home" for x in IN_ORDER)
    book = bind(text, ORDINAL)
    assert parse(str(book)) == book.rules
    held = np.asarray(fires(book, encode(book, ROWS))).T.reshape(len(IN_ORDER), 2, 4)
    for (formula, want), (yes, no) in zip(IN_ORDER.items(), held, strict=True):
        np.testing.assert_array_equal(yes, [*want, 0], formula)  # the last is missing
        np.testing.assert_array_equal(no, [*(1 - x for x in want), 0], formula)
    silent = [row["silent"] for row in check(book, ROWS).rows]
    for i in (0, 7):  # severity >= 'moderate', and severity in [...]
        assert silent[2 * i] == silent[2 * i + 1] == 1


def test_an_order_in_models_conflicts_and_explanations() -> None:
    text = "[hard] severity >= 'moderate' => ward\n[hard] 'mild' < severity < 'severe' => home"
    book = bind(text, ORDINAL, conflicts="ignore")
    (found,) = conflicts(book)
    assert found.region == "severity == 'moderate'" and found.certain
    assert found.example is not None and found.example["severity"] == "moderate"
    (found,) = conflicts(bind("[hard] severity > 'mild' => ward\n[hard] loose == 'mild' => home",
                              ORDINAL, conflicts="ignore"))  # fmt: skip
    assert found.region == "severity >= 'moderate' and loose == 'mild'"
    never = "[hard] severity < 'mild' => ward\n[hard] sex == 'F' => home"
    with pytest.warns(RuleWarning, match="can never be violated"):
        assert not conflicts(bind(never, ORDINAL))
    row = {name: x[1] for name, x in ROWS.items()}
    found = explain(book, row, jnp.array([1.0, 0.0])).rows
    assert {x["text"]: x["violated"] for x in found} == dict(
        zip(map(str, book.rules), (True, False), strict=True)
    )
    model = to_logistic_regression("severity >= 'moderate' => ward", ORDINAL)
    columns = encode_columns(ORDINAL, ROWS)
    logits = np.asarray(model.predict(*model.init(jnp.zeros(2, "uint32"), columns), columns).logits)
    assert ((logits[:, 1] - logits[:, 0] > 0) == [False, True, True, False]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sex >= 'F'",
            r"sex is categorical and has no order.*=\('F', 'M'\), ordered=True",
        ),
        ("severity >= 'Moderate'", "no category 'Moderate'; did you mean 'moderate'"),
        ("severity >= 2", "no category '2'"),
        ("severity > loose", "column loose has no order: declare it with ordered=True, too"),
        ("severity > sex", "different categories"),
        ("severity + 1 > 2", "categorical: arithmetic takes numbers"),
    ],
)
def test_what_has_no_order_is_refused(text: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        bind(f"{text} => ward", ORDINAL)


def test_what_has_no_place_in_an_order_is_refused_and_elsewhere_equals_nothing() -> None:
    book = bind("severity >= 'moderate' => ward\nsex == 'M' => ward\nsex != 'M' => home", ORDINAL)
    said = (
        r"no category 'Mild', which is in row 2 \(the first is 0\): add it .* did you mean 'mild'"
    )
    with pytest.raises(ValueError, match=f"'severity' is ordered and has {said}"):
        encode(book, {**ROWS, "severity": [None, "mild", "Mild", None]})
    held = np.asarray(fires(book, encode(book, ROWS)))
    assert held[:, 1].tolist() == [False, True, False, False]
    assert held[:, 2].tolist() == [True, False, True, False]  # X is not M
    codes = np.array([[2.0, 0.0, 2.0, 3.0]])
    assert np.asarray(fires(book, encode(book, codes))).tolist() == [[True, False, True]]
    for place, bad, most in ((0, 3.0, 2), (0, 0.5, 2), (2, 3.0, 2), (2, -1.0, 2)):
        wrong = codes.copy()
        wrong[0, place] = bad
        with pytest.raises(ValueError, match=f"the codes 0 to {most} or NaN, got {bad:g} in row 0"):
            encode(book, wrong)
        with pytest.raises(ValueError, match=f"the codes 0 to {most} or NaN, got {bad:g} in row 0"):
            check(book, wrong.astype(np.float32))


class PolarsEnum:
    """A column of Polars' ``Enum``, whose type lists its categories in order."""

    def __init__(self, values: list[Any]):
        self.values = values
        self.dtype = type("Enum", (), {"categories": list(GRADES)})()

    def is_null(self) -> np.ndarray:
        return np.array([x is None for x in self.values])

    def drop_nulls(self) -> list[Any]:
        return [x for x in self.values if x is not None]

    def __len__(self) -> int:
        return len(self.values)


class ArrowDictionary(PolarsEnum):
    """A column of Arrow's dictionary type, in chunks."""

    def __init__(self, values: list[Any]):
        self.values = values
        self.type = types.SimpleNamespace(value_type="string", ordered=True)

    def combine_chunks(self) -> Any:
        return types.SimpleNamespace(dictionary=list(GRADES))

    drop_null = PolarsEnum.drop_nulls


class ArrowInPandas(PolarsEnum):
    """A column of pandas whose data is of Arrow."""

    def __init__(self, values: list[Any]):
        self.values = values
        self.dtype = types.SimpleNamespace(pyarrow_dtype="dictionary")

    def __arrow_array__(self) -> ArrowDictionary:
        return ArrowDictionary(self.values)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: pd.Series(pd.Categorical(x, categories=GRADES, ordered=True)),
        lambda x: pd.Categorical(x, categories=GRADES, ordered=True),
        PolarsEnum,
        ArrowDictionary,
        ArrowInPandas,
    ],
    ids=["pandas", "pandas array", "Polars", "Arrow", "Arrow in pandas"],
)
def test_a_table_declares_categories_and_their_order(make: Any) -> None:
    for values in (["severe", None, "mild"], [None, None, None]):
        table = {"severity": make(values)}
        schema = infer_schema(table, CLASSES)
        assert schema.columns == (Column("severity", categories=GRADES, ordered=True),)
        codes = [[np.nan if x is None else GRADES.index(x)] for x in values]
        np.testing.assert_array_equal(encode_columns(schema, table), codes)


def test_declared_categories_without_an_order_are_kept_too() -> None:
    frame = pd.DataFrame({"x": pd.Categorical(["b"], categories=["c", "b", "a"])})
    schema = infer_schema(frame, CLASSES)
    assert schema.columns == (Column("x", "categorical", ("c", "b", "a")),)
    bind("x == 'a' => ward", schema)
    assert infer_schema(frame, CLASSES, kinds={"x": "text"}).column("x").kind == "text"
    empty = pd.DataFrame({"x": pd.Categorical([None, None])})
    with pytest.raises(ValueError, match="only missing values: leave it out, by the argument col"):
        infer_schema(empty, CLASSES)


# Yes and no


@pytest.mark.quick
@pytest.mark.parametrize(
    "values",
    [
        ["yes", "No", None, "Y"],
        ["true", "FALSE", None, "t"],
        [b"T", b"f", None, b"Yes"],
        [True, "n", None, 1],
        pd.Series(["Y", "N", None, "Y"], dtype="category"),
    ],
)
def test_yes_and_no_are_booleans_where_declared(values: Any) -> None:
    table = {"smoker": values}
    schema = infer_schema(table, CLASSES, kinds={"smoker": "boolean"})
    assert schema.columns == (Column("smoker", "boolean"),)
    book = bind("smoker => ward\nnot smoker => home", schema)
    held = np.asarray(fires(book, encode(book, table)))
    assert held.tolist() == [[True, False], [False, True], [False, False], [True, False]]
    texts = ["yes", "no"]
    assert infer_schema({"smoker": texts}, CLASSES).column("smoker").kind == "categorical"


def test_texts_that_stand_for_true_and_false_are_declared() -> None:
    smoker = Column("smoker", true_values=("current", "X", "1"), false_values=("never", "2"))
    table = {"smoker": ["current", "never", None, 1, 2.0, "X"]}
    schema = infer_schema(table, CLASSES, kinds={"smoker": smoker})
    assert schema.columns == (smoker,)
    np.testing.assert_array_equal(
        encode_columns(schema, table), [[1], [0], [np.nan], [1], [0], [1]]
    )
    text = "[hard] smoker => ward\n[hard] smoker => home"
    (found,) = conflicts(bind(text, schema, conflicts="ignore"))
    assert found.example == {"smoker": "current"}
    for bad in ("Current", "yes", True):
        with pytest.raises(ValueError, match=rf"one of .*'never'.*, got .*{bad}.* in row 1 "):
            encode_columns(schema, {"smoker": [None, bad]})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["yes", None, "maybe"], "0 or 1, or yes or no, got the string 'maybe' in row 2"),
        (["yes", ""], "got the string '' in row 1 .*true_values and false_values, or make it miss"),
        ([True, "yes", 2], "got 2 in row 2"),
        ([0, None, 1, 2], "0 or 1, got 2 in row 3 .*declare it numeric, Column"),
    ],
)
def test_other_texts_and_numbers_are_refused_with_their_row(values: Any, said: str) -> None:
    assert infer_schema({"x": [0, 1, 1]}, CLASSES).column("x").kind == "boolean"
    for table in ({"x": values}, pd.DataFrame({"x": pd.Series(values, dtype=object)})):
        with pytest.raises(ValueError, match=f"column 'x' must be boolean, .*{said}"):
            encode_columns(Schema((Column("x", "boolean"),), CLASSES), table)


def test_an_encoded_two_in_a_boolean_column_is_refused() -> None:
    book = bind("x => ward\nnot x => home", Schema((Column("x", "boolean"),), CLASSES))
    for use in (encode, check):
        with pytest.raises(
            ValueError, match="'x' is boolean and must hold the codes 0 to 1 or NaN"
        ):
            use(book, np.array([[0], [2]], np.float32))


def test_a_boolean_is_not_compared_with_a_text() -> None:
    schema = Schema((Column("smoker", "boolean"),), CLASSES)
    with pytest.raises(RuleError, match="is a string: use it directly, as smoker or not smoker"):
        bind("smoker == 'yes' => ward", schema)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Column("x", "text", ordered=True), "ordered=True is for categories"),
        (lambda: Column("x", "numeric", ("a",)), "1 categories"),
        (lambda: Column("x", "text", true_values=("a",), false_values=("b",)), "are for boolean"),
        (lambda: Column("x", true_values=("a",)), "texts for true and for false"),
        (lambda: Column("x", true_values=("a",), false_values=("a",)), "each once"),
        (lambda: infer_schema({"x": [1]}, CLASSES, kinds={"x": Column("y")}), "of this name"),
        (lambda: infer_schema({"x": ["a"]}, CLASSES, kinds={"x": Column("x")}), "hold numbers"),
    ],
)
def test_columns_that_make_no_sense_are_refused(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


# Which columns

TABLE = {
    "id": [None, None],
    "age": [20.0, 70.0],
    "sex": ["F", "M"],
    "ward": [0, 1],
    "state": ["home", "ward"],
}
TEXT = "old :- age > 60. state == 'ward' :- old."


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        (["sex", "age"], ["age", "sex"]),
        ([], []),
        ("age > 60 and sex == 'F' => ward", ["age", "sex"]),
        (parse("old :- age > 60. ward :- old."), ["age"]),
        (parse("age > 60 => state == 'ward'"), ["age"]),
    ],
)
def test_only_the_columns_that_are_named_are_used(columns: Any, want: list[str]) -> None:
    schema = infer_schema(TABLE, CLASSES, target="state", columns=columns)
    assert [column.name for column in schema.columns] == want
    assert encode_columns(schema, TABLE).shape == (2, len(want))


def test_columns_that_the_table_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="columns names 'aeg', .*did you mean 'age'"):
        infer_schema(TABLE, CLASSES, columns=["aeg"])
    with pytest.raises(ValueError, match="kinds names 'sex', which is not a column"):
        infer_schema(TABLE, CLASSES, columns=["age"], kinds={"sex": "text"})
    with pytest.raises(RuleError, match="line 1"):
        infer_schema(TABLE, CLASSES, columns="age > => ward")
