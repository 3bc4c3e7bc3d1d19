"""What run, fit and breakdown share before the first step: one check, one trace."""

from __future__ import annotations

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from distill_jax import models, teachers
from distill_jax.data import checking
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import (
    Checkpoints,
    Layout,
    NonFiniteLoss,
    breakdown,
    data_parallel,
    fit,
    run,
    shard_by_name,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 16).astype(np.int32)
IMAGES = {"inputs": RNG.normal(size=(16, 4, 4, 1)).astype(np.float32), "labels": LABELS}
DATA = {"inputs": RNG.normal(size=(16, 5)).astype(np.float32), "labels": LABELS}
STUDENT = models.logistic_regression(3)
CONVNET = models.convnet([2], 3)
ADAM = optax.adam(1e-2)
OBJECTIVE = weighted_sum(term("labels", 1.0, cross_entropy))
KEY = jax.random.key(0)
HOW = {"key": KEY, "batch_size": 8}


def counted(model):
    """The model, and how often Python calls it: in training and in evaluation mode, to start."""
    calls = collections.Counter()

    def init(key, inputs):
        calls["init"] += 1
        return model.init(key, inputs)

    def apply(params, state, inputs, *, key=None, train=False):
        calls["train" if train else "eval"] += 1
        return model.apply(params, state, inputs, key=key, train=train)

    return dataclasses.replace(model, init=init, apply=apply), calls


def fit_with_checkpoints(model, objective, optimizer, data, *, folder, **how):
    options = {"steps": 4, "progress": False, "checkpoints": Checkpoints(folder, every=2)}
    fit(model, objective, optimizer, data, **options, **how)


@pytest.mark.parametrize(
    ("loop", "model", "data", "more"),
    [
        (functools.partial(run, steps=3), STUDENT, DATA, {}),
        (functools.partial(run, steps=3), CONVNET, IMAGES, {}),
        (functools.partial(run, steps=3), STUDENT, DATA, {"microbatches": 2}),
        (fit_with_checkpoints, STUDENT, DATA, {}),
        (fit_with_checkpoints, CONVNET, IMAGES, {}),
        (functools.partial(fit, steps=3), CONVNET, IMAGES, {"layout": data_parallel}),
        (breakdown, STUDENT, DATA, {}),
        (breakdown, CONVNET, IMAGES, {}),
    ],
    ids=[
        "run", "run a convnet", "run in microbatches", "fit", "fit a convnet",
        "fit a convnet on a layout", "breakdown", "breakdown of a convnet",
    ],
)  # fmt: skip
def test_the_student_is_traced_once_for_the_step(loop, model, data, more, tmp_path):
    """Looking for convolutions, the hash of the configuration and compiling share one trace.

    The others: the shapes of its outputs are found once before anything else, in evaluation mode
    (``init`` and ``apply``), and the program that makes the state calls ``init``. The same call
    again traces nothing.
    """
    student, calls = counted(model)
    for name in ("first", "second"):
        own = {"folder": tmp_path / name} if loop is fit_with_checkpoints else {}
        if "layout" in more:
            own["layout"] = data_parallel(jax.devices()[:1])
        loop(student, OBJECTIVE, ADAM, data, **{**HOW, **more, **own})
        assert calls == {"init": 2, "eval": 1, "train": 1}


def test_a_layout_with_checkpoints_costs_one_trace_more(tmp_path):
    """The configuration must not depend on the layout, which may be another one next time."""
    student, calls = counted(STUDENT)
    big = {"big": teachers.teacher(STUDENT, *STUDENT.init(KEY, DATA["inputs"][:1]))}
    objective = weighted_sum(term("big", 1.0, soft_targets))
    layout = data_parallel(jax.devices()[:1])
    how = {**HOW, "layout": layout, "teachers": big, "folder": tmp_path}
    fit_with_checkpoints(student, objective, ADAM, DATA, **how)
    assert calls == {"init": 3, "eval": 1, "train": 2}


def test_a_term_with_parameters_is_shown_the_student_once_more():
    def init(key, student_logits):
        return jnp.ones((1, student_logits.shape[-1])), None

    def scaled(params, state, student_logits, labels):
        return cross_entropy(student_logits * params, labels), state

    student, calls = counted(STUDENT)
    objective = weighted_sum(term("scaled", 1.0, scaled, init=init))
    run(student, objective, ADAM, DATA, **HOW, steps=2)
    assert calls == {"init": 2, "eval": 1, "train": 2}


