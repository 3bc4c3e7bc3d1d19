"""Rules in files: what is written is read back, and what is wrong is said with its place."""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from distill_jax.rules.exchange import _dimacs
from distill_jax.rules.exchange.files import from_table, read_rules, to_table, write_rules
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.language.parsing import parse

TEXT = """# heart.rules
[w=0.8]   pressure: ap_hi >= 140 and age > 55 => disease
[p=0.9]   smoker and text matches r"a,\\"b" => disease
[hard]    exactly_one(`a b`, 'é' == x)
[learn]   `n, m`: a
[w=-2]    c :- p-37=c, not d.
x in ['a', "b;\\n"] => y
"""
CLAUSES = "promoter :- contact, conformation.\n[w=2] n: contact :- p-37=c, not x > 3."
DISJUNCTIONS = "[hard] a or not `b c`\n[hard] not a\n[hard] `b c` or d or not a"
PATTERNS = 'text matches r"call.*(free|prize)" => spam\ntext matches "\'\\"" => `not spam`'


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        *((TEXT, suffix) for suffix in (".rules", ".txt", ".csv", ".json", ".CSV")),
        *((CLAUSES, suffix) for suffix in (".pl", ".horn", ".rules", ".csv", ".json")),
        (DISJUNCTIONS, ".cnf"),
        (PATTERNS, ".tsv"),
        *(("", suffix) for suffix in (".rules", ".pl", ".csv", ".json", ".cnf", ".tsv")),
    ],
)
def test_what_is_written_is_read_back(tmp_path: pathlib.Path, text: str, suffix: str) -> None:
    rules, path = parse(text), tmp_path / f"book{suffix}"
    write_rules(rules, path)
    assert read_rules(str(path), column="text") == rules
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_tables() -> None:
    rules = parse(TEXT)
    rows = to_table(rules)
    assert rows[0] == {
        "rule": "ap_hi >= 140 and age > 55 => disease",
        "name": "pressure",
        "strength": "w=0.8",
    }
    assert [row["strength"] for row in rows] == ["w=0.8", "p=0.9", "hard", "learn", "w=-2", None]
    assert from_table(rows) == rules
    # As pandas and people have them: missing cells, brackets, and all in the text itself.
    nan = float("nan")
    assert from_table(
        [
            {"rule": "a => b", "name": nan, "strength": nan},
            {"rule": "a => b", "strength": " [w = 2] "},
            {"rule": "[hard] n: a => b", "name": "n", "strength": ""},
        ]
    ) == parse("a => b\n[w=2] a => b\n[hard] n: a => b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rule": "a = b"}, "row 1, rule, column 3: = is not known here"),
        ({"rule": "a\nb = c"}, "row 1, rule, line 2, column 3"),
        ({"rule": None}, "row 1: no rule"),
        ({"rule": "# nothing"}, "row 1: expected one rule, got 0"),
        ({"rule": "a\nb"}, "row 1: expected one rule, got 2"),
        ({"rule": "a", "weight": 2}, "row 1: unknown column 'weight', expected rule, name"),
        ({"rule": "a", "strength": 2}, r"row 1, strength, column 1: .*write \[w=2\]"),
        ({"rule": "a", "strength": "w=inf"}, "row 1, strength, column 4: w must be finite"),
        ({"rule": "a", "strength": "strong"}, "row 1, strength, column 1: expected"),
        ({"rule": "[w=2] a", "strength": "w=2"}, "row 1: the rule's text already holds a strength"),
        ({"rule": "n: a", "name": "m"}, "row 1: the rule is named twice"),
        ({"rule": ["a"]}, r"row 1, rule: expected text, got \['a'\]"),
        ("a => b", "row 1: expected a row with rule, name, strength, got 'a => b'"),
    ],
)
def test_wrong_rows(library_errors: None, row, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        from_table([row])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.rules", "a\nb = c", "a.rules, line 2, column 3: = is not known here"),
        ("a.pl", "b :- c.\n  a => b", "a.pl, line 2, column 3: expected a clause"),
        ("a.csv", "rule,name\na => b,n\na = b,m", "a.csv, line 3, rule, column 3: ="),
        ("a.csv", "text\na", "a.csv, line 1: expected a header"),
        ("a.csv", "rule,rule\na,b", "a.csv, line 1: expected a header"),
        ("a.csv", "rule,weight\na,2", "a.csv, line 2: unknown column 'weight'"),
        ("a.csv", "rule\nat_most(1, a)", "a.csv, line 2: 2 cells under 1 columns: quote"),
        ("a.csv", 'rule\n"a', "a.csv, line 2: not valid CSV"),
        ("a.json", '[{"rule": "a",}]', "a.json, line 1, column 1[45]: not valid JSON"),
        ("a.json", '{"rule": "a"}', "a.json, expected a list of objects"),
        ("a.json", "[3]", "a.json, row 1: expected a row"),
        ("a.json", "[" * 100_000, "a.json, JSON that cannot be read"),
        ("a.cnf", "1 0\n", "a.cnf, line 1, column 1: expected a header first"),
        ("a.cnf", "p cnf 2 1\n1 -3 0", "a.cnf, line 2, column 3: the header has 2 variables"),
        ("a.cnf", "p cnf 2 1\n1 x 0", "a.cnf, line 2, column 3: expected a whole number, got x"),
        ("a.cnf", "p cnf 2 1\n1 2", "a.cnf, line 2: this clause does not end with 0"),
        ("a.cnf", "p cnf 2 1\n0", "a.cnf, line 2, column 1: this clause is empty"),
        ("a.cnf", "p cnf 2 2\n1 0\n", "a.cnf, line 3: expected 2 clauses, got 1"),
        ("a.cnf", "p dnf 2 2\n", "a.cnf, line 1, column 1: expected one header"),
        ("a.cnf", "c 1 n\nc 2 n\np cnf 2 0", "a.cnf, line 1: .* 1 and 2 are both named 'n'"),
        ("a.tsv", "a.*b spam", "a.tsv, line 1, column 1: expected a regular expression, a tab"),
        ("a.tsv", "x\ty\n(\tspam", "a.tsv, line 2, column 1: not a regular expression"),
        ("a.tsv", "a+b\tspam\tccc", "a.tsv, line 1, column 10: .* does not match this example"),
    ],
)
def test_wrong_files(tmp_path: pathlib.Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RuleError, match=message):
        read_rules(tmp_path / name, column="text")


