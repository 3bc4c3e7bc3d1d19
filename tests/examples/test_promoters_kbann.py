"""Promoters: it runs from end to end on made-up sequences, and what is left out has no say."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from distill_jax import models
from examples import promoters_kbann as promoters

THEORY = """% Made up.
promoter :- contact, conformation.
contact  :- p-37=t, p-36=t.
contact  :- p-12=t, p-11=a.
conformation :- p-45=a, p4=c.
conformation :- p5=g.
"""


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with 24 sequences; promoters mostly have a t at p-37."""
    rng, folder = np.random.default_rng(0), tmp_path / "promoters"
    bases = rng.choice(list("acgt"), (24, 57))
    bases[:12, promoters.POSITIONS.index(-37)] = "t"
    lines = [f"{'+-'[i >= 12]},S{i},\t\t{''.join(row)}\n" for i, row in enumerate(bases)]
    folder.mkdir()
    (folder / "promoters.data").write_text("".join(lines))
    (folder / "theory.pl").write_text(THEORY)
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path))
    return folder


@pytest.mark.usefixtures("compiled_hastily", "place")
def test_a_short_run_writes_table_drift_and_figure(tmp_path: pathlib.Path, capsys) -> None:
    result = promoters.main(["--seeds", "1", "--steps", "20", "--out", str(tmp_path / "out")])
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"rules alone", "KBANN", "backpropagation", "logistic regression"}
    assert rows["KBANN"]["published"] == 4 and len(rows["KBANN"]["values"]) == 1
    assert [x["unit"] for x in result["drift"]][-2:] == ["conformation", "promoter"]
    assert "What training on all" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "promoters_kbann.json").read_text())
    assert saved["command"] == "python examples/promoters_kbann.py --seeds 1 --steps 20"
    assert (tmp_path / "out" / "promoters_kbann.png").stat().st_size > 1000


@pytest.mark.usefixtures("compiled_hastily", "place")
def test_what_is_left_out_has_no_say_in_what_is_said_of_it() -> None:
    table, labels, _ = promoters.load()
    inputs = np.stack([np.unique(x, return_inverse=True)[1] for x in table.values()], 1)
    model = models.logistic_regression(2)
    arguments = model, inputs.astype(np.float32) - 1.5
    log_odds, picked = promoters.held_out(*arguments, labels, 0, 40)
    others_moved = False
    for i in (0, 13):
        flipped = labels.copy()
        flipped[i] = 1 - flipped[i]
        again, picked_again = promoters.held_out(*arguments, flipped, 0, 40)
        np.testing.assert_array_equal(again[i], log_odds[i])
        np.testing.assert_array_equal(picked_again[i], picked[i])
        others_moved |= bool((again != log_odds).any())
    assert others_moved


def test_says_what_is_missing(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "theory.pl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks theory\.pl: they come with the UCI"):
        promoters.load()
    monkeypatch.setenv("DISTILL_JAX_DATA", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    with pytest.raises(FileNotFoundError, match="'promoters' was found neither"):
        promoters.load()
