"""Axes of masks and rows, and weights of rows, against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import evaluation
from distill_jax.losses import cross_entropy
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.types import Outputs

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 3, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, (4, 3)).astype(np.int32)
MASKS = {
    "none": None,
    "rows": np.array([1, 0, 1, 1], bool),
    "entries": np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool),
}
WEIGHTS = {
    "rows": np.array([2.0, 5.0, 0.0, 1e-3], np.float32),
    "entries": np.array([[2, 1, 0], [3, 3, 3], [1e-3, 5, 0], [0, 1, 2]], np.float32),
}


def reference(mask, weights, divide_by):
    """The value and its slope with respect to the logits, in double precision."""
    z = LOGITS.astype(np.float64)
    log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
    hit = np.eye(5)[LABELS]
    rows, slope = -(hit * log_q).sum(-1), np.exp(log_q) - hit

    def full(x):
        return np.ones((4, 3)) if x is None else x.reshape(4, -1) * np.ones((4, 3))

    keep, w = full(mask), full(weights)
    by = (keep * w).sum() if divide_by == "weights" else keep.sum()
    return (keep * w * rows).sum() / by, (keep * w)[..., None] * slope / by, by


def objective(loss=cross_entropy, **options):
    return weighted_sum(term("labels", 1.0, loss, **options))


def batch_of(mask, weights=None):
    batch = {"inputs": np.zeros((4, 1), np.float32), "labels": LABELS}
    batch |= {} if mask is None else {"where": mask}
    return batch | ({} if weights is None else {"trust": weights})


def value_of(objective, batch):
    batch = jax.tree.map(jnp.asarray, batch)

    def value(logits):
        total, (parts, _) = objective({}, {}, Context(Outputs(logits), {}, batch, 0))
        return total, parts["labels"].count

    return jax.value_and_grad(value, has_aux=True)(jnp.asarray(LOGITS))


def without_where(student_logits, labels):
    return cross_entropy(student_logits, labels)


@pytest.mark.quick
@pytest.mark.parametrize("loss", [cross_entropy, without_where], ids=["where", "no where"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_has_the_axes_of_the_rows_or_the_first_of_them(mask, loss):
    batch = batch_of(MASKS[mask])
    (got, count), slope = value_of(objective(loss), batch)
    want, slopes, number = reference(MASKS[mask], None, "weights")
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, atol=1e-7)
    assert count == number
    own = {name: x for name, x in batch.items() if name != "where"}
    if mask != "none":  # as the term's own column
        own |= {"mine": MASKS[mask]}
        (again, _), _ = value_of(objective(loss, where="mine"), own)
        assert again == got


@pytest.mark.parametrize("divide_by", ["weights", "rows"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_rows(mask, weights, divide_by):
    w = WEIGHTS[weights]
    built = objective(sample_weight="trust", divide_by=divide_by)
    batch = batch_of(MASKS[mask], w)
    built.check(batch, 5)
    (got, count), slope = value_of(built, batch)
    want, slopes, divisor = reference(MASKS[mask], w, divide_by)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, atol=1e-6)
    np.testing.assert_allclose(count, divisor, rtol=1e-6)
    # In pieces: sums of pieces over the counts of the whole.
    counts, total = built.counts(batch), 0.0
    for rows in (slice(0, 1), slice(1, 4)):
        piece = {name: x[rows] for name, x in batch.items()}
        context = Context(Outputs(jnp.asarray(LOGITS[rows])), {}, piece, 0)
        total += built({}, {}, context, counts)[0]
    np.testing.assert_allclose(total, want, rtol=1e-6)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weights", [None, "rows", "entries"])
def test_evaluation_agrees(mask, weights):
    w = None if weights is None else WEIGHTS[weights]
    batch = batch_of(MASKS[mask], w)
    sums = evaluation.sums(
        Outputs(jnp.asarray(LOGITS)), batch | ({} if w is None else {"weights": w})
    )
    built = objective(**({} if w is None else {"sample_weight": "trust"}))
    np.testing.assert_allclose(sums["nll"] / sums["weight"], value_of(built, batch)[0][0], 1e-6)


@pytest.mark.parametrize("divide_by", ["weights", "rows"])
def test_rows_of_weight_0_may_hold_anything(divide_by):
    w = WEIGHTS["rows"]
    batch = batch_of(None, w) | {"labels": LABELS.copy(), "targets": np.ones(4, np.float32)}
    batch["labels"][2], batch["targets"][2] = 99, np.nan

    def loss(student_logits, labels, targets):
        return cross_entropy(student_logits, labels) * targets[:, None]

    built = objective(loss, sample_weight="trust", divide_by=divide_by)
    built.check(batch, 5)
    logits = jnp.asarray(LOGITS).at[2].set(jnp.nan)

    def value(logits, batch):
        return built({}, {}, Context(Outputs(logits), {}, batch, 0))[0]

    got, slope = jax.value_and_grad(value)(logits, batch)
    np.testing.assert_allclose(got, reference(None, w, divide_by)[0], rtol=1e-6)
    assert np.isfinite(slope).all() and not slope[2].any()


def test_only_zeros_give_0():
    batch = batch_of(None, np.zeros(4, np.float32))
    built = objective(sample_weight="trust")
    assert value_of(built, batch)[0] == (0, 0)
    with pytest.raises(ValueError, match="counts none of the 4 rows of the data: its sample_weig"):
        built.check_masks(batch)


def test_small_weights_still_divide():
    (got, _), _ = value_of(objective(sample_weight="trust"), batch_of(None, np.full(4, 1e-4)))
    np.testing.assert_allclose(got, reference(None, None, "weights")[0], rtol=1e-5)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1, -2, 1, 1], r"'labels' must be finite and >= 0 .* got -2.0 in 1 of 4"),
            ([1, np.nan, 1, 1], "must be finite and >= 0 .* got nan in 1 of 4"),
            (
                np.ones((4, 2)),
                r"sample_weight of .* has shape \(4, 2\), its column 'labels' \(4, 3\)",
            ),
            (np.ones(3), r"sample_weight of .* has shape \(3,\), its column 'labels' \(4, 3\)"),
            (np.float32(1.0), "must have a leading axis of rows, got a scalar"),
            (np.ones(4, bool), "must be numbers >= 0, got bool: rows that do not count are masked"),
            ({"a": np.ones(4)}, "must be one array of numbers, got dict"),
        ],
    )
    def test_weights(self, weights, message):
        weights = weights if isinstance(weights, dict) else np.asarray(weights)
        if weights is not None and not isinstance(weights, dict) and weights.dtype == np.int64:
            weights = weights.astype(np.float32)
        built, batch = objective(sample_weight="trust"), batch_of(None, weights)
        with pytest.raises((TypeError, ValueError), match=message):
            built.check(batch, 5)
            value_of(built, batch)

    def test_masked_rows_may_have_any_weight(self):
        batch = batch_of(MASKS["rows"], np.array([1, np.nan, 1, 1], np.float32))
        built = objective(sample_weight="trust")
        built.check(batch, 5)
        (got, count), _ = value_of(built, batch)
        np.testing.assert_allclose(got, reference(MASKS["rows"], None, "weights")[0], 1e-6)
        assert count == 9

    @pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 3, 5), (4, 1)])
    def test_a_mask_of_the_wrong_axes(self, shape):
        for where in (None, "mine"):
            batch = batch_of(None) | {where or "where": np.ones(shape, bool)}
            with pytest.raises(ValueError, match=rf"labels'.*\(4, 3\), its mask has \({shape[0]}"):
                value_of(objective(without_where, where=where), batch)

    def test_a_mask_and_weights_of_different_axes(self):
        batch = batch_of(np.ones((4, 3), bool), np.ones((4, 2), np.float32))
        built = objective(sample_weight="trust")
        for call in (lambda: built.check(batch, 5), lambda: built.counts(batch)):
            with pytest.raises(ValueError, match=r"\(4, 2\), its mask \(4, 3\): they must begin"):
                call()

    def test_arguments(self):
        with pytest.raises(TypeError, match="sample_weight.* must be (the name of|a string)"):
            objective(sample_weight=np.ones(4))
        with pytest.raises(ValueError, match="divide_by must be one of 'weights', 'rows'"):
            objective(sample_weight="trust", divide_by="count")
        with pytest.raises(ValueError, match="divide_by of term 'labels' is 'rows', and it has no"):
            objective(divide_by="rows")
        with pytest.raises(ValueError, match="sample_weight of term 'labels' reads the column"):
            value_of(objective(sample_weight="no"), batch_of(None))
