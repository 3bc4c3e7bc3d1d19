"""Traces of a few calls of a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from distill_jax.training.watching._tracing import tracing

# JAX makes the type of an event's statistics when they are first read, and Python 3.12 warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


@jax.jit
def double(x):
    return 2 * x


def steps_in(folder):
    """The numbers of the annotated steps in a trace."""
    (file,) = folder.rglob("*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            found += [dict(e.stats).get("step_num") for e in line.events if e.name == "train"]
    return sorted(found)


def test_a_trace_holds_a_few_calls_after_the_first(tmp_path):
    x = jnp.ones(3)
    with tracing(tmp_path, skip=1, calls=2) as tracer:
        for call in range(5):
            x = tracer.call(16 * call, double, x)
            assert tracer.active == (call == 1)
    assert x[0] == 32 and steps_in(tmp_path) == [16, 32]


def test_a_run_that_ends_or_fails_writes_what_it_has(tmp_path):
    with pytest.raises(KeyboardInterrupt), tracing(tmp_path) as tracer:
        for call in range(2):
            tracer.call(call, double, jnp.ones(3))
        raise KeyboardInterrupt
    assert steps_in(tmp_path) == [1]
    with pytest.warns(RuntimeWarning, match="no trace was written.*before call 2"):
        with tracing(tmp_path / "other") as tracer:
            tracer.call(0, double, jnp.ones(3))
    with tracing(None) as tracer:
        assert tracer.call(0, double, jnp.ones(3)).shape == (3,)


@pytest.mark.quick
def test_a_second_profiler_does_not_stop_training(tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        with pytest.warns(RuntimeWarning, match="no trace could be written.*continues") as met:
            with tracing(tmp_path / "mine", skip=0) as tracer:
                for call in range(3):
                    assert tracer.call(call, double, jnp.ones(3))[0] == 2
    assert len(met) == 1
