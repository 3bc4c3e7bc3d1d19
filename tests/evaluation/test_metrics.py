"""Metrics against float64 NumPy, and the same from any split of the data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics as sklearn_metrics

from distill_jax.evaluation import evaluate, evaluate_many, sums
from distill_jax.models import from_function, logistic_regression
from distill_jax.teachers import teacher as as_teacher
from distill_jax.types import Outputs

N, CLASSES = 11, 4


def reference(logits, labels, teacher=None, *, where=None, bins=15, top_k=5):
    """In float64, a loop a row, and scikit-learn for what it has; shares no library code."""
    rows = range(len(logits)) if where is None else np.flatnonzero(where)
    logits = np.asarray(logits, np.float64)
    p = softmax(logits, axis=-1)
    n = len(rows)
    hits = {i: p[i].argmax() == labels[i] for i in rows}
    ece = 0.0
    for m in range(bins):
        inside = [i for i in rows if m / bins < p[i].max() <= (m + 1) / bins]
        if inside:
            accuracy = np.mean([hits[i] for i in inside])
            ece += len(inside) / n * abs(accuracy - np.mean([p[i].max() for i in inside]))
    found = {
        "count": n,
        "errors": n - sum(hits.values()),
        "accuracy": np.mean(list(hits.values())),
        "nll": np.mean([-log_softmax(logits[i])[labels[i]] for i in rows]),
        "ece": ece,
        "f1_macro": sklearn_metrics.f1_score(labels[rows], p[rows].argmax(-1), average="macro"),
    }
    rank = log_softmax(logits, axis=-1).astype(np.float32)[rows]  # ties are those of float32
    areas = {"auc": [], "average_precision": []}
    for c in range(logits.shape[-1]):
        one = labels[rows] == c
        areas["auc"].append(_area(sklearn_metrics.roc_auc_score, one, rank[:, c]))
        areas["average_precision"].append(
            _area(sklearn_metrics.average_precision_score, one, rank[:, c])
        )
    found |= {name: np.nanmean(values) for name, values in areas.items()}
    found["per_class"] = [
        {
            "class": c,
            "count": sum(labels[i] == c for i in rows),
            "errors": sum(labels[i] == c and not hits[i] for i in rows),
            **{name: values[c] for name, values in areas.items()},
        }
        for c in range(logits.shape[-1])
    ]
    if teacher is None:
        return found
    teacher = np.asarray(teacher, np.float64)
    t, k = softmax(teacher, axis=-1), min(top_k, logits.shape[-1])
    kl = [(t[i] * (log_softmax(teacher[i]) - log_softmax(logits[i]))).sum() for i in rows]
    overlap = [
        len({*np.argsort(-t[i])[:k].tolist()} & {*np.argsort(-p[i])[:k].tolist()}) / k for i in rows
    ]
    return found | {
        "agreement": np.mean([t[i].argmax() == p[i].argmax() for i in rows]),
        "top_k": k,
        "top_k_overlap": np.mean(overlap),
        "kl_to_teacher": np.mean(kl),
    }


def _area(function, positive, scores, **options):
    """NaN where there is nothing to rank; scikit-learn takes no infinite scores."""
    if not positive.any() or positive.all():
        return (
            np.nan if function is sklearn_metrics.roc_auc_score else float(positive.all() or np.nan)
        )
    finite = np.where(np.isneginf(scores), -1e30, scores)
    return function(positive, finite, **options)


def shift(params, inputs):
    """A model whose logits are its inputs, moved: tests say what it predicts."""
    return inputs + params["shift"]


MODEL = from_function(lambda key, inputs: {"shift": jnp.zeros(())}, shift)
STILL = {"shift": jnp.zeros(())}
SUMS = jax.jit(sums, static_argnames=("top_k", "bins"))


def drawn(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(0, scale, (N, CLASSES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, N),
        "teacher_logits": rng.normal(0, scale, (N, CLASSES)).astype(np.float32),
    }


def compare(got, want, rtol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-7), got, want)
    assert list(got) == list(want)


def test_minus_zero_ties_with_zero_in_every_metric():
    ours, theirs = jnp.array([[-0.0, 0.0, -1.0]] * 4), jnp.array([[0.0, -0.0, -1.0]] * 4)
    got = SUMS(Outputs(ours), {}, theirs, top_k=1)
    assert (int(got["agree"]), got["overlap"].tolist()) == (4, [4])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("top_k", "bins"), [(2, 15), (9, 4)])
def test_agrees_with_the_reference(seed, top_k, bins):
    data = drawn(seed)
    got = evaluate(MODEL, STILL, {}, data, top_k=top_k, bins=bins)
    compare(got, reference(*(data[k] for k in data), top_k=top_k, bins=bins))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 512])
def test_the_split_into_batches_changes_nothing(batch_size):
    data = drawn()
    compare(
        evaluate(MODEL, STILL, {}, data, batch_size=batch_size),
        reference(*(data[k] for k in data)),
    )


def test_rows_that_do_not_count_change_nothing():
    data, where = drawn(), np.arange(N) % 3 != 1
    want = reference(*(data[k] for k in data), where=where)
    data["labels"][~where] = 99
    data["inputs"][~where] = np.nan
    data["teacher_logits"][~where] = np.inf
    compare(evaluate(MODEL, STILL, {}, data | {"where": where}, batch_size=4), want)


def test_where_may_be_of_tokens():
    flat = drawn()
    where = np.arange(N - 1) % 3 != 1
    tokens = {k: x[: N - 1].reshape(5, 2, *x.shape[1:]) for k, x in flat.items()}
    got = evaluate(MODEL, STILL, {}, tokens | {"where": where.reshape(5, 2)}, batch_size=2)
    compare(got, reference(*(flat[k][: N - 1] for k in flat), where=where))


def test_where_of_sequences_holds_for_their_tokens():
    flat = {k: x[: N - 1] for k, x in drawn().items()}
    tokens = {k: x.reshape(5, 2, *x.shape[1:]) for k, x in flat.items()}
    where = np.array([True, False, True, True, False])
    got = evaluate(MODEL, STILL, {}, tokens | {"where": where}, batch_size=2)
    compare(got, reference(*(flat[k] for k in flat), where=np.repeat(where, 2)))


def test_a_live_teacher_and_its_stored_logits_are_the_same():
    data = drawn()
    live = as_teacher(MODEL, {"shift": jnp.array([[3.0, 0.0, 0.0, -1.0]])}, {})
    stored = data | {"teacher_logits": np.asarray(live(data["inputs"]).logits)}
    got = evaluate(MODEL, STILL, {}, data, teacher=live)  # before the stored ones
    compare(got, evaluate(MODEL, STILL, {}, stored))
    assert got["kl_to_teacher"] > 0


def test_a_teacher_may_look_at_inputs_of_its_own():
    data = drawn()
    turned = data | {"teacher_inputs": -5.0 * data["inputs"]}
    live = as_teacher(MODEL, STILL, {})
    stored = data | {"teacher_logits": np.asarray(live(turned["teacher_inputs"]).logits)}
    compare(evaluate(MODEL, STILL, {}, turned, teacher=live), evaluate(MODEL, STILL, {}, stored))


@pytest.mark.quick
def test_a_student_that_is_its_teacher():
    got = evaluate(MODEL, STILL, {}, drawn(), teacher=as_teacher(MODEL, STILL, {}))
    assert (got["agreement"], got["top_k_overlap"], got["kl_to_teacher"]) == (1.0, 1.0, 0.0)


def test_without_labels_or_teacher_their_metrics_are_left_out():
    data = drawn()
    assert evaluate(MODEL, STILL, {}, {"inputs": data["inputs"]}) == {"count": N}
    del data["labels"]
    assert list(evaluate(MODEL, STILL, {}, data)) == [
        "count",
        "agreement",
        "top_k",
        "top_k_overlap",
        "kl_to_teacher",
    ]


def test_results_are_plain_python():
    for x in jax.tree.leaves(evaluate(MODEL, STILL, {}, drawn())):
        assert type(x) in (int, float)


def test_classes_go_by_their_names():
    names = ("ant", "bee", "cat", "dog")
    model = from_function(lambda key, inputs: STILL, shift, classes=names)
    got = evaluate(model, STILL, {}, drawn())
    assert [row["class"] for row in got["per_class"]] == list(names)


@pytest.mark.parametrize(
    "row", [[np.nan, 0, 0, 0], [0, 0, np.nan, 0], [np.inf, 0, 0, 0], [-np.inf] * 4]
)
def test_a_row_that_is_no_distribution_is_an_error_and_is_seen(row):
    outputs = Outputs(jnp.array([row, [5.0, 0, 0, 0]], jnp.float32))
    teacher = jnp.array([[5.0, 0, 0, 0]] * 2)
    for label in range(CLASSES):
        got = SUMS(outputs, {"labels": jnp.array([label, 0])}, teacher)
        assert got["correct"] == 1
        assert got["class_correct"][0] == 1
        assert np.isnan(got["nll"])
    assert np.isnan(got["bin_confidence"].sum())
    assert got["agree"] == 1
    assert got["overlap"].sum() == CLASSES
    assert np.isnan(got["kl"])


def test_a_forbidden_class_is_fine_until_it_is_the_label():
    logits = jnp.array([[2.0, 1.0, -jnp.inf, 0.0]])
    allowed, forbidden = (sums(Outputs(logits), {"labels": jnp.array([label])}) for label in (0, 2))
    want = -log_softmax([2.0, 1.0, 0.0])[0]
    np.testing.assert_allclose(allowed["nll"], want, rtol=1e-6)
    assert forbidden["nll"] == np.inf
    assert forbidden["correct"] == 0
    assert np.isfinite(forbidden["bin_confidence"]).all()


def test_the_bins_are_closed_on_the_right():
    logits = jnp.zeros((1, 2))  # confidence 1/2, the border of bins 0 and 1 of 2
    got = SUMS(Outputs(logits), {"labels": jnp.array([0])}, bins=2)
    np.testing.assert_array_equal(got["bin_correct"], [1, 0])


def test_bfloat16_logits_are_summed_in_float32():
    data = drawn()
    logits = jnp.asarray(data["inputs"], jnp.bfloat16)
    got = SUMS(Outputs(logits), {"labels": jnp.asarray(data["labels"])})
    want = reference(np.asarray(logits, np.float64), data["labels"])
    np.testing.assert_allclose(got["nll"] / N, want["nll"], rtol=1e-5)
    assert got["bin_confidence"].dtype == jnp.float32


@pytest.mark.parametrize("stacked_teacher", [False, True])
def test_many_are_each_alone(stacked_teacher):
    data, shifts = drawn(), jnp.array([[[0.0, 1.0, 2.0, 3.0]], [[3.0, 0.0, 0.0, 0.0]]])
    taught = shifts[::-1] if stacked_teacher else shifts[0]
    got = evaluate_many(
        MODEL,
        {"shift": shifts},
        {},
        data,
        teacher=as_teacher(MODEL, {"shift": taught}, {}),
        stacked_teacher=stacked_teacher,
        batch_size=4,
    )
    for i, found in enumerate(got):
        logits = data["inputs"] + shifts[i]
        teacher = data["inputs"] + (taught[i] if stacked_teacher else taught)
        compare(found, reference(logits, data["labels"], teacher))
    assert len(got) == 2


def test_one_program_serves_all_batches_and_calls():
    traces = []

    def counted(params, inputs):
        traces.append(inputs.shape)
        return inputs + params["shift"]

    model = from_function(lambda key, inputs: STILL, counted)
    for seed in range(2):
        evaluate(model, STILL, {}, drawn(seed), batch_size=4)
    assert traces == [(4, CLASSES)]


def test_a_model_with_one_output_has_two_classes():
    model = logistic_regression(2)
    params = {"kernel": jnp.array([[1.0]]), "bias": jnp.zeros(1)}
    data = {"inputs": np.array([[-1.0], [2.0], [3.0]], np.float32), "labels": np.array([0, 1, 0])}
    got = evaluate(model, params, {}, data)
    want = reference(np.array([[0.0, -1.0], [0.0, 2.0], [0.0, 3.0]]), data["labels"])
    compare(got, want)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"labels": np.full(N, 4)}, {}, ValueError, "labels must lie in 0 ... 3 for 4 classes"),
        ({"labels": np.ones(N)}, {}, TypeError, "labels must be integers"),
        ({"labels": np.ones(3, int)}, {}, ValueError, "one length"),
        ({"where": np.zeros(N, bool)}, {}, ValueError, "data must have a row that counts"),
        ({"where": np.ones(N)}, {}, TypeError, "where must be booleans"),
        ({"teacher_logits": np.ones((N, 3))}, {}, ValueError, "teacher_logits must have the shape"),
        ({}, {"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
        ({}, {"top_k": 0}, ValueError, "top_k must be 1 or more, got 0"),
        ({}, {"bins": 0}, ValueError, "bins must be 1 or more, got 0"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_names_what_is_wrong(change, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(MODEL, STILL, {}, drawn() | change, **options)


def test_data_without_inputs_is_refused():
    with pytest.raises(ValueError, match="data must have a column inputs"):
        evaluate(MODEL, STILL, {}, {"labels": np.arange(3)})


def test_a_teacher_with_another_class_order_is_refused():
    ours, theirs = (
        from_function(lambda key, inputs: STILL, shift, classes=names)
        for names in (("a", "b", "c", "d"), ("d", "a", "b", "c"))
    )
    with pytest.raises(ValueError, match="teachers.reorder"):
        evaluate(ours, STILL, {}, drawn(), teacher=as_teacher(theirs, STILL, {}))


def test_params_that_are_not_stacked_are_refused():
    with pytest.raises(ValueError, match="stacked along one leading axis"):
        evaluate_many(MODEL, {"a": jnp.zeros(2), "b": jnp.zeros(3)}, {}, drawn())
    with pytest.raises(ValueError, match="stacked along one leading axis"):
        evaluate_many(MODEL, STILL, {}, drawn())
