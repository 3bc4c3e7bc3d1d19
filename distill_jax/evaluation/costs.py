"""What a model costs in memory and time, and how much smaller one model is than another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from distill_jax import _batches, _checks
from distill_jax import data as data_
from distill_jax._arguments import checked
from distill_jax.types import Model, Params, State


@checked
def cost(
    model: Model, params: Params, state: State, inputs: Any, *, repeats: int = 20
) -> dict[str, Any]:
    """Size and speed of a model in evaluation mode, for batches like ``inputs``.

    The measured program returns logits only, so that features cost nothing. Times depend on the
    machine and its load: measure models that you compare in one run.

    Args:
      model: Compiled once.
      params: Its parameters.
      state: Its state.
      inputs: One batch, an array ``[batch, ...]`` or a tree of them.
      repeats: Timed calls, after one warm-up call.

    Returns:
      A dictionary of Python numbers:

      - ``parameters``: how many there are.
      - ``bytes``: of parameters and state.
      - ``batch_size``: rows of ``inputs``.
      - ``flops``: floating-point operations per example, as the compiler counts them in the
        compiled program (the body of a loop counts once); None if it gives no count.
      - ``latency_ms``: median time of one call with the whole batch.
      - ``compile_s``: time to trace and compile.
      - ``temp_bytes``: memory that a call takes besides arguments and results; None if the
        compiler does not report it.

    Raises:
      ValueError: if ``inputs`` has no rows, or arrays of different lengths, ``repeats`` is below 1,
        or under ``jax_disable_jit``.

    Example:
      >>> import jax.numpy as jnp
      >>> from distill_jax.models import logistic_regression
      >>> model, inputs = logistic_regression(3), jnp.ones((2, 4))
      >>> cost(model, *model.init(jax.random.key(0), inputs), inputs)["parameters"]
      15
    """
    _checks.compiles("cost", "count parameters with jax.tree.leaves(params)")
    repeats = _checks.count("repeats", repeats)
    _checks.arrays(params=params, state=state, inputs=inputs)
    data_.check({"inputs": inputs}, values=())
    rows = _batches.rows({"inputs": inputs})
    arguments = jax.device_put((params, state, inputs))
    start = time.perf_counter()
    with _checks.variables_of(model, params, state, inputs):
        traced = jax.jit(lambda p, s, x: model.predict(p, s, x).logits).lower(*arguments)
    program = traced.compile()
    compile_s = time.perf_counter() - start
    times = [_timed(program, arguments) for _ in range(repeats + 1)][1:]
    flops = _flops(program)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments[:2])),
        "batch_size": rows,
        "flops": None if flops is None else flops / rows,
        "latency_ms": 1e3 * statistics.median(times),
        "compile_s": compile_s,
        "temp_bytes": getattr(program.memory_analysis(), "temp_size_in_bytes", None),
    }


@checked
def compression(big: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, float | None]:
    """How many times smaller and faster one model is than another.

    Args:
      big: From :func:`cost`.
      small: From :func:`cost`, with batches of the same size.

    Returns:
      ``big / small`` of ``parameters``, ``bytes``, ``flops`` and ``latency_ms``; None where either
      is not known, or the small one is 0.

    Raises:
      ValueError: if the two were measured with batches of different size.

    Example:
      >>> big = {"parameters": 100, "bytes": 400, "flops": None, "latency_ms": 3.0, "batch_size": 1}
      >>> compression(big, big | {"parameters": 10})["parameters"]
      10.0
    """
    names = ("parameters", "bytes", "flops", "latency_ms")
    for who, figures in (("big", big), ("small", small)):
        if lacking := [name for name in ("batch_size", *names) if name not in figures]:
            raise ValueError(f"{who} must come from cost, got a dictionary without {lacking}")
    if big["batch_size"] != small["batch_size"]:
        raise ValueError(
            "big and small must be measured with batches of the same size, got "
            f"{big['batch_size']} and {small['batch_size']}"
        )
    return {
        name: big[name] / small[name] if big[name] is not None and small[name] else None
        for name in names
    }


def _timed(program: Any, arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))  # or the clock stops at dispatch
    return time.perf_counter() - start


def _flops(program: Any) -> float | None:
    analysis = program.cost_analysis()
    if isinstance(analysis, list | tuple):  # one per device, in older versions of jax
        analysis = analysis[0] if analysis else None
    flops = (analysis or {}).get("flops", -1)
    return float(flops) if flops >= 0 else None
