"""What a term's columns must hold, by what its loss is meant for."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from distill_jax import _batches, _checks
from distill_jax.objectives.terms import Term
from distill_jax.types import Batch, OutputKind


def label_values(term: Term, num_outputs: int, outputs: OutputKind) -> int | None:
    """How many values the labels may have that a term reads; None where it is not known."""
    values = getattr(term.loss, "label_values", None)
    if values is not None:
        return values(num_outputs)
    return num_outputs if outputs == "softmax" else None


def labels_that_count(term: Term, data: Batch, labels: Any, mask: Any) -> Any:
    """The mask without the labels that the loss leaves out by its parameter ``known``."""
    if "known" not in inspect.signature(term.loss).parameters:
        return mask
    known = data.get(dict(term.reads).get("known", "known"))
    if known is None or known.shape != labels.shape or known.dtype != bool:
        return mask  # the loss will say so, where it reads it
    if mask is None:
        return known
    return mask.reshape(mask.shape + (1,) * (known.ndim - mask.ndim)) & known


def check_weights(term: Term, data: Batch) -> None:
    """Weights of rows are finite and not negative, in the rows that where= keeps."""
    column = None if term.sample_weight is None else _batches.found(data, term.sample_weight)
    if column is None:
        return  # one that is missing is an error of the first trace
    who = f"sample_weight of term {term.name!r}"
    term.row_weights(data)  # raises for what is no array of numbers
    kept = term.kept(data)
    values, mask = _checks.known(column), None if kept is None else _checks.known(kept)
    if values is None or (kept is not None and mask is None):
        return
    if mask is not None:
        axes = min(mask.ndim, values.ndim)
        if mask.shape[:axes] != values.shape[:axes]:
            raise ValueError(
                f"{who} has shape {values.shape}, its mask {mask.shape}: they must begin with the "
                "same axes"
            )
        mask = mask.any(axis=tuple(range(axes, mask.ndim)))
        values = values[mask]
    good = np.isfinite(values) & (values >= 0)
    if not good.all():
        raise ValueError(
            f"{who} must be finite and >= 0 in the rows that count, got {values[~good][0]} in "
            f"{int((~good).sum())} of {values.size}: fix them, or mask the rows with where=False"
        )


def check_begins(term: Term, data: Batch, mask: Any, name: str, x: Any) -> None:
    """Raises ValueError for a mask that does not begin with the axes of a column of its term."""
    if mask is not None and mask.shape != x.shape[: mask.ndim]:
        kept = term.kept(data)
        who = "where" if kept is not None and kept.shape == mask.shape else "sample_weight"
        raise ValueError(
            f"{who} of term {term.name!r} has shape {mask.shape}, its column {name!r} {x.shape}: "
            "they must begin with the same axes"
        )


def check_probabilities(who: str, column: Any, mask: Any) -> None:
    """Probabilities ``[..., classes]`` are not negative, and not all 0 in a row."""
    values, kept = _checks.known(column), None if mask is None else _checks.known(mask)
    if values is None or (kept is None and mask is not None):
        return
    values = values if kept is None else values[kept]
    if values.size and not (values.min() >= 0 and (values.max(axis=-1) > 0).all()):
        raise ValueError(
            f"{who} must be probabilities, >= 0 and not all 0 in a row, got values from "
            f"{values.min()} and {int((values.max(axis=-1) <= 0).sum())} rows without a class: fix "
            "them, or mask them with where=False"
        )
