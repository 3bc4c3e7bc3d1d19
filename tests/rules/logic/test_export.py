"""Programs with a free batch size: exported, stored, loaded and called on several sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from distill_jax.rules import energies, fires, forbidden, log_truth, truth, violation
from distill_jax.rules.logic.evaluation import weighted_violation
from tests.rules import small_books

WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0], np.float32)

Asked = Callable[..., Any]


@functools.cache
def functions(kind: str) -> dict[str, Asked]:
    """What is asked of a book, of columns and probabilities (or, taken so, logits)."""
    if kind == "labels":
        book = small_books.labels()
        return {
            "fires": lambda x, p: fires(book, x),
            "truth": lambda x, p: truth(book, x, p),
            "violation": lambda x, p: violation(book, x, p),
            "log_truth": lambda x, p: log_truth(book, x, p),
            "weighted": lambda x, p: weighted_violation(book, x, p, WEIGHTS, squared=True),
        }
    book = small_books.plain()
    return {
        "fires": lambda x, p: fires(book, x, unknown=True),
        "truth": lambda x, p: truth(book, x, p),
        "violation": lambda x, p: violation(book, x, p),
        "energies": lambda x, p: energies(book, x),
        "forbidden": lambda x, p: forbidden(book, x),
        "log_truth": lambda x, p: log_truth(book, x, p),
        "weighted": lambda x, p: weighted_violation(book, x, p, WEIGHTS),
    }


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_a_free_batch_size(kind: str) -> None:
    def every(x: Any, p: Any) -> dict[str, Any]:
        return {name: function(x, p) for name, function in functions(kind).items()}

    (batch,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (2, 3)]
    stored = export.export(jax.jit(every))(*shapes).serialize()
    loaded = export.deserialize(stored)
    _, columns, _ = small_books.data()
    p = np.random.default_rng(0).dirichlet(np.ones(3), 8).astype(np.float32)
    want = jax.jit(every)(columns, p)
    for size in (1, 5, 8):
        got = loaded.call(columns[:size], p[:size])
        for name, x in got.items():
            np.testing.assert_allclose(x, want[name][:size], rtol=1e-5, atol=1e-6, err_msg=name)
