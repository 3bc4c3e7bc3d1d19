"""Terms composed into one scalar.

A term is a loss with a name, a weight, a mask and options. An objective is a weighted sum of terms.
It divides each term's sum by its *count*, which depends on the batch alone and is therefore known
before the forward pass: the gradient is the same however a batch is split into pieces, as long as
all pieces divide by the counts of the whole batch.

Both are pytrees. Weights and numeric options are leaves, so sweeping one never recompiles.
"""

from __future__ import annotations

from distill_jax.objectives.context import Context
from distill_jax.objectives.objective import Objective, Part, weighted_sum
from distill_jax.objectives.terms import Term, term

__all__ = ["Context", "Objective", "Part", "Term", "term", "weighted_sum"]
