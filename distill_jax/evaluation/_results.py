"""Metrics from the sums over all rows: as arrays of NumPy or of JAX, and as plain numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from distill_jax.types import Model

COUNTS = ("count", "errors", "top_k")
"""The metrics that are integers."""

ROWS = {"per_class": "class", "per_label": "label", "per_output": "output"}
"""What lists the metrics of each class, label or output, and what names its rows."""


class Found(NamedTuple):
    """What one pass over the data gives.

    Attributes:
      totals: Sums over all rows, by name; of several models ``[models, ...]``.
      curves: The areas ``(auc, average precision)`` of each class or label, ``[..., outputs, 2]``;
        None where there is nothing to rank, or too much.
      spread: Of each output's targets, the sum of squared distances from their mean, ``[outputs]``.
    """

    totals: dict[str, Any]
    curves: Any
    spread: Any

    def of(self, i: int) -> Found:
        """One of several models."""
        curves = None if self.curves is None else self.curves[i]
        return self._replace(totals={n: x[i] for n, x in self.totals.items()}, curves=curves)


def as_numbers(found: Found, model: Model, weighted: bool) -> dict[str, Any]:
    """The metrics of one model as Python numbers and lists of rows; see ``metrics``."""
    values = figures(found, weighted)
    for name, x in values.items():
        if name in ROWS:
            count = len(next(iter(x.values())))
            columns = {key: column.tolist() for key, column in x.items()}
            values[name] = [
                {ROWS[name]: who, **{key: column[i] for key, column in columns.items()}}
                for i, who in enumerate(model.classes or range(count))
            ]
        elif x is not None:
            values[name] = int(x) if name in COUNTS else float(x)
    return values


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """The arrays of ``figures`` by one name each, such as "per_class/errors", without any None."""
    made = {}
    for name, x in values.items():
        if name in ROWS:
            made |= {f"{name}/{key}": column for key, column in x.items()}
        elif x is not None:
            made[name] = x
    return made


def figures(found: Found, weighted: bool, xp: Any = np) -> dict[str, Any]:
    """The metrics of one model as arrays of ``xp``, NumPy or ``jax.numpy``.

    Scalars, or None where all scores were to be ranked and were not; what ``ROWS`` names is a
    dictionary of arrays ``[outputs]``.
    """
    totals = found.totals
    n = totals["weight"]
    values: dict[str, Any] = {"count": totals["count"]}
    if weighted:
        values["weight"] = n
    if "correct" in totals:
        values |= _of_classes(found, n, xp)
    if "exact" in totals:
        values |= _of_labels(found, n, xp)
    if "squared" in totals:
        values |= _of_numbers(found, n, xp)
    means = {"agreement": "agree", "kl_to_teacher": "kl", "cosine_to_teacher": "cosine"}
    means["mae_to_teacher"] = "absolute_to_teacher"
    for name, total in means.items():
        if total in totals:
            values[name] = totals[total] / n
        if name == "agreement" and "overlap" in totals:
            values["top_k"] = xp.asarray(len(totals["overlap"]))
            values["top_k_overlap"] = totals["overlap"].mean() / n
    if "squared_to_teacher" in totals:
        values["rmse_to_teacher"] = (totals["squared_to_teacher"] / n) ** 0.5
    return values


def _of_classes(found: Found, n: Any, xp: Any) -> dict[str, Any]:
    totals = found.totals
    hits, occurs = totals["class_correct"], totals["class_weight"] + totals["class_predicted"]
    gaps = xp.abs(totals["bin_correct"] - totals["bin_confidence"])
    rows = {"count": _whole(totals["class_count"]), "errors": _whole(totals["class_errors"])}
    return {
        "errors": totals["errors"],
        "accuracy": totals["correct"] / n,
        "nll": totals["nll"] / n,
        "ece": gaps.sum() / n,
        "f1_macro": _mean(2 * hits / xp.where(occurs > 0, occurs, 1.0), occurs > 0, xp),
        **_areas(found, rows, xp),
        "per_class": rows,
    }


def _of_labels(found: Found, n: Any, xp: Any) -> dict[str, Any]:
    totals = found.totals
    hits, occurs = totals["label_hits"], totals["label_true"] + totals["label_predicted"]
    f1 = 2 * hits / xp.where(occurs > 0, occurs, 1.0)
    rows = {"count": _whole(totals["label_count"]), "f1": f1}
    all_occur = occurs.sum()
    return {
        "subset_accuracy": totals["exact"] / n,
        "hamming_loss": 1 - totals["label_correct"].sum() / totals["label_weight"].sum(),
        "nll": totals["nll"] / n,
        "f1_micro": 2 * hits.sum() / xp.where(all_occur > 0, all_occur, 1.0),
        "f1_macro": f1.mean(),
        **_areas(found, rows, xp),
        "per_label": rows,
    }


def _of_numbers(found: Found, n: Any, xp: Any) -> dict[str, Any]:
    totals, spread = found.totals, xp.asarray(found.spread)
    mae, rmse = totals["absolute"] / n, xp.sqrt(totals["squared"] / n)
    varies = spread > 0
    r2 = xp.where(varies, 1 - totals["squared"] / xp.where(varies, spread, 1.0), xp.nan)
    values = {"mae": mae.mean(), "rmse": rmse.mean(), "r2": r2.mean()}
    if "z_squared" in totals:
        values |= {
            "nll": totals["nll"] / n,
            "mean_squared_z": totals["z_squared"].mean() / n,
            "coverage_90": totals["inside"].mean() / n,
        }
    return {**values, "per_output": {"mae": mae, "rmse": rmse, "r2": r2}}


def _areas(found: Found, rows: dict[str, Any], xp: Any) -> dict[str, Any]:
    """The mean areas under both curves; those of each output are put into its rows."""
    if found.curves is None:
        return {"auc": None, "average_precision": None}
    rows |= {"auc": found.curves[:, 0], "average_precision": found.curves[:, 1]}
    return {
        name: _mean(rows[name], ~xp.isnan(rows[name]), xp) for name in ("auc", "average_precision")
    }


def _mean(values: Any, where: Any, xp: Any) -> Any:
    """The mean of some values; NaN of none."""
    count = xp.where(where, 1.0, 0.0).sum()
    mean = xp.where(where, values, 0.0).sum() / xp.where(count > 0, count, 1.0)
    return xp.where(count > 0, mean, xp.nan)


def _whole(x: Any) -> Any:
    """Counts, which are summed in floats on the host."""
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x
