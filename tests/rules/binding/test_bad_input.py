"""Bad rules, tables and arguments: each a clear error, or a warning that counts."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.rules import (
    Book,
    Column,
    Rule,
    RuleError,
    RuleWarning,
    Schema,
    bind,
    check,
    col,
    encode,
    explain,
    fires,
    implies,
    label,
    rule,
)
from distill_jax.rules.language.formulas import Name

pytestmark = pytest.mark.usefixtures("library_errors")

COLUMNS = (
    Column("age", mean=50.0, std=10.0),
    Column("pressure"),
    Column("sex", "categorical", ("F", "M")),
    Column("smoker", "boolean"),
    Column("note", "text"),
)
SCHEMA = Schema(COLUMNS, ("well", "sick"), target="state")
LABELS = Schema(COLUMNS, ("well", "sick"), exclusive=False)
ROW = {"age": [50.0], "pressure": [1.0], "sex": ["F"], "smoker": [1], "note": ["x"]}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "said"),
    [
        # Names
        ("agee > 60 => sick", "did you mean age?"),
        ("age > 60 => sik", "did you mean sick?"),
        ("AGE > 60 => sick", "did you mean age?"),
        ("age > 60 => state == 'sic'", "did you mean sick?"),
        ("sex == 'f' => sick", "did you mean 'F'?"),
        ("age > 60 => view(left).sick", "left"),
        ("age > nan => sick", "is missing"),
        # Types
        ("sex > 3 => sick", "categorical and has no order"),
        ("sex == 3 => sick", "no category '3'"),
        ("age == 'old' => sick", "compare it with a number"),
        ("age => sick", "compare it with a value"),
        ("note == 'x' => sick", "matches"),
        ("age matches r'x' => sick", "matches is for text"),
        ("sex + 1 > 2 => sick", "categorical: arithmetic takes numbers"),
        ("sick > 3", "no order"),
        ("sick == 3", "compares a class with a value"),
        ("state => smoker", "is the class variable"),
        ("sick is missing => well", "never missing"),
        ("age > 60 => age + 1", "compare it with a value"),
        ("1 < 2 => sick", "two constants"),
        # Bodies and heads
        ("=> sick", "column 1"),
        ("age > 60 =>", "column"),
        ("sick :- .", "column"),
        # Strengths
        ("[w=inf] age > 60 => sick", "column"),
        ("[w=nan] age > 60 => sick", "column"),
        ("[p=1] age > 60 => sick", "[hard]"),
        ("[p=0.5", "column"),
        ("[3] age > 60 => sick", "[w=3]"),
        # Not built yet
        ("[budget] mean(p.sick) <= 0.5", "not built yet"),
        ("increasing(p.sick, by=age)", "not built yet"),
        # Unsatisfiable
        ("sick and not sick", "nothing can satisfy"),
        ("[hard] not sick and not well", "nothing can satisfy"),
        # Theories
        ("old :- older.\nolder :- old.\nold => sick", "circle: old :- older :- old"),
        ("old :- older.\nolder :- age > 1, old.\nsmoker => sick", "circle"),
        ("age :- smoker.\nage > 1 => sick", "which is a column"),
        ("old :- smoker.", "no clause says anything about a class"),
        ("old :- agee.\nold => sick", "did you mean age?"),
        ("a: smoker => sick\na: age > 3 => well", "two rules are named 'a'"),
    ],
)
def test_a_rule_that_is_wrong_says_where_and_why(text: str, said: str) -> None:
    with pytest.raises(RuleError) as error:
        bind(text, SCHEMA)
    message = str(error.value)
    assert said in message
    if "no clause says" not in said:
        assert "line " in message and "^" in message, message


def test_the_caret_stands_under_the_name() -> None:
    with pytest.raises(RuleError) as error:
        bind("smoker => sick\n\n  [w=2] old: smoker and agee > 60 => sick  # why", SCHEMA)
    first, source, caret = str(error.value).split("\n")[:3]
    assert first.startswith("line 3, column ")
    assert source[caret.index("^") :].startswith("agee")


def test_rules_built_in_python_name_themselves_instead() -> None:
    with pytest.raises(RuleError, match=r"agee > 60 => sick"):
        bind([implies(col("agee") > 60, label("sick"))], SCHEMA)
    for bad in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="w must be finite"):
            rule(label("sick"), w=bad)


def test_clauses_and_weights_built_by_hand() -> None:
    with pytest.raises(RuleError, match="a Horn clause must say body => name, got smoker"):
        bind([Rule(Name("smoker"), definition=True), rule(label("sick"))], SCHEMA)
    with pytest.raises(RuleError, match=r"w must fit float32, got -1e\+39"):
        bind("[w=-1e39] smoker => sick", SCHEMA)


def test_work_does_not_double_with_every_level() -> None:
    names = [f"x{i}" for i in range(40)]
    schema = Schema(tuple(Column(x, "boolean") for x in names), ("well", "sick"))
    clauses = [f"p{i} :- p{i + 1}, {x}. p{i} :- p{i + 1}, not {x}." for i, x in enumerate(names)]
    chain = "(" * 39 + "x0" + "".join(f" <=> {x})" for x in names[1:])
    book = bind("\n".join([*clauses, "p40 :- x0.", "sick :- p0.", f"{chain} => sick"]), schema)
    columns = np.ones((2, 40), np.float32)
    columns[1, 0] = 0
    np.testing.assert_array_equal(fires(book, columns), [[1, 1], [0, 0]])


def test_unsatisfiable_hard_sets() -> None:
    with pytest.raises(RuleError, match="together forbid everything where smoker"):
        bind("[hard] smoker => sick\n[hard] not sick", SCHEMA)
    with pytest.raises(RuleError, match="together forbid everything everywhere"):
        bind("[hard] sick\n[hard] not sick or well\n[hard] not well", LABELS)
    with pytest.raises(
        RuleError, match="the hard rule 'age > 0' forbids everything where age <= 0"
    ):
        bind("[hard] age > 0", SCHEMA)


def test_rules_that_can_never_fire_are_counted() -> None:
    text = "age > 3 and age < 2 => sick\nsmoker => sick\nsmoker => smoker or sick"
    with pytest.warns(RuleWarning, match="2 of 3 rules can never be violated") as warned:
        bind(text, SCHEMA)
    assert "line 1" in str(warned[0].message) and "line 3" in str(warned[0].message)


def test_missing_values_make_rules_silent_and_are_counted() -> None:
    book = bind("age > 60 => sick\nage is missing => sick\nsmoker or age > 60 => sick", SCHEMA)
    table = {k: v * 4 for k, v in ROW.items()} | {"age": [None, 61.0, np.nan, 3.0],
                                                  "smoker": [0, 0, 1, 0]}  # fmt: skip
    rows = check(book, table).rows
    assert [row["fires"] for row in rows] == [1, 2, 2]
    assert [row["silent"] for row in rows] == [2, 0, 1]


def test_arguments_of_bind() -> None:
    for bad in ("", "# nothing", []):
        with pytest.raises(RuleError, match="got none"):
            bind(bad, SCHEMA)
    with pytest.raises(TypeError, match="rules must be a text or a list"):
        bind(3, SCHEMA)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="schema must be a Schema"):
        bind("smoker => sick", ["age"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logic must be one of"):
        bind("smoker => sick", SCHEMA, logic="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="widths has keys that no comparison"):
        bind("smoker => sick", SCHEMA, widths={"age": 2.0})
    with pytest.raises(ValueError, match="must be finite and > 0, got -1"):
        bind("age > 2 => sick", SCHEMA, widths={"age": -1.0})


@pytest.fixture(scope="module")
def book() -> Book:
    return bind("age > 60 and sex == 'M' => sick\nnote matches r'free' => well", SCHEMA)


def test_tables(book: Book) -> None:
    def one(**changed: object) -> np.ndarray:
        return encode(book, {**ROW, **changed})

    with pytest.raises(ValueError, match="no column 'age'; did you mean 'agee'"):
        encode(book, {"agee" if k == "age" else k: v for k, v in ROW.items()})
    with pytest.raises(ValueError, match="no column 'note'"):
        encode(book, {k: v for k, v in ROW.items() if k != "note"})
    with pytest.raises(ValueError, match="'age' must be finite or NaN"):
        one(age=[np.inf])
    with pytest.raises(ValueError, match="'age' must hold numbers"):
        one(age=["old"])
    with pytest.raises(ValueError, match="'smoker' must be boolean, 0 or 1, got 2"):
        one(smoker=[2])
    with pytest.raises(ValueError, match="must have one length"):
        one(age=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"'age' must have shape \[batch\]"):
        one(age=[[1.0]])
    with pytest.raises(TypeError, match="table must be a data frame"):
        encode(book, 3)
    # A category that nobody has seen equals none, and is not missing.
    assert one(sex=["other"])[0, 2] == 2.0 and np.isnan(one(sex=[None])[0, 2])


def test_arguments_of_check(book: Book) -> None:
    table = {k: v * 3 for k, v in ROW.items()}
    with pytest.raises(ValueError, match=r"columns of shape \[batch, 5\].*got \(3, 2\)"):
        check(book, np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
        check(book, table, labels=[0, 1])
    with pytest.raises(ValueError, match=r"labels must lie in 0 ... 1 .* got values from 0 to 2"):
        check(book, table, labels=[0, 1, 2])
    with pytest.raises(TypeError, match="labels must be integers"):
        check(book, table, labels=[0.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="where must be booleans"):
        check(book, table, labels=[0, 1, 1], where=[0, 1, 1])
    with pytest.raises(ValueError, match=r"logits must have shape \(3, 2\), got \(3, 3\)"):
        check(book, table, logits=np.zeros((3, 3), np.float32))
    assert check(book, table, labels=[0, 9, -1], where=np.array([True, False, False])).rows
    many = bind("smoker => sick", LABELS)
    with pytest.raises(ValueError, match="labels of label sets must be 0 or 1"):
        check(many, table, labels=np.full((3, 2), 2))
    seeing = bind(
        "smoker => state == view(left).state",
        Schema(COLUMNS, ("well", "sick"), target="state", views=("left",)),
    )
    with pytest.raises(ValueError, match=r"views must hold the model's logits on \['left'\]"):
        check(seeing, table)


def test_arguments_of_explain(book: Book) -> None:
    logits = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"logits must have shape \(2,\), got \(3,\)"):
        explain(book, {k: v[0] for k, v in ROW.items()}, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="example must be one row"):
        explain(book, {k: v * 2 for k, v in ROW.items()}, logits)
    with pytest.raises(ValueError, match=r"strengths must have shape \(2,\), got \(1,\)"):
        explain(book, ROW, logits, strengths=np.ones(1, np.float32))


def test_arithmetic_that_is_written_like_a_column_is_refused():
    schema = Schema((Column("x-1"), Column("x"), Column("a / b")), ("no", "yes"))
    with pytest.raises(RuleError, match="x-1 is arithmetic here, and there is a column of that"):
        bind("x-1 > 0.5 => yes", schema)
    bind("x - 1 > 0.5 => yes\n`x-1` > x+1 => yes\n`x-1` > x - 1 => yes", schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x + 1e308 > 0", "1e\\+308 does not fit float32"),
        ("x * -4e38 > y", "-4e\\+38 does not fit float32"),
        ("x > 1e308 * 10", "is beyond double precision"),
    ],
)
def test_constants_beyond_float32_are_refused_in_soft_arithmetic(text, message):
    schema = Schema((Column("x"), Column("y")), ("no", "yes"))
    widths = {"x + 1e+308": 1.0, "x * -4e+38 - y": 1.0, "x": 1.0}
    with pytest.raises(RuleError, match=message):
        bind(f"{text} => yes", schema, widths=widths)
    bind("x < 1e308 => yes\nx + 1e308 > 0 => yes", schema)  # the host computes in float64


@pytest.mark.parametrize("table", [[["1", "u"]], [[1, None]]])
def test_arrays_of_anything_but_numbers_are_refused(table) -> None:
    schema = Schema((Column("x"), Column("y")), ("a", "b"))
    with pytest.raises(TypeError, match="pass a dictionary of columns"):
        encode(bind("x > 1 => a", schema), np.array(table))