def test_files_that_are_no_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.rules").write_bytes(b"a => \xff")
    with pytest.raises(RuleError, match="a.rules: not in UTF-8"):
        read_rules(tmp_path / "a.rules")
    with pytest.raises(FileNotFoundError):
        read_rules(tmp_path / "b.rules")
    with pytest.raises(ValueError, match="path must end in one of .rules, .txt"):
        read_rules(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="column must name the text column"):
        read_rules(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a", "path must end in"),
        ("a.pl", "a => b", "can only hold clauses, head :- body., got a => b"),
        ("a.cnf", "a or b", r"rules such as \[hard\] a or not b, got a or b"),
        ("a.cnf", "[hard] a or b and c", "rules such as"),
        ("a.cnf", "[hard] `a\\n`", "cannot hold the name"),
        ("a.tsv", "[w=2] x matches 'a' => b", "rules such as text matches"),
        ("a.tsv", "x matches '\\t' => b", "rules such as text matches"),
        ("a.rules", "x == '\\ud800' and `\\x00`", None),
    ],
)
def test_what_a_file_cannot_hold(
    tmp_path: pathlib.Path, name: str, text: str, message: str | None
) -> None:
    path = tmp_path / name
    if message is None:  # escapes make any text one that a file can hold
        write_rules(parse(text), path)
        assert read_rules(path) == parse(text)
        return
    path.write_text("as it was")
    with pytest.raises(ValueError, match=message):
        write_rules(parse(text), path)
    assert path.read_text() == "as it was"


def test_a_spreadsheet_s_file(tmp_path: pathlib.Path) -> None:
    """A mark at its start, ends of lines of another system, quotes doubled, empty lines."""
    path = tmp_path / "book.csv"
    lines = ["name,rule,strength", 'n,"at_most(1, ""a"" == x, b)",w=2', ",,", ",a => b,"]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    rules = read_rules(path)
    assert rules == parse("[w=2] n: at_most(1, 'a' == x, b)\na => b")
    assert [rule.line for rule in rules] == [2, 4]


