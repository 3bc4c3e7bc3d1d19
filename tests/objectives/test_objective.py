"""Objectives: counts, masks, splits, schedules, parameters of terms, messages."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import cross_entropy, forward_kl, soft_targets
from distill_jax.objectives import Context, Part, term, weighted_sum
from distill_jax.types import Outputs
from tests.objectives.examples import CLASSES, ROWS, both, context_of, example


@jax.jit
def gradient(objective, kernel, batch, denominators):
    def value(kernel):
        return objective({}, {}, context_of(kernel, batch), denominators)[0]

    return jax.value_and_grad(value)(kernel)


@pytest.mark.quick
def test_value_is_the_weighted_sum_of_means_over_what_counts():
    batch, kernel = example()
    value, (parts, _) = both()({}, {}, context_of(kernel, batch))
    logits, teacher = np.float64(batch["inputs"] @ kernel), np.float64(batch["teacher_logits"])

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    labelled = np.asarray(batch["labelled"] & batch["where"])
    hard = -log_softmax(logits)[np.arange(ROWS), batch["labels"]][labelled].mean()
    p, q = log_softmax(teacher / 3), log_softmax(logits / 3)
    soft = 9 * (np.exp(p) * (p - q)).sum(-1)[np.asarray(batch["where"])].mean()
    np.testing.assert_allclose(value, 0.3 * hard + 0.7 * soft, rtol=1e-5)
    assert (parts["labels"].count, parts["teacher"].count) == (labelled.sum(), ROWS - 1)
    np.testing.assert_allclose(parts["teacher"].mean, soft, rtol=1e-5)


def test_counts_need_no_forward_pass():
    batch, _ = example()
    assert {n: float(c) for n, c in both().counts(batch).items()} == {"labels": 7, "teacher": 11}


@pytest.mark.parametrize("pieces", [[4, 8], [1, 11], [4, 4, 4], [1] * 4 + [8]])
def test_the_gradient_is_the_same_for_any_split(pieces):
    batch, kernel = example()
    objective = both()
    whole = gradient(objective, kernel, batch, objective.counts(batch))
    ends = np.cumsum([0, *pieces])
    parts = [jax.tree.map(lambda x: x[a:b], batch) for a, b in zip(ends, ends[1:], strict=False)]  # noqa: B023
    counts = jax.tree.map(lambda *x: sum(x), *(objective.counts(p) for p in parts))
    pieces = [gradient(objective, kernel, part, counts) for part in parts]
    split = jax.tree.map(lambda *x: sum(x), *pieces)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-6)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)


def test_means_of_means_would_differ():
    """The split above is uneven enough to tell: averaging pieces' own means is visibly off."""
    batch, kernel = example()
    halves = [jax.tree.map(lambda x: x[a:b], batch) for a, b in ((0, 4), (4, 12))]  # noqa: B023
    means = [both()({}, {}, context_of(kernel, part))[0] for part in halves]
    whole = both()({}, {}, context_of(kernel, batch))[0]
    assert abs(sum(means) / 2 - whole) > 0.02


def test_a_coupled_term_refuses_a_piece_of_a_batch():
    batch, kernel = example()

    def spread(student_logits):
        return ((student_logits - student_logits.mean(0, keepdims=True)) ** 2).sum(-1)

    objective = weighted_sum(term("spread", 1.0, spread, coupled=True))
    with pytest.raises(ValueError, match="'spread' couples .* must take where"):
        objective({}, {}, context_of(kernel, batch))
    del batch["where"]
    objective({}, {}, context_of(kernel, batch))
    with pytest.raises(ValueError, match="'spread' couples .* on a piece of one"):
        objective({}, {}, context_of(kernel, batch), objective.counts(batch))


def test_masked_rows_may_hold_anything():
    batch, kernel = example()
    dirty = dict(batch, teacher_logits=batch["teacher_logits"].at[5].set(jnp.nan))
    dirty["labels"] = batch["labels"].at[5].set(-7)

    def value(kernel, batch):
        return both()({}, {}, context_of(kernel, batch))[0]

    clean = jax.value_and_grad(value)(kernel, batch)
    chex.assert_trees_all_equal(jax.value_and_grad(value)(kernel, dirty), clean)


