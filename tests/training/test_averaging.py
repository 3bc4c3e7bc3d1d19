"""The moving average of a student: how fast it forgets, and how it is evaluated."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import evaluation, models
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, fit, run, warmed_up

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
STUDENT = models.mlp([4], 3)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
SGD = optax.sgd(0.1)
HOW = {"key": jax.random.key(0), "batch_size": 8}


def trained(decay, steps=20, **options):
    return run(STUDENT, LABELS, SGD, DATA, **HOW, steps=steps, average_decay=decay, **options)[0]


def halves(step):
    return jnp.where(step < 2, 0.0, 0.5)


@pytest.mark.quick
@pytest.mark.parametrize("decay", [0.9, halves, warmed_up(0.6)], ids=["number", "function", "warm"])
def test_the_average_follows_its_schedule(decay):
    state, wanted = trained(decay, steps=1), None
    begin = STUDENT.init(jax.random.split(jax.random.split(HOW["key"])[0], 3)[0], INPUTS[:1])[0]
    wanted, params = (jax.tree.map(np.float64, tree) for tree in (begin, state.params))
    for step in range(6):
        d = float(decay(step)) if callable(decay) else decay
        wanted = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, wanted, params)
        chex.assert_trees_all_close(state.average[0], wanted, atol=1e-6)
        state = trained(decay, steps=1, initial=state)
        params = jax.tree.map(np.float64, state.params)


def test_a_warm_up_forgets_the_start():
    """A constant decay of .9999 is 99% the random start after 100 steps."""
    plain, warm = (trained(d, steps=100) for d in (0.9999, warmed_up(0.9999)))
    chex.assert_trees_all_equal(plain.params, warm.params)
    loss = [
        evaluation.evaluate(STUDENT, *pair, DATA)["nll"]
        for pair in (plain.average, warm.average, (warm.params, warm.state))
    ]
    assert loss[1] - loss[2] < 0.1 * (loss[0] - loss[2])


def test_run_and_fit_microbatches_and_a_batch_of_decays_agree():
    decay = warmed_up(0.7)
    whole = trained(decay)
    fitted, _ = fit(
        STUDENT, LABELS, SGD, DATA, **HOW, steps=20, average_decay=warmed_up(0.7), steps_per_call=4
    )
    chex.assert_trees_all_equal(whole.average, fitted.average)
    chex.assert_trees_all_close(whole.average, trained(decay, microbatches=2).average, atol=1e-5)
    many = jax.vmap(lambda d: trained(warmed_up(d)).average)(jnp.array([0.7, 0.2]))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], many), whole.average, atol=1e-5)
    other = trained(warmed_up(0.2)).average
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], many), other, atol=1e-5)


def test_another_number_in_a_schedule_needs_no_other_program():
    traces = []

    def schedule(number, step):
        traces.append(0)
        return number * jnp.ones(()) + 0 * step

    for number in (0.1, 0.2):
        trained(jax.tree_util.Partial(schedule, number), steps=2)
    assert len(traces) == 2 + 1, "once before each run, to check it, and once for the step"


def test_a_schedule_is_part_of_what_a_resumed_run_must_share(tmp_path):
    def call(steps, decay):
        saved = Checkpoints(tmp_path, every=4)
        return fit(
            STUDENT, LABELS, SGD, DATA, **HOW, steps=steps, average_decay=decay,
            steps_per_call=2, checkpoints=saved,
        )[0]  # fmt: skip

    call(6, warmed_up(0.7))
    resumed = call(12, warmed_up(0.7))
    chex.assert_trees_all_equal(resumed.average, trained(warmed_up(0.7), steps=12).average)
    for other, words in ((warmed_up(0.8), "0.8"), (halves, "halves"), (0.7, "average")):
        with pytest.raises(ValueError, match=words):
            call(14, other)


@pytest.mark.usefixtures("library_errors")
def test_what_is_no_decay_is_refused_by_name():
    wrong = {
        "at step 0 must be a scalar": lambda step: jnp.ones(2),
        r"at step 0 must lie in \[0": lambda step: 1.5,
        r"must lie in \[0": 1.5,
        "must be a function of": lambda a, b: 0.5,
        "must not be a class": float,
    }
    for words, decay in wrong.items():
        with pytest.raises((TypeError, ValueError), match=f"average_decay.*{words}"):
            trained(decay, steps=1)
    with pytest.raises(ValueError, match="decay must lie in"):
        warmed_up(1.1)
