"""What stands in a table's cells, and that nothing of it is lost."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from distill_jax.report import show, table


def cells(rows, **options):
    made = table(rows, **options)
    return [[str(cell) for cell in column.cells] for column in made.columns]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345, "12,345"),
        (np.int32(7), "7"),
        (0.98765, "0.9877"),
        (0.0123456, "0.01235"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
        (1.5e-7, "1.500e-07"),
        (-2.5, "-2.500"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
        (jnp.float32(0.5), "0.5000"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (None, "–"),
        ("[bold]text", "[bold]text"),
        ({"mean": 0.98765, "std": 0.0021}, "0.9877 ± 0.0021"),
        ({"mean": 74.2, "std": 2.13, "n": 5}, "74.2 ± 2.1"),
        ({"mean": 1234.5, "std": 150.0}, "1,234 ± 150"),
        ({"mean": 0.5, "std": None}, "0.5000"),
        ({"mean": 0.5, "std": 0.0}, "0.5000 ± 0.0000"),
        ({"mean": 74.2, "low": 70.12, "high": 78.3}, "74.2 [70.1, 78.3]"),
    ],
)
def test_a_value_is_shown_sensibly(value, shown):
    assert cells([{"x": value}]) == [[shown]]


def test_columns_come_as_first_seen_less_nested_ones():
    rows = [{"a": 1, "per_class": [{"class": 0}]}, {"b": 2, "a": 3, "array": np.ones(2)}]
    made = table(rows)
    assert [column.header.plain for column in made.columns] == ["a", "b"]
    assert cells(rows) == [["1", "3"], ["–", "2"]]


def test_columns_may_be_chosen_and_named():
    rows = [{"a": 1, "b": 2, "c": [1, 2]}]
    assert cells(rows, columns=["c", "a"]) == [["[1, 2]"], ["1"]]
    made = table(rows, columns={"b": "Bee"})
    assert [column.header.plain for column in made.columns] == ["Bee"]
    with pytest.raises(ValueError, match=r"columns must be names in the rows, got \['z'\]"):
        table(rows, columns=["z"])


def test_numbers_stand_on_the_right():
    made = table([{"name": "a", "x": 1.0, "s": {"mean": 1.0, "std": 0.1}}, {"name": "b"}])
    assert [column.justify for column in made.columns] == ["left", "right", "right"]


def test_a_wide_table_is_whole_where_there_is_no_terminal(capsys):
    row = {f"column number {i}": f"value number {i}" for i in range(20)}
    show([row], title="A [wide] table")
    printed = capsys.readouterr().out
    assert all(name in printed and value in printed for name, value in row.items())
    assert "A [wide] table" in printed


def test_a_narrow_console_folds_and_loses_nothing():
    console = Console(file=io.StringIO(), width=20)
    show([{"first": "one two three", "second": 123456}], console=console)
    printed = console.file.getvalue()
    assert "…" not in printed
    assert all(word in printed for word in ("one", "two", "three"))
    assert "".join(c for c in printed if c.isdigit()) == "123456"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_prints_every_table(encoding, monkeypatch):
    rows = [{"größe": {"mean": 0.5, "std": 0.01}, "日": None, "n": "a\x1b[31m", "+": -1.5}]
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", file)
    show(rows, title="“title”…")
    file.flush()
    printed = file.buffer.getvalue().decode(encoding)
    monkeypatch.undo()
    assert "\x1b" not in printed and r"a\x1b[31m" in printed and "-1.5" in printed
    assert ("0.500 +/- 0.010" if encoding == "ascii" else "0.500") in printed
    assert ("日" in printed) == (encoding == "utf-8") != (r"\u65e5" in printed)


def test_no_rows_are_an_empty_table():
    assert table([]).row_count == 0
    assert [c.header.plain for c in table([], columns=["a"]).columns] == ["a"]
