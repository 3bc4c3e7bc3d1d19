"""Figures hold what they were given, and leave matplotlib as it was."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from distill_jax.report import bars, curves, heat_map, save_figure, series

ROWS = [
    {"model": "small", "how": "labels", "accuracy": 0.8},
    {"model": "small", "how": "distilled", "accuracy": {"mean": 0.9, "std": 0.02}},
    {"model": "large", "how": "labels", "accuracy": {"mean": 0.95, "low": 0.94, "high": 0.98}},
]


@pytest.mark.quick
def test_bars_have_the_heights_of_their_rows():
    (axes,) = bars(ROWS, x="model", y="accuracy", group="how", title="Title").axes
    assert sorted(bar.get_height() for bar in axes.patches) == [0.8, 0.9, 0.95]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["small", "large"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["labels", "distilled"]
    assert (axes.get_title(), axes.get_ylabel()) == ("Title", "accuracy")
    centres = {round(bar.get_x() + bar.get_width() / 2, 6) for bar in axes.patches}
    assert len(centres) == 3  # none hides another


def test_error_bars_reach_as_far_as_the_spread():
    (axes,) = bars(ROWS[1:], x="model", y="accuracy").axes
    (container,) = [c for c in axes.containers if hasattr(c, "lines")]
    ends = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.88, 0.92], [0.94, 0.98]])


def test_curves_are_means_in_a_band():
    x, runs = np.array([1.0, 2.0, 4.0]), np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]])
    (axes,) = curves({"five": (x, runs), "one": (x, runs[0])}, logx=True, xlabel="rows").axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2.0, 2.0, 4.0])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), runs[0])
    (band,) = axes.collections  # a single run has none
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [2 - 2**0.5, 4 + 2**0.5])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_series_gather_the_runs_of_a_group():
    rows = [{"T": t, "w": "a", "loss": np.array([t, s])} for t in (1.0, 2.5) for s in (0, 1)]
    found = series(rows, y="loss", group=("T", "w"), x=[10, 20])
    assert list(found) == ["T = 1, w = a", "T = 2.5, w = a"]
    np.testing.assert_array_equal(found["T = 2.5, w = a"][0], [10, 20])
    np.testing.assert_array_equal(found["T = 2.5, w = a"][1], [[2.5, 0], [2.5, 1]])
    assert len(curves(found).axes[0].lines) == 2
    with pytest.raises(ValueError, match="must name a value of each row, got 'depth'"):
        series(rows, y="loss", group="depth")
    with pytest.raises(ValueError, match=r"must be \[points\], got shapes \[\(1,\), \(2,\)\]"):
        series([*rows, {"T": 1.0, "w": "a", "loss": [1.0]}], y="loss", group="w")


def test_heat_maps_have_the_mean_of_a_cells_rows():
    rows = [
        {"rate": 0.1, "width": 8, "seed": 0, "loss": 1.0},
        {"rate": 0.1, "width": 8, "seed": 1, "loss": 3.0},
        {"rate": 0.01, "width": 32, "seed": 0, "loss": {"mean": 5.0, "std": 1.0}},
        {"rate": 0.01, "width": 8, "seed": 0, "loss": float("nan")},
    ]
    axes, bar = heat_map(rows, x="rate", y="width", value="loss", title="Title").axes
    (image,) = axes.images
    colours = image.get_array()
    np.testing.assert_array_equal(colours.mask, [[True, False], [False, True]])
    np.testing.assert_allclose(colours.compressed(), [2.0, 5.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["8", "32"]
    assert [text.get_text() for text in axes.texts] == ["2", "5"]
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("rate", "width", "loss")
    heat_map(rows[-1:], x="rate", y="width", value="loss").canvas.draw()  # nothing to colour
    with pytest.raises(ValueError, match="must name a value of each row, got 'depth'"):
        heat_map(rows, x="depth", y="width", value="loss")


@pytest.mark.parametrize(
    ("value", "got"),
    [(np.ones(20), r"an array of shape \(20,\)"), ("0.5", "'0.5'"), (None, "None")],
)
def test_heat_maps_of_what_is_no_number_are_refused(value, got):
    rows = [{"a": 1, "b": 2, "curve": value}]
    with pytest.raises(ValueError, match=f"value='curve' must name a number.* got {got}: name"):
        heat_map(rows, x="a", y="b", value="curve")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_saves_whole_files_without_pyplot(tmp_path, suffix, start):
    before = "matplotlib.pyplot" in sys.modules
    figure = curves({"a": ([1, 2], [3, 4])})
    path = save_figure(tmp_path / "new" / f"a.{suffix}", figure, dpi=30)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path must end with one of .*'png'.* got .*a.xyz"):
        save_figure(tmp_path / "a.xyz", curves({"a": ([1, 2], [3, 4])}))
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'distill_jax\[examples\]'"):
        bars(ROWS, x="model", y="accuracy", group="how")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows must be one or more"),
        ([{"model": "a"}], "y must name a value of each row, got 'accuracy'"),
        (ROWS[:2], r"rows must differ in \['model'\]"),
    ],
)
def test_bars_name_what_is_wrong(rows, message):
    with pytest.raises(ValueError, match=message):
        bars(rows, x="model", y="accuracy")


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "series must not be empty"),
        ({"a": ([1, 2], [1, 2, 3])}, r"series 'a' must be .* got shapes \(2,\) and \(3,\)"),
        ({"a": ([], [])}, "series 'a' must be"),
    ],
)
def test_curves_name_what_is_wrong(series, message):
    with pytest.raises(ValueError, match=message):
        curves(series)


def test_names_from_rows_are_no_formulas(tmp_path):
    rows = [{"price": "$x^", "y": 1.0, "kind": "$_{"}, {"price": "a\x1b", "y": 2.0, "kind": "b"}]
    save_figure(tmp_path / "a.png", bars(rows, x="price", y="y", group="kind"))
    save_figure(tmp_path / "b.png", heat_map(rows, x="price", y="kind", value="y"))
