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

from distill_jax import teachers
from distill_jax.types import Model
from tests.models.drawing import drawn


class Case(NamedTuple):
    """``forward(variables, inputs)``, and arguments for it: inputs are ``[rows, ...]`` each."""

    forward: Callable[[Any, Any], Any]
    variables: Any
    inputs: Any


def of_model(model: Model, inputs: Any) -> Case:
    """A model in evaluation mode; inputs are an array or a pytree of arrays, ``[rows, ...]``."""
    return Case(lambda variables, x: model.predict(*variables, x), drawn(model, inputs), inputs)


def of_teacher(teacher: teachers.Teacher, inputs: Any) -> Case:
    variables = teacher.params, teacher.state
    return Case(lambda variables, x: teacher.predict(*variables, x), variables, inputs)


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


def assert_predicts_for_any_batch_size(case: Case) -> None:
    """A program with a free batch size, once loaded, gives the model's outputs on three sizes."""
    leaves, structure = jax.tree.flatten(case.variables)  # as a plain list, known to every loader

    def forward(leaves: list[Any], inputs: Any) -> dict[str, Any]:
        outputs = case.forward(jax.tree.unflatten(structure, leaves), inputs)
        return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(outputs)}

    (rows,) = export.symbolic_shape("rows")
    free = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), case.inputs)
    program = export.export(jax.jit(forward))(leaves, free)
    assert "stablehlo" in program.mlir_module()
    loaded = _quick(export.deserialize(program.serialize()).call)

    want = _quick(forward)(leaves, case.inputs)
    most = jax.tree.leaves(case.inputs)[0].shape[0]
    for size in (1, most - 1, most):
        got = loaded(leaves, jax.tree.map(lambda x, size=size: x[:size], case.inputs))
        assert got.keys() == want.keys()
        for path in want:
            assert got[path].dtype == want[path].dtype
            np.testing.assert_allclose(
                *(np.asarray(x, np.float32) for x in (got[path], want[path][:size])),
                rtol=1e-2 if want[path].dtype == jnp.bfloat16 else 1e-5,
                atol=1e-5,
                err_msg=f"{path} of {size} rows",
            )


def _quick(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jitted without polishing machine code: each size is compiled to be called once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
