"""Metrics as plain numbers, from the sums over all rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from distill_jax.types import Model


class Found(NamedTuple):
    """What one pass over the data gives.

    Attributes:
      totals: Sums over all rows, by name; of several models ``[models, ...]``.
      curves: The areas ``(auc, average precision)`` of each class or label, ``[..., outputs, 2]``;
        None where there is nothing to rank, or too much.
      spread: Of each output's targets, the sum of squared distances from their mean, ``[outputs]``.
    """

    totals: dict[str, Any]
    curves: np.ndarray | None
    spread: np.ndarray | None

    def of(self, i: int) -> Found:
        """One of several models."""
        curves = None if self.curves is None else self.curves[i]
        return self._replace(totals={n: x[i] for n, x in self.totals.items()}, curves=curves)


def as_numbers(found: Found, model: Model, weighted: bool) -> dict[str, Any]:
    """The metrics of one model; see ``metrics``."""
    totals, n = found.totals, float(found.totals["weight"])
    values: dict[str, Any] = {"count": int(totals["count"])}
    if weighted:
        values["weight"] = n
    if "correct" in totals:
        values |= _of_classes(found, model.classes, n)
    if "exact" in totals:
        values |= _of_labels(found, model.classes, n)
    if "squared" in totals:
        values |= _of_numbers(found, model.classes, n)
    means = {"agreement": "agree", "kl_to_teacher": "kl", "cosine_to_teacher": "cosine"}
    means["mae_to_teacher"] = "absolute_to_teacher"
    for name, total in means.items():
        if total in totals:
            values[name] = float(totals[total] / n)
        if name == "agreement" and "overlap" in totals:
            values["top_k"] = len(totals["overlap"])
            values["top_k_overlap"] = float(totals["overlap"].mean() / n)
    if "squared_to_teacher" in totals:
        values["rmse_to_teacher"] = float((totals["squared_to_teacher"] / n) ** 0.5)
    return values


def _of_classes(found: Found, names: tuple[str, ...] | None, n: float) -> dict[str, Any]:
    totals = found.totals
    hits, occurs = totals["class_correct"], totals["class_weight"] + totals["class_predicted"]
    gaps = np.abs(totals["bin_correct"] - totals["bin_confidence"])
    rows = _named("class", names, len(hits))
    for i, row in enumerate(rows):
        row |= {"count": int(totals["class_count"][i]), "errors": int(totals["class_errors"][i])}
    return {
        "errors": int(totals["errors"]),
        "accuracy": float(totals["correct"] / n),
        "nll": float(totals["nll"] / n),
        "ece": float(gaps.sum() / n),
        "f1_macro": _mean(2 * hits[occurs > 0] / occurs[occurs > 0]),
        **_areas(found, rows),
        "per_class": rows,
    }


def _of_labels(found: Found, names: tuple[str, ...] | None, n: float) -> dict[str, Any]:
    totals = found.totals
    hits, occurs = totals["label_hits"], totals["label_true"] + totals["label_predicted"]
    f1 = 2 * hits / np.where(occurs > 0, occurs, 1.0)
    rows = _named("label", names, len(hits))
    for i, row in enumerate(rows):
        row |= {"count": int(totals["label_count"][i]), "f1": float(f1[i])}
    return {
        "subset_accuracy": float(totals["exact"] / n),
        "hamming_loss": float(1 - totals["label_correct"].sum() / totals["label_weight"].sum()),
        "nll": float(totals["nll"] / n),
        "f1_micro": float(2 * hits.sum() / occurs.sum()) if occurs.sum() > 0 else 0.0,
        "f1_macro": _mean(f1),
        **_areas(found, rows),
        "per_label": rows,
    }


def _of_numbers(found: Found, names: tuple[str, ...] | None, n: float) -> dict[str, Any]:
    totals, spread = found.totals, np.asarray(found.spread)
    mae, rmse = totals["absolute"] / n, np.sqrt(totals["squared"] / n)
    varies = spread > 0
    r2 = np.where(varies, 1 - totals["squared"] / np.where(varies, spread, 1.0), np.nan)
    rows = _named("output", names, len(mae))
    for i, row in enumerate(rows):
        row |= {"mae": float(mae[i]), "rmse": float(rmse[i]), "r2": float(r2[i])}
    values = {"mae": float(mae.mean()), "rmse": float(rmse.mean()), "r2": float(r2.mean())}
    if "z_squared" in totals:
        values |= {
            "nll": float(totals["nll"] / n),
            "mean_squared_z": float(totals["z_squared"].mean() / n),
            "coverage_90": float(totals["inside"].mean() / n),
        }
    return {**values, "per_output": rows}


def _areas(found: Found, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The mean areas under both curves; those of each output are put into its row."""
    if found.curves is None:
        return {"auc": None, "average_precision": None}
    for row, (area, precision) in zip(rows, found.curves.tolist(), strict=True):
        row |= {"auc": area, "average_precision": precision}
    auc, average_precision = (found.curves[:, i] for i in range(2))
    return {
        "auc": _mean(auc[~np.isnan(auc)]),
        "average_precision": _mean(average_precision[~np.isnan(average_precision)]),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _named(what: str, names: tuple[str, ...] | None, number: int) -> list[dict[str, Any]]:
    return [{what: name} for name in (names or range(number))]
