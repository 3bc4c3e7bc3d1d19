"""Teachers that draw: dropout at test time, augmentation at test time, and the keys they need."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax import evaluation, losses, models, rules, teachers, training
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Outputs

MODEL = models.mlp([8], 3, dropout=0.5, classes=("a", "b", "c"))
INPUTS = jax.random.normal(jax.random.key(9), (6, 4))
PARAMS, STATE = MODEL.init(jax.random.key(0), INPUTS)
KEY, OTHER = jax.random.key(1), jax.random.key(2)
WISE = teachers.monte_carlo(MODEL, PARAMS, STATE, draws=3)


def add(params, inputs):
    return inputs[:, :3] + params


def noise(key, inputs):
    return inputs + jax.random.normal(key, inputs.shape)


def same(inputs):
    return inputs


def flipped(inputs):
    return inputs[:, ::-1]


PLAIN = teachers.from_function(add, 0.5)
NOISY = teachers.augmented(PLAIN, noise, draws=3)


@jax.jit
def logits(teacher, key=None):
    return teacher(INPUTS, key=key).logits


@pytest.mark.quick
def test_monte_carlo_averages_the_probabilities_of_draws():
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    drawn = [MODEL.apply(PARAMS, STATE, INPUTS, key=k, train=True)[0].logits for k in keys]
    p = jnp.stack([jax.nn.softmax(x) for x in drawn])
    assert float(p.std(0).max()) > 0.05
    np.testing.assert_allclose(jax.nn.softmax(logits(WISE, KEY)), p.mean(0), atol=1e-6)
    geometric = teachers.monte_carlo(MODEL, PARAMS, STATE, draws=3, mix="log")
    np.testing.assert_allclose(logits(geometric, KEY), jnp.log(p).mean(0), atol=1e-5)
    assert WISE.classes == ("a", "b", "c") and WISE.draws and not PLAIN.draws


def test_many_draws_of_dropped_inputs_have_their_mean():
    model = models.mlp([], 2, input_dropout=0.5, outputs="regression")
    params, state = model.init(KEY, INPUTS)
    many = teachers.monte_carlo(model, params, state, draws=4000)
    assert many.outputs == "regression"
    np.testing.assert_allclose(
        logits(many, KEY), model.predict(params, state, INPUTS).logits, atol=0.1
    )


def test_augmentation_at_random_averages_over_draws():
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    p = jnp.stack([jax.nn.softmax(add(0.5, noise(k, INPUTS))) for k in keys])
    np.testing.assert_allclose(jax.nn.softmax(logits(NOISY, KEY)), p.mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "multi_label", "regression", "embedding"])
def test_augmentation_in_turn_averages_what_the_outputs_mean(kind):
    teacher = teachers.from_function(add, 0.5, outputs=kind)
    both = teachers.augmented(teacher, [same, flipped])
    as_ensemble = teachers.ensemble(
        [teacher, teachers.from_function(lambda p, x: add(p, flipped(x)), 0.5, outputs=kind)]
    )
    assert both.outputs == kind and not both.draws
    np.testing.assert_allclose(logits(both), logits(as_ensemble), atol=1e-6)
    if kind in ("softmax", "multi_label"):
        geometric = teachers.augmented(teacher, [same, flipped], mix="log")
        assert not np.allclose(logits(geometric), logits(both), atol=1e-2)
    else:
        with pytest.raises(ValueError, match="leave mix out for the mean"):
            teachers.augmented(teacher, [same, flipped], mix="log")


@pytest.mark.parametrize(
    "build",
    [
        lambda t: teachers.reorder(t, ["c", "a", "b"]),
        lambda t: teachers.ensemble([t, t]),
        lambda t: teachers.cast(t, jnp.float32),
        lambda t: teachers.quantize(t, smallest=1),
        lambda t: teachers.augmented(t, [same, flipped]),
        lambda t: teachers.augmented(t, noise, draws=2),
        lambda t: rules.corrected(
            t, rules.bind("x > 0 => a", rules.Schema((rules.Column("x"),), ("a", "b", "c"))),
            columns=lambda inputs: inputs[:, :1],
        ),
    ],
    ids=["reordered", "ensemble", "cast", "quantized", "flipped", "augmented", "corrected"],
)  # fmt: skip
def test_what_is_made_of_a_teacher_that_draws_passes_its_key_on(build):
    teacher = build(WISE)
    assert teacher.draws
    once = logits(teacher, KEY)
    np.testing.assert_array_equal(once, logits(teacher, KEY))
    assert np.isfinite(once).all() and not np.allclose(once, logits(teacher, OTHER), atol=1e-4)
    with pytest.raises(ValueError, match=r"key is None, and the teacher draws .* precompute"):
        teacher(INPUTS)


def test_members_and_augmentations_draw_apart():
    constant = models.from_function(  # what it draws is what it says
        lambda key, x: jnp.zeros(()),
        lambda params, x, *, key, train: jnp.broadcast_to(jax.random.normal(key, (2,)), (6, 2)),
        outputs="regression",
    )
    one = teachers.monte_carlo(constant, jnp.zeros(()), {}, draws=1)
    for pair in (teachers.ensemble([one, one]), teachers.augmented(one, [same, same])):
        both = logits(pair, KEY)
        assert jnp.abs(both - logits(one, KEY)).max() > 1e-2


def test_no_gradient_reaches_a_teacher_that_draws():
    for teacher in (WISE, NOISY):
        grads = jax.grad(lambda x, t=teacher: (t(x, key=KEY).logits ** 2).sum())(INPUTS)
        assert not grads.any()
    grads = jax.grad(lambda t: (t(INPUTS, key=KEY).logits ** 2).sum())(WISE)
    assert not any(x.any() for x in jax.tree.leaves(grads))


def test_precompute_draws_by_its_key_and_anew_for_each_batch():
    once, again = (teachers.precompute(WISE, INPUTS, batch_size=4, key=KEY) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, teachers.precompute(WISE, INPUTS, batch_size=4, key=OTHER))
    alike = jnp.tile(INPUTS[:2], (2, 1))
    first, second = np.split(teachers.precompute(WISE, alike, batch_size=2, key=KEY), 2)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(
        teachers.precompute(PLAIN, INPUTS, key=KEY), teachers.precompute(PLAIN, INPUTS)
    )
    with pytest.raises(ValueError, match="key is None, and the teacher draws"):
        teachers.precompute(WISE, INPUTS)
    with pytest.raises(ValueError, match="as the column teacher_logits, with precompute"):
        evaluation.evaluate(MODEL, PARAMS, STATE, {"inputs": INPUTS}, teacher=WISE)


class Noisy(nnx.Module):
    def __init__(self, rngs, frozen):
        self.norm = nnx.BatchNorm(4, use_running_average=frozen, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(x)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_modules_of_flax_draw_and_norms_must_be_frozen():
    frozen = models.from_nnx(lambda rngs: Noisy(rngs, True))
    for model in (frozen, models.from_linen(Linen())):
        teacher = teachers.monte_carlo(model, *model.init(KEY, INPUTS), draws=2)
        assert not np.allclose(logits(teacher, KEY), logits(teacher, OTHER))
    moving = models.from_nnx(lambda rngs: Noisy(rngs, False))
    teacher = teachers.monte_carlo(moving, *moving.init(KEY, INPUTS))
    with pytest.raises(ValueError, match="replaces its state in training mode"):
        teacher(INPUTS, key=KEY)


def test_wrong_arguments_are_refused(library_errors):
    still = models.mlp([8], 3)
    teacher = teachers.monte_carlo(still, *still.init(KEY, INPUTS))
    with pytest.raises(ValueError, match="model draws nothing in training mode"):
        teacher(INPUTS, key=KEY)
    with pytest.raises(ValueError, match="draws must be 1 or more, got 0"):
        teachers.monte_carlo(MODEL, PARAMS, STATE, draws=0)
    with pytest.raises(ValueError, match="augment must be one function or more"):
        teachers.augmented(PLAIN, [])
    with pytest.raises(ValueError, match="leave draws out"):
        teachers.augmented(PLAIN, [same], draws=2)
    with pytest.raises(TypeError, match=r"augment\[1\] is 3"):
        teachers.augmented(PLAIN, [same, 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"augment\[0\] must return the inputs, got None"):
        teachers.augmented(PLAIN, [lambda x: None])(INPUTS)
    with pytest.raises(ValueError, match="augment must return inputs of as many rows as it was"):
        teachers.augmented(PLAIN, lambda key, x: x[:2])(INPUTS, key=KEY)


# In training.

DATA = {"inputs": np.asarray(INPUTS)}
STUDENT = models.logistic_regression(3)


def drawn(teacher_logits):
    return teacher_logits.sum(-1)


WATCH = weighted_sum(term("drawn", 1.0, drawn), term("learn", 1.0, losses.soft_targets))
CONSTANT = models.from_function(
    lambda key, x: jnp.zeros(()),
    lambda params, x, *, key, train: Outputs(jax.random.normal(key, (len(x), 3))),
)
TEACHERS = {"wise": teachers.monte_carlo(CONSTANT, jnp.zeros(()), {}, draws=2, mix="log")}


def trained(steps=4, **how):
    return training.run(
        STUDENT, WATCH, optax.sgd(0.1), DATA, key=KEY, steps=steps, batch_size=6,
        teachers=TEACHERS, **how,
    )  # fmt: skip


def test_each_step_draws_anew_and_a_resumed_run_draws_alike():
    end, history = trained()
    found = np.asarray(history["drawn"])
    assert len({f"{x:.5f}" for x in found}) == 4
    half, first = trained(2)
    rest, second = trained(2, initial=half)
    np.testing.assert_array_equal(np.concatenate([first["drawn"], second["drawn"]]), found)
    np.testing.assert_array_equal(rest.params["kernel"], end.params["kernel"])


def test_equal_teachers_draw_apart_and_pieces_draw_alike_in_one_pass_and_in_two():
    def apart(context):
        one, two = (context.teachers[name].logits for name in ("one", "two"))
        return (one - two)[:, 0]

    def once(context):
        return context.teachers["one"].logits[:, 0]

    def square(context):
        return context.teachers["one"].logits[:, 0] ** 2

    found = {}
    wise = TEACHERS["wise"]
    for coupled in (False, True):
        objective = weighted_sum(
            *(term(f.__name__, 1.0, f, coupled=coupled) for f in (apart, once, square))
        )
        _, history = training.run(
            STUDENT, objective, optax.sgd(0.1), DATA, key=KEY, steps=2, batch_size=6,
            teachers={"two": wise, "one": wise}, microbatches=2,
        )  # fmt: skip
        found[coupled] = {name: np.asarray(x) for name, x in history.items()}
    assert np.abs(found[False]["apart"]).min() > 1e-3
    for name in ("apart", "once", "square"):
        np.testing.assert_allclose(found[False][name], found[True][name], rtol=1e-5)
