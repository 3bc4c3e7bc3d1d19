"""The breakdown of a step into its parts."""

from __future__ import annotations

import re
import types

import jax
import numpy as np
import optax
import pytest

from distill_jax import models, report, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Recipe, breakdown, profiling
from distill_jax.training.watching._profiles import part_of

RNG = np.random.default_rng(0)
DATA = {
    "inputs": RNG.normal(size=(128, 16)).astype(np.float32),
    "labels": RNG.integers(0, 3, 128).astype(np.int32),
}
STUDENT = models.mlp([8], 3)
ADAM = optax.adam(1e-2)
OBJECTIVE = weighted_sum(
    term("labels", 0.5, cross_entropy), term("teacher", 0.5, soft_targets, temperature=2.0)
)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
KEY = jax.random.key(0)


def taught(width=600):
    model = models.mlp([width, width], 3)
    return {"teacher": teachers.teacher(model, *model.init(KEY, DATA["inputs"][:1]))}


def test_every_product_of_a_step_has_a_part():
    recipe = Recipe(STUDENT, ADAM, microbatches=2)
    arguments = DATA, OBJECTIVE, taught()
    state = jax.eval_shape(recipe.init, OBJECTIVE, DATA, taught(), KEY)
    program = jax.jit(recipe.step).lower(state, *arguments).as_text("hlo", debug_info=True)
    products = re.findall(r' dot\(.*op_name="([^"]*)"', program)
    parts = [part_of(name) for name in products]
    assert {"teacher", "student"} == set(parts)
    assert any("transpose(" in name for name in products)
    names = re.findall(r'op_name="([^"]*)"', program)
    assert set(map(part_of, names)) == {"teacher", "student", "loss", "update", None}


def test_a_large_teacher_takes_most_of_the_step():
    found = breakdown(
        STUDENT, OBJECTIVE, ADAM, DATA, key=KEY, teachers=taught(), batch_size=64, average_decay=0.9
    )
    assert found.method == "profile" and tuple(found.seconds) == profiling.PARTS
    computed = {n: x for n, x in found.seconds.items() if n not in ("input", "other")}
    assert min(computed.values()) > 0 and min(found.seconds.values()) >= 0
    assert max(computed, key=lambda name: computed[name]) == "teacher"
    *parts, step = found.rows()
    assert step["part"] == "step" and step["share"] == 1
    np.testing.assert_allclose(sum(row["ms"] for row in parts), step["ms"])
    assert report.table(found.rows()).row_count == 7


def test_without_operations_in_the_profile_parts_are_timed_alone(monkeypatch):
    empty = types.SimpleNamespace(planes=[])
    monkeypatch.setattr(
        jax.profiler, "ProfileData", types.SimpleNamespace(from_file=lambda path: empty)
    )
    batches = ({name: x[i : i + 64] for name, x in DATA.items()} for i in (0, 64))
    found = breakdown(STUDENT, OBJECTIVE, ADAM, batches, key=KEY, teachers=taught())
    assert found.method == "parts" and tuple(found.seconds) == profiling.PARTS
    assert found.seconds["teacher"] > 0 and min(found.seconds.values()) >= 0
    assert max(found.seconds["student"], found.seconds["loss"]) > 0


@pytest.mark.quick
def test_errors_come_before_the_step(library_errors):
    with pytest.raises(ValueError, match="batch_size must be given"):
        breakdown(STUDENT, OBJECTIVE, ADAM, DATA, key=KEY)
    with pytest.raises(ValueError, match="batch_size is for arrays in memory"):
        breakdown(STUDENT, OBJECTIVE, ADAM, [DATA], key=KEY, batch_size=3)
    with pytest.raises(ValueError, match="needs a teacher"):
        breakdown(STUDENT, OBJECTIVE, ADAM, [DATA], key=KEY)
    with pytest.raises(ValueError, match="microbatches must divide the 128 rows"):
        breakdown(STUDENT, LABELS, ADAM, [DATA], key=KEY, microbatches=3)
