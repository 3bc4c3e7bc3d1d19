"""What every docstring's example may use without importing it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(autouse=True)
def _names_of_docstring_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(jax=jax, jnp=jnp)
