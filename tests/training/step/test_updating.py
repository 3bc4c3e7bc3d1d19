"""Any optimizer of Optax trains as in a loop written by hand, in run and in fit."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data, models
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, data_parallel, fit, run
from distill_jax.types import Model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(24, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
NETWORK = models.logistic_regression(3)
START = {"kernel": jnp.sin(jnp.arange(15.0)).reshape(5, 3), "bias": jnp.zeros(3)}
# Starts where a loop by hand can start, too.
STUDENT = Model(lambda key, inputs: (START, {}), NETWORK.apply)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
STEPS, ROWS = 4, 12
HOW = {"key": KEY, "steps": STEPS, "batch_size": ROWS}

MATRICES = jax.tree.map(lambda x: x.ndim > 1, START)
CONTRIB = optax.contrib
PERTURBED = optax.sgd(0.3), optax.chain(CONTRIB.normalize(), optax.sgd(0.05))
ADAM = optax.adam(0.1)

OPTIMIZERS = {
    "lbfgs": optax.lbfgs(),
    "a line search that keeps its gradient": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8, store_grad=True)
    ),
    "polyak_sgd": optax.polyak_sgd(),
    "reduce_on_plateau": optax.chain(ADAM, CONTRIB.reduce_on_plateau(patience=1, rtol=0.9)),
    "opaque sam in a chain": optax.chain(
        optax.clip(0.5), CONTRIB.sam(*PERTURBED, opaque_mode=True)
    ),
    "lookahead": optax.lookahead(ADAM, sync_period=3, slow_step_size=0.5),
    "schedule_free": CONTRIB.schedule_free_sgd(0.5),
    "MultiSteps": optax.MultiSteps(optax.chain(ADAM, CONTRIB.reduce_on_plateau()), 2),
    "masked by a tree of the student's own": optax.masked(ADAM, MATRICES),
    "multi_transform by a tree of the student's own": optax.multi_transform(
        {True: ADAM, False: optax.sgd(0.5)}, MATRICES
    ),
}
if hasattr(CONTRIB, "sophia"):  # since Optax 0.2.5
    OPTIMIZERS["sophia"] = CONTRIB.sophia(0.1, update_interval=2)
# What the update is told, as each one's own documentation has it.
TOLD = {
    "lbfgs": ("value", "grad", "value_fn"),
    "a line search that keeps its gradient": ("value", "grad", "value_fn"),
    "polyak_sgd": ("value",),
    "reduce_on_plateau": ("value",),
    "opaque sam in a chain": ("grad_fn",),
    "sophia": ("obj_fn",),
    "MultiSteps": ("value",),
}


@pytest.fixture(autouse=True)
def _compiled_hastily(compiled_hastily):
    """Line searches compile slowly, and nothing here is as exact as rounding."""


@functools.cache
def by_hand(name):
    """Losses, final parameters, and the optimizer's state after ``STEPS`` steps."""
    optimizer = OPTIMIZERS[name]
    order = data.batch_indices(jax.random.split(KEY)[1], len(INPUTS), ROWS, STEPS)

    def loss(params, batch):
        logits = NETWORK.predict(params, {}, batch["inputs"]).logits
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ).mean()

    @jax.jit
    def step(params, state, batch):
        def value_fn(params):
            return loss(params, batch)

        fast = params.fast if name == "lookahead" else params
        value, grad = jax.value_and_grad(value_fn)(fast)
        known = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
            "obj_fn": value_fn,
        }
        told = {key: known[key] for key in TOLD.get(name, ())}
        updates, state = optimizer.update(grad, state, params, **told)
        return optax.apply_updates(params, updates), state, value

    params = optax.LookaheadParams.init_synced(START) if name == "lookahead" else START
    state, losses = optimizer.init(params), []
    for rows in order:
        params, state, value = step(params, state, data.take(DATA, rows))
        losses.append(value)
    return np.array(losses), params, state


def same(got, want):
    chex.assert_trees_all_close(got, want, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_loop_written_by_hand(name):
    losses, params, state = by_hand(name)
    trained, metrics = run(STUDENT, LABELS, OPTIMIZERS[name], DATA, **HOW)
    fitted, history = fit(STUDENT, LABELS, OPTIMIZERS[name], DATA, **HOW, steps_per_call=2)
    for got, final in ((metrics["loss"], trained), (history["loss"], fitted)):
        np.testing.assert_allclose(got, losses, rtol=2e-4)
        same(final.params, params.fast if name == "lookahead" else params)
    if name == "lookahead":
        same(trained.eval_params, params.slow)
        gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params.slow, params.fast)
        assert max(jax.tree.leaves(gap)) > 1e-3
    elif name == "schedule_free":
        same(trained.eval_params, CONTRIB.schedule_free_eval_params(state, params))
    else:
        assert trained.eval_params is trained.params


@pytest.mark.quick
def test_what_an_optimizer_asks_for_is_the_loss_of_the_whole_batch_in_pieces_too():
    pieces, metrics = run(STUDENT, LABELS, OPTIMIZERS["lbfgs"], DATA, **HOW, microbatches=3)
    losses, params, _ = by_hand("lbfgs")
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-3)
    chex.assert_trees_all_close(pieces.params, params, rtol=1e-2, atol=1e-3)


