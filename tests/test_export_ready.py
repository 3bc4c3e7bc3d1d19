"""Forward passes as StableHLO with a free batch size: exported, loaded, and compared.

A new model joins by one line in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax import models, teachers
from tests.exporting import (
    Case,
    assert_predicts_for_any_batch_size,
    no_shapes_of_traced_arrays,  # noqa: F401 - a fixture
    of_model,
    of_teacher,
)
from tests.models.drawing import drawn

ROWS = 4
TABLE = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 8)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, 6, 5, 2)), jnp.float32)
SENTENCES = {"tokens": jnp.arange(ROWS * 3).reshape(ROWS, 3) % 7, "mask": jnp.ones((ROWS, 3))}


def of_changed(change: Callable[[teachers.Teacher], teachers.Teacher]) -> Case:
    """What ``change`` makes of a teacher."""
    return of_teacher(change(teachers.teacher(SMALL, *drawn(SMALL, TABLE))), TABLE)


def of_labels(change: Callable[[teachers.Teacher], teachers.Teacher]) -> Case:
    model = models.logistic_regression(3, outputs="multi_label")
    return of_teacher(change(teachers.teacher(model, *drawn(model, TABLE))), TABLE)


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


class Reader(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask):
        hidden = nn.Embed(7, 4)(tokens) * mask[..., None]
        return {"hidden": hidden, "scores": nn.Dense(3)(hidden.mean(1))}


SMALL = models.mlp([16], 3, dropout=0.5, classes=("a", "b", "c"))
CONVNET = models.convnet([3, 4], 3)

CASES: dict[str, Callable[[], Case]] = {
    "logistic regression": lambda: of_model(models.logistic_regression(), TABLE),
    "mlp": lambda: of_model(SMALL, TABLE.reshape(ROWS, 2, 4)),
    "convnet": lambda: of_model(CONVNET, IMAGES),
    "resnet": lambda: of_model(models.resnet(8, 3, width=2), IMAGES),
    "cast": lambda: of_model(models.cast(CONVNET, jnp.bfloat16), IMAGES),
    "remat": lambda: of_model(models.remat(models.cast(SMALL, jnp.bfloat16)), TABLE),
    "Linen": lambda: of_model(models.from_linen(Linen(), features="all"), TABLE),
    "named inputs": lambda: of_model(models.from_linen(Reader(), logits="scores"), SENTENCES),
    "NNX": lambda: of_model(models.from_nnx(Nnx), TABLE),
    "teacher": lambda: of_changed(lambda t: t),
    "ensemble": lambda: of_changed(lambda t: teachers.ensemble([t, t])),
    "geometric ensemble": lambda: of_changed(lambda t: teachers.ensemble([t, t], mix="log")),
    "one number": lambda: of_model(models.mlp([4], 1, outputs="regression"), TABLE),
    "ensemble of labels": lambda: of_labels(lambda t: teachers.ensemble([t, t])),
    "augmented teacher": lambda: of_changed(lambda t: teachers.augmented(t, [jnp.sin, jnp.cos])),
    "reordered teacher": lambda: of_changed(lambda t: teachers.reorder(t, tuple("cab"))),
    "cast teacher": lambda: of_changed(teachers.cast),
    "quantized teacher": lambda: of_changed(lambda t: teachers.quantize(t, smallest=9)),
}


# A symbol in a shape is no int, which annotations ask for.
@pytest.mark.quick
@pytest.mark.usefixtures("library_errors", "no_shapes_of_traced_arrays")
@pytest.mark.parametrize("name", CASES)
def test_a_loaded_program_predicts_for_any_batch_size(name: str) -> None:
    assert_predicts_for_any_batch_size(CASES[name]())
