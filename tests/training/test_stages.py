"""Stages: training from given weights, and training of some of a student's parameters."""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data, models, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, breakdown, data_parallel, fit, run

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
STUDENT = models.mlp([4], 3)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
ADAM = optax.adam(0.1)
HOW = {"key": jax.random.key(0), "batch_size": 8, "steps": 6}
FIRST, _ = run(STUDENT, LABELS, ADAM, DATA, **HOW)
START = FIRST.params, FIRST.state
HEAD = {"hidden": False, "head": True}


def head(path, leaf):
    return path.startswith("head/") and len(leaf.shape) > 0


def trained(optimizer=ADAM, objective=LABELS, **options):
    return run(STUDENT, objective, optimizer, DATA, **HOW | {"start": START} | options)[0]


def by_hand(optimizer):
    """The loop over the parameters that train, the others closed over."""
    params = START[0]
    state = optimizer.init(params["head"])

    def loss(own, others, batch):
        logits = STUDENT.apply({**others, "head": own}, {}, batch["inputs"], train=True)[0].logits
        return cross_entropy(logits, jnp.asarray(batch["labels"])).mean()

    stream = data.batches(DATA, key=jax.random.split(HOW["key"])[1], batch_size=8)
    for batch in itertools.islice(stream, HOW["steps"]):
        grads = jax.grad(loss)(params["head"], params, batch)
        updates, state = optimizer.update(grads, state, params["head"])
        params = {**params, "head": optax.apply_updates(params["head"], updates)}
    return params


@pytest.mark.quick
def test_a_stage_starts_from_given_weights_and_anew_otherwise():
    still = trained(optax.sgd(0.0))
    chex.assert_trees_all_equal(still.params, FIRST.params)
    other = weighted_sum(term("labels", 1.0, cross_entropy), term("old", 1.0, soft_targets))
    old = {"old": teachers.teacher(STUDENT, *START)}
    second = trained(optax.adamw(0.01), other, teachers=old)
    assert int(second.step) == HOW["steps"]
    fitted, _ = fit(STUDENT, other, optax.adamw(0.01), DATA, **HOW, start=START, teachers=old)
    chex.assert_trees_all_equal(second.params, fitted.params)
    kept = jax.tree.map(lambda x: bool(x.is_deleted()), START)
    assert not any(jax.tree.leaves(kept)), "fit donates a copy"


def test_weights_of_another_precision_are_cast():
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), START)
    chex.assert_trees_all_equal(trained(start=wide).params, trained().params)


def test_starts_may_be_a_batch():
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), START)
    many = jax.vmap(lambda start: trained(start=start, trainable=HEAD).params)(stacked)
    first, second = (jax.tree.map(lambda x, i=i: x[i], many) for i in range(2))
    chex.assert_trees_all_close(first, trained(trainable=HEAD).params, atol=1e-5)
    chex.assert_trees_all_equal(second["hidden"], jax.tree.map(lambda x: 2 * x, START[0]["hidden"]))


