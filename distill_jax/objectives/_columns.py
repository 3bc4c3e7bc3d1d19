"""What a term's columns must hold, by what its loss is meant for."""

from __future__ import annotations

import inspect
from typing import Any

from distill_jax import _checks
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