def test_nothing_counts_is_zero_with_zero_gradient():
    batch, kernel = example()
    batch["where"] = jnp.zeros(ROWS, bool)
    value, grad = jax.value_and_grad(lambda k: both()({}, {}, context_of(k, batch))[0])(kernel)
    assert value == 0
    assert not grad.any()


def test_no_gradient_reaches_a_teacher():
    batch, kernel = example()
    objective = weighted_sum(term("teacher", 1.0, forward_kl))

    def value(teacher_kernel):
        teacher = Outputs(batch["inputs"] @ teacher_kernel)
        context = Context(Outputs(batch["inputs"] @ kernel), {"big": teacher}, batch)
        return objective({}, {}, context)[0]

    assert value(2 * kernel) > 0
    assert not jax.grad(value)(2 * kernel).any()


def test_weights_and_options_are_leaves_and_do_not_retrace():
    batch, kernel = example()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def value(objective):
        return objective({}, {}, context_of(kernel, batch))[0]

    values = [
        value(weighted_sum(term("teacher", weight, soft_targets, temperature=temperature)))
        for weight, temperature in ((1.0, 1.0), (2, 4.0), (jnp.float32(0.5), jnp.float32(2.0)))
    ]
    assert len({float(v) for v in values}) == 3


def test_a_sweep_over_weights_is_a_vmap():
    batch, kernel = example()

    def value(weight):
        objective = weighted_sum(term("labels", weight, cross_entropy))
        return objective({}, {}, context_of(kernel, batch))[0]

    values = jax.vmap(value)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(values[1], 2 * values[0], rtol=1e-6)


def test_schedules_see_the_step():
    batch, kernel = example()
    objective = weighted_sum(
        term("teacher", lambda step: step * 1.0, soft_targets, temperature=lambda step: 1.0 + step)
    )
    fixed = weighted_sum(term("teacher", 1.0, soft_targets, temperature=4.0))
    got = jax.jit(lambda o, step: o({}, {}, context_of(kernel, batch, step=step))[0])(objective, 3)
    want = fixed({}, {}, context_of(kernel, batch))[0]
    np.testing.assert_allclose(got, 3 * want, rtol=1e-6)


def test_terms_own_parameters_and_state():
    batch, kernel = example()

    def init(key, context):
        classes = context.student.logits.shape[-1]
        return {"scale": jnp.ones(classes)}, {"calls": jnp.zeros((), jnp.int32)}

    def scaled(params, state, context, *, where):
        rows = forward_kl(
            context.student.logits * params["scale"][None], context.batch["teacher_logits"],
            where=where,
        )  # fmt: skip
        return rows, {"calls": state["calls"] + 1}

    objective = weighted_sum(term("scaled", 1.0, scaled, init=init))
    context = context_of(kernel, batch)
    params, state = objective.init(jax.random.key(0), jax.eval_shape(lambda: context))

    def value(params):
        return objective(params, state, context)

    grads, (parts, new) = jax.grad(value, has_aux=True)(params)
    assert new["scaled"]["calls"] == 1
    assert jnp.abs(grads["scaled"]["scale"]).min() > 0
    assert isinstance(parts["scaled"], Part)


def test_an_infinite_loss_with_weight_zero_is_zero():
    batch = {"inputs": jnp.zeros((1, 2)), "teacher_logits": jnp.zeros((1, 2))}
    forbids = Context(Outputs(jnp.array([[0.0, -jnp.inf]])), {}, batch)
    objective = weighted_sum(term("kl", 0.0, forward_kl))
    assert objective({}, {}, forbids)[0] == 0


def test_columns_of_terms_with_parameters_are_checked_beforehand():
    def scaled(params, state, student_logits, labels):
        return params * cross_entropy(student_logits, labels), state

    objective = weighted_sum(term("own", 1.0, scaled, init=lambda key: (1.0, None)))
    with pytest.raises(ValueError, match="labels must lie in 0 ... 2"):
        objective.check({"inputs": jnp.zeros((2, 1)), "labels": jnp.array([0, 3])}, 3)


