"""Students of few labels are trained, from data to a table and a result file."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import few_labels


@pytest.mark.usefixtures("compiled_hastily")
def test_a_short_run_writes_everything(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(few_labels, "SEEDS", 2)
    monkeypatch.setattr(few_labels, "STUDENTS", ("UDA", "Monte Carlo"))
    results = few_labels.main(["--steps", "2", "--out", str(tmp_path)])
    assert [row["name"] for row in results["rows"]] == ["UDA", "Monte Carlo"]
    assert all(row["seeds"] == 2 and 0 <= row["mean"] <= 100 for row in results["rows"])
    assert "Monte Carlo" in capsys.readouterr().out
    saved = json.loads((tmp_path / "few_labels.json").read_text())
    assert saved["rows"] == results["rows"]


def test_views_keep_what_they_should_and_labels_are_shared_out_evenly() -> None:
    rows = {
        "inputs": np.random.default_rng(0).random((60, 64), np.float32),
        "labels": np.arange(60, dtype=np.int32) // 6,
    }
    chosen = few_labels.with_labels(jax.random.key(1), rows)
    labelled = chosen["labels"][chosen["labelled"]]
    assert len(labelled) == few_labels.LABELS * few_labels.REPEATED
    assert (np.bincount(labelled) == len(labelled) // 10).all()
    still = few_labels.moved(jax.random.key(0), jnp.asarray(rows["inputs"]), shift=0.0)
    np.testing.assert_allclose(still, rows["inputs"], atol=1e-6)
    batch = {"inputs": jnp.asarray(rows["inputs"]), "labelled": np.arange(60) < 30}
    views = few_labels.two_views(jax.random.key(2), batch)
    weak, seen = np.asarray(views["inputs:weak"]), np.asarray(views["inputs"])
    np.testing.assert_array_equal(seen[:30], weak[:30])
    assert (np.abs(seen[30:] - weak[30:]).max(1) > 0.1).all()


def test_it_says_how_to_run_it() -> None:
    assert "python examples/few_labels.py" in (few_labels.__doc__ or "")
