"""Compiled programs are kept for those that use them again, and no others."""

from __future__ import annotations

import gc

import jax
import numpy as np
import optax
import pytest

from distill_jax import models
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import fit, run
from distill_jax.training.step import _compiled

DATA = {"inputs": np.ones((4, 2), np.float32)}
STUDENT = models.logistic_regression(2)
HOW = {"key": jax.random.key(0), "steps": 1, "batch_size": 2}


def live_programs():
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


@pytest.mark.quick
@pytest.mark.parametrize("loop", [run, fit])
def test_new_losses_and_optimizers_take_no_more_memory(loop, monkeypatch):
    monkeypatch.setattr(_compiled, "KEPT", 1)
    programs = []
    for i in range(3):

        def loss(student_logits, scale=float(i)):
            return (student_logits**2).sum(-1) * scale

        loop(STUDENT, weighted_sum(term("own", 1.0, loss)), optax.sgd(0.1), DATA, **HOW)
        programs.append(live_programs())
    assert programs[2] == programs[1]


def test_the_same_parts_share_a_program_and_others_do_not():
    traces = []

    def twice(recipe, kind, x):
        traces.append((recipe, kind))
        return 2 * x

    function = _compiled.Compiled(twice, 1)
    for recipe in ("a", "b", "a"):
        for x in (np.float32(1.0), np.float32(2.0)):
            assert function(recipe, x, x) == 2 * x
    assert [recipe for recipe, _ in traces] == ["a", "b"]
    assert function.lower("a", np.float32(1.0), np.float32(1.0)).compile() is not None
