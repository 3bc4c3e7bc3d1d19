"""The student against its own prediction on another view, where that is confident."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import losses, models, training
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.types import Outputs
from tests import references

RNG = np.random.default_rng(0)
WEAK, STRONG = jnp.asarray(RNG.normal(scale=2.0, size=(2, 12, 3)), jnp.float32)
WHERE = jnp.arange(12) % 3 > 0
OWN = {"teacher_logits": "view:weak"}


def mean(*, batch, loss=losses.pseudo_labels, **options):
    objective = weighted_sum(term("own", 1.0, loss, where="free", reads=OWN, **options))
    views = {"weak": Outputs(WEAK)}
    context = Context(Outputs(STRONG), batch=batch, views=views)
    return objective({}, {}, context)[0]


@pytest.mark.quick
@pytest.mark.parametrize("loss", [losses.pseudo_labels, losses.sharpened_targets])
def test_the_mean_is_over_all_rows_that_count_or_over_those_that_are_kept(loss):
    options = {"threshold": 0.8}
    if loss is losses.sharpened_targets:
        options["temperature"] = 0.5
    rows = getattr(references, loss.__name__)(STRONG, WEAK, **options)[np.asarray(WHERE)]
    kept = np.count_nonzero(rows)
    assert 0 < kept < len(rows)
    for over, number in (("all", len(rows)), ("kept", kept)):
        found = mean(batch={"free": WHERE}, loss=loss, over=over, **options)
        np.testing.assert_allclose(found, rows.sum() / number, rtol=1e-5)


@pytest.mark.parametrize("over", ["all", "kept"])
def test_a_teacher_sure_of_nothing_gives_0_and_its_rows_no_gradient(over):
    def total(student, teacher):
        return losses.pseudo_labels(student, teacher, threshold=1.0, over=over).sum()

    assert jax.value_and_grad(total)(STRONG, WEAK)[0] == 0
    grads = jax.grad(total, (0, 1))(jnp.full((12, 3), -jnp.inf), WEAK)
    assert not np.any(grads)
    masked = WHERE & (jnp.arange(12) > 4)
    bad = jnp.where(masked[:, None], WEAK, np.nan)
    clean, dirty = (
        losses.pseudo_labels(STRONG, x, threshold=0.8, over=over, where=masked) for x in (WEAK, bad)
    )
    np.testing.assert_array_equal(clean, dirty)
    assert np.isnan(losses.pseudo_labels(STRONG, bad, threshold=0.8)).any()


def test_a_threshold_may_follow_a_schedule():
    early, late = (
        mean(batch={"free": WHERE}, threshold=lambda step, t=t: t + 0.0 * step) for t in (0.99, 0.5)
    )
    assert early < late
    np.testing.assert_allclose(late, mean(batch={"free": WHERE}, threshold=0.5), rtol=1e-6)


def test_wrong_uses_are_refused(library_errors):
    with pytest.raises(ValueError, match=r"'view:wek'.*the views are \['weak'\].*'inputs:wek'"):
        objective = weighted_sum(
            term("own", 1.0, losses.pseudo_labels, reads={"teacher_logits": "view:wek"})
        )
        views = {"weak": Outputs(WEAK)}
        objective({}, {}, Context(Outputs(STRONG), batch={"x": WHERE}, views=views))
    with pytest.raises(ValueError, match="over must be .*\"kept\".*got 'some'|over must be one of"):
        losses.pseudo_labels(STRONG, WEAK, over="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold"):
        term("own", 1.0, losses.pseudo_labels, threshold=1.5)


# In training, with views that augment= makes.

INPUTS = RNG.normal(size=(12, 4)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.arange(12) % 3, "free": WHERE, "labelled": ~WHERE}
MODEL = models.logistic_regression(3)
KEY = jax.random.key(0)


def two_views(key, batch):
    weak = batch["inputs"]
    hard = weak + 0.5 * jax.random.normal(key, weak.shape)
    return {**batch, "inputs": jnp.where(batch["free"][:, None], hard, weak), "inputs:weak": weak}


@functools.cache
def objective(over):
    return weighted_sum(
        term("labels", 1.0, losses.cross_entropy, where="labelled"),
        term("own", 1.0, losses.pseudo_labels, threshold=0.4, over=over, where="free", reads=OWN),
    )


@functools.cache
def trained(over, microbatches=1, loop=training.run):
    end, history = loop(
        MODEL, objective(over), optax.sgd(0.5), DATA, key=KEY, steps=3, batch_size=12,
        augment=two_views, microbatches=microbatches, **({} if loop is training.run else QUIET),
    )  # fmt: skip
    return end.params, {name: np.asarray(x) for name, x in history.items()}


QUIET = {"progress": False}


@pytest.mark.parametrize("over", ["all", "kept"])
def test_views_that_augment_makes_train_in_run_fit_and_pieces(over):
    params, history = trained(over)
    assert (history["own"][1:] > 0).all()
    again, same = trained(over, 1, training.fit)
    np.testing.assert_array_equal(params["kernel"], again["kernel"])
    np.testing.assert_array_equal(history["own"], same["own"][:3])
    pieces, close = trained(over, 3)
    np.testing.assert_allclose(history["own"], close["own"], rtol=1e-5)
    np.testing.assert_allclose(params["kernel"], pieces["kernel"], atol=1e-6)


def test_the_mean_over_kept_rows_makes_a_term_coupled():
    assert [t.coupled for t in objective("kept").terms] == [False, True]
    assert not objective("all").terms[1].coupled
    named = {"reads": {"teacher_logits": "view:weak"}, "static": ("over",)}
    assert term("own", 1.0, losses.pseudo_labels, over="kept", **named).coupled


def test_a_step_is_that_of_the_loss_written_out():
    recipe = training.Recipe(MODEL, optax.sgd(0.5), two_views)
    step, train = jax.jit(recipe.step), recipe.init(objective("all"), DATA, {}, KEY)
    train, _ = step(train, DATA, objective("all"), {})
    key = jax.random.split(jax.random.fold_in(train.key, train.step))[1]
    hard = two_views(key, DATA)["inputs"]
    weak = MODEL.predict(train.params, {}, INPUTS).logits
    sure = WHERE & (jax.nn.softmax(weak).max(-1) >= 0.4)
    assert 0 < sure.sum() < WHERE.sum()

    def total(params):
        nats = -jax.nn.log_softmax(MODEL.predict(params, {}, hard).logits)
        own, right = (nats[np.arange(12), x] for x in (weak.argmax(-1), DATA["labels"]))
        return right[~WHERE].mean() + jnp.where(sure, own, 0.0).sum() / WHERE.sum()

    want = jax.tree.map(lambda p, g: p - 0.5 * g, train.params, jax.grad(total)(train.params))
    new, _ = step(train, DATA, objective("all"), {})
    np.testing.assert_allclose(new.params["kernel"], want["kernel"], atol=1e-6)
