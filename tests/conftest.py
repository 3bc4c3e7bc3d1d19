"""Settings that every test runs under."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest

# The same examples each time: a failure seen once can be seen again. No deadline, since a first
# call compiles.
hypothesis.settings.register_profile("distill_jax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("distill_jax")

# Arrays of different rank never broadcast by accident, in the library or in a test.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def library_errors() -> Iterator[None]:
    """Switches the checks of annotations off: for tests of the library's own messages.

    The tests check shapes against annotations in every call, and that check would complain before
    the library does.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def compiled_hastily() -> Iterator[None]:
    """Compiles without polishing the machine code: for whole examples that run only briefly.

    Nearly halves the time of compiling. Not for tests of accuracy, of bits or of memory. Nothing
    compiled so outlives the test.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
