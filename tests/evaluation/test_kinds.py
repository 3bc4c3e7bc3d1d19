"""Metrics of labels, numbers and vectors, weights, and ranking: against scikit-learn and NumPy."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from scipy.stats import norm
from sklearn import metrics as sklearn_metrics

from distill_jax.evaluation import evaluate, evaluate_many, metrics
from distill_jax.models import from_function, logistic_regression
from distill_jax.teachers import teacher as as_teacher
from distill_jax.training.step import _compiled
from distill_jax.types import Outputs

N, OUTPUTS = 23, 3
STILL = {"shift": jnp.zeros(())}


def shift(params, inputs):
    return inputs + params["shift"]


def with_variance(params, inputs):
    predicted = inputs[:, :OUTPUTS] + params["shift"]
    return Outputs(predicted, {"log_variance": inputs[:, OUTPUTS:]})


def of(kind: Any, apply: Any = shift, **options: Any) -> Any:
    return from_function(lambda key, inputs: STILL, apply, outputs=kind, **options)


CLASSES, LABELS, NUMBERS = (of(kind) for kind in ("softmax", "multi_label", "regression"))
UNSURE = of("regression", with_variance)


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    """Scores with many ties, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(-2, 3, (N, OUTPUTS)).astype(np.float32),
        "where": rng.random(N) < 0.8,
        "weights": rng.choice([0.0, 0.5, 1.0, 3.0], N),
    }


