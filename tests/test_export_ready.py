"""Forward passes as StableHLO with a free batch size: exported, loaded, and compared.

A new model joins by one line in ``CASES``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from distill_jax import models, teachers
from distill_jax.types import Model, Outputs
from tests.models.drawing import drawn

ROWS = 4
TABLE = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 8)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, 6, 5, 2)), jnp.float32)


class Case(NamedTuple):
    """``forward(variables, inputs)``, and arguments for it."""

    forward: Callable[[Any, Any], Outputs]
    variables: Any
    inputs: Any


def of_model(model: Model, inputs: Any = TABLE, variables: Any = None) -> Case:
    """A model in evaluation mode; inputs are an array or a pytree of arrays, ``[ROWS, ...]``."""
    variables = drawn(model, inputs) if variables is None else variables
    return Case(lambda variables, x: model.predict(*variables, x), variables, inputs)


def of_teacher(change: Callable[[teachers.Teacher], teachers.Teacher], inputs: Any = TABLE) -> Case:
    """What ``change`` makes of a teacher."""
    changed = change(teachers.teacher(SMALL, *drawn(SMALL, inputs)))
    variables = changed.params, changed.state
    return Case(lambda variables, x: changed.predict(*variables, x), variables, inputs)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(5, name="hidden")(x))
        return nn.Dense(3, name="head")(nn.gelu(x))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, inputs: Any):
        self.hidden = nnx.Linear(inputs.shape[-1], 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.cell = nnx.RNN(nnx.SimpleCell(3, 3, rngs=rngs))
        self.head = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(self.norm(self.hidden(x)))
        return self.head(self.cell(x.reshape(x.shape[0], 2, 3))[:, -1])


SMALL = models.mlp([16], 3, dropout=0.5, classes=("a", "b", "c"))
CONVNET = models.convnet([3, 4], 3)

CASES: dict[str, Callable[[], Case]] = {
    "logistic regression": lambda: of_model(models.logistic_regression()),
    "mlp": lambda: of_model(SMALL, TABLE.reshape(ROWS, 2, 4)),
    "convnet": lambda: of_model(CONVNET, IMAGES),
    "resnet": lambda: of_model(models.resnet(8, 3, width=2), IMAGES),
    "cast": lambda: of_model(models.cast(CONVNET, jnp.bfloat16), IMAGES),
    "remat": lambda: of_model(models.remat(models.cast(SMALL, jnp.bfloat16))),
    "Linen": lambda: of_model(models.from_linen(Linen(), features="all")),
    "NNX": lambda: of_model(models.from_nnx(Nnx)),
    "teacher": lambda: of_teacher(lambda t: t),
    "ensemble": lambda: of_teacher(lambda t: teachers.ensemble([t, t])),
    "geometric ensemble": lambda: of_teacher(lambda t: teachers.ensemble([t, t], mix="log")),
    "reordered teacher": lambda: of_teacher(lambda t: teachers.reorder(t, "cab")),
    "cast teacher": lambda: of_teacher(teachers.cast),
    "quantized teacher": lambda: of_teacher(lambda t: teachers.quantize(t, smallest=9)),
}


@pytest.fixture(autouse=True)
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


# A symbol in a shape is no int, which annotations ask for.
@pytest.mark.quick
@pytest.mark.usefixtures("library_errors")
@pytest.mark.parametrize("name", CASES)
def test_a_loaded_program_predicts_for_any_batch_size(name: str) -> None:
    case = CASES[name]()
    leaves, structure = jax.tree.flatten(case.variables)  # as a plain list, known to every loader

    def forward(leaves: list[Any], inputs: Any) -> dict[str, Any]:
        outputs = case.forward(jax.tree.unflatten(structure, leaves), inputs)
        return {"logits": outputs.logits, **outputs.features}

    (rows,) = export.symbolic_shape("rows")
    free = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), case.inputs)
    program = export.export(jax.jit(forward))(leaves, free)
    assert "stablehlo" in program.mlir_module()
    loaded = export.deserialize(program.serialize())

    want = jax.jit(forward)(leaves, case.inputs)
    for size in (1, ROWS - 1, ROWS):
        got = loaded.call(leaves, jax.tree.map(lambda x, size=size: x[:size], case.inputs))
        assert got.keys() == want.keys()
        for path in want:
            assert got[path].dtype == want[path].dtype
            np.testing.assert_allclose(
                *(np.asarray(x, np.float32) for x in (got[path], want[path][:size])),
                rtol=1e-2 if want[path].dtype == jnp.bfloat16 else 1e-5,
                atol=1e-5,
                err_msg=f"{path} of {size} rows",
            )
