"""Figures of results with matplotlib (``pip install 'distill_jax[examples]'``).

They do not use pyplot, so neither the backend nor any global setting changes.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_jax._arguments import checked
from distill_jax._files import replacing
from distill_jax._text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@checked
def bars(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    group: str | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """A bar chart with one bar per row.

    Args:
      rows: One dictionary per bar.
      x: Name of the value below the bars.
      y: Name of the bars' height: a number, ``{"mean", "std"}`` or ``{"mean", "low", "high"}``; the
        latter two get an error bar.
      group: Name of the value that distinguishes bars with the same ``x``, by colour.
      title: Shown above the figure.
      xlabel: Label of the horizontal axis; ``x`` by default.
      ylabel: Label of the vertical axis; ``y`` by default.

    Returns:
      A matplotlib figure, for :func:`save_figure`.

    Raises:
      ImportError: if matplotlib is not installed. ValueError: if ``rows`` is empty, a row lacks a
      name, or two rows have the same ``x`` and group.

    Example:
      >>> rows = [{"student": name, "accuracy": x} for name, x in (("alone", 81), ("taught", 95))]
      >>> figure = bars(rows, x="student", y="accuracy")
    """
    _check_names(rows, x=x, y=y, group=group)
    places, groups = (
        list(dict.fromkeys(str(row[name]) if name else "" for row in rows)) for name in (x, group)
    )
    values = {(str(row[x]), str(row[group]) if group else ""): row[y] for row in rows}
    if len(values) < len(rows):
        names = [name for name in (x, group) if name is not None]
        raise ValueError(f"rows must differ in {names}, got two that do not")
    figure, axes = _axes(title, x if xlabel is None else xlabel, y if ylabel is None else ylabel)
    width = 0.8 / len(groups)
    for i, name in enumerate(groups):
        here = [j for j, place in enumerate(places) if (place, name) in values]
        heights, below, above = zip(*(_bar(values[places[j], name]) for j in here), strict=True)
        left = [j + (i - (len(groups) - 1) / 2) * width for j in here]
        error = (below, above) if any(below) or any(above) else None
        axes.bar(left, heights, width, label=_plain(name), yerr=error, capsize=3)
    axes.set_xticks(range(len(places)), [_plain(place) for place in places])
    if group is not None:
        # Beside the axes, where it hides no bar.
        axes.legend(title=group, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


@checked
def curves(
    series: Mapping[str, tuple[Any, Any]],
    *,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """One line per series: the mean over runs, with a band of one standard deviation (ddof 1).

    Args:
      series: ``(x, y)`` by name: ``x`` is ``[points]``, ``y`` is ``[points]`` or
        ``[runs, points]``. A single run has no band.
      title: Shown above the figure.
      xlabel: Label of the horizontal axis.
      ylabel: Label of the vertical axis.
      logx: Whether the horizontal axis is logarithmic.
      logy: Whether the vertical axis is logarithmic.

    Returns:
      A matplotlib figure, for :func:`save_figure`.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if ``series`` is empty, or the shapes of ``x`` and ``y`` do not match.

    Example:
      >>> figure = curves({"loss": ([1, 2, 3], [[0.9, 0.5, 0.3], [0.8, 0.5, 0.2]])})
    """
    if not series:
        raise ValueError("series must not be empty")
    figure, axes = _axes(title, xlabel, ylabel)
    for name, pair in series.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"series {name!r} must be a pair (x, y), got {type(pair).__name__}")
        x, y = pair
        x, runs = np.asarray(x), np.atleast_2d(np.asarray(y, np.float64))
        if x.ndim != 1 or runs.ndim != 2 or runs.shape[1] != len(x) or not runs.size:
            raise ValueError(
                f"series {name!r} must be x [points] with y [points] or [runs, points], got "
                f"shapes {x.shape} and {np.shape(y)}"
            )
        mean = runs.mean(axis=0)
        (line,) = axes.plot(x, mean, label=name, marker="o" if len(x) <= 20 else None, markersize=4)
        if len(runs) > 1:
            std = runs.std(axis=0, ddof=1)
            axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, lw=0)
    if logx:
        axes.set_xscale("log")
    if logy:
        axes.set_yscale("log")
    axes.legend()
    return figure


@checked
def series(
    rows: Sequence[Mapping[str, Any]], *, y: str, group: str | Sequence[str], x: Any = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Series for :func:`curves`: one per value of ``group``, with one run per row.

    Args:
      rows: One dictionary per run, as ``training.sweep`` returns them.
      y: Name of an array ``[points]``, of the same length within a group.
      group: Name of the value that distinguishes series, or several names.
      x: Positions of the points, ``[points]``; 1, 2, ... by default.

    Returns:
      ``(x, y)`` by the values of ``group``: ``x`` is ``[points]``, ``y`` is ``[runs, points]``.

    Raises:
      ValueError: if a row lacks a name, or lengths differ within a group.

    Example:
      >>> rows = [{"T": 1.0, "seed": s, "loss": [3.0, 2.0 - s]} for s in (0, 1)]
      >>> {name: y.shape for name, (x, y) in series(rows, y="loss", group="T").items()}
      {'T = 1': (2, 2)}
    """
    groups = (group,) if isinstance(group, str) else tuple(group)
    for name in groups:
        _check_names(rows, group=name)
    _check_names(rows, y=y)
    runs: dict[str, list[np.ndarray]] = {}
    for row in rows:
        name = ", ".join(f"{part} = {_label(row[part])}" for part in groups)
        runs.setdefault(name, []).append(np.asarray(row[y]))
    made = {}
    for name, several in runs.items():
        shapes = {run.shape for run in several}
        if len(shapes) > 1 or several[0].ndim != 1:
            raise ValueError(f"{y!r} of {name!r} must be [points], got shapes {sorted(shapes)}")
        points = np.arange(1, len(several[0]) + 1) if x is None else np.asarray(x)
        if points.shape != several[0].shape:
            raise ValueError(
                f"x must have shape {several[0].shape}, that of {y!r} in {name!r}, got "
                f"{points.shape}"
            )
        made[name] = points, np.stack(several)
    return made


