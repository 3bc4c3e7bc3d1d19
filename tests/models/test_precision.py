"""bfloat16 inside and float32 outside; a forward pass computed twice, with one gradient."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax import _programs, models, rules, teachers, training
from distill_jax.evaluation import cost
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.models import (
    cast,
    convnet,
    from_function,
    from_linen,
    from_nnx,
    mlp,
    recomputing,
    remat,
)
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Model, Outputs

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(7), (6, 4))
LABELS = jnp.arange(6) % 3
LOW = jnp.bfloat16


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        for i in range(3):
            x = nn.gelu(nn.Dense(5, name=f"dense_{i}")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.gelu(self.norm(self.layers[0](x))))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, again: bool = False):
        self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.run = nnx.remat(Block.__call__) if again else Block.__call__

    def __call__(self, x):
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x)


def _function_init(key, inputs):
    return {"kernel": jax.random.normal(key, (4, 3)), "seen": jnp.zeros((), jnp.int32)}, {
        "mean": jnp.zeros(4)
    }


def _function_apply(params, state, inputs, *, key, train):
    if train:
        inputs = inputs * jax.random.bernoulli(key, 0.5, inputs.shape)
    kept = 0.9 * state["mean"] + 0.1 * inputs.mean(0)
    return Outputs(jnp.tanh(inputs) @ params["kernel"], {"x": inputs}), {"mean": kept}


MODELS = {
    "function": from_function(_function_init, _function_apply),
    "mlp": mlp([8, 8, 8], 3, dropout=0.5),
    "linen": from_linen(LinenNet()),
    "nnx": from_nnx(NnxNet),
}
ALL = pytest.mark.parametrize("name", list(MODELS))


@functools.cache
def variables(name: str):
    params, state = jax.jit(MODELS[name].init)(KEY, INPUTS)
    # Away from the start, so that a state that is not used shows.
    return params, jax.tree.map(lambda x: x + 0.25, state)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model: Model, params, state, inputs=INPUTS, key=KEY):
    def loss(params):
        outputs, after = model.apply(params, state, inputs, key=key, train=True)
        return cross_entropy(outputs.logits, LABELS).mean(), (outputs, after)

    grads, aux = jax.grad(loss, has_aux=True, allow_int=True)(params)
    return jax.tree.map(lambda g: g if g.dtype != jax.dtypes.float0 else 0.0, grads), aux


WRAPS = {
    "plain": lambda model: model,
    "low": lambda model: cast(model, LOW),
    "remat": lambda model: remat(model, pieces=4),
    "both": lambda model: remat(cast(model, LOW), pieces=4),
}


@functools.cache
def gradient_of(name: str, wrap: str):
    return gradient(WRAPS[wrap](MODELS[name]), *variables(name))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def cosine(a, b) -> float:
    x, y = flat(a), flat(b)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def dtypes(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


@ALL
def test_bfloat16_inside_and_float32_outside(name):
    _, state = variables(name)
    want, (outputs, after) = gradient_of(name, "plain")
    got, (low, low_after) = gradient_of(name, "low")
    assert dtypes(got) == dtypes(want)
    assert dtypes(low_after) == dtypes(after) == dtypes(state)
    assert low.logits.dtype == jnp.float32 and not np.array_equal(low.logits, outputs.logits)
    assert all(x.dtype == LOW for x in low.features.values())
    assert cosine(got, want) > 0.99
    np.testing.assert_allclose(low.logits, outputs.logits, atol=0.1)
    for a, b in zip(jax.tree.leaves(low_after), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)


@ALL
def test_recomputing_changes_no_value_no_state_and_no_gradient(name):
    got, want = gradient_of(name, "remat"), gradient_of(name, "plain")
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-7)
    if name == "nnx":
        both, low = gradient_of(name, "both"), gradient_of(name, "low")
        assert cosine(both[0], low[0]) > 0.999


@pytest.mark.quick
@ALL
def test_wraps_are_equal_and_evaluate(name):
    for wrap in (lambda m: cast(m, LOW), remat, lambda m: remat(cast(m, "bfloat16"))):
        assert wrap(MODELS[name]).init is MODELS[name].init  # the same start, bit for bit
        assert wrap(MODELS[name]) == wrap(MODELS[name])
        assert hash(wrap(MODELS[name])) == hash(wrap(MODELS[name]))
    assert remat(MODELS[name]) != remat(MODELS[name], pieces=2) != MODELS[name]
    if name != "mlp":
        return
    params, state = variables(name)
    want = MODELS[name].predict(params, state, INPUTS).logits
    got = remat(MODELS[name]).predict(params, state, INPUTS).logits
    np.testing.assert_array_equal(got, want)
    low = cast(MODELS[name], LOW).predict(params, state, INPUTS).logits
    np.testing.assert_allclose(low, want, atol=0.1)


def kept_bytes(model, params, state, inputs) -> int:
    """What passes from the forward to the backward pass, params and inputs aside."""

    def pull(params):
        return jax.vjp(
            lambda p: model.apply(p, state, inputs, key=KEY, train=True)[0].logits, params
        )[1]

    own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, inputs)))
    leaves = jax.tree.leaves(jax.eval_shape(pull, params))
    return sum(x.size * x.dtype.itemsize for x in leaves) - own


def temporary(model, params, state, inputs) -> int:
    def loss(params):
        return model.apply(params, state, inputs, key=KEY, train=True)[0].logits.sum()

    program = jax.jit(jax.grad(loss)).lower(params).compile()
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes


def test_recomputing_lowers_the_memory_of_a_compiled_gradient():
    deep, inputs = mlp([32] * 16, 3, activation=jax.nn.gelu), jnp.ones((256, 32))
    params, state = deep.init(KEY, inputs)
    one_layer = 4 * 256 * 32
    plain, less = (temporary(m, params, state, inputs) for m in (deep, remat(deep)))
    assert plain > 40 * one_layer and less < 0.5 * plain
    whole = Model(deep.init, lambda *args, **options: jax.checkpoint(
        lambda params: deep.apply(params, *args[1:], **options))(args[0]))  # fmt: skip
    assert temporary(whole, params, state, inputs) > 0.9 * plain
    low = remat(cast(deep, LOW))
    kept = [kept_bytes(m, params, state, inputs) for m in (deep, remat(deep), low)]
    assert kept[1] < 0.35 * kept[0] and kept[2] < 0.7 * kept[1]


def test_pieces_are_cut_where_little_passes():
    def forward(x):
        for _ in range(4):
            x = jnp.tanh(jnp.repeat(x, 8, axis=1)).reshape(4, 8, 8).sum(1)
        return x

    program = _programs.trace(forward, [jnp.ones((4, 8))], batch=1)
    edges = recomputing._edges(program.equations, program.gives, None)
    assert len(edges) > 2 and edges[0] == 0 and edges[-1] == len(program.equations)
    for piece in _programs.pieces(program, edges):
        assert [v.aval.shape for v in (*piece.takes, *piece.gives)] == [(4, 8)] * 2
    whole = recomputing._edges(program.equations, program.gives, 1)
    assert whole == [0, len(program.equations)]


def test_dropout_is_the_same_when_computed_again():
    model = remat(mlp([64] * 4, 3, dropout=0.5), pieces=8)
    params, state = model.init(KEY, INPUTS)

    def loss(params, key):
        return model.apply(params, state, INPUTS, key=key, train=True)[0].logits.sum()

    # The derivative along one kernel is the change of the value only under the same masks.
    grads = jax.jit(jax.grad(loss))(params, KEY)
    kernel = params["hidden"]["1"]["kernel"]
    along = jnp.sign(grads["hidden"]["1"]["kernel"])
    moved = {**params, "hidden": {**params["hidden"], "1": {
        **params["hidden"]["1"], "kernel": kernel + 1e-4 * along}}}  # fmt: skip
    want = (loss(moved, KEY) - loss(params, KEY)) / 1e-4
    got = jnp.abs(grads["hidden"]["1"]["kernel"]).sum()
    np.testing.assert_allclose(got, want, rtol=2e-2)
    other = jax.grad(loss)(params, jax.random.key(1))
    assert cosine(grads, other) < 0.99


def test_recomputing_vmaps_and_has_second_derivatives():
    model = mlp([8, 8], 3, activation=jnp.tanh, dropout=0.5)
    keys = jax.random.split(KEY, 2)
    params = jax.vmap(lambda key: model.init(key, INPUTS)[0])(keys)

    def value(params, key, model):
        return cross_entropy(
            model.apply(params, {}, INPUTS, key=key, train=True)[0].logits, LABELS
        ).mean()

    def curvature(params, key, model):
        grad = jax.grad(value)

        def steepness(params):
            return sum((g**2).sum() for g in jax.tree.leaves(grad(params, key, model)))

        return jax.grad(steepness)(params)

    def all_of(model):
        return jax.jit(jax.vmap(lambda p, k: curvature(p, k, model)))(params, keys)

    chex.assert_trees_all_close(all_of(remat(model, pieces=3)), all_of(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: remat(m, pieces=3)], ids=["", "remat"])
def test_the_users_own_recomputing_works_in_modules(wrap):
    own = from_nnx(lambda rngs: NnxNet(rngs, again=True))
    got, want = gradient(wrap(own), *variables("nnx")), gradient_of("nnx", "plain")
    chex.assert_trees_all_close(got[0], want[0], rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(got[1][1], want[1][1], rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: remat(m, pieces=3)], ids=["", "remat"])
def test_linens_own_recomputing_works(wrap):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dropout(0.5, deterministic=not train)(nn.gelu(nn.Dense(4)(x)))

    class Deep(nn.Module):
        again: bool

        @nn.compact
        def __call__(self, x, train: bool = False):
            layer = nn.remat(Layer, static_argnums=(2,)) if self.again else Layer
            for i in range(2):
                x = layer(name=f"layer_{i}")(x, train)
            return nn.Dense(3, name="head")(x)

    plain, own = from_linen(Deep(False)), wrap(from_linen(Deep(True)))
    params, state = plain.init(KEY, INPUTS)
    chex.assert_trees_all_close(
        gradient(own, params, state)[0], gradient(plain, params, state)[0], rtol=1e-5, atol=1e-7
    )


def test_batch_norm_of_shipped_networks_keeps_float32_statistics():
    model, images = convnet([3], 3), jax.random.normal(KEY, (6, 4, 4, 1))
    params, state = model.init(KEY, images)
    want, (_, after) = gradient(model, params, state, images)
    got, (_, low_after) = gradient(remat(cast(model, LOW)), params, state, images)
    assert dtypes(low_after) == dtypes(after) == dtypes(state)
    chex.assert_trees_all_close(low_after, after, atol=0.02)
    assert cosine(got, want) > 0.99


def test_params_of_mixed_dtypes_and_integer_inputs():
    def apply(params, inputs):
        return params["table"][inputs["token"]] * params["scale"] + inputs["more"] @ params["out"]

    made = {
        "table": jax.random.normal(KEY, (2000, 3), LOW),
        "scale": jnp.float32(2.0),
        "out": jnp.ones((4, 3)),
    }
    model = cast(from_function(lambda key, inputs: made, apply), LOW)
    inputs = {"token": jnp.array([1999, 1, 2, 3, 4, 5]), "more": INPUTS}
    params, _ = model.init(KEY, inputs)
    got, (outputs, _) = gradient(model, params, {}, inputs)
    assert dtypes(got) == dtypes(params)
    more = np.asarray(INPUTS.astype(LOW), np.float64).sum(1)[:, None]
    want = 2 * np.asarray(made["table"], np.float64)[np.asarray(inputs["token"])] + more
    np.testing.assert_allclose(outputs.logits, want, atol=0.1)  # row 1999, not its rounding 2000
    up = cast(from_function(lambda key, inputs: made, apply), jnp.float32)
    exact = 2.0 * float(made["table"][1999, 0]) + float(INPUTS[0].sum())
    np.testing.assert_allclose(gradient(up, params, {}, inputs)[1][0].logits[0, 0], exact, 1e-5)


TRACES = []


def forbids(params, inputs):
    """A class that is impossible wherever the first input is positive."""
    TRACES.append(inputs.shape)
    logits = inputs @ params
    return logits.at[:, 2].set(jnp.where(inputs[:, 0] > 0, -jnp.inf, logits[:, 2]))


STUDENT = from_function(lambda key, inputs: 0.1 * jax.random.normal(key, (4, 3)), forbids)


@pytest.mark.parametrize("wrap", [lambda m: cast(m, LOW), remat], ids=["low", "remat"])
def test_training_keeps_float32_and_compiles_once(wrap):
    where = jnp.arange(32) % 4 > 0
    inputs = jax.random.normal(jax.random.key(3), (32, 4))
    data = {
        "inputs": inputs.at[0].set(1e30),  # a row that does not count
        "labels": jnp.arange(32) % 2,
        "where": where,
    }
    wise = teachers.from_function(forbids, jax.random.normal(KEY, (4, 3)))
    objective = weighted_sum(
        term("teacher", 1.0, soft_targets, temperature=2.0), term("labels", 0.5, cross_entropy)
    )
    optimizer = optax.adam(0.05)

    def train(key):
        options = {"steps": 30, "batch_size": 16, "teachers": {"teacher": wise}}
        return training.run(wrap(STUDENT), objective, optimizer, data, key=key, **options)

    final, metrics = train(KEY)
    assert (16, 4) in TRACES
    TRACES.clear()
    train(jax.random.key(1))
    assert (16, 4) not in TRACES  # shapes are looked at with one row, but no step is traced again
    assert np.isfinite(metrics["loss"]).all() and metrics["loss"][-1] < metrics["loss"][0]
    kinds = {x.dtype for x in jax.tree.leaves((final.params, final.opt_state))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    chex.assert_tree_all_finite(final.params)


def test_cost_of_a_wrapped_model():
    model = remat(cast(mlp([8], 3), LOW))
    params, state = model.init(KEY, INPUTS)
    assert cost(model, params, state, INPUTS, repeats=1)["parameters"] == 4 * 8 + 8 + 8 * 3 + 3


def test_wrong_arguments_are_refused(library_errors):
    for dtype in (jnp.float16, "float16", jnp.float8_e4m3fn):
        with pytest.raises(ValueError, match="loss scaling; use jnp.bfloat16"):
            cast(MODELS["mlp"], dtype)
    for dtype in (jnp.int8, "quarter", None):
        with pytest.raises(TypeError, match="dtype must be a floating dtype such as jnp.bfloat16"):
            cast(MODELS["mlp"], dtype)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        cast(MODELS["mlp"], np.float64)
    with pytest.raises(ValueError, match="pieces must be 1 or more, got 0"):
        remat(MODELS["mlp"], pieces=0)

    model = dataclasses.replace(MODELS["mlp"], exact_inputs=True)
    for wrapped in (model, remat(model)):
        with pytest.raises(ValueError, match="model compares its inputs with written thresholds"):
            cast(wrapped, LOW)
    with pytest.raises(ValueError, match="teacher compares its inputs with written thresholds"):
        teachers.cast(teachers.ensemble([teachers.teacher(model, {}, {})]))


def test_recomputing_under_shard_map():
    model = remat(mlp([8] * 4, 3), pieces=4)
    params, _ = model.init(KEY, INPUTS)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    rows, same = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def loss(params, inputs, model=model):
        return (model.apply(params, {}, inputs, train=True)[0].logits ** 2).mean()

    def local(params, inputs):
        return jax.grad(lambda params: jax.lax.pmean(loss(params, inputs), "data"))(params)

    over = jax.shard_map(local, mesh=mesh, in_specs=(same, rows), out_specs=same)
    want = jax.grad(lambda params: loss(params, INPUTS, mlp([8] * 4, 3)))(params)
    chex.assert_trees_all_close(jax.jit(over)(params, INPUTS), want, rtol=1e-5, atol=1e-6)


def test_rules_never_see_rounded_inputs():
    schema = rules.Schema((rules.Column("age"),), ("no", "yes"))
    book = rules.bind("[hard] age > 60.1 => yes", schema)
    for model in (
        rules.enforce(models.logistic_regression(2), book),
        rules.to_logistic_regression(book),
    ):
        with pytest.raises(ValueError, match="compares its inputs with written thresholds"):
            models.cast(model, jnp.bfloat16)
    with pytest.raises(ValueError, match="compare"):
        teachers.cast(rules.rule_teacher(book), jnp.bfloat16)
