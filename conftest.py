"""What tests and docstrings' examples share: names, and the programs that were compiled."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Shares compiled programs among the workers of a session and the processes that tests start.

    Compiling is most of what the tests cost. JAX keeps each program in a folder, by a hash of the
    program, the compiler's options and the versions. The folder is new in each session, so that no
    test depends on an earlier one, unless ``JAX_COMPILATION_CACHE_DIR`` names one to keep.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="distill_jax_programs_")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # JAX read the environment when it was imported.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts every docstring's example into the short set: they call most of the package."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _names_of_docstring_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(jax=jax, jnp=jnp)