def test_low_precision_rows_are_summed_in_float32():
    def loss(student_logits):
        return jnp.full(len(student_logits), 1.0078125, jnp.bfloat16)

    batch, kernel = example()
    _, (parts, _) = weighted_sum(term("low", 1.0, loss))({}, {}, context_of(kernel, batch))
    assert parts["low"].sum.dtype == jnp.float32 and parts["low"].mean == 1.0078125


@pytest.mark.parametrize("x64", [False, True])
def test_strict_promotion_of_dtypes(x64):
    batch, kernel = example()

    def squares(student_logits, teacher_logits):
        return ((student_logits - teacher_logits) ** 2).sum(-1)

    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
        objective = weighted_sum(
            term("squares", 0.5, squares, where="labelled"),
            term("off", lambda step: jnp.zeros(()), squares),
        )
        value = jax.jit(lambda o: o({}, {}, context_of(kernel, batch))[0])(objective)
    want = ((batch["inputs"] @ kernel - batch["teacher_logits"]) ** 2).sum(-1)
    kept = batch["labelled"] & batch["where"]
    np.testing.assert_allclose(value, 0.5 * want[kept].mean(), rtol=1e-6)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    def test_two_terms_of_one_name(self):
        labels = term("labels", 1.0, cross_entropy)
        with pytest.raises(ValueError, match="'labels' twice"):
            weighted_sum(labels, labels)
        with pytest.raises(ValueError, match="one term or more"):
            weighted_sum()

    def test_rows_of_another_shape(self):
        batch, kernel = example()
        objective = weighted_sum(term("mean", 1.0, lambda student_logits: student_logits.mean()))
        with pytest.raises(ValueError, match=r"gave rows of shape \(\), its mask has \(12,\)"):
            objective({}, {}, context_of(kernel, batch))

    def test_labels_out_of_range(self):
        batch, _ = example()
        batch["labels"] = batch["labels"].at[0].set(CLASSES)
        with pytest.raises(ValueError, match="labels must lie in 0 ... 2"):
            both().check(batch, CLASSES)
        both().check(dict(batch, labelled=batch["labelled"].at[0].set(False)), CLASSES)

    def test_masks_of_different_batches(self):
        batch = {"inputs": jnp.zeros((4, 1)), "m": jnp.ones((4, 3), bool)}
        batch["where"] = jnp.ones((4, 2), bool)
        with pytest.raises(ValueError, match="must begin with the same axes"):
            term("t", 1.0, cross_entropy, where="m").count(batch)
        batch = {**batch, "labels": jnp.zeros(4, int), "where": jnp.ones(4, bool)}
        with pytest.raises(ValueError, match="its column 'labels'"):
            weighted_sum(term("t", 1.0, cross_entropy, where="m")).check(batch, 2)

    def test_masks_that_leave_no_row(self):
        batch, _ = example()
        nothing = dict(batch, labelled=jnp.zeros(ROWS, bool))
        both().check_masks(batch)
        with pytest.raises(ValueError, match="'labels' counts none of the 12 rows .*: its where= "):
            both().check_masks(nothing)
        with pytest.raises(ValueError, match="'labels' counts none of .*: the column 'where' is F"):
            weighted_sum(term("labels", 1.0, cross_entropy)).check_masks(
                dict(batch, where=jnp.zeros(ROWS, bool))
            )
        off = term("labels", 0.0, cross_entropy, where="labelled")
        weighted_sum(off).check_masks(nothing)

    def test_a_schedule_that_gives_no_scalar(self):
        batch, kernel = example()
        objective = weighted_sum(term("labels", lambda step: jnp.ones(2), cross_entropy))
        with pytest.raises(ValueError, match="weight of term 'labels' must be a scalar"):
            objective({}, {}, context_of(kernel, batch))

    def test_a_count_that_is_missing(self):
        batch, kernel = example()
        with pytest.raises(ValueError, match=r"denominators must have a count .* \['labels'\]"):
            both()({}, {}, context_of(kernel, batch), {"teacher": 3.0})
