"""Medical rules on a table: it runs from end to end on made-up patients, and draws what it says."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np
import pytest

from examples import tabular_rules
from examples.tabular_rules import CELLS, LEVELS, SAME, SEEDS, UNUSUAL, YOUNG

NAMES = (
    *("id", "age", "gender", "height", "weight", "sbp", "dbp", "cholesterol", "gluc"),
    *("smoke", "alco", "active", "cardio"),
)


@pytest.fixture
def made_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """2,000 patients in the format of the real file; two have pressures that nobody has."""
    rng = np.random.default_rng(0)
    n = 2000
    sbp = rng.normal(130, 25, n).clip(80, 240).round()
    dbp = (sbp - rng.uniform(20, 60, n)).round().clip(40)
    sbp[0], dbp[1] = 16020, -70
    age = rng.uniform(40, 65, n)
    ill = (sbp - 130) / 20 + (age - 52) / 10 + rng.logistic(size=n) > 0
    columns = [
        *(np.arange(n), age * 365.25, rng.integers(1, 3, n), rng.normal(165, 8, n)),
        *(rng.normal(75, 14, n), sbp, dbp, rng.integers(1, 4, n), rng.integers(1, 4, n)),
        *(rng.integers(0, 2, n) for _ in range(3)),
        ill,
    ]
    text = ";".join(NAMES) + "\n"
    text += "\n".join(";".join(f"{x:g}" for x in row) for row in zip(*columns, strict=True))
    folder = tmp_path / "data" / "cardio"
    folder.mkdir(parents=True)
    (folder / "cardio_train.csv.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("DISTILL_JAX_DATA", str(folder.parent))
    return folder


@pytest.mark.usefixtures("made_up", "compiled_hastily")
def test_a_short_run_writes_every_cell_and_level(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--steps", "2", "--patients", "100", "--new", "200"]
    results = tabular_rules.main([*command, "--out", str(tmp_path / "new" / "result.json")])
    rows = {(row["cell"], row["level"]): row for row in results["rows"]}
    assert list(rows) == [(str(cell), level) for cell in CELLS for level in LEVELS]
    for (cell, level), row in rows.items():
        accuracy = row["by_seed"]["accuracy_percent"]
        assert len(accuracy) == SEEDS
        np.testing.assert_allclose(row["mean"], np.mean(accuracy), rtol=1e-5)
        if level in ("project", "enforce", "rules alone"):
            assert row["hard"]["mean"] == 0
        if (without := LEVELS[level]) is not None:
            before = rows[cell, without]["by_seed"]["accuracy_percent"]
            np.testing.assert_allclose(
                row["gain"]["mean"], np.mean(accuracy - before), rtol=1e-4, atol=1e-4
            )
    assert any(rows[str(cell), "none"]["hard"]["mean"] > 0 for cell in CELLS)
    # The rules alone do not look at D_S: only who is counted differs.
    assert len({rows[str(c), "rules alone"]["mean"] for c in CELLS if c.population != YOUNG}) == 1
    saved = json.loads((tmp_path / "new" / "result.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in saved["rows"]] == [row["name"] for row in results["rows"]]
    shown = capsys.readouterr().out
    assert all(str(cell) in shown for cell in CELLS)


def test_patients_with_impossible_pressures_are_left_out(made_up: pathlib.Path) -> None:
    table, labels = tabular_rules.load()
    assert len(labels) == 1998 and set(labels.tolist()) == {0, 1}
    assert set(table) == set(NAMES) - {"id", "cardio"}
    assert table["age"].min() >= 40 and table["age"].max() <= 65  # years


def test_without_the_data_it_says_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path))
    (tmp_path / "cardio").mkdir()
    with pytest.raises(SystemExit, match=r"(?s)cardio_train.csv.*sbp and dbp"):
        tabular_rules.load()


def test_cells_differ_as_they_say(made_up: pathlib.Path) -> None:
    table, labels = tabular_rules.load()
    patients = 400
    drawn = tabular_rules.draw(table, labels, 0, patients, 500)
    again = tabular_rules.draw(table, labels, 0, patients, 500)
    other = tabular_rules.draw(table, labels, 1, patients, 500)
    assert all((drawn[name] == again[name]).all() for name in drawn)
    assert (drawn["new"] != other["new"]).any()
    usual = (table["sbp"] > 129.5) == (labels == 1)
    for i, cell in enumerate(CELLS):
        rows, given = drawn["rows"][i], drawn["labels"][i]
        source, labelled = rows[:patients], rows[patients:]
        assert len(set(source.tolist())) == patients and not set(source) & set(drawn["new"])
        assert set(labelled) == set(source[: max(2, round(cell.labels * patients))])
        # Whoever comes twice has the same label each time.
        assert len(set(zip(labelled, given[patients:], strict=True))) == len(set(labelled))
        wrong = (given[patients:] != labels[labelled]).mean()
        if cell.labels == 1.0:
            assert abs(wrong - cell.noise) < 0.08
        assert cell.noise or wrong == 0
        old = table["age"][drawn["new"]] >= 55
        np.testing.assert_array_equal(drawn["counted"][i], old | (cell.population != YOUNG))
        if cell.population == YOUNG:
            assert table["age"][source].max() < 50
        if cell.population == UNUSUAL:
            assert usual[source].mean() == 0.3
        if cell.population == SAME:
            assert usual[source].mean() > 0.5


def test_more_patients_than_there_are_is_an_error(made_up: pathlib.Path) -> None:
    table, labels = tabular_rules.load()
    with pytest.raises(ValueError, match="patients must be fewer.*young to old"):
        tabular_rules.draw(table, labels, 0, 1400, 500)


def test_it_says_how_to_run_it() -> None:
    assert "python examples/tabular_rules.py" in (tabular_rules.__doc__ or "")
