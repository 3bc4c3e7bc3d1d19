"""Which terms of an objective have counted a row of a stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from distill_jax.objectives import Term
from distill_jax.types import Batch


class CountedTerms:
    """Looks at the masks of batches until each term has counted a row, in most runs at one batch.

    Attributes:
      waiting: Terms that have not counted a row yet.
    """

    def __init__(self, terms: Iterable[Term]):
        self.waiting = list(terms)

    def watched(self, pairs: Iterable[tuple[Batch, Any]]) -> Iterator[tuple[Batch, Any]]:
        """The same batches with their positions, looked at as they pass."""
        for batch, position in pairs:
            if self.waiting:
                masks = [(term, term.mask(batch)) for term in self.waiting]
                self.waiting = [t for t, m in masks if m is not None and not np.asarray(m).any()]
            yield batch, position

    def warn(self, steps: int) -> None:
        """Warns of terms that have counted no row in all the steps."""
        if self.waiting and steps:
            names = [term.name for term in self.waiting]
            warnings.warn(
                f"the masks of {names} counted no row in {steps} steps, so these terms added "
                "nothing to the loss: look at their where= and at the data's column 'where'",
                stacklevel=3,
            )
