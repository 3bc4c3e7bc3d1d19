"""The end of a run: early stopping, the best state, figures that are arrays."""

from __future__ import annotations

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import evaluation, models
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, EarlyStopping, fit, json_lines, run

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
STUDENT = models.logistic_regression(3)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
ADAM = optax.adam(0.1)
HOW = {"key": jax.random.key(0), "batch_size": 8, "steps_per_call": 2, "evaluate_every": 2}
FIGURES = {2: 0.1, 4: 0.5, 6: 0.7, 8: 0.7, 10: 0.6, 12: math.nan, 14: 0.65, 16: 0.9}
"""By step; with a patience of 3, a run ends at step 12."""


def figure(state):
    return {"accuracy": FIGURES[int(state.step)]}


def stop(patience=3, **options):
    return EarlyStopping("accuracy", better="higher", patience=patience, **options)


def fitted(steps=16, evaluate=figure, **options):
    return fit(STUDENT, LABELS, ADAM, DATA, **HOW | {"steps": steps} | options, evaluate=evaluate)


def after(steps):
    return run(STUDENT, LABELS, ADAM, DATA, key=HOW["key"], batch_size=8, steps=steps)[0]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("figures", "options", "decision"),
    [
        ([], {}, (False, None)),
        ([1.0, 2.0, 3.0], {}, (False, 3)),
        ([3.0, 2.0, 2.5], {}, (True, 1)),
        ([3.0, 2.0, 3.0], {}, (True, 3)),
        ([3.0, 2.0, 3.5], {}, (False, 3)),
        ([3.0, 2.0, 3.5], {"min_delta": 0.5}, (True, 3)),
        ([3.0, 2.0, 2.5], {"better": "lower"}, (False, 2)),
        ([math.nan, math.nan], {}, (True, None)),
        ([1.0, math.inf, 2.0], {}, (False, 3)),
        ([3.0, 2.0, 1.0, 0.0], {"patience": None, "restore_best": True}, (False, 1)),
    ],
)
def test_it_is_decided_by_the_figures_alone(figures, options, decision):
    early = EarlyStopping("x", **{"better": "higher", "patience": 2} | options)
    assert early.decide(list(enumerate(figures, 1))) == decision


def test_a_run_ends_and_returns_the_last_or_the_best_state():
    state, history = fitted(stop=stop())
    assert int(state.step) == 12 and len(history["loss"]) == 12
    assert history["evaluated_at"].tolist() == [2, 4, 6, 8, 10, 12]
    chex.assert_trees_all_equal(state.params, after(12).params)
    best, _ = fitted(stop=stop(restore_best=True))
    assert int(best.step) == 8, "of ties the latest"
    chex.assert_trees_all_equal(best.params, after(8).params)
    whole, _ = fitted(stop=stop(patience=None, restore_best=True))
    assert int(whole.step) == 16


@pytest.mark.parametrize("cut", [6, 7, 10])
def test_an_interrupted_run_ends_at_the_same_step(tmp_path, cut):
    """Also in the middle between two evaluations."""
    best = {"best": "accuracy", "better": "higher"}
    checkpoints = Checkpoints(tmp_path, every=3, keep=1, **best)
    how = {"stop": stop(restore_best=True), "checkpoints": checkpoints}

    def interrupted(state, metrics):
        if int(state.step) >= cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(**how, callbacks=[interrupted])
    state, history = fitted(**how)
    assert history["evaluated_at"][-1] == 12
    assert int(state.step) == 8
    chex.assert_trees_all_equal(state.params, after(8).params)
    again, history = fitted(**how)
    assert "loss" not in history, "it has ended"
    chex.assert_trees_all_equal(again.params, state.params)
    longer, history = fitted(**how | {"stop": stop(patience=4, restore_best=True)})
    assert history["evaluated_at"].tolist() == [14] and int(longer.step) == 8


def test_figures_of_each_class_in_history_and_logs(tmp_path):
    evaluate = evaluation.evaluator(STUDENT, DATA)
    log = json_lines(tmp_path / "log.jsonl")
    state, history = fitted(4, evaluate, log=log)
    assert history["per_class/errors"].shape == (2, 3)
    last = evaluate(state)
    assert history["per_class/errors"][-1].tolist() == [r["errors"] for r in last["per_class"]]
    assert history["accuracy"][-1] == last["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["step"] == 4 and "accuracy" in line]
    assert line["per_class/errors/2"] == last["per_class"][2]["errors"]
    nested = fitted(2, lambda s: {"a": {"b": jnp.ones(2, jnp.bfloat16)}, "none": None})[1]
    assert nested["a/b"].tolist() == [[1.0, 1.0]]
    assert "none" not in nested


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"stop": 3}, TypeError, "stop must be an EarlyStopping.*got"),
            ({"stop": stop(), "evaluate_every": None}, ValueError, "nothing is evaluated before"),
            (
                {"stop": EarlyStopping("f1", better="higher", patience=1)},
                ValueError,
                r"stop must watch a number that evaluate gives, got 'f1'; it gives \['accuracy'\]",
            ),
            ({"evaluate": lambda s: {"a": "b"}}, TypeError, "must give numbers, got 'a': 'b'"),
            ({"evaluate": lambda s: {"a": ["b"]}}, TypeError, "must give numbers, got 'a'"),
            ({"evaluate": lambda s: 1.0}, TypeError, "must return a dictionary of numbers"),
            (
                {"evaluate": lambda s: {"a": np.ones(int(s.step))}},
                ValueError,
                r"'a' has the shape \(4,\) after \(2,\)",
            ),
        ],
    )
    def test_of_fit(self, options, error, words):
        with pytest.raises(error, match=words):
            fitted(4, **options)

    def test_the_best_must_be_kept(self, tmp_path):
        kept = Checkpoints(tmp_path, best="accuracy", better="lower")
        with pytest.raises(ValueError, match="best='accuracy', better='higher'"):
            fitted(stop=stop(restore_best=True), checkpoints=kept)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"patience": 0}, ValueError, "patience"),
            ({"patience": None}, ValueError, "patience must be a number of evaluations"),
            ({"better": "max"}, ValueError, "better must be one of"),
            ({"min_delta": -1.0}, ValueError, "min_delta"),
            ({"min_delta": "a"}, TypeError, "min_delta"),
            ({"metric": 1}, TypeError, "metric must be the name"),
            ({"restore_best": 1}, TypeError, "restore_best must be True or False"),
        ],
    )
    def test_of_the_options(self, options, error, words):
        with pytest.raises(error, match=words):
            EarlyStopping(**{"metric": "x", "better": "higher", "patience": 1} | options)