class TestTrainable:
    @pytest.mark.parametrize("trains", [HEAD, head], ids=["tree", "function"])
    def test_the_others_stay_to_the_bit_and_have_no_state(self, trains):
        state = trained(trainable=trains, average_decay=0.9)
        chex.assert_trees_all_equal(state.params["hidden"], START[0]["hidden"])
        chex.assert_trees_all_equal(state.average[0]["hidden"], START[0]["hidden"])
        moved = jax.tree.map(lambda a, b: bool((a != b).all()), state.params, START[0])
        assert all(jax.tree.leaves(moved["head"]))
        own = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
        assert len(own) == 2 * len(jax.tree.leaves(state.params["head"]))

    def test_clipping_and_decay_see_what_trains(self):
        """A mask and labels may be trees of all parameters."""
        kernels = jax.tree.map(lambda x: x.ndim > 1, START[0])
        clipped = optax.chain(
            optax.clip_by_global_norm(0.05),
            optax.adamw(0.1, weight_decay=0.5, mask=kernels),
        )
        mine = optax.chain(
            optax.clip_by_global_norm(0.05),
            optax.adamw(0.1, weight_decay=0.5, mask=kernels["head"]),
        )
        wanted = by_hand(mine)
        chex.assert_trees_all_close(trained(clipped, trainable=HEAD).params, wanted, atol=1e-5)
        labels = jax.tree.map(lambda x: "slow" if x.ndim > 1 else "fast", START[0])
        rates = {"slow": optax.sgd(0.01), "fast": optax.sgd(0.1)}
        apart = trained(optax.multi_transform(rates, labels), trainable=HEAD).params
        mine = optax.multi_transform(rates, labels["head"])
        chex.assert_trees_all_close(apart, by_hand(mine), atol=1e-5)

    def test_no_gradient_is_computed_for_the_others(self):
        """The kernel of the hidden layer meets the inputs once, in the forward pass."""

        def products(**options):
            program = jax.make_jaxpr(
                lambda start: trained(start=start, **options).params, return_shape=False
            )(START)
            return str(program).count("dot_general")

        # Backward, the head needs the product for its kernel; the hidden layer two more.
        assert products(trainable=HEAD) < products()

    def test_pieces_loops_layouts_and_programs_agree(self):
        whole = trained(trainable=HEAD)
        options = {**HOW, "start": START, "trainable": HEAD}
        for more in ({}, {"layout": data_parallel(jax.devices()[:1])}):
            fitted, _ = fit(STUDENT, LABELS, ADAM, DATA, **options, **more)
            for name in ("params", "opt_state"):
                trees = (getattr(state, name) for state in (fitted, whole))
                chex.assert_trees_all_close(*trees, atol=1e-6)
        pieces = trained(trainable=HEAD, microbatches=2)
        chex.assert_trees_all_close(pieces.params, whole.params, atol=1e-5)
        coupled = weighted_sum(term("labels", 1.0, cross_entropy, coupled=True))
        two_passes = trained(objective=coupled, trainable=HEAD, microbatches=2)
        chex.assert_trees_all_close(two_passes.params, whole.params, atol=1e-5)
        continued = trained(start=None, initial=whole, trainable=HEAD, steps=2)
        chex.assert_trees_all_equal(continued.params["hidden"], START[0]["hidden"])

    @pytest.mark.parametrize("name", ["lookahead", "schedule_free", "lbfgs"])
    def test_optimizers_of_other_kinds(self, name):
        optimizer = {
            "lookahead": optax.lookahead(optax.sgd(0.1), 2, 0.5),
            "schedule_free": optax.contrib.schedule_free_sgd(0.1),
            "lbfgs": optax.lbfgs(),
        }[name]
        state = trained(optimizer, trainable=HEAD)
        for params in (state.params, state.eval_params):
            chex.assert_trees_all_equal(params["hidden"], START[0]["hidden"])
            chex.assert_trees_all_equal_structs(params, START[0])
        if name != "lbfgs":
            gap = jnp.abs(state.params["head"]["kernel"] - state.eval_params["head"]["kernel"])
            assert gap.max() > 0

    def test_terms_train_their_own_beside_it(self):
        def init(key, context):
            return {"scale": jnp.ones(())}, {}

        def scaled(params, state, context):
            logits = context.student.logits * params["scale"]
            return cross_entropy(logits, context.batch["labels"]), state

        owning = weighted_sum(term("scaled", 1.0, scaled, init=init))
        for optimizer in (ADAM, {"student": ADAM, "terms": optax.sgd(0.1)}):
            state = trained(optimizer, owning, trainable=HEAD)
            chex.assert_trees_all_equal(state.params["hidden"], START[0]["hidden"])
            assert state.term_params["scaled"]["scale"] != 1

    def test_a_breakdown_takes_it_too(self):
        options = {"key": HOW["key"], "batch_size": 8, "start": START, "trainable": HEAD}
        assert breakdown(STUDENT, LABELS, ADAM, DATA, **options).step > 0


def test_a_stage_resumes_and_refuses_another(tmp_path):
    def call(steps, **options):
        how = {**HOW, "start": START, "trainable": HEAD} | options
        saved = Checkpoints(tmp_path, every=2)
        return fit(STUDENT, LABELS, ADAM, DATA, **how | {"steps": steps}, checkpoints=saved)[0]

    call(4)
    chex.assert_trees_all_equal(call(6).params, trained(trainable=HEAD).params)
    with pytest.raises(ValueError, match="hidden/0/bias was False, is True"):
        call(8, trainable=lambda path, leaf: leaf.shape != (5, 4))
    with pytest.raises(ValueError, match="settings/start was"):
        call(8, start=jax.tree.map(lambda x: 2 * x, START))


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("trainable", "error", "words"),
        [
            (lambda path, leaf: "lora" in path, ValueError, r"False for all: \['head/bias', 'head"),
            (False, ValueError, "False for all"),
            ({"base": False}, ValueError, r"structure.*\['base'\].*'hidden/0/kernel'"),
            (lambda path: True, TypeError, r"trainable must be a function of \(path, leaf\)"),
            (lambda path, leaf: 1, TypeError, "True or False for each parameter, got 1 for 'head"),
            (float, TypeError, "got the class float"),
        ],
    )
    def test_of_a_filter(self, trainable, error, words):
        with pytest.raises(error, match=words):
            trained(trainable=trainable)

    @pytest.mark.parametrize(
        ("start", "error", "words"),
        [
            (FIRST, TypeError, r"got a TrainState: pass start=\(state.params, state.state\)"),
            ((FIRST.params,), TypeError, r"pair \(params, state\).*got 1 of them"),
            (({"head": FIRST.params["head"]}, {}), ValueError, "missing are .*hidden/0/bias"),
            (
                models.mlp([6], 3).init(jax.random.key(0), INPUTS),
                ValueError,
                r"'hidden/0/kernel' is \(5, 6\), the model's is \(5, 4\)",
            ),
        ],
    )
    def test_of_weights(self, start, error, words):
        with pytest.raises(error, match=words):
            trained(start=start)

    def test_of_a_state_and_weights(self):
        with pytest.raises(ValueError, match="pass one of the two"):
            trained(initial=FIRST)
        with pytest.raises(TypeError, match=r"are start=\(params, state\)"):
            trained(start=None, initial=START)