@pytest.mark.parametrize("loop", [run, fit, breakdown])
def test_values_are_looked_at_once(loop, monkeypatch):
    looked_at = collections.Counter()

    def finite(name, *rest):
        looked_at[name] += 1
        return plain(name, *rest)

    plain = checking._finite
    monkeypatch.setattr(checking, "_finite", finite)
    data = {**DATA, "teacher_logits": RNG.normal(size=(16, 3)).astype(np.float32)}
    objective = weighted_sum(
        term("labels", 0.5, cross_entropy),
        term("warm", 0.3, soft_targets, temperature=4.0),
        term("cold", 0.2, soft_targets, temperature=1.0),
    )
    steps = {} if loop is breakdown else {"steps": 2}
    loop(STUDENT, objective, ADAM, data, **HOW, **steps)
    assert looked_at == {"inputs": 1, "teacher_logits": 1}


class TestBreakdownTakesWhatFitTakes:
    def test_it_closes_its_data(self):
        closed = []

        class Stream:
            def __iter__(self):
                try:
                    while True:
                        yield DATA
                finally:
                    closed.append(True)

        breakdown(STUDENT, OBJECTIVE, ADAM, Stream(), key=KEY)
        assert closed == [True]
        with pytest.raises(ValueError, match="microbatches must divide"):
            breakdown(STUDENT, OBJECTIVE, ADAM, Stream(), key=KEY, microbatches=3)
        assert closed == [True, True]

    @pytest.mark.quick
    def test_no_microbatches_are_refused(self, library_errors):
        with pytest.raises(ValueError, match="microbatches must be 1 or more, got 0"):
            breakdown(STUDENT, OBJECTIVE, ADAM, DATA, **HOW, microbatches=0)

    def test_augmentation_may_change_the_number_of_rows(self):
        def half(key, batch):
            return {name: x[:4] for name, x in batch.items()}

        how = {"key": KEY, "batch_size": 5, "microbatches": 2, "augment": half}
        found = breakdown(STUDENT, OBJECTIVE, ADAM, DATA, **how)
        assert found.step > 0
        fit(STUDENT, OBJECTIVE, ADAM, DATA, **how, steps=1)

    @pytest.mark.parametrize("loop", [functools.partial(fit, steps=1), breakdown])
    def test_the_rule_of_a_layout_is_checked(self, loop):
        mesh = data_parallel(jax.devices()[:1]).mesh
        layout = Layout(mesh, params=shard_by_name({"kernels": PartitionSpec("data")}))
        with pytest.raises(ValueError, match="params has patterns that match nothing: .'kernels'"):
            loop(STUDENT, OBJECTIVE, ADAM, DATA, **HOW, layout=layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Costs:
    """An option that knows its classes and how to describe itself."""

    values: jax.Array
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def describe(self):
        return {"costs by class": dict(zip(self.classes, self.values.tolist(), strict=True))}


def expected_cost(student_logits, *, costs):
    return jax.nn.softmax(student_logits) @ costs.values


@pytest.mark.quick
def test_an_option_says_its_classes_and_describes_itself(tmp_path):
    student = models.logistic_regression(3, classes=("cat", "dog", "cow"))
    for names, values in ((student.classes, [1.0, 2.0, 3.0]), (student.classes, [1.0, 2.0, 4.0])):
        costs = Costs(jnp.array(values), names)
        objective = weighted_sum(term("cost", 1.0, expected_cost, costs=costs))
        how = {**HOW, "steps": 1, "checkpoints": Checkpoints(tmp_path)}
        if values[2] == 4.0:
            said = r"options/costs/costs by class/cow was 3.0, is 4.0"
            with pytest.raises(ValueError, match=said):
                fit(student, objective, ADAM, DATA, **how)
        else:
            fit(student, objective, ADAM, DATA, **how)
    other = Costs(jnp.ones(3), ("cow", "dog", "cat"))
    with pytest.raises(ValueError, match="the costs of term 'cost' have the classes .'cow'"):
        run(
            student, weighted_sum(term("cost", 1.0, expected_cost, costs=other)), ADAM, DATA,
            **HOW, steps=1,
        )  # fmt: skip


def test_numbers_of_numpy_are_counts(library_errors):
    how = {"key": KEY, "steps": np.int32(1), "progress": False, "layout": data_parallel()}
    fit(STUDENT, OBJECTIVE, ADAM, DATA, batch_size=np.int64(8), **how)
    for wrong in ({"evaluate_every": 1.5, "evaluate": dict}, {"batch_size": True}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be an integer"):
            fit(STUDENT, OBJECTIVE, ADAM, DATA, **{"batch_size": 8, **how, **wrong})


def test_a_loss_that_is_not_finite_is_told_before_data_that_ended():
    def infinite(student_logits):
        return jnp.inf * student_logits.sum(-1) ** 2 + jnp.inf

    objective = weighted_sum(term("inf", 1.0, infinite))
    batches = [{"inputs": np.ones((2, 5), np.float32)}] * 2
    with pytest.raises(NonFiniteLoss, match="inf"):
        fit(STUDENT, objective, ADAM, batches, key=KEY, steps=9, progress=False)
