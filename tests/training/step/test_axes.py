"""Masks and weights of either axes: whole batches, microbatches and two passes agree."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from distill_jax.evaluation import evaluate
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import fit, run
from tests.training.sequences import ROWS, STUDENT, columns, objective

DATA, SGD = columns(), optax.sgd(0.5)
SMALL = {"key": jax.random.key(0), "steps": 2, "batch_size": ROWS}


@pytest.mark.quick
@pytest.mark.parametrize("coupled", [False, True], ids=["one pass", "two passes"])
def test_microbatches_are_weighted_by_counts(coupled):
    whole, pieces = (
        run(STUDENT, objective(coupled), SGD, DATA, **SMALL, microbatches=n) for n in (1, 8)
    )
    np.testing.assert_allclose(pieces[0].params, whole[0].params, atol=2e-7)
    for name, values in whole[1].items():
        np.testing.assert_allclose(pieces[1][name], values, rtol=2e-6, err_msg=name)
    assert np.ptp(whole[0].params) > 0.2


def test_the_first_step_is_what_evaluation_finds():
    state, metrics = run(STUDENT, objective(), optax.sgd(0.0), DATA, **{**SMALL, "steps": 1})
    for name, mask, weights in (
        ("all", None, None), ("rows", "rows", None), ("entries", "entries", None),
        ("trusted", "entries", "trust"),
    ):  # fmt: skip
        data = {name: DATA[name] for name in ("inputs", "labels")}
        data |= {} if mask is None else {"where": DATA[mask]}
        data |= {} if weights is None else {"weights": DATA[weights]}
        found = evaluate(STUDENT, state.params, {}, data, rank=False, batch_size=10)
        np.testing.assert_allclose(found["nll"], metrics[name][0], rtol=1e-6)


def test_weights_of_a_stream_are_looked_at_in_every_batch():
    late = DATA | {"trust": DATA["trust"].copy()}
    late["trust"][3] = -1.0
    message = r"batch 1 \(from 0\) of data, row 3: sample_weight of term 'trusted' must be finite"
    with pytest.raises(ValueError, match=message):
        fit(STUDENT, objective(), SGD, [DATA, late], key=SMALL["key"], steps=2, progress=False)


def paired(student_logits, trust):
    return (student_logits.mean((1, 2))[:, None] - trust) ** 2


def test_rows_that_pair_the_batch_with_itself_are_refused():
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match="compares each row with every other one: the student has"),
    ):
        run(STUDENT, weighted_sum(term("paired", 1.0, paired)), SGD, DATA, **SMALL)