def test_a_line_search_sees_the_dropout_of_its_step():
    """At the step's own parameters, the function it searches along gives the step's own loss."""
    seen = []

    def update(updates, state, params, *, value, value_fn, **_):
        slope = jax.tree.map(jnp.subtract, jax.grad(value_fn)(params), updates)
        seen.append((value - value_fn(params), slope))
        jax.debug.callback(lambda *x: told.append(x), *seen[-1])
        return updates, state

    told = []
    asking = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    student = models.mlp([8], 3, dropout=0.5)
    for pieces in (1, 2):
        optimizer = optax.chain(asking, optax.sgd(0.1))
        run(student, LABELS, optimizer, DATA, **HOW, microbatches=pieces)
    jax.effects_barrier()
    assert len(told) == 2 * STEPS
    chex.assert_trees_all_close(told, jax.tree.map(jnp.zeros_like, told), atol=1e-6)


@pytest.mark.parametrize("name", ["lbfgs", "lookahead", "MultiSteps"])
def test_its_state_is_saved_and_laid_out(name, tmp_path):
    how = {**HOW, "steps_per_call": 2, "checkpoints": Checkpoints(tmp_path, every=2)}
    fit(STUDENT, LABELS, OPTIMIZERS[name], DATA, **how | {"steps": 2})
    resumed, _ = fit(STUDENT, LABELS, OPTIMIZERS[name], DATA, **how)
    how |= {"checkpoints": None, "layout": data_parallel(jax.devices()[:1])}
    whole, _ = fit(STUDENT, LABELS, OPTIMIZERS[name], DATA, **how)
    chex.assert_trees_all_close(resumed.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(resumed.opt_state, whole.opt_state, rtol=1e-4, atol=1e-5)


def scaled(params, state, student_logits, labels):
    return cross_entropy(student_logits * params["scale"][None], labels), state


def start(key, student_logits):
    return {"scale": jnp.ones(student_logits.shape[-1:])}, None


# As optax.contrib.dpsgd, whose arguments differ between versions.
PRIVATE = optax.GradientTransformation(
    lambda params: CONTRIB.DifferentiallyPrivateAggregateState(jnp.zeros(())), ADAM.update
)
OWNING = weighted_sum(term("scaled", 1.0, scaled, init=start))


class TestTermsWithParameters:
    def test_one_optimizer_sees_both(self):
        shown = []

        def init(params):
            shown.append(jax.tree.structure(params))
            return optax.EmptyState()

        spy = optax.GradientTransformation(init, lambda updates, state, params: (updates, state))
        run(STUDENT, OWNING, optax.chain(spy, optax.sgd(0.1)), DATA, **HOW)
        both = {"student": START, "terms": {"scaled": {"scale": 0.0}}}
        assert set(shown) == {jax.tree.structure(both)}

    def test_apart_each_sees_its_own_tree(self):
        frozen = {"student": optax.masked(optax.set_to_zero(), MATRICES), "terms": optax.sgd(0.1)}
        state, _ = run(STUDENT, OWNING, frozen, DATA, **HOW)
        for moved, free in zip(
            jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), state.params, START)),
            jax.tree.leaves(MATRICES),
            strict=True,
        ):
            assert moved != free
        assert (state.term_params["scaled"]["scale"] != 1).all()

    def test_apart_they_are_told_their_part_of_the_loss(self):
        both = {"student": optax.lbfgs(), "terms": optax.set_to_zero()}
        state, metrics = run(STUDENT, OWNING, both, DATA, **HOW)
        losses, params, _ = by_hand("lbfgs")
        np.testing.assert_allclose(metrics["loss"], losses, rtol=2e-4)
        same(state.params, params)
        assert state.eval_params is state.params
        again, _ = run(STUDENT, OWNING, dict(both), DATA, **HOW, initial=state)
        assert int(again.step) == 2 * STEPS

    def test_apart_one_may_have_parameters_to_evaluate_with(self):
        both = {"student": OPTIMIZERS["schedule_free"], "terms": optax.sgd(0.0)}
        state, _ = run(STUDENT, OWNING, both, DATA, **HOW)
        single, _ = run(STUDENT, LABELS, OPTIMIZERS["schedule_free"], DATA, **HOW)
        same(state.eval_params, single.eval_params)
        together, _ = run(STUDENT, OWNING, OPTIMIZERS["schedule_free"], DATA, **HOW)
        assert jax.tree.structure(together.eval_params) == jax.tree.structure(START)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("optimizer", "error", "message"),
        [
            (optax.adam, TypeError, "got adam: call it: optax.adam"),
            (0.1, TypeError, "must be an Optax optimizer with init and update, got float"),
            ({"student": ADAM}, TypeError, r"for 'student' and 'terms', got the names \['student'"),
            ({"student": ADAM, "terms": None}, TypeError, "init and update, got NoneType"),
            (PRIVATE, ValueError, "needs the gradient of each example"),
            (optax.masked(ADAM, {"student": MATRICES}), ValueError, "sees the student's param"),
        ],
    )
    def test_name_the_argument(self, optimizer, error, message):
        with pytest.raises(error, match=message):
            run(STUDENT, LABELS, optimizer, DATA, **HOW)

    def test_a_mask_of_the_student_where_terms_own_parameters(self):
        with pytest.raises(ValueError, match=r"since the terms \['scaled'\] own parameters"):
            run(STUDENT, OWNING, OPTIMIZERS["masked by a tree of the student's own"], DATA, **HOW)

    def test_schedule_free_of_a_part(self):
        part = optax.masked(OPTIMIZERS["schedule_free"], MATRICES)
        state, _ = run(STUDENT, LABELS, part, DATA, **HOW)
        with pytest.raises(ValueError, match="schedule_free must train all parameters"):
            _ = state.eval_params
