"""Inputs that are trees of arrays, from the data to the state after the last step."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data, evaluation, models, teachers, training
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, fit, run
from tests.training.test_run_and_fit import same

KEY = jax.random.key(0)
ROWS = 24


class Reader(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask):
        return nn.Dense(3)((nn.Embed(7, 4)(tokens) * mask[..., None]).mean(1))


STUDENT, ADAM = models.from_linen(Reader()), optax.adam(1e-2)
OBJECTIVE = weighted_sum(
    term("labels", 0.5, cross_entropy), term("teacher", 0.5, soft_targets, temperature=2.0)
)


@flax.struct.dataclass
class Pictures:
    """What the teacher sees."""

    image: np.ndarray
    metadata: tuple


def columns(rows=ROWS):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (rows, 4)).astype(np.int32)
    image, age = rng.normal(size=(rows, 2, 2)), rng.normal(size=(rows, 3))
    return {
        "inputs": {"tokens": tokens, "mask": (tokens > 0).astype(np.float32)},
        "teacher_inputs": Pictures(image.astype(np.float32), (age.astype(np.float32),)),
        "labels": (tokens[:, 0] % 3).astype(np.int32),
    }


def numbers(found):
    return {name: x for name, x in found.items() if name != "per_class"}


def predict(params, inputs):
    return params * inputs.metadata[0] + inputs.image.sum((1, 2))[:, None]


DATA = columns()
TEACHER = {"big": teachers.from_function(predict, jnp.float32(2.0))}
ARGUMENTS = STUDENT, OBJECTIVE, ADAM
SMALL = {"key": KEY, "steps": 4, "batch_size": 8, "teachers": TEACHER}


@pytest.fixture(scope="module")
def ran():
    return run(*ARGUMENTS, DATA, **SMALL)


@pytest.mark.quick
def test_run_and_every_kind_of_data_of_fit_give_the_same_bits(ran):
    assert jax.tree.leaves(ran[0].params)[0].shape == (3,) and ran[1]["teacher"][0] > 0
    order = jax.random.split(KEY)[1]
    examples = [jax.tree.map(lambda x, i=i: x[i], DATA) for i in range(ROWS)]
    on_device = jax.tree.map(jnp.asarray, DATA)
    streams = [
        data.batches(source, key=order, batch_size=8) for source in (DATA, examples, on_device)
    ]
    keywords = {"key": KEY, "steps": 4, "teachers": TEACHER}
    same(ran, fit(*ARGUMENTS, DATA, **SMALL))
    for stream in streams:
        same(ran, fit(*ARGUMENTS, stream, **keywords))
    stream = data.padded(data.batches(DATA, key=order, batch_size=8))
    fitted = fit(*ARGUMENTS, stream, **keywords)
    np.testing.assert_allclose(fitted[1]["loss"], ran[1]["loss"], rtol=1e-5)  # with a mask


def test_pieces_recomputation_layout_and_precision(ran):
    for how in ({"microbatches": 4}, {"remat": True}):
        same_shapes = run(*ARGUMENTS, DATA, **SMALL, **how)
        for a, b in zip(*map(jax.tree.leaves, (same_shapes[0].params, ran[0].params)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    layout = training.data_parallel(jax.devices()[:1])
    fitted = fit(*ARGUMENTS, DATA, **SMALL, layout=layout)
    np.testing.assert_allclose(fitted[1]["loss"], ran[1]["loss"], rtol=1e-5)
    half = run(*ARGUMENTS, DATA, **SMALL, compute_dtype=jnp.bfloat16)
    np.testing.assert_allclose(half[1]["loss"], ran[1]["loss"], rtol=0.02)


def test_masked_rows_may_hold_nan_in_every_array(ran):
    bad = ran[0].params, columns(ROWS + 8)
    table = jax.tree.map(lambda x: x[:ROWS], bad[1]), jax.tree.map(lambda x: x[ROWS:], bad[1])
    table[1]["inputs"]["mask"][:] = np.nan
    table[1]["teacher_inputs"].image[:] = np.nan
    table[1]["teacher_inputs"].metadata[0][:] = np.inf
    table[1]["labels"][:] = 99
    whole = jax.tree.map(lambda a, b: np.concatenate([a, b]), *table)
    whole["where"] = np.arange(ROWS + 8) < ROWS
    state, metrics = run(*ARGUMENTS, whole, **SMALL)
    assert np.isfinite(metrics["loss"]).all()
    found = evaluation.evaluate(STUDENT, state.params, {}, whole, teacher=TEACHER["big"])
    kept = jax.tree.map(lambda x: x[:ROWS], {n: x for n, x in whole.items() if n != "where"})
    want = evaluation.evaluate(STUDENT, state.params, {}, kept, teacher=TEACHER["big"])
    assert numbers(found) == pytest.approx(numbers(want), rel=1e-5)


def test_augmentation_sees_the_tree():
    def without_words(key, batch):
        kept = jax.random.bernoulli(key, 0.5, batch["inputs"]["mask"].shape)
        inputs = batch["inputs"] | {"mask": batch["inputs"]["mask"] * kept}
        return batch | {"inputs": inputs}

    _, metrics = run(*ARGUMENTS, DATA, **SMALL, augment=without_words)
    assert np.isfinite(metrics["loss"]).all()


def test_a_checkpoint_knows_each_array(tmp_path):
    fit(*ARGUMENTS, DATA, **SMALL, checkpoints=Checkpoints(tmp_path))
    other = DATA | {"inputs": DATA["inputs"] | {"mask": 1 - DATA["inputs"]["mask"]}}
    with pytest.raises(ValueError, match=r"settings/data/inputs\['mask'\] was"):
        fit(*ARGUMENTS, other, **SMALL, checkpoints=Checkpoints(tmp_path))


def test_evaluation_precomputed_teachers_and_costs(ran):
    params, teacher = ran[0].params, TEACHER["big"]
    stored = teachers.precompute(teacher, DATA["teacher_inputs"], batch_size=7)
    np.testing.assert_allclose(stored, teacher(DATA["teacher_inputs"]).logits, atol=1e-6)
    live = evaluation.evaluate(STUDENT, params, {}, DATA, teacher=teacher, batch_size=7)
    logits = DATA | {"teacher_logits": stored}
    del logits["teacher_inputs"]
    found = evaluation.evaluate(STUDENT, params, {}, logits)
    assert numbers(found) == pytest.approx(numbers(live), rel=1e-5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    two = evaluation.evaluate_many(STUDENT, stacked, {}, DATA, teacher=teacher)
    assert numbers(two[1]) == pytest.approx(numbers(live), rel=1e-5)
    assert evaluation.cost(STUDENT, params, {}, DATA["inputs"], repeats=1)["batch_size"] == ROWS


def test_a_breakdown_and_a_sweep():
    found = training.breakdown(*ARGUMENTS, DATA, key=KEY, batch_size=8, teachers=TEACHER)
    assert found.step > 0

    def trial(key, *, rate, data):
        settings = {"steps": 2, "batch_size": 8, "teachers": TEACHER}
        return {
            "loss": run(STUDENT, OBJECTIVE, optax.sgd(rate), data, key=key, **settings)[1]["loss"]
        }

    rows = training.sweep(trial, {"rate": [0.1, 0.2]}, key=KEY, shared={"data": DATA})
    assert len(rows) == 2


MASK = r"inputs\['mask'\]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": DATA["inputs"]["mask"][:5]}, rf"one length, got .*{MASK}\"': 5|{MASK}\": 5"),
        ({"mask": np.float32(1.0)}, f"{MASK}.* must have a leading axis of rows, got a scalar"),
        ({"mask": np.array(["a"] * ROWS)}, f"{MASK} in .*data must hold numbers or booleans"),
        ({"mask": np.full((ROWS, 4), np.nan, np.float32)}, f"{MASK} must be finite"),
        ({"tokens": np.full((ROWS, 4), 2**40)}, r"inputs\['tokens'\] has the value 1099511627776"),
        ({"more": np.zeros((ROWS, 4))}, r"inputs have \['more'\], which .* does not take"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_errors_name_the_path(change, message):
    wrong = DATA | {"inputs": DATA["inputs"] | change}
    for source, size in ((wrong, {"batch_size": 8}), ([wrong], {})):
        with pytest.raises((TypeError, ValueError), match=message):
            fit(*ARGUMENTS, source, key=KEY, steps=4, teachers=TEACHER, **size)
    with pytest.raises((TypeError, ValueError), match=message):
        run(*ARGUMENTS, wrong, **SMALL)


@pytest.mark.usefixtures("library_errors")
def test_a_late_batch_is_named_by_path_and_row():
    late = jax.tree.map(np.copy, DATA)
    late["inputs"]["mask"][3, 1] = np.nan
    message = rf"batch 1 \(from 0\) of data, row 3: {MASK} must be finite"
    with pytest.raises(ValueError, match=message):
        fit(*ARGUMENTS, [DATA, late], key=KEY, steps=2, teachers=TEACHER)


@pytest.mark.usefixtures("library_errors")
def test_batches_of_another_structure():
    less = DATA | {"inputs": {"tokens": DATA["inputs"]["tokens"]}}
    with pytest.raises(ValueError, match=r"must have the columns of the first one, \[\"inputs\['"):
        list(data.positions([DATA, less]))
    with pytest.raises(ValueError, match=r"same arrays in every row, got .* in row"):
        examples = [{"inputs": {"a": 1, "b": 2}}, {"inputs": {"a": 1}}]
        list(data.batches(examples, key=KEY, batch_size=2, steps=1))
    with pytest.raises(ValueError, match="inputs in data must hold an array or several, got {}"):
        run(*ARGUMENTS, DATA | {"inputs": {}}, **SMALL)
    with pytest.raises(TypeError, match="inputs in batch 0 .* keys of a dictionary must be of one"):
        list(data.positions([{"inputs": {0: np.ones(2), "a": np.ones(2)}}]))
    with pytest.raises(TypeError, match="where must be one array"):
        data.check(DATA | {"where": {"a": np.ones(ROWS, bool)}})
    with pytest.raises(ValueError, match=r"got the leading axes .*inputs\['b'\]\": \(2,\)"):
        teachers.precompute(TEACHER["big"], {"a": np.ones((3, 1)), "b": np.ones((2, 1))})
