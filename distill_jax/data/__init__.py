"""Data: where it is stored, checks of it, and how it is split into batches.

A data set is a mapping of named arrays that share their leading axis (a ``Batch``, just longer):
``inputs``, often ``labels`` or ``targets``, and optionally ``where``.
"""

from __future__ import annotations

from distill_jax.data.batching import batch_indices, batches, padded_batches, split, take
from distill_jax.data.checking import check
from distill_jax.data.datasets import download, mnist
from distill_jax.data.files import folder
from distill_jax.data.prefetching import prefetch
from distill_jax.data.streams import padded, positions

__all__ = [
    "batch_indices",
    "batches",
    "check",
    "download",
    "folder",
    "mnist",
    "padded",
    "padded_batches",
    "positions",
    "prefetch",
    "split",
    "take",
]
