"""The quick start runs from data to figure; its parts keep what its docstring promises."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from examples import quickstart
from examples.quickstart import CASES, RATES, SEEDS, SMALL, WAYS


@pytest.mark.usefixtures("compiled_hastily")
def test_a_short_run_writes_everything(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = quickstart.main(["--steps", "2", "--out", str(tmp_path / "new")])
    teacher, *rows = results["rows"]
    assert teacher["model"] == "teacher" and len(rows) == len(SMALL) * len(CASES) * len(WAYS)
    for row in rows:
        assert row["rate"] in RATES
        for name, values in row["by_seed"].items():
            assert len(values) == SEEDS
            np.testing.assert_allclose(row[name]["mean"], np.mean(values))
            np.testing.assert_allclose(row[name]["std"], np.std(values, ddof=1))
    # Smaller in parameters means cheaper in the table.
    assert [cost["model"] for cost in results["costs"]] == ["teacher", *SMALL]
    assert all(cost["smaller"] > 1 and cost["fewer"] > 1 for cost in results["costs"][1:])
    with open(tmp_path / "new" / "quickstart.json", encoding="utf-8") as file:
        assert json.load(file)["gains"] == results["gains"]
    assert (tmp_path / "new" / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*SMALL, *CASES, *WAYS, str(tmp_path)))


@pytest.mark.slow
def test_distilling_helps_where_labels_are_few_or_wrong(tmp_path: pathlib.Path) -> None:
    quickstart.main(["--out", str(tmp_path)])  # or it raises SystemExit


def test_parts_of_the_data_are_disjoint_and_make_up_the_whole() -> None:
    d_p, d_v, d_t, d_s = quickstart.load()

    def rows(*parts: dict[str, Any]) -> list[bytes]:
        return sorted(row.tobytes() for part in parts for row in part["inputs"])

    every = rows({"inputs": load_digits(return_X_y=True)[0].astype(np.float32) / 16})
    assert len(set(every)) == 1797  # no digit is there twice, so rows stand for themselves
    cuts = []
    for seed in range(SEEDS):
        own = [{name: x[seed] for name, x in part.items()} for part in (d_t, d_s)]
        assert rows(d_p, d_v, *own) == every
        cuts.append(rows(own[0]))
    assert all(cut != cuts[0] for cut in cuts[1:])


def test_labels_are_few_random_or_correct() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(10, size=(3, 500)).astype(np.int32)
    before = {"inputs": rng.normal(size=(3, 500, 4)), "labels": labels}
    few, noisy, correct = (
        {name: x[i] for name, x in quickstart.spoil(before).items()} for i in range(len(CASES))
    )
    np.testing.assert_array_equal(few["labelled"].sum(-1), 50)
    assert noisy["labelled"].all() and correct["labelled"].all()
    # 40% are drawn anew, of which one in ten is what it was.
    assert abs((noisy["labels"] != labels).mean() - 0.36) < 0.05
    for case in (few, noisy, correct):
        np.testing.assert_array_equal(case["inputs"], before["inputs"])
    np.testing.assert_array_equal(few["labels"], labels)
    np.testing.assert_array_equal(correct["labels"], labels)


def _pair(labels: str, gain: Sequence[float]) -> list[dict[str, Any]]:
    row = {"model": "small MLP", "labels": labels}
    alone = np.linspace(80, 90, len(gain))
    return [
        row | {"by_seed": {"accuracy_percent": list(values)}}
        for values in (alone, alone + np.array(gain))
    ]


def test_a_verdict_needs_an_interval_beside_zero() -> None:
    rows = [*_pair("a", [1, 2, 3]), *_pair("b", [-1, -2, -3]), *_pair("c", [-2, 0, 2.5])]
    found = quickstart.gains(rows)
    assert [x["distilling"] for x in found] == ["unclear", "unclear", "unclear"]
    rows = [*_pair("a", [1, 1.1, 1.2]), *_pair("b", [-1, -1.1, -1.2]), *_pair("c", [-2, 0, 2.5])]
    found = quickstart.gains(rows)
    assert [x["distilling"] for x in found] == ["helps", "hurts", "unclear"]
    np.testing.assert_allclose([x["gain"]["mean"] for x in found], [1.1, -1.1, 1 / 6])


def test_the_full_run_fails_where_distilling_should_help_and_does_not() -> None:
    good, bad = [1, 1.1, 1.2], [-1, 0, 1]
    few, noisy, every = CASES
    quickstart.demand(
        quickstart.gains([*_pair(few, good), *_pair(noisy, good), *_pair(every, bad)])
    )
    with pytest.raises(SystemExit, match=f"small MLP, labels {noisy}"):
        quickstart.demand(quickstart.gains([*_pair(few, good), *_pair(noisy, bad)]))


def test_it_says_how_to_run_it() -> None:
    assert "python examples/quickstart.py" in (quickstart.__doc__ or "")
