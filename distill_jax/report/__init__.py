"""Results for people: tables, figures, result files, and confidence intervals."""

from __future__ import annotations

from distill_jax._statistics import mean_std
from distill_jax.report.figures import bars, curves, heat_map, save_figure, series
from distill_jax.report.results import result_file, save_json
from distill_jax.report.rules import show_check, show_explanation
from distill_jax.report.spread import interval95
from distill_jax.report.tables import show, table

__all__ = [
    "bars",
    "curves",
    "heat_map",
    "interval95",
    "mean_std",
    "result_file",
    "save_figure",
    "save_json",
    "series",
    "show",
    "show_check",
    "show_explanation",
    "table",
]