def test_no_cell_is_a_formula(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "book.csv"
    rules = parse("-x > 5 => cat\n'=a' == y => cat\n[w=-2] a => b")
    write_rules(rules, path)
    cells = [cell for row in csv.reader(path.read_text().splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert cells[3] == "'-x > 5 => cat"
    assert read_rules(path) == rules
    path.write_text("rule\n-x > 5 => cat\n")  # without the mark, as others write it
    assert read_rules(path) == rules[:1]


def test_json_is_readable(tmp_path: pathlib.Path) -> None:
    write_rules(parse("é => b"), tmp_path / "book.json")
    text = (tmp_path / "book.json").read_text(encoding="utf-8")
    assert "é => b" in text
    assert json.loads(text) == [{"rule": "é => b", "name": None, "strength": None}]


def test_dimacs(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "book.cnf"
    path.write_text("c any words\nc 1 a b\np cnf 3 3\n1 -2 0 3\n0\n-1 2\n-3 0\n%\n0\n")
    rules = read_rules(path)
    assert rules == parse("[hard] `a b` or not x2\n[hard] x3\n[hard] not `a b` or x2 or not x3")
    assert [rule.line for rule in rules] == [4, 4, 6]
    assert read_rules(path, names=["p", "q", "r"])[0] == parse("[hard] p or not q")[0]
    with pytest.raises(ValueError, match="names must hold 3 names, one per variable, got 2"):
        read_rules(path, names=["p", "q"])


def test_regular_expressions(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "spam.tsv"
    path.write_text('# from a linguist\nfree\\s+pri[cz]e\tspam\ta FREE free  prize\n\n"\tham\n')
    rules = read_rules(path, column="text")
    assert rules == parse("text matches r'free\\s+pri[cz]e' => spam\ntext matches '\"' => ham")
    assert [rule.line for rule in rules] == [2, 4]


def test_dimacs_costs_what_it_holds(tmp_path: pathlib.Path) -> None:
    """A header may promise any number, and spaces are no reason to go back and forth."""
    path = tmp_path / "book.cnf"
    path.write_text("c 2 a" + " " * 100_000 + "b\nc 7\np cnf 999999999 1\n-2 999999999 0\n")
    (rule,) = read_rules(path)
    assert rule == parse("[hard] not `a" + " " * 100_000 + "b` or x999999999")[0]
    assert len(_dimacs._names(999_999_999, {5}, {7: "a", 1_000_000_000: "b"}, None)) == 2
    path.write_text("c 1 x2\np cnf 9 1\n1 2 0\n")
    with pytest.raises(RuleError, match="1 and 2 are both named 'x2'"):
        read_rules(path)


def test_an_example_is_searched_in_bounded_time(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "spam.tsv"
    path.write_text("(a+)+b\tspam\t" + "a" * 41)
    with pytest.raises(RuleError, match="line 1, column 13: .* does not match this example"):
        read_rules(path, column="text")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rule": "a => b", "strength": "w=2] c => d\n[w=3"}, "row 1, strength: expected w=number"),
        ({"rule": "a => b", "strength": "w=2] c => d #"}, "row 1, strength: expected w=number"),
        ({"rule": "a => b", "strength": "[]"}, "row 1, strength: expected w=number"),
        ({"rule": 10**5000}, "row 1, rule: expected text, got a number that is too long"),
        ({"rule": [10**5000]}, "row 1, rule: expected text, got a list that is too long to show"),
        ({"rule": "a", 10**5000: 3}, "row 1: unknown column a int that is too long to show"),
        ({"rule": np.zeros(3)}, r"row 1, rule: expected text, got array\(\[0"),
        ({"rule": "a\n" * 99}, "expected one rule, got 99 in 'a"),
        ("\x1b[31m" * 9_999, r"row 1: expected a row with rule, name, strength, got '.x1b\[31m"),
    ],
)
def test_cells_of_strangers(library_errors: None, row: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message) as found:
        from_table([row])
    assert len(str(found.value)) < 300 and "\x1b" not in str(found.value)


def test_missing_cells_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    for missing in (None, float("nan"), "", pandas.NA, pandas.NaT):
        row = {"rule": "a => b", "name": missing, "strength": missing}
        assert from_table([row]) == parse("a => b")
    with pytest.raises(RuleError, match="row 1: no rule"):
        from_table([{"rule": pandas.NA}])


def test_a_long_rule_in_csv_and_a_name_twice_in_json(tmp_path):
    rules = parse("x in [" + ", ".join(map(str, range(30_000))) + "] => a")
    write_rules(rules, tmp_path / "long.csv")
    assert read_rules(tmp_path / "long.csv")[0].formula == rules[0].formula
    path = tmp_path / "twice.json"
    path.write_text('[{"rule": "x => a", "rule": "y => a"}]')
    with pytest.raises(RuleError, match="an object has 'rule' twice"):
        read_rules(path)