def dirty(data: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    """Rows that do not count hold anything."""
    for name in names:
        column = data[name]
        column[~data["where"]] = np.nan if column.dtype.kind == "f" else 99
    return data


@pytest.mark.quick
@pytest.mark.parametrize("weighted", [False, True])
def test_areas_of_classes_equal_scikit_learns(weighted):
    data = drawn()
    data["labels"] = np.random.default_rng(1).integers(0, OUTPUTS, N)
    if not weighted:
        del data["weights"]
    keep = data["where"]
    # Ties are rows that are repeated: other rows of equal probability may differ in rounding.
    rng = np.random.default_rng(2)
    data["inputs"] = rng.standard_normal((8, OUTPUTS)).astype(np.float32)[rng.integers(0, 8, N)]
    rank, labels = log_softmax(data["inputs"].astype(np.float64), -1)[keep], data["labels"][keep]
    options = {"sample_weight": data["weights"][keep]} if weighted else {}
    auc, precision = (
        [function(labels == k, rank[:, k], **options) for k in range(OUTPUTS)]
        for function in (sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score)
    )
    predicted = data["inputs"][keep].argmax(-1)
    got = evaluate(CLASSES, STILL, {}, dirty(data, "inputs", "labels"), batch_size=5)
    close(got["auc"], np.mean(auc))
    close(got["average_precision"], np.mean(precision))
    close([row["auc"] for row in got["per_class"]], auc)
    close([row["average_precision"] for row in got["per_class"]], precision)
    close(got["accuracy"], sklearn_metrics.accuracy_score(labels, predicted, **options))
    f1 = sklearn_metrics.f1_score(labels, predicted, average="macro", **options)
    close(got["f1_macro"], f1)
    assert got["count"] == keep.sum() and got["errors"] == (labels != predicted).sum()
    assert weighted == ("weight" in got)


def test_weights_are_repeated_rows():
    data = drawn(2)
    data["labels"] = np.random.default_rng(1).integers(0, OUTPUTS, N)
    data["teacher_logits"] = np.random.default_rng(3).standard_normal((N, OUTPUTS))
    weights = data["weights"] = np.arange(N) % 3
    repeated = {
        name: np.repeat(x, weights, axis=0) for name, x in data.items() if name != "weights"
    }
    got, want = (evaluate(CLASSES, STILL, {}, x, batch_size=8) for x in (data, repeated))
    for name in want.keys() - {"count", "errors", "per_class"}:
        close(got[name], want[name])
    assert got["weight"] == want["count"]


def close(got: Any, want: Any, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_equal_scikit_learns(weighted):
    data, rng = drawn(), np.random.default_rng(4)
    data["labels"] = (rng.random((N, OUTPUTS)) < [0.5, 0.3, 0.0]).astype(np.int64)
    if not weighted:
        del data["weights"]
    keep = data["where"]
    truth, scores = data["labels"][keep], data["inputs"][keep]
    predicted = (scores > 0).astype(int)
    options = {"sample_weight": data["weights"][keep]} if weighted else {}
    weights = options.get("sample_weight", np.ones(keep.sum()))
    probability = expit(scores.astype(np.float64))
    nats = -np.where(truth == 1, np.log(probability), np.log1p(-probability)).sum(-1)
    f1 = {
        how: sklearn_metrics.f1_score(truth, predicted, average=how, zero_division=0, **options)
        for how in ("micro", "macro")
    }
    areas = [
        [function(truth[:, k], scores[:, k], **options) for k in range(2)]  # one label never holds
        for function in (sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score)
    ]
    got = evaluate(LABELS, STILL, {}, dirty(data, "inputs", "labels"), batch_size=5)
    close(got["subset_accuracy"], sklearn_metrics.accuracy_score(truth, predicted, **options))
    close(got["hamming_loss"], sklearn_metrics.hamming_loss(truth, predicted, **options))
    close(got["nll"], np.average(nats, weights=weights))
    close([got["f1_micro"], got["f1_macro"]], [f1["micro"], f1["macro"]])
    close([got["auc"], got["average_precision"]], np.mean(areas, axis=1))
    rows = got["per_label"]
    assert [row["count"] for row in rows] == truth.sum(0).tolist()
    assert np.isnan([rows[2]["auc"], rows[2]["average_precision"]]).all() and rows[2]["f1"] == 0


def test_labels_that_nobody_looked_at_do_not_count():
    data, rng = drawn(), np.random.default_rng(5)
    del data["where"], data["weights"]
    data["labels"] = rng.integers(0, 2, (N, OUTPUTS))
    data["known"] = rng.random((N, OUTPUTS)) < 0.7
    want = evaluate(LABELS, STILL, {}, data)
    lost = {**data, "labels": np.where(data["known"], data["labels"], -1)}
    assert evaluate(LABELS, STILL, {}, lost) == want
    right = (data["inputs"] > 0) == (data["labels"] == 1)
    close(want["hamming_loss"], 1 - right[data["known"]].mean())
    close(want["subset_accuracy"], (right | ~data["known"]).all(-1).mean())
    first = data["known"][:, 0]
    labels, scores = data["labels"][first, 0], data["inputs"][first, 0]
    close(want["per_label"][0]["auc"], sklearn_metrics.roc_auc_score(labels, scores))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_equal_scikit_learns(weighted, offset):
    data, rng = drawn(), np.random.default_rng(6)
    data["inputs"] += np.float32(offset)
    data["targets"] = data["inputs"] + rng.standard_normal((N, OUTPUTS)).astype(np.float32)
    if not weighted:
        del data["weights"]
    keep = data["where"]
    truth, predicted = (data[name][keep].astype(np.float64) for name in ("targets", "inputs"))
    options = {"sample_weight": data["weights"][keep]} if weighted else {}
    functions = (
        sklearn_metrics.mean_absolute_error,
        sklearn_metrics.root_mean_squared_error,
        sklearn_metrics.r2_score,
    )
    want = [function(truth, predicted, **options) for function in functions]
    each = functions[2](truth, predicted, multioutput="raw_values", **options)
    got = evaluate(NUMBERS, STILL, {}, dirty(data, "inputs", "targets"), batch_size=5)
    close([got["mae"], got["rmse"], got["r2"]], want)
    close([row["r2"] for row in got["per_output"]], each)


def test_one_number_may_have_an_axis_of_its_own_or_none():
    model = logistic_regression(1, outputs="regression")
    params = {"kernel": jnp.ones((OUTPUTS, 1)), "bias": jnp.zeros(1)}
    data = drawn()
    data["targets"] = data["inputs"].sum(-1) + 1.0
    got = evaluate(model, params, {}, data)
    assert got == evaluate(model, params, {}, data | {"targets": data["targets"][:, None]})
    assert got["mae"] == got["rmse"] == 1.0
    constant = evaluate(model, params, {}, data | {"targets": np.ones(N, np.float32)})
    assert np.isnan(constant["r2"])


def test_variances_are_compared_with_errors():
    rng = np.random.default_rng(7)
    data = {
        "inputs": rng.standard_normal((400, 2 * OUTPUTS)).astype(np.float32),
    }
    mean, log_variance = np.split(data["inputs"].astype(np.float64), 2, axis=1)
    data["targets"] = rng.normal(mean, np.exp(log_variance / 2)).astype(np.float32)
    z = (data["targets"] - mean) / np.exp(log_variance / 2)
    got = evaluate(UNSURE, STILL, {}, data, batch_size=64)
    close(got["mean_squared_z"], (z**2).mean(), rtol=1e-4)
    close(got["coverage_90"], (np.abs(z) <= norm.ppf(0.95)).mean())
    nats = -norm.logpdf(data["targets"], mean, np.exp(log_variance / 2)).sum(-1)
    close(got["nll"], nats.mean(), rtol=1e-4)
    assert abs(got["mean_squared_z"] - 1) < 0.1 and abs(got["coverage_90"] - 0.9) < 0.03


def test_a_teacher_of_each_kind():
    data = drawn()
    del data["where"], data["weights"]
    logits = np.random.default_rng(8).standard_normal((N, OUTPUTS)).astype(np.float32)
    stored, ours = data | {"teacher_logits": logits}, data["inputs"].astype(np.float64)
    labels = evaluate(LABELS, STILL, {}, stored)
    close(labels["agreement"], ((ours > 0) == (logits > 0)).mean())
    p, q = expit(logits.astype(np.float64)), expit(ours)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    close(labels["kl_to_teacher"], kl.sum(-1).mean())
    numbers = evaluate(NUMBERS, STILL, {}, stored)
    close(numbers["mae_to_teacher"], np.abs(ours - logits).mean())
    close(numbers["rmse_to_teacher"], ((ours - logits) ** 2).mean() ** 0.5)
    vectors = {"inputs": ours.astype(np.float32) + 0.5, "teacher_logits": logits}
    got = evaluate(of("embedding"), STILL, {}, vectors)
    sizes = np.linalg.norm(ours + 0.5, axis=-1) * np.linalg.norm(logits, axis=-1)
    close(got["cosine_to_teacher"], (((ours + 0.5) * logits).sum(-1) / sizes).mean())
    assert set(got) == {"count", "cosine_to_teacher", "mae_to_teacher", "rmse_to_teacher"}


def test_a_model_that_is_sure_is_ranked_by_its_log_odds():
    logits = np.array([[20, 40, 60, 30, 50], [0] * 5], np.float32).T  # probabilities 1 in float32
    data = {"inputs": logits, "labels": np.array([1, 0, 0, 1, 0])}
    assert evaluate(CLASSES, STILL, {}, data)["auc"] == 1.0
    three = np.concatenate([logits, np.full((5, 1), -9, np.float32)], axis=1)
    per_class = evaluate(CLASSES, STILL, {}, data | {"inputs": three})["per_class"]
    assert [per_class[k]["auc"] for k in (0, 1)] == [1.0, 1.0]


def test_targets_that_do_not_vary_and_vectors_of_length_0():
    data = {"inputs": np.ones((3, 1), np.float32), "targets": np.full((3, 1), 0.1)}
    assert np.isnan(evaluate(NUMBERS, STILL, {}, data)["r2"])  # the mean of 0.1 is not 0.1
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    found = evaluate(of("embedding"), STILL, {}, {"inputs": vectors, "teacher_logits": vectors})
    assert found["cosine_to_teacher"] == 0.5


def test_programs_of_models_that_are_gone_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(_compiled, "KEPT", 1)
    data = {"inputs": np.ones((3, 1), np.float32), "targets": np.ones((3, 1), np.float32)}
    models = [of("regression", lambda params, inputs: inputs + params["shift"]) for _ in range(2)]
    kept = [weakref.ref(model.apply) for model in models]
    for _ in range(2):
        evaluate(models.pop(0), STILL, {}, data)
    gc.collect()
    assert [ref() is None for ref in kept] == [True, False]


def test_many_models_are_each_alone():
    data = drawn()
    data["labels"] = np.random.default_rng(9).integers(0, 2, (N, OUTPUTS))
    shifts = jnp.array([[[0.0, 1.0, -1.0]], [[1.0, 0.0, 0.0]]])
    got = evaluate_many(LABELS, {"shift": shifts}, {}, data, batch_size=4)
    assert got == [evaluate(LABELS, {"shift": s}, {}, data, batch_size=4) for s in shifts]


def test_ranking_can_be_left_out(monkeypatch):
    data = drawn()
    data["labels"] = np.random.default_rng(1).integers(0, OUTPUTS, N)
    full = evaluate(CLASSES, STILL, {}, data)
    without = evaluate(CLASSES, STILL, {}, data, rank=False)
    assert without["auc"] is None and without["average_precision"] is None
    monkeypatch.setattr(metrics, "MOST_RANKED", N * OUTPUTS - 1)
    assert evaluate(CLASSES, STILL, {}, data) == without
    assert evaluate(CLASSES, STILL, {}, data, rank=True) == full


@pytest.mark.usefixtures("library_errors")
def test_names_what_is_wrong():
    data = drawn()
    numbers = {"targets": np.zeros((N, OUTPUTS), np.float32)}
    for model, change, error, message in (
        (LABELS, {"labels": np.zeros(N, int)}, ValueError, "labels must have the shape"),
        (LABELS, {"labels": np.full((N, OUTPUTS), 2)}, ValueError, "labels must lie in 0 ... 1"),
        (LABELS, {"labels": np.full((N, OUTPUTS), 2**32)}, ValueError, "labels has the value"),
        (NUMBERS, {"labels": np.zeros(N, int)}, ValueError, "compared with a column 'targets'"),
        (NUMBERS, {"targets": np.zeros((N, OUTPUTS), int)}, TypeError, "targets must be floating"),
        (NUMBERS, {"targets": np.zeros((N, 2))}, ValueError, "targets must have shape"),
        (
            NUMBERS,
            numbers | {"weights": np.full(N, -1.0)},
            ValueError,
            "weights must be numbers >=",
        ),
        (NUMBERS, numbers | {"weights": np.full(N, np.nan)}, ValueError, "weights must be finite"),
        (NUMBERS, numbers | {"weights": np.zeros(N)}, ValueError, "weights must not all be 0"),
        (NUMBERS, {"teacher_logits": np.full((N, OUTPUTS), -np.inf)}, ValueError, "must be finite"),
        (CLASSES, {"teacher_logits": np.full((N, OUTPUTS), -np.inf)}, ValueError, "class possible"),
    ):
        with pytest.raises(error, match=message):
            evaluate(model, STILL, {}, data | change)
    with pytest.raises(ValueError, match="teacher has outputs='regression', the student"):
        evaluate(CLASSES, STILL, {}, data, teacher=as_teacher(NUMBERS, STILL, {}))
