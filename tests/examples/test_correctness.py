"""The comparison of losses runs, ours is right in every row, and the other is off as it says."""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from examples import correctness


@pytest.fixture(scope="module")
def rows_and_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("correctness") / "rows.json"
    return correctness.main(["--json", str(path)]), path


def test_ours_is_right_in_every_row(rows_and_file):
    rows, _ = rows_and_file
    assert len(rows) >= 20
    for row in rows:
        assert math.isfinite(row["truth"]), row
        assert row["ours"] == pytest.approx(row["truth"], rel=1e-5, abs=1e-6), row
        assert row["verdict"].startswith("ours right"), row


def test_the_other_formula_is_off_where_it_is_written_out(rows_and_file):
    rows, _ = rows_and_file
    for row in rows:
        if row["formula"].endswith("as installed"):
            continue  # another library's release may be right
        assert row["verdict"] == "ours right, other off", row
        # By more than rounding: 5% of the truth, or of 1 where that is 0.
        error = abs(row["other"] - row["truth"])
        assert not error < 0.05 * (abs(row["truth"]) or 1.0), row


def test_writes_the_rows(rows_and_file):
    rows, path = rows_and_file
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [row["case"] for row in written["rows"]] == [row["case"] for row in rows]
    assert any(row["other"] == "nan" for row in written["rows"])  # JSON has no NaN


def test_says_how_to_run_it():
    assert correctness.__file__ is not None
    text = pathlib.Path(correctness.__file__).read_text(encoding="utf-8")
    assert text.startswith('"""') and "python examples/correctness.py" in correctness.__doc__


def test_a_verdict_needs_more_than_a_few_digits():
    assert correctness.is_right(1.000001, 1.0) and not correctness.is_right(1.0001, 1.0)
    assert correctness.is_right(1e-7, 0.0) and not correctness.is_right(1e-3, 0.0)
    assert not correctness.is_right(0.0, 4e-7) and not correctness.is_right(math.nan, 1.0)