@checked
def heat_map(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    value: str,
    title: str | None = None,
) -> Figure:
    """A heat map with one cell per pair of values.

    Args:
      rows: Dictionaries, as ``training.sweep`` or ``training.summary`` return them. A cell shows
        the mean over its rows; it is blank without a row, or if a value is NaN.
      x: Name of the value along the horizontal axis.
      y: Name of the value along the vertical axis. Numbers are in ascending order on both axes.
      value: Name of the value to show: a number, or a mapping with a ``"mean"``.
      title: Shown above the figure.

    Returns:
      A matplotlib figure, for :func:`save_figure`.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if ``rows`` is empty, a row lacks a name, or its value is not a number.

    Example:
      >>> rows = [{"T": t, "weight": w, "accuracy": t * w} for t in (1.0, 2.0) for w in (0.5, 1.0)]
      >>> figure = heat_map(rows, x="T", y="weight", value="accuracy")
    """
    _check_names(rows, x=x, y=y, value=value)
    columns, lines = (_axis_values([row[name] for row in rows]) for name in (x, y))
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        number = row[value]["mean"] if isinstance(row[value], Mapping) else row[value]
        shape = () if number is None else np.shape(number)
        if shape or number is None or isinstance(number, str):
            got = f"an array of shape {shape}" if shape else repr(number)
            raise ValueError(
                f"value={value!r} must name a number in every row, got {got}: name another "
                "metric, or make a number of this one, such as its last"
            )
        cells.setdefault((lines.index(row[y]), columns.index(row[x])), []).append(float(number))
    colours = np.full((len(lines), len(columns)), np.nan)
    for cell, numbers in cells.items():
        colours[cell] = np.mean(numbers)
    figure, axes = _axes(title, x, y)
    axes.grid(False)
    finite = colours[np.isfinite(colours)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    image = axes.imshow(
        np.ma.masked_invalid(colours), origin="lower", aspect="auto", vmin=low, vmax=high
    )
    axes.set_xticks(range(len(columns)), [_label(place) for place in columns])
    axes.set_yticks(range(len(lines)), [_label(place) for place in lines])
    figure.colorbar(image, ax=axes, label=value)
    if colours.size <= 100:
        for (i, j), number in np.ndenumerate(colours):
            if np.isfinite(number):  # dark text on light cells
                shade = "black" if number > (low + high) / 2 else "white"
                axes.text(j, i, f"{number:.3g}", ha="center", va="center", color=shade)
    return figure


@checked
def save_figure(path: str | os.PathLike[str], figure: Figure, *, dpi: int = 150) -> pathlib.Path:
    """Writes a figure to a file, atomically: if it fails, an existing file is unchanged.

    Args:
      path: The file. Its suffix (``.png``, ``.svg``, ``.pdf``) determines the format; missing
        parent folders are created.
      figure: Any matplotlib figure.
      dpi: Dots per inch, for raster formats.

    Returns:
      The path.

    Raises:
      ValueError: if the suffix is not a known format.
    """
    path = pathlib.Path(path)
    kind = path.suffix[1:].lower()
    known = sorted(figure.canvas.get_supported_filetypes())
    if kind not in known:
        raise ValueError(f"path must end with one of {known}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=kind, dpi=dpi)
    return path


# The palette of Okabe and Ito, which is safe for colour-blind readers.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]


def _axes(title: str | None, xlabel: str | None, ylabel: str | None) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'distill_jax[examples]'") from error
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title or "", xlabel=xlabel or "", ylabel=ylabel or "")
    axes.set_prop_cycle(color=_COLOURS)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _axis_values(values: Sequence[Any]) -> list[Any]:
    """The distinct values: numbers in ascending order, others in order of first occurrence."""
    distinct = list(dict.fromkeys(values))
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in distinct)
    return sorted(distinct) if numeric else distinct


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _plain(str(value))


def _plain(name: str) -> str:
    """A name from the rows as matplotlib shows it: dollars in it begin no formula."""
    return printable(name).replace("$", r"\$")


def _bar(y: Any) -> tuple[float, float, float]:
    """The height, and the length of the error bar below and above it."""
    if not isinstance(y, Mapping):
        return float(y), 0.0, 0.0
    mean = float(y["mean"])
    if "low" in y and "high" in y:
        return mean, mean - float(y["low"]), float(y["high"]) - mean
    std = float(y.get("std") or 0.0)
    return mean, std, std


def _check_names(rows: Sequence[Mapping[str, Any]], **arguments: str | None) -> None:
    """Raises ValueError where an argument names what a row lacks, or where there is no row."""
    if not rows:
        raise ValueError("rows must be one or more, got none")
    for argument, name in arguments.items():
        lacking = [] if name is None else [row for row in rows if name not in row]
        if lacking:
            raise ValueError(
                f"{argument} must name a value of each row, got {name!r}: a row has "
                f"{sorted(map(str, lacking[0]))}"
            )
