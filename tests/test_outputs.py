"""What a model's outputs mean, from the adapters to training: one output stays one number, an
ensemble averages what its members predict, and what does not fit together is refused by name."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import expit, logit

from distill_jax import losses, models, teachers, term, weighted_sum
from distill_jax.data import check
from distill_jax.evaluation import sums
from distill_jax.rules import Column, Schema, bind, encourage, enforce
from distill_jax.training import fit, run, sweep
from distill_jax.types import Model, Outputs

ROWS = 8
KEY = jax.random.key(0)


def design(seed: int = 0) -> np.ndarray:
    """Inputs whose columns are orthogonal to each other and to 1, of mean square 1."""
    x = np.random.default_rng(seed).standard_normal((ROWS, 3))
    q, _ = np.linalg.qr(np.concatenate([np.ones((ROWS, 1)), x], axis=1))
    return (q[:, 1:] * ROWS**0.5).astype(np.float32)


INPUTS = design()
TARGETS = np.random.default_rng(1).standard_normal(ROWS).astype(np.float32)
ONE = {
    "from_function": lambda kind: models.from_function(
        lambda key, x: jnp.zeros((x.shape[-1], 1)), lambda params, x: x @ params, outputs=kind
    ),
    "from_linen": lambda kind: models.from_linen(nn.Dense(1), outputs=kind),
    "from_nnx": lambda kind: models.from_nnx(
        lambda rngs: nnx.Linear(3, 1, rngs=rngs), outputs=kind
    ),
    "mlp": lambda kind: models.mlp([], 1, outputs=kind),
    "logistic_regression": lambda kind: models.logistic_regression(1, outputs=kind),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", ONE)
def test_one_output_is_one_number_unless_it_is_two_classes(name):
    for kind in ("regression", "multi_label", "embedding"):
        model = ONE[name](kind)
        assert model.outputs == kind
        variables = model.init(KEY, INPUTS)
        assert jax.eval_shape(model.predict, *variables, INPUTS).logits.shape == (ROWS, 1)
        made = teachers.teacher(model, *variables)
        assert made.outputs == kind and made(INPUTS).logits.shape == (ROWS, 1)


def test_the_networks_take_one_output_of_other_kinds_than_classes(library_errors):
    images = jnp.ones((2, 4, 4, 1))
    for make in (lambda **k: models.convnet([2], 1, **k), lambda **k: models.resnet(8, 1, **k)):
        model = make(outputs="regression")
        variables = jax.eval_shape(model.init, KEY, images)
        assert jax.eval_shape(model.predict, *variables, images).logits.shape == (2, 1)
    for make in (ONE["mlp"], ONE["logistic_regression"]):
        with pytest.raises(ValueError, match="num_classes must be 2 or more, got 1.*regression"):
            make("softmax")
    for make in (*ONE.values(), lambda kind: teachers.from_function(len, {}, outputs=kind)):
        with pytest.raises(ValueError, match="outputs must be one of 'softmax', .*got 'numbers'"):
            make("numbers")


def test_logits_without_an_axis_of_their_own_are_refused():
    """A vector of one number per row would be one row of as many classes."""
    for kind in ("softmax", "regression"):
        model = models.from_function(
            lambda key, x: jnp.zeros(3), lambda params, x: x @ params, outputs=kind
        )
        with pytest.raises(ValueError, match=r"one number per row as \[batch, 1\], got shape"):
            model.predict(*model.init(KEY, INPUTS), INPUTS)


def own_squares(student_logits, targets):
    return ((student_logits - targets) ** 2).sum(-1)


@pytest.mark.parametrize("loss", [losses.squared_error_with_targets, own_squares])
@pytest.mark.parametrize("train", [run, fit])
def test_a_regressor_of_one_output_reaches_the_least_squares_optimum(train, loss):
    model = models.logistic_regression(1, outputs="regression")
    data = {"inputs": INPUTS, "targets": TARGETS[:, None]}
    rate = 0.5 if loss is losses.squared_error_with_targets else 0.25
    state, metrics = train(
        model,
        weighted_sum(term("targets", 1.0, loss)),
        optax.sgd(rate),
        data,
        key=KEY,
        steps=32,
        batch_size=ROWS,
    )
    x = np.concatenate([INPUTS, np.ones((ROWS, 1))], axis=1).astype(np.float64)
    want, (residual,), *_ = np.linalg.lstsq(x, TARGETS.astype(np.float64))
    got = np.append(state.params["kernel"], state.params["bias"])
    np.testing.assert_allclose(got, want, atol=1e-6)
    scale = 0.5 if loss is losses.squared_error_with_targets else 1.0
    if train is run:
        np.testing.assert_allclose(metrics["targets"][-1], scale * residual / ROWS, rtol=1e-5)
    predicted = model.predict(state.params, state.state, INPUTS).logits
    np.testing.assert_allclose(predicted, (x @ want)[:, None], atol=1e-5)


@jax.numpy_rank_promotion("allow")
@pytest.mark.parametrize("train", [run, fit])
def test_predictions_with_an_axis_and_targets_without_are_not_paired(train):
    def paired(student_logits, targets):  # [batch, 1] - [batch]
        return ((student_logits - targets) ** 2).mean(-1)

    def alone(student_logits, targets):
        return (student_logits[:, 0] - targets) ** 2

    with pytest.raises(ValueError, match=r"'it' compares each row with every other.*\['targets'\]"):
        attempt(ONE["mlp"]("regression"), term("it", 1.0, paired), targets=TARGETS, train=train)
    for loss in (alone, losses.squared_error_with_targets, losses.huber):
        attempt(ONE["mlp"]("regression"), term("it", 1.0, loss), targets=TARGETS, train=train)
    coupled = term("it", 1.0, paired, coupled=True)
    attempt(ONE["mlp"]("regression"), coupled, targets=TARGETS, train=train)


# Ensembles.


def says(logits: Any, kind: Any) -> teachers.Teacher:
    """A teacher that predicts ``logits`` of zeros."""
    return teachers.from_function(add, jnp.asarray(logits, jnp.float32), outputs=kind)


def add(params, inputs):
    return inputs + params


ZEROS = jnp.zeros((1, 3))


@pytest.mark.parametrize("mix", ["probability", "log"])
def test_labels_are_averaged_each_on_its_own(mix):
    first, second = np.array([[2.0, -1.0, 30.0]]), np.array([[-3.0, -1.0, -np.inf]])
    one = teachers.ensemble([says(first, "multi_label")], mix=mix)
    np.testing.assert_allclose(one(ZEROS).logits, first, rtol=1e-6)
    two = teachers.ensemble(
        [says(first, "multi_label"), says(second, "multi_label")], [1, 3], mix=mix
    )
    if mix == "log":
        want = 0.25 * first + 0.75 * second
    else:
        want = logit(0.25 * expit(first) + 0.75 * expit(second))
    np.testing.assert_allclose(two(ZEROS).logits, want, rtol=1e-6)
    assert two.outputs == "multi_label"
    silent = teachers.ensemble(
        [says(first, "multi_label"), says([[np.nan] * 3], "multi_label")], [1, 0]
    )
    np.testing.assert_allclose(silent(ZEROS).logits, first, rtol=1e-6)


@pytest.mark.parametrize("kind", ["regression", "embedding"])
def test_numbers_and_vectors_are_averaged_as_they_are(kind):
    members = [says([[4.0, 0.0, 1.0]], kind), says([[0.0, 0.0, 3.0]], kind)]
    both = teachers.ensemble(members, [3.0, 1.0])
    np.testing.assert_allclose(both(ZEROS).logits, [[3.0, 0.0, 1.5]])
    assert both.outputs == kind
    with pytest.raises(ValueError, match='mix="log" averages the logarithms of probabilities'):
        teachers.ensemble(members, mix="log")


def test_members_of_different_kinds_are_refused():
    mixed = [says(ZEROS, "softmax"), says(ZEROS, "regression")]
    with pytest.raises(
        ValueError, match=r"teachers\[1\] has 'regression', teachers\[0\] 'softmax'"
    ):
        teachers.ensemble(mixed)


def test_what_is_made_of_a_teacher_or_model_keeps_the_kind():
    model = models.mlp([4], 3, classes=("a", "b", "c"), outputs="multi_label")
    for changed in (models.cast(model, jnp.bfloat16), models.remat(model)):
        assert changed.outputs == "multi_label"
    made = teachers.teacher(model, *model.init(KEY, INPUTS))
    for changed in (
        teachers.cast(made),
        teachers.quantize(made, smallest=4),
        teachers.reorder(made, tuple("cab")),
        teachers.ensemble([made]),
        jax.tree.map(jnp.asarray, made),
    ):
        assert changed.outputs == "multi_label"


# What does not fit together.


def attempt(
    model: Model, *terms: Any, teacher: Any = None, train: Any = run, **columns: Any
) -> Any:
    data = {"inputs": INPUTS, **columns}
    taught = {} if teacher is None else {"teachers": {"teacher": teacher}}
    objective, steps = weighted_sum(*terms), {"key": KEY, "steps": 1, "batch_size": ROWS}
    return train(model, objective, optax.sgd(0.1), data, **steps, **taught)


CLASSES, LABELS, NUMBERS = (
    models.logistic_regression(3, outputs=kind) for kind in ("softmax", "multi_label", "regression")
)
MATCH = term("teacher", 1.0, losses.squared_error)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("student", "loss", "message"),
    [
        (NUMBERS, losses.forward_kl, "forward_kl, is meant for outputs='softmax', the student has"),
        (LABELS, losses.soft_targets, "soft_targets, is meant for outputs='softmax'"),
        (CLASSES, losses.soft_targets_multilabel, "meant for outputs='multi_label'"),
        (CLASSES, losses.binary_cross_entropy, "meant for outputs='multi_label'"),
        (CLASSES, losses.huber, "meant for outputs='regression' or 'embedding'"),
        (NUMBERS, losses.cross_entropy, "cross_entropy, is meant for outputs='softmax'"),
    ],
)
def test_a_loss_for_another_kind_is_refused(student, loss, message):
    with pytest.raises(ValueError, match=message):
        attempt(student, term("it", 1.0, loss))


def test_every_loss_says_what_it_is_meant_for():
    for name in losses.__all__:
        assert getattr(losses, name).outputs


def test_a_teacher_of_another_kind_is_refused():
    other = teachers.teacher(NUMBERS, *NUMBERS.init(KEY, INPUTS))
    with pytest.raises(
        ValueError, match=r"teachers\['teacher'\] has outputs='regression', the stud"
    ):
        attempt(CLASSES, MATCH, teacher=other)
    attempt(NUMBERS, MATCH, teacher=other)


def test_rules_are_about_classes_or_about_labels():
    columns = (Column("a"), Column("b"), Column("c"))
    exclusive, labels = (Schema(columns, ("x", "y", "z"), exclusive=e) for e in (True, False))
    rules = {e: bind("[hard] a > 0 => x", s) for e, s in ((True, exclusive), (False, labels))}
    with pytest.raises(
        ValueError, match="the rules of term 'rules' is about outputs='multi_label'"
    ):
        attempt(CLASSES, encourage("rules", 1.0, rules[False]), columns=INPUTS)
    attempt(LABELS, encourage("rules", 1.0, rules[False]), columns=INPUTS)
    for model, book in ((CLASSES, rules[False]), (LABELS, rules[True])):
        with pytest.raises(ValueError, match="make the model with outputs="):
            enforce(model, book)


# Cached logits.


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("train", [run, fit])
def test_a_cached_row_that_is_no_distribution_is_refused(train, bad):
    cached = np.zeros((ROWS, 3), np.float32)
    cached[5] = bad
    message = "got -inf for every class in 1 of 8 rows" if bad == -np.inf else "must be finite"
    with pytest.raises(ValueError, match=f"teacher_logits.*{message}"):
        attempt(CLASSES, term("it", 1.0, losses.forward_kl), teacher_logits=cached, train=train)
    where = np.arange(ROWS) != 5
    attempt(CLASSES, term("it", 1.0, losses.forward_kl), teacher_logits=cached, where=where)


def test_what_minus_infinity_means_depends_on_the_kind():
    cached = np.zeros((ROWS, 3), np.float32)
    cached[5] = -np.inf  # no label holds
    soft = term("it", 1.0, losses.soft_targets_multilabel)
    _, metrics = attempt(LABELS, soft, teacher_logits=cached)
    assert np.isfinite(metrics["loss"]).all()
    with pytest.raises(ValueError, match="teacher_logits must be finite, got NaN or inf in 1 of 8"):
        attempt(NUMBERS, MATCH, teacher_logits=cached)


def test_tokens_that_do_not_count_may_be_empty():
    logits = np.zeros((2, 3, 4), np.float32)
    logits[1, 2] = -np.inf
    where = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="teacher_logits must leave a class possible"):
        check({"teacher_logits": logits, "where": where})
    where[1, 2] = False
    check({"teacher_logits": logits, "where": where})


def test_targets_must_be_probabilities():
    targets = np.full((ROWS, 3), 1 / 3, np.float32)
    soft = term("it", 1.0, losses.cross_entropy_with_targets)
    for bad in (0.0, -0.1):
        wrong = targets.copy()
        wrong[3] = bad
        with pytest.raises(ValueError, match="'targets' of term 'it' must be probabilities"):
            attempt(CLASSES, soft, targets=wrong)
        attempt(CLASSES, soft, targets=wrong, where=np.arange(ROWS) != 3)


def test_labels_that_nobody_looked_at_may_hold_anything(library_errors):
    labels = np.zeros((ROWS, 3), np.int64)
    labels[2, 1] = -1
    objective = weighted_sum(term("labels", 1.0, losses.binary_cross_entropy))
    with pytest.raises(ValueError, match="labels must be 0 or more, got -1"):
        objective.check({"inputs": INPUTS, "labels": labels}, 3, "multi_label")
    columns = {"inputs": INPUTS, "labels": labels, "known": labels == 0}
    objective.check(columns, 3, "multi_label")
    got = losses.binary_cross_entropy(jnp.zeros((ROWS, 3)), labels, columns["known"])
    np.testing.assert_allclose(got, np.log(2.0) * (labels == 0).sum(-1), rtol=1e-6)


# Numbers that would become others where JAX holds them in 32 bits.

HUGE = 2**32 + 1
MASKED = np.arange(ROWS) != 2


def with_huge(dtype: Any = np.int64) -> np.ndarray:
    labels = np.zeros(ROWS, dtype)
    labels[2] = HUGE
    return labels


@pytest.mark.quick
@pytest.mark.parametrize("train", [run, fit])
def test_numbers_are_checked_before_they_are_cast(train):
    hard = term("labels", 1.0, losses.cross_entropy)
    for dtype in (np.int64, np.uint64):
        with pytest.raises(
            ValueError, match="labels has the value 4294967297, which does not fit in"
        ):
            attempt(CLASSES, hard, labels=with_huge(dtype), train=train)
    attempt(CLASSES, hard, labels=with_huge(), where=MASKED, train=train)
    cached = np.zeros((ROWS, 3))
    cached[1, 1] = -1e300  # would be -inf, a class that cannot be
    with pytest.raises(ValueError, match=r"teacher_logits has the value -1e\+300"):
        soft = term("it", 1.0, losses.forward_kl)
        attempt(CLASSES, soft, teacher_logits=cached, train=train)
    with pytest.raises(ValueError, match="inputs has the value 4294967297"):
        attempt(
            CLASSES, hard, inputs=np.full((ROWS, 3), HUGE), labels=np.zeros(ROWS, int), train=train
        )


@pytest.mark.parametrize("late", [{"labels": with_huge()}, {"inputs": np.full((ROWS, 3), 1e300)}])
def test_numbers_of_a_late_batch_are_checked_too(late):
    good = {"inputs": INPUTS.astype(np.float64), "labels": np.zeros(ROWS, np.int64)}
    hard = weighted_sum(term("labels", 1.0, losses.cross_entropy))
    options = {"key": KEY, "steps": 3}
    with pytest.raises(ValueError, match=f"{next(iter(late))} has the value"):
        fit(CLASSES, hard, optax.sgd(0.1), iter([good, good, good | late]), **options)


def test_what_nothing_reads_may_be_of_any_size():
    """Numbers of rows, for example; and rows that do not count."""
    batch = {"inputs": INPUTS, "labels": with_huge(), "where": MASKED, "id": np.full(ROWS, HUGE)}
    hard = weighted_sum(term("labels", 1.0, losses.cross_entropy))
    fit(CLASSES, hard, optax.sgd(0.1), iter([batch] * 2), key=KEY, steps=2)


def test_what_a_sweep_shares_is_checked_before_the_cast():
    def trial(key, *, labels):
        return {"first": labels[0]}

    with pytest.raises(ValueError, match=r"shared\['labels'\] has the value 4294967297"):
        sweep(trial, {}, key=KEY, seeds=1, shared={"labels": with_huge()})


def test_losses_and_precompute_check_before_the_cast_too(library_errors):
    logits = jnp.zeros((ROWS, 3))
    with pytest.raises(ValueError, match="labels must lie in 0 ... 2.*to 4294967297"):
        losses.cross_entropy(logits, with_huge(), where=np.ones(ROWS, bool))
    losses.cross_entropy(logits, with_huge(), where=MASKED)
    for loss in (losses.binary_cross_entropy, losses.ordinal_cross_entropy):
        ones = with_huge() if loss is losses.ordinal_cross_entropy else np.full((ROWS, 3), HUGE)
        with pytest.raises(ValueError, match="labels must lie in"):
            loss(logits, ones)
    with pytest.raises(ValueError, match="labels has the value 4294967297"):
        sums(Outputs(logits), {"labels": with_huge()})
    assert sums(Outputs(logits), {"labels": with_huge(), "where": MASKED})["count"] == ROWS - 1
    with pytest.raises(ValueError, match="inputs.* has the value 4294967297"):
        teachers.precompute(says(ZEROS, "softmax"), np.full((ROWS, 3), HUGE))
