"""The quick start with rules runs from text to figure; its parts keep what it promises."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from examples import rules_quickstart
from examples.rules_quickstart import BOOK, CANCER, CASES, COUNTS, FROM_RULES, PLAIN, SEEDS, WAYS


@pytest.mark.usefixtures("compiled_hastily")
def test_a_short_run_writes_everything(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = rules_quickstart.main(["--steps", "2", "--out", str(tmp_path / "new")])
    rows = {row["knows"]: row for row in results["rows"]}
    assert list(rows) == ["rules alone", *WAYS, "(the teacher itself)"]
    for row in results["rows"]:
        accuracy = row["by_seed"]["accuracy_percent"]
        assert len(accuracy) == SEEDS
        np.testing.assert_allclose(row["mean"], np.mean(accuracy), rtol=1e-5)
        assert row["enforced"] == ("rules" in row["knows"] or row["knows"] == "all three")
        assert row["hard_before"] >= row["hard"] == (0 if row["enforced"] else row["hard_before"])
    # Two steps from zero are no model yet: it breaks hard rules where they are not enforced.
    assert rows["labels alone"]["hard"] > 0
    assert [r["rule"] for r in results["rules_on_D_T"]] == list(BOOK.names)
    assert all(len(line) == 1 + len(COUNTS) for line in results["curves"])
    with open(tmp_path / "new" / "rules_quickstart.json", encoding="utf-8") as file:
        assert json.load(file)["gains"] == results["gains"]
    assert (tmp_path / "new" / "rules_quickstart.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*rows, *BOOK.names, str(tmp_path)))


@pytest.mark.slow
def test_all_three_beat_each_alone(tmp_path: pathlib.Path) -> None:
    results = rules_quickstart.main(["--out", str(tmp_path)])  # or it raises SystemExit
    better = {gain["over"] for gain in results["gains"] if gain["better"] == "yes"}
    assert better >= {"rules alone", "labels alone", "teacher alone"}


def test_parts_of_the_data_are_disjoint_and_on_the_scale_of_d_s() -> None:
    parts = rules_quickstart.load(60)
    assert [part["labels"].shape[1] for part in parts] == [60, CASES, 309]
    d_s = parts[1]["inputs"]
    np.testing.assert_allclose(d_s.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(d_s.std(1), 1, rtol=1e-4)
    mean, std = CANCER.data.mean(0), CANCER.data.std(0)
    for seed in range(SEEDS):
        cases = np.concatenate([part["inputs"][seed] for part in parts]).astype(np.float64)
        # Whatever the scale, the cases are those of the data, each once.
        again = (cases - cases.mean(0)) / cases.std(0)
        want = (CANCER.data - mean) / std
        np.testing.assert_allclose(np.sort(again, axis=0), np.sort(want, axis=0), atol=1e-4)
        assert len(np.unique(again.round(4), axis=0)) == len(CANCER.target)
        labels = np.concatenate([part["labels"][seed] for part in parts])
        assert labels.sum() == (CANCER.target == 0).sum()  # 1 is malignant


def test_the_models_start_from_the_rules_and_from_nothing() -> None:
    inputs = rules_quickstart.load(60)[1]["inputs"][0]
    (plain, _), (started, _) = (m.init(jax.random.key(0), inputs) for m in (PLAIN, FROM_RULES))
    np.testing.assert_array_equal(plain["linear"]["kernel"], 0)
    columns = inputs.shape[1]
    np.testing.assert_array_equal(started["linear"]["kernel"][:columns], 0)
    soft = started["linear"]["kernel"][columns : columns + 8, 0]
    np.testing.assert_allclose(soft, np.log(3) * np.array([1, -1] * 4), rtol=1e-6)


def _rows(gain: list[float]) -> list[dict[str, Any]]:
    alone = np.linspace(90, 95, len(gain))
    row: dict[str, Any] = {"enforced": False, "hard": 3}
    rows = [
        row | {"knows": name, "by_seed": {"accuracy_percent": alone}}
        for name in ("labels alone", "rules alone")
    ]
    best = {"enforced": True, "hard": 0, "knows": "all three"}
    rows.append(best | {"by_seed": {"accuracy_percent": alone + np.array(gain)}})
    return [*rows, row | {"knows": "(the teacher itself)", "by_seed": {}}]


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [([1, 1.1, 1.2], "yes"), ([-1, -1.1, -1.2], "no"), ([-2, 0, 2.5], "unclear")],
)
def test_a_verdict_needs_an_interval_beside_zero(gain: list[float], verdict: str) -> None:
    found = rules_quickstart.gains(_rows(gain))
    assert [x["over"] for x in found] == ["labels alone", "rules alone"]
    assert {x["better"] for x in found} == {verdict}
    np.testing.assert_allclose([x["gain"]["mean"] for x in found], np.mean(gain))


def test_the_full_run_fails_where_it_shows_nothing() -> None:
    good = _rows([1, 1.1, 1.2])
    rules_quickstart.demand(good, rules_quickstart.gains(good))
    bad = _rows([-1, 0, 1])
    with pytest.raises(SystemExit, match="labels alone; rules alone"):
        rules_quickstart.demand(bad, rules_quickstart.gains(bad))
    good[2]["hard"] = 1
    with pytest.raises(SystemExit, match="hard rules should hold.*all three"):
        rules_quickstart.demand(good, rules_quickstart.gains(good))


def test_it_says_how_to_run_it() -> None:
    assert "python examples/rules_quickstart.py" in (rules_quickstart.__doc__ or "")
