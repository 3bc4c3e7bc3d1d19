"""Forward passes as StableHLO with a free batch size: exported, loaded, and compared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export


class Case(NamedTuple):
    """``forward(variables, inputs)``, and arguments for it; inputs are ``[rows, ...]`` each."""

    forward: Callable[[Any, Any], Any]
    variables: Any
    inputs: Any


@pytest.fixture
def no_shapes_of_traced_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a traced function, the library reads ``x.shape``, which may hold symbols."""

    def guarded(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def of_known(x: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            assert not (caller.startswith("distill_jax") and isinstance(x, jax.core.Tracer)), (
                f"{caller} calls jnp.{function.__name__} on a traced array: use its attribute"
            )
            return function(x)

        return of_known

    for function in (jnp.shape, jnp.ndim, jnp.size):
        monkeypatch.setattr(jnp, function.__name__, guarded(function))


def assert_predicts_for_any_batch_size(case: Case, *, rtol: float = 1e-5) -> None:
    """A program with a free batch size, once loaded, says on three sizes what the model says."""
    # As plain lists of arrays, which every loader knows.
    leaves, structure = jax.tree.flatten(case.variables)

    def forward(leaves: list[Any], inputs: Any) -> list[Any]:
        return jax.tree.leaves(case.forward(jax.tree.unflatten(structure, leaves), inputs))

    (rows,) = export.symbolic_shape("rows")
    free = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), case.inputs)
    program = export.export(jax.jit(forward))(leaves, free)
    assert "stablehlo" in program.mlir_module()
    call = _quick(export.deserialize(program.serialize()).call)

    want = _quick(forward)(leaves, case.inputs)
    most = jax.tree.leaves(case.inputs)[0].shape[0]
    for size in (1, most - 1, most):
        got = call(leaves, jax.tree.map(lambda x, size=size: x[:size], case.inputs))
        for x, y in zip(got, want, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(
                *(np.asarray(z, np.float32) for z in (x, y[:size])),
                rtol=1e-2 if y.dtype == jnp.bfloat16 else rtol,
                atol=1e-5,
                err_msg=f"{size} rows",
            )


def _quick(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jitted; machine code is not polished, since each size is compiled to be called once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
