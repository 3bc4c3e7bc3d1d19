"""Decision tables say what people who write them mean, and come back from rules."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distill_jax.rules.binding import Column, RuleWarning, Schema, bind, encode
from distill_jax.rules.exchange import from_decision_table, to_decision_table
from distill_jax.rules.exchange._decision_inputs import read_rows
from distill_jax.rules.language import RuleError, label, parse
from distill_jax.rules.logic import fires

TABLE = """\
age;sex;city;advice
< 18;-;-;clinic
[18..65);F;"New York", Boston;ward
]18..65[;M;not(Boston);home
>= 65;;;ward
"""
WARD = Schema(
    (
        Column("age"),
        Column("sex", categories=("F", "M")),
        Column("severity", categories=("mild", "moderate", "severe"), ordered=True),
        Column("smoker", "boolean"),
        Column("code", categories=("007", "3", "<5", "a, b", "?")),
        Column("admitted", "datetime"),
        Column("discharged", "datetime"),
        Column("subject", "text"),
        Column("arrived", "time"),
        Column("stay", "duration"),
    ),
    ("home", "ward", "clinic"),
)


def said(cell: Any, column: str = "x", schema: Schema | None = None) -> str:
    """What a cell says of a column, as the text of a formula."""
    (rule,) = from_decision_table([{column: cell, "then": "home"}], schema=schema)
    rows, arguments = to_decision_table([rule])
    assert from_decision_table(rows, **arguments) == (rule,)
    return str(rule.formula).removesuffix(" => home")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("cell", "want"),
    [
        ("> 3", "x > 3"),
        ("<=5", "x <= 5"),
        ("≥ -2.5", "x >= -2.5"),
        ("= 7", "x == 7"),
        ("!= 7", "x != 7"),
        ("> 3 and <= 5", "3 < x <= 5"),
        ("<= 5 and > 3", "3 < x <= 5"),
        ("> 3 and > 5", "x > 3 and x > 5"),
        ("[10..20)", "10 <= x < 20"),
        ("(10..20]", "10 < x <= 20"),
        ("]10..20[", "10 < x < 20"),
        ("[10 .. 20]", "10 <= x <= 20"),
        ("[-1.5..-.5]", "-1.5 <= x <= -0.5"),
        ("60", "x == 60"),
        ('"a","b"', "x in ['a', 'b']"),
        ("a, New York", "x in ['a', 'New York']"),
        ("1, 2.5,3", "x in [1, 2.5, 3]"),
        ("< 3, > 10", "x < 3 or x > 10"),
        ("< 3, 7", "x < 3 or x == 7"),
        ('not("a")', "x != 'a'"),
        ('not("a","b")', "x not in ['a', 'b']"),
        ("not([1..3])", "not 1 <= x <= 3"),
        ("null", "x is missing"),
        ("not(null)", "x is not missing"),
        ("!= 3, 4", "x != 3 or x == 4"),
        ("TRUE", "x"),
        ("false", "not x"),
        ("not(true)", "not x"),
        (r'"a\"b, [c"', "x == 'a\"b, [c'"),
        ('"-"', "x == '-'"),
        ("2024-01-31", "x == date '2024-01-31'"),
        ('>= date("2024-01-31")', "x >= date '2024-01-31'"),
        ("[2024-01-01..2024-02-01)", "date '2024-01-01' <= x < date '2024-02-01'"),
        ('date and time("2024-01-31T12:00:00Z")', "x == datetime '2024-01-31T12:00:00Z'"),
        ('< time("18:30")', "x < time '18:30:00'"),
        ('> duration("P3DT4H")', "x > duration '3 days 4 hours'"),
        ('@"P1DT0.5S", @"-PT3H"', "x in [duration '1 day 0.5 seconds', duration '-3 hours']"),
        ('@"18:30"', "x == time '18:30:00'"),
        ('contains(lower(?), "why?")', "contains(lower(x), 'why?')"),
        ("? > 3 or ? is missing", "x > 3 or x is missing"),
        (3, "x == 3"),
        (np.float32(0.1), "x == 0.1"),
        (True, "x"),
        (datetime.date(2024, 1, 31), "x == date '2024-01-31'"),
        (pd.Timestamp("2024-01-31T06:00", tz="UTC"), "x == datetime '2024-01-31T06:00:00Z'"),
        (datetime.timedelta(days=2), "x == duration '2 days'"),
        (pd.Interval(10, 20, closed="left"), "10 <= x < 20"),
        (pd.Interval(10, np.inf), "x > 10"),
        (["a", "b"], "x in ['a', 'b']"),
        ({2, 1}, "x in [1, 2]"),
    ],
)
def test_cells(cell: Any, want: str) -> None:
    assert said(cell) == want


@pytest.mark.parametrize(
    ("column", "cell", "want"),
    [
        ("severity", "> mild", "severity > 'mild'"),
        ("severity", "[moderate..severe]", "'moderate' <= severity <= 'severe'"),
        ("code", "007", "code == '007'"),
        ("code", 3, "code == '3'"),
        ("code", "<5", "code == '<5'"),
        ("code", "a, b", "code == 'a, b'"),
        ("code", "?", "code == '?'"),
        ("smoker", "yes", "smoker"),
        ("smoker", 0, "not smoker"),
        ("admitted", '"2024-01-31"', "admitted == date '2024-01-31'"),
        ("arrived", "< 18:30", "arrived < time '18:30:00'"),
        ("stay", "> 36 hours", "stay > duration '1 day 12 hours'"),
        ("subject", "5", "subject == '5'"),
        ("discharged - admitted", '> duration("P3D")', None),
    ],
)
def test_cells_as_the_schema_asks_for(column: str, cell: Any, want: str | None) -> None:
    rows = [{column: cell, "then": "home"}]
    (rule,) = from_decision_table(rows, schema=WARD)
    want = want or "discharged - admitted > duration '3 days'"
    assert str(rule.formula) == f"{want} => home"
    bind([rule], WARD)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[10, 20]", r"write \[10..20\) for a range, and 10, 20 for a list"),
        ("[20..10]", "the range is empty"),
        ("[3..3)", "the range is empty"),
        ("10-20", r"write \[10..20\] for a range, and text in quotes"),
        ("007", 'would lose the zeros of 007: quote a code, "007"'),
        ("1e999", "beyond double precision"),
        ("5%", "is no number, range or text"),
        ("a or b", "write a, b for either value"),
        ("> true", "have no order"),
        ("?", r"\? alone is no formula"),
        ("?? > 3", r"not a formula of the rule language with \?"),
        ("x >", "expected > 3, .* got 'x >' at '>'"),
        ("not(3", r"expected > 3, \[10..20\), a value, .* or - for nothing, got 'not\(3'"),
        ('"open', "expected > 3"),
        (r'"C:\data"', "a backslash in quotes"),
        ('date("2024-02-30")', "there is no such day: '2024-02-30'"),
        ("2023-02-29", "there is no such day"),
        ([], "an empty list allows no value"),
        (float("inf"), "a number must be finite"),
        (object, "expected > 3"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(cell: Any, message: str) -> None:
    rows = [{"age": "> 3", "x": "-", "y": "a"}, {"age": "-", "x": cell, "y": "a"}]
    with pytest.raises(RuleError, match="row 2, column 'x': " + ".*" + message):
        from_decision_table(rows, hit_policy="first")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("age", "old", "a number was expected, got 'old'"),
        ("sex", "f", "there is no category 'f'; did you mean 'F'"),
        ("sex", "> F", "no order: it is categorical"),
        ("severity", "[severe..mild]", "the range is empty"),
        ("smoker", "perhaps", "true or false was expected"),
        ("admitted", "yesterday", "a date or time was expected"),
        ("arrived", "25:00", "a time of day was expected"),
        ("then", "hospital", "'hospital' is no class or label of the schema"),
        ("then", '"home","ward"', "an example has one class, got home, ward"),
        ("then", 'home"', "expected a class or label, several between commas"),
        ("ages", "3", "no column of the schema, nor an expression .* did you mean 'age'"),
    ],
)
def test_cells_that_the_schema_has_no_place_for(column: str, cell: str, message: str) -> None:
    with pytest.raises(RuleError, match=f"column '{column}'.*{message}"):
        from_decision_table([{"age": "> 3"} | {column: cell} | {"then": "home"} | {column: cell}],
                            schema=WARD, conclusions="then")  # fmt: skip


def test_hit_policies() -> None:
    bodies = [
        "age < 18 => clinic",
        "18 <= age < 65 and sex == 'F' and city in ['New York', 'Boston'] => ward",
        "18 < age < 65 and sex == 'M' and city != 'Boston' => home",
        "age >= 65 => ward",
    ]
    assert from_decision_table(TABLE) == parse("\n".join(bodies))
    assert from_decision_table(TABLE, hit_policy="collect") == parse("\n".join(bodies))
    first = [f"[first=table] {x}" for x in bodies]
    assert from_decision_table(TABLE, hit_policy="first") == parse("\n".join(first))
    ended = parse("\n".join([*first, "[first=table] else => home"]))
    assert from_decision_table(TABLE, default="home") == ended
    assert from_decision_table(TABLE + "-;-;-;home\n", hit_policy="first") == ended
    every = [f"[group=g, priority=1] {x}" for x in bodies]
    every += ["[group=g, priority=0] else => not ward"]
    assert from_decision_table(
        TABLE, hit_policy="collect", default=~label("ward"), group="g"
    ) == parse("\n".join(every))
    by_class = from_decision_table(
        TABLE, hit_policy="priority", priority=["clinic", "ward", "home"], default="home"
    )
    assert [rule.priority for rule in by_class] == [3, 2, 1, 2, 0]
    assert [rule.line for rule in by_class] == [2, 3, 4, 5, 0]


@pytest.mark.parametrize("policy", ["first", "priority", "collect"])
def test_rows_fire_as_the_hit_policy_says(policy: str) -> None:
    random = np.random.default_rng(0)
    low, size, rank = (random.integers(*ends, 8) for ends in ((0, 20), (1, 12), (0, 3)))
    smoker = random.choice(["true", "false", "-"], 8)
    table = {
        "x": [f"[{a}..{a + n})" for a, n in zip(low, size, strict=True)],
        "smoker": smoker.tolist(),
        "rank": rank.tolist(),
        "then": random.choice(["a", "b"], 8).tolist(),
    }
    how = {"priority": "rank"} if policy == "priority" else {"ignore": ["rank"]}
    rules = from_decision_table(table, hit_policy=policy, default="b", **how)  # type: ignore[arg-type]
    schema = Schema((Column("x"), Column("smoker", "boolean")), ("a", "b"))
    book = bind(rules, schema)
    data = {"x": np.tile(np.arange(34), 2), "smoker": np.repeat([False, True], 34)}
    got = np.asarray(fires(book, encode(book, data)))
    for i, (x, smokes) in enumerate(zip(data["x"], data["smoker"], strict=True)):
        hit = (low <= x) & (x < low + size)
        hit &= np.isin(smoker, ["-", str(smokes).lower()])
        want = hit.copy()
        if policy == "first":
            want = hit & (np.cumsum(hit) == 1)
        elif policy == "priority" and hit.any():
            want = hit & (rank == rank[hit].max())
        np.testing.assert_array_equal(got[i], [*want, not hit.any()])


def test_overlaps_under_unique_are_shown_with_an_example() -> None:
    text = TABLE.replace("[18..65)", "[18..70)")
    with pytest.raises(RuleError) as error:
        from_decision_table(text)
    assert str(error.value).startswith(
        "line 3 and line 5 overlap where 65 <= age < 70 and sex == 'F' and city == 'New York', for "
        "example {'age': 67.0, 'sex': 'F', 'city': 'New York'}"
    )
    rows = [{"severity": "<= mild", "y": "home"}, {"severity": ">= mild", "y": "ward"}]
    with pytest.raises(RuleError, match="'severity' is not known: pass the schema"):
        from_decision_table(rows)
    with pytest.raises(RuleError, match=r"row 1 and row 2 overlap where severity == 'mild'"):
        from_decision_table(rows, schema=WARD)
    rows[1]["severity"] = "> mild"
    assert len(from_decision_table(rows, schema=WARD)) == 2
    texts = [{"s": 'starts_with(?, "a")', "y": "a"}, {"s": 'starts_with(?, "b")', "y": "b"}]
    with pytest.warns(RuleWarning, match="row 1 and row 2 overlap .* no example was found"):
        from_decision_table(texts)


def test_labels_several_conclusions_and_strengths() -> None:
    frame = pd.DataFrame(
        {
            "rule": ["one", "two", None],
            "x": ["< 3", "[3..9]", "> 9"],
            "risk": ["low", '"high","seen"', "not(low)"],
            "treat": [False, True, None],
            "weight": [2, np.nan, 0.5],
            "chance": [np.nan, 0.9, np.nan],
        }
    )
    rules = from_decision_table(
        frame,
        conclusions=["risk", "treat"],
        names="rule",
        w="weight",
        p="chance",
        default={"risk": "low", "treat": False},
    )
    assert rules == parse(
        """[w=2, first=table] one: x < 3 => low and not treat
        [p=0.9, first=table] two: 3 <= x <= 9 => high and seen and treat
        [w=0.5, first=table] x > 9 => not low
        [first=table] else => low and not treat"""
    )
    hard = from_decision_table(TABLE, hard=True, default="home")
    assert {rule.strength.kind for rule in hard} == {"hard"}
    labels = Schema((Column("x"),), ("treat", "seen"), exclusive=False)
    rows = [{"x": "< 3", "treat": "yes", "seen": ""}, {"x": ">= 3", "treat": 0, "seen": "x"}]
    assert from_decision_table(rows, schema=labels, conclusions=["treat", "seen"]) == parse(
        "x < 3 => treat\nx >= 3 => not treat and seen"
    )


def test_from_files_and_other_tables(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(TABLE.encode("utf-8-sig"))
    want = from_decision_table(TABLE)
    assert from_decision_table(path) == want
    assert from_decision_table(TABLE.replace(";", "\t").replace("\n", "\r\n")) == want
    frame = pd.read_csv(path, sep=";", quoting=3)
    assert from_decision_table(frame) == want
    assert from_decision_table(frame.to_dict("list")) == want
    assert from_decision_table(frame.to_dict("records")) == want
    quoted = 'age,city,y\n3,"""a"",""b""",k\n\n,,\n4,"not(""a"")",k\n'
    assert from_decision_table(quoted, hit_policy="collect") == parse(
        "age == 3 and city in ['a', 'b'] => k\nage == 4 and city != 'a' => k"
    )
    loose = 'x; y; then\n"a; b", c; "d, e"; k\n"-, ""x"""; "f\ng"; "k"\n-;O"Neil\'s, x;k'
    assert [row.cells for row in read_rows(loose).rows] == [
        {"x": '"a; b", c', "y": "d, e", "then": "k"},
        {"x": '-, "x"', "y": "f\ng", "then": "k"},
        {"x": "-", "y": "O\"Neil's, x", "then": "k"},
    ]
    assert [row.number for row in read_rows(loose).rows] == [2, 4, 5]
    assert read_rows("x,then\n3,").rows[0].cells == {"x": "3", "then": ""}
    times = np.array(["2024-01-31", "NaT"], "M8[ns]")
    held = {"x": times, "b": np.array([True, False]), "then": np.array(["k", "n"])}
    assert from_decision_table(held) == parse("x == date '2024-01-31' and b => k\nnot b => n")
    missing = pd.DataFrame({"x": ["> 3", pd.NA, None], "then": ["k", pd.NA, np.nan]})
    assert from_decision_table(missing) == parse("x > 3 => k")
    path.write_text(TABLE + "> 3;-;what?\n")
    with pytest.raises(RuleError, match="table.csv, line 6: 3 cells under 4 columns"):
        from_decision_table(str(path))
    path.write_text(TABLE + "> ;-;-;home\n")
    with pytest.raises(RuleError, match="table.csv, line 6, column 'age': expected > 3"):
        from_decision_table(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hit_policy": "any"}, ValueError, "hit_policy must be one of .unique., .first."),
        ({"hit_policy": "priority"}, ValueError, "needs priority="),
        ({"priority": "age"}, ValueError, "other hit policies take none"),
        (
            {"conclusions": "advise"},
            ValueError,
            "conclusions names 'advise'.*did you mean 'advice'",
        ),
        (
            {"ignore": ["advice"], "conclusions": "advice"},
            ValueError,
            "both ignore and conclusions",
        ),
        ({"ignore": ["age", "sex", "city"]}, ValueError, "needs a column of conditions"),
        ({"w": 2, "hard": True}, ValueError, "rules have one strength, got w, hard"),
        ({"p": 1.5}, ValueError, "p must lie between 0 and 1"),
        ({"w": "sex"}, RuleError, "line 3, column 'sex': a number was expected, got 'F'"),
        ({"default": {"x": 1}}, ValueError, "default must name columns of conclusions"),
        ({"default": "-"}, ValueError, "default concludes nothing"),
        (
            {"hit_policy": "priority", "priority": ["clinic", "ward"]},
            RuleError,
            "line 4: priority must list what each row concludes",
        ),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_arguments_that_do_not_fit(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_decision_table(TABLE, **change)


def test_rows_that_hide_others() -> None:
    always = "-;-;-;home\n"
    with pytest.raises(RuleError, match="line 6: it has no condition, and so overlaps"):
        from_decision_table(TABLE + always)
    with pytest.raises(RuleError, match="line 6: it has no condition, and hides all rows after"):
        from_decision_table(TABLE + always + "< 3;-;-;home\n", hit_policy="first")
    with pytest.raises(RuleError, match="without a default"):
        from_decision_table(TABLE + always, hit_policy="first", default="home")
    with pytest.raises(RuleError, match="line 6: no conclusion: the cells of 'advice' are empty"):
        from_decision_table(TABLE + "< 3;-;-;\n", hit_policy="first")
    with pytest.raises(RuleError, match="the table has no rows"):
        from_decision_table("age,advice\n")
    both = from_decision_table(TABLE + always, hit_policy="collect")
    assert str(both[-1]) == "home"  # it applies to every example


TEXTS = [
    "age < 18 => clinic\nage >= 18 and sex == 'F' => ward",
    "[p=0.9] one: age < 18 => a\n[w=2] two: x > 3 and age > 2 => b\n[hard] x is missing => not c",
    "[first=t] age > 2 and age < 9 => a\n[learn, first=t] score(2*(age >= 75), stroke) >= 2 => b\n"
    "[w=3, first=t] last: else => a and not b",
    "[group=g, priority=2] a - b > 3 => x\n[group=g, priority=2] c => y\n"
    "[group=g, priority=1] else => x",
    "[priority=0.5] days(end - start) > 30 => x\n[priority=3] lower(`the text`) == '?' => y",
    "`?` == 'x' and `a b` matches r'(?:x)' => `say \"yes\", no`\nc in ['true'] => x",
    "name > 3 and conclusion < 2 and w == 1 => yes\nconclusion == 3 => no\n[w=4] n: w == 2 => yes",
    "true_ and not (a > 3 and a < 5) => x\nage between 3 and 5 or age == 9 => `true`",
    "home\nage > 3 => not home",
]


@pytest.mark.parametrize("text", TEXTS)
def test_rules_come_back(text: str) -> None:
    rules = parse(text)
    rows, arguments = to_decision_table(rules)
    assert from_decision_table(rows, **arguments) == rules
    frame = pd.DataFrame(rows)
    again = from_decision_table(frame, **arguments)
    assert again == rules
    text = frame.to_csv(index=False)
    assert from_decision_table(text, **arguments) == rules


def test_conditions_come_back_in_the_order_of_the_columns() -> None:
    rules = parse("a > 1 and b > 2 => x\nb > 3 and a > 4 => y")
    rows, arguments = to_decision_table(rules)
    assert from_decision_table(rows, **arguments) == parse(
        "a > 1 and b > 2 => x\na > 4 and b > 3 => y"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x :- a.", "a clause defines a predicate"),
        ("[first=a] a => x\n[first=b] a => x", "the rules of one group"),
        ("a => x unless b", "write a and not c => b"),
        ("a => x or y", "a conclusion is a class or label, got x or y"),
        ("view(v).a => x", "is not about a column"),
        ("exactly_one(x, y)\na => x", "a conclusion is a class or label"),
        ("[budget] mean(p.x) >= 0.5", "a conclusion is a class or label"),
        ("x", "a decision table needs a condition"),
        ("a => a and not b", "both columns and labels"),
    ],
)
def test_rules_that_no_row_says(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_decision_table(parse(text))
