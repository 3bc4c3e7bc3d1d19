"""A student from a folder of checkpoints, without the run that wrote them."""

from __future__ import annotations

import dataclasses
import shutil

import chex
import jax
import numpy as np
import optax
import pytest

from distill_jax import evaluation, models, teachers
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import CheckpointError, Checkpoints, fit, load, run

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
STUDENT = models.mlp([4], 3, classes=("u", "v", "w"))
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
HOW = {"key": jax.random.key(0), "batch_size": 8}
FIGURES = {2: 0.1, 4: 0.9, 6: 0.9, 8: 0.3}


def saved(folder, optimizer=None, **options):
    optimizer = optimizer or optax.adam(0.1)
    how = {**HOW, "steps": 8, "steps_per_call": 2, "evaluate_every": 2} | options
    checkpoints = Checkpoints(folder, best="accuracy", keep=2)
    how = {
        "evaluate": lambda s: {"accuracy": FIGURES[int(s.step)]},
        "checkpoints": checkpoints,
    } | how
    return fit(STUDENT, LABELS, optimizer, DATA, **how)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved(folder, average_decay=0.5)
    return folder


@pytest.mark.quick
def test_the_last_the_best_and_any(folder):
    last, best = load(folder, STUDENT, INPUTS), load(folder, STUDENT, INPUTS, step="best")
    assert (last.step, best.step, best.metrics) == (8, 6, {"accuracy": 0.9})
    same = load(folder, STUDENT, INPUTS, step=6)
    chex.assert_trees_all_equal(same.params, best.params)
    for found in (last, best):
        state = run(
            STUDENT, LABELS, optax.adam(0.1), DATA, **HOW, steps=found.step, average_decay=0.5
        )[0]
        chex.assert_trees_all_equal(found.params, state.params)
        chex.assert_trees_all_equal(found.average, state.average)
    evaluation.evaluate(STUDENT, last.params, last.state, DATA)
    teachers.teacher(STUDENT, *last.average)
    start = last.params, last.state
    assert run(STUDENT, LABELS, optax.adam(0.1), DATA, **HOW, steps=1, start=start)[0].step == 1


def test_a_folder_in_use_is_left_as_it_is(folder, tmp_path):
    copy = tmp_path / "copy [1]"  # characters that Orbax reads as a pattern
    shutil.copytree(folder, copy)
    going_on = copy / "10.orbax-checkpoint-tmp-1"
    going_on.mkdir()
    (copy / ".lock").touch()
    before = sorted(str(path) for path in copy.rglob("*"))
    assert load(copy, STUDENT, INPUTS).step == 8
    assert sorted(str(path) for path in copy.rglob("*")) == before


def test_state_without_an_average_and_another_optimizer(tmp_path):
    state = saved(tmp_path, optax.contrib.schedule_free_sgd(0.1), steps=2)
    with pytest.warns(UserWarning, match="evaluates other parameters than it trains"):
        found = load(tmp_path, STUDENT, INPUTS)
    chex.assert_trees_all_equal(found.params, state.params)
    assert found.average is None


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (models.mlp([6], 3), r"'params/hidden/0/kernel' is float32\[5, 4\], the model's is fl"),
            (models.logistic_regression(3), "missing are .*'params/kernel'.*the model has no"),
            (dataclasses.replace(STUDENT, classes=("w", "v", "u")), r"classes are \['u', 'v', 'w'"),
            (models.mlp([4], 3, outputs="regression"), "outputs are 'softmax'"),
        ],
    )
    def test_of_another_model(self, folder, model, words):
        with pytest.raises(ValueError, match=f"step 8 in .* is of another model: .*{words}"):
            load(folder, model, INPUTS)

    @pytest.mark.parametrize("step", [5, "first", True, 8.5])
    def test_of_a_step(self, folder, step):
        with pytest.raises((ValueError, TypeError), match="step"):
            load(folder, STUDENT, INPUTS, step=step)

    def test_of_a_folder(self, folder, tmp_path):
        for other in (tmp_path, tmp_path / "none", folder / "configuration.json"):
            with pytest.raises(ValueError, match="folder must be a folder of checkpoints"):
                load(other, STUDENT, INPUTS)
        (tmp_path / "4").mkdir()
        (tmp_path / "4" / "something").touch()
        with pytest.raises((ValueError, CheckpointError), match="checkpoints?"):
            load(tmp_path, STUDENT, INPUTS)

    def test_of_a_folder_without_a_best(self, tmp_path):
        saved(tmp_path, steps=2, checkpoints=Checkpoints(tmp_path))
        with pytest.raises(ValueError, match=r'not be "best" where no metric.*steps \[2\]'):
            load(tmp_path, STUDENT, INPUTS, step="best")

    def test_of_damage(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        for path in (tmp_path / "copy" / "8" / "state").rglob("d/*"):
            path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(CheckpointError, match="step 8 in .*damaged"):
            load(tmp_path / "copy", STUDENT, INPUTS)
