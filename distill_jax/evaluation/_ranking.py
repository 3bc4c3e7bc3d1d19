"""How well scores rank positives above negatives, exactly, from all scores, on the host.

Ties count half, and rows have weights. Equal to scikit-learn's ``roc_auc_score`` and
``average_precision_score``.
"""

from __future__ import annotations

import numpy as np


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher score.

    Args:
      scores: ``[n]``; infinite ones are fine.
      positive: Booleans, ``[n]``.
      weights: ``[n]``, >= 0.

    Returns:
      The area under the ROC curve; NaN without a positive or without a negative, or for a score
      that is NaN.
    """
    hits, false_alarms = _counts(scores, positive, weights)
    total = hits[-1] * false_alarms[-1]
    if not total > 0:
        return float("nan")
    return float((np.diff(false_alarms) * (hits[1:] + hits[:-1])).sum() / (2 * total))


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """The mean precision at the positives, a sum over steps of recall without interpolation.

    Args:
      scores: ``[n]``; infinite ones are fine.
      positive: Booleans, ``[n]``.
      weights: ``[n]``, >= 0.

    Returns:
      The area under the precision-recall curve; NaN without a positive, or for a score that is NaN.
    """
    hits, false_alarms = _counts(scores, positive, weights)
    if not hits[-1] > 0:
        return float("nan")
    found = hits[1:] + false_alarms[1:]
    precision = hits[1:] / np.where(found > 0, found, 1.0)
    return float((np.diff(hits) * precision).sum() / hits[-1])


def _counts(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of positives and of negatives above each distinct score, from 0 to all."""
    if np.isnan(scores[weights > 0]).any():
        return np.full(2, np.nan), np.full(2, np.nan)
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[order].astype(np.float64)
    # Cumulated over all rows and read off at the last row of each distinct score.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], scores.size > 0))
    hits, false_alarms = (np.cumsum(weights * kind)[last] for kind in (positive, ~positive))
    return np.append(0.0, hits), np.append(0.0, false_alarms)
