"""The sweep runs from data to figures, goes on where it stopped, and chooses by D_V alone."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_jax import training
from examples import temperature_sweep


@pytest.mark.usefixtures("compiled_hastily")
def test_a_short_run_writes_everything_and_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"width": [8], "temperature": [1.0, 4.0], "weight": [0.0, 0.5]}
    monkeypatch.setattr(temperature_sweep, "GRID", grid)
    monkeypatch.setattr(temperature_sweep, "SEEDS", 2)
    arguments = ["--steps", "2", "--out", str(tmp_path / "new")]
    results = temperature_sweep.main(arguments)
    shown = capsys.readouterr().out
    alone, chosen = results["rows"]
    assert alone["weight"] == 0 and alone["seeds"] == chosen["seeds"] == 2
    assert "labels alone" in shown and "chosen on D_V" in shown
    file = tmp_path / "new" / "temperature_sweep.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    trials = [row for row in rows if "validation_accuracy" in str(row)]
    assert len(trials) == 8 and not any("test_accuracy" in str(row) for row in rows)
    assert (tmp_path / "new" / "temperature_sweep_8.png").read_bytes().startswith(b"\x89PNG")

    # Again, with the last trials cut off: they alone are run again.
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-3]))
    again = temperature_sweep.main(arguments)
    assert len(file.read_text().splitlines()) == len(lines)
    assert again["rows"] == results["rows"]
    with pytest.raises(ValueError, match="test"):
        training.best(results["rows"], by="test_accuracy", better="higher")


def test_it_says_how_to_run_it() -> None:
    assert "python examples/temperature_sweep.py" in (temperature_sweep.__doc__ or "")
