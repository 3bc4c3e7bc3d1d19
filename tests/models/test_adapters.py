"""Models from functions, NNX and Linen: what they promise alike, and where each rubs."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax import teachers
from distill_jax.losses import cross_entropy
from distill_jax.models import from_function, from_linen, from_nnx, mlp
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import run
from distill_jax.types import Model, Outputs

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(7), (6, 4))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(5, name="dense")(x))
        self.sow("intermediates", "hidden", x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class LinenNet(nn.Module):
    outputs: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = LinenBlock(name="block")(x, train)
        return nn.Dense(self.outputs, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.dense(x))
        self.sow(nnx.Intermediate, "hidden", x)
        return self.dropout(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, outputs: int = 3):
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.block = NnxBlock(rngs)
        self.head = nnx.Linear(5, outputs, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block(self.norm(x)))


LINEN = from_linen(LinenNet(), features="all")
NNX = from_nnx(NnxNet, features="all")
BOTH = pytest.mark.parametrize("model", [LINEN, NNX], ids=["linen", "nnx"])


@pytest.fixture(autouse=True)
def count_traces_afresh():
    chex.clear_trace_counter()


def train(model: Model, params, state, key, inputs=INPUTS):
    def apply(params, state, key):
        return model.apply(params, state, inputs, key=key, train=True)

    return jax.jit(apply)(params, state, key)


def to_linen(params, state):
    """Variables of NnxNet in Linen's layout."""
    stats = {"norm": {name: state["norm"][name] for name in ("mean", "var")}}
    return params, {"batch_stats": stats}


def is_plain(tree) -> bool:
    if isinstance(tree, dict):
        return type(tree) is dict and all(type(k) is str and is_plain(v) for k, v in tree.items())
    return isinstance(tree, jax.Array)


@BOTH
def test_variables_are_plain_dictionaries_of_arrays(model):
    params, state = model.init(KEY, INPUTS)
    assert is_plain(params) and is_plain(state)
    assert params["block"]["dense"]["kernel"].shape == (4, 5)
    assert len(jax.tree.leaves(state)) == 2  # mean and variance, no random streams
    outputs, after = train(model, params, state, KEY)
    assert is_plain(after) and is_plain(outputs.features)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_linen_and_nnx_agree_in_values_features_state_and_gradients():
    params, state = NNX.init(KEY, INPUTS)
    state = jax.tree.map(lambda x: x + 0.5, state)
    linen_params, linen_state = to_linen(params, state)
    ours = NNX.predict(params, state, INPUTS)
    theirs = LINEN.predict(linen_params, linen_state, INPUTS)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-6)
    shared = {"norm", "block", "block/dense", "block/hidden", "head"}
    assert shared <= ours.features.keys() and shared <= theirs.features.keys()
    for path in shared:
        np.testing.assert_allclose(ours.features[path], theirs.features[path], atol=1e-6)
    _, after = train(NNX, params, state, KEY)
    _, linen_after = train(LINEN, linen_params, linen_state, KEY)
    chex.assert_trees_all_close(to_linen(params, after)[1], linen_after, atol=1e-6)

    def loss(model, state, params):
        return (model.predict(params, state, INPUTS).logits ** 2).sum()

    got = jax.grad(lambda p: loss(NNX, state, p))(params)
    want = jax.grad(lambda p: loss(LINEN, linen_state, p))(linen_params)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


def test_mlp_is_the_same_network_as_in_flax():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.relu(nn.Dense(5, name="first")(x)))

    model = mlp([5], 3)
    params, state = model.init(KEY, INPUTS)
    theirs = {"first": params["hidden"]["0"], "head": params["head"]}
    got = model.predict(params, state, INPUTS)
    linen = from_linen(Plain(), features=("first",)).predict(theirs, {}, INPUTS)
    np.testing.assert_allclose(got.logits, linen.logits, atol=1e-6)
    hidden = jax.nn.relu(linen.features["first"])
    np.testing.assert_allclose(got.features["hidden/0"], hidden, atol=1e-6)


@BOTH
def test_batch_statistics_move_in_training_only(model):
    params, state = model.init(KEY, INPUTS)
    _, evaluated = model.apply(params, state, INPUTS)
    chex.assert_trees_all_equal(evaluated, state)
    _, trained = train(model, params, state, KEY)
    stats = trained.get("batch_stats", trained)["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * INPUTS.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * INPUTS.var(0), atol=1e-6)


@BOTH
def test_dropout_follows_the_key(model):
    params, state = model.init(KEY, INPUTS)
    first, again, other = (train(model, params, state, jax.random.key(i))[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)
    evaluated = [model.apply(params, state, INPUTS, key=k)[0].logits for k in (KEY, None)]
    np.testing.assert_array_equal(*evaluated)
    with pytest.raises(ValueError, match="key is None, but the module .*: pass key="):
        model.apply(params, state, INPUTS, train=True)


@BOTH
def test_init_needs_shapes_only_and_vmaps_over_keys(model):
    keys = jax.random.split(KEY, 2)
    shapes = jax.ShapeDtypeStruct(INPUTS.shape, INPUTS.dtype)
    params, state = jax.jit(jax.vmap(lambda k: model.init(k, shapes)))(keys)

    def both(params, state, key):
        return model.apply(params, state, INPUTS, key=key, train=True)

    outputs, _ = jax.jit(jax.vmap(both))(params, state, keys)
    assert outputs.logits.shape == (2, 6, 3)
    assert not np.allclose(outputs.logits[0], outputs.logits[1])
    solo, solo_state = model.init(keys[1], INPUTS)
    chex.assert_trees_all_close(solo, jax.tree.map(lambda x: x[1], params), atol=1e-6)
    want = train(model, solo, solo_state, keys[1])[0].logits
    np.testing.assert_allclose(outputs.logits[1], want, atol=1e-5)


@BOTH
def test_a_second_call_does_not_trace_again(model):
    params, state = model.init(KEY, INPUTS)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, key):
        return model.apply(params, state, INPUTS, key=key, train=True)[1]

    state = step(params, state, KEY)
    step(params, state, jax.random.key(1))
    assert hash(model) == hash(model) and model == model


@pytest.mark.quick
@pytest.mark.parametrize(
    "make",
    [
        lambda features: from_linen(LinenNet(), features=features),
        lambda features: from_nnx(NnxNet, features=features),
    ],
    ids=["linen", "nnx"],
)
def test_features_are_kept_as_asked(make, library_errors):
    params, state = make(None).init(KEY, INPUTS)
    assert make(None).predict(params, state, INPUTS).features == {}
    kept = make(("block", "block/hidden")).predict(params, state, INPUTS).features
    assert kept.keys() == {"block", "block/hidden"} and kept["block"].shape == (6, 5)
    with pytest.raises(ValueError, match=r"\['blocks/0'\].*'block', .*'block/dense'"):
        make(("blocks/0",)).predict(params, state, INPUTS)
    with pytest.raises(TypeError, match="features must be a tuple of paths"):
        make("block")


def test_features_that_nobody_uses_cost_nothing():
    params, state = NNX.init(KEY, INPUTS)
    bare = from_nnx(NnxNet)
    flops = [
        jax.jit(lambda p, m=m: m.predict(p, state, INPUTS).logits).lower(params).compile()
        for m in (NNX, bare)
    ]
    assert flops[0].cost_analysis()["flops"] == flops[1].cost_analysis()["flops"]  # pyright: ignore


class Shared(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x):
        return self.blocks[0](self.layer(self.layer(x)))


def test_a_module_that_runs_twice_has_two_features():
    model = from_nnx(Shared, features="all")
    params, state = model.init(KEY, INPUTS)
    features = model.predict(params, state, INPUTS).features
    assert features.keys() == {"layer[0]", "layer[1]", "blocks/0"}
    assert set(params["blocks"]) == {"0"}
    layer = params["layer"]
    want = features["layer[0]"] @ layer["kernel"] + layer["bias"][None]
    np.testing.assert_allclose(features["layer[1]"], want, atol=1e-6)


class Sized(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, inputs, outputs: int = 3):
        self.norm = nnx.BatchNorm(inputs["x"].shape[-1], rngs=rngs)
        self.conv = nnx.Conv(1, 1, (3,), padding=[(1, 1)], rngs=rngs)  # a list has no hash
        self.head = nnx.Linear(inputs["x"].shape[-1], outputs, rngs=rngs)

    def __call__(self, batch):
        return self.head(self.conv(self.norm(batch["x"])[..., None])[..., 0])


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (Sized, 3),
        (functools.partial(Sized, outputs=2), 2),
        (lambda rngs, inputs: Sized(rngs, inputs), 3),
    ],
    ids=["class", "partial", "function"],
)
def test_nnx_modules_may_take_their_sizes_from_the_inputs(make, outputs):
    model = from_nnx(make)
    for size in (4, 2):
        inputs = {"x": INPUTS[:, :size]}
        params, state = jax.eval_shape(model.init, KEY, inputs)
        assert params["head"]["kernel"].shape == (size, outputs)
        assert state["norm"]["mean"].shape == (size,)
    params, state = model.init(KEY, {"x": INPUTS})
    outcome, after = train(model, params, state, KEY, {"x": INPUTS})
    assert outcome.logits.shape == (6, outputs)
    assert not np.allclose(after["norm"]["mean"], state["norm"]["mean"])
    one = model.predict(params, state, {"x": np.asarray(INPUTS[:1])}).logits
    np.testing.assert_allclose(one, model.predict(params, state, {"x": INPUTS}).logits[:1], 1e-5)
    with pytest.raises(ValueError, match=r"head/kernel' has \(4, .\), and needs \(2, .\)"):
        model.predict(params, state, {"x": INPUTS[:, :2]})


def test_an_argument_inputs_with_a_value_is_left_alone():
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs, inputs: int = 4):
            self.head = nnx.Linear(inputs, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(x)

    def size_first(inputs, rngs):
        return Net(rngs, inputs)

    for make in (Net, functools.partial(Net, inputs=4), functools.partial(size_first, 4)):
        params, _ = jax.eval_shape(from_nnx(make).init, KEY, INPUTS)
        assert params["head"]["kernel"].shape == (4, 3)


def trained_module():
    module = NnxNet(nnx.Rngs(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what is sown stays in the module
        module(INPUTS)  # moves the batch statistics
    module.head.bias[...] = jnp.arange(3.0)
    return module


def evaluated(module):
    module.eval()
    return nnx.capture(lambda module, inputs: module(inputs), nnx.Intermediate)(module, INPUTS)[0]


WAYS = {
    "itself": lambda module: module,
    "split": nnx.split,
    "split by kind": lambda module: nnx.split(module, nnx.Param, ...),
}


@pytest.mark.quick
@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_exists_keeps_its_values(way):
    module = trained_module()
    model = from_nnx(WAYS[way](module), classes=("a", "b", "c"))
    params, state = model.init(KEY, INPUTS)
    chex.assert_trees_all_equal(params["head"]["bias"], jnp.arange(3.0))
    assert is_plain(params) and is_plain(state)
    _, after = train(model, params, state, KEY)  # with dropout and batch statistics
    assert not np.allclose(after["norm"]["mean"], state["norm"]["mean"])
    apart = train(model, params, state, jax.random.key(1))[0].logits
    assert not np.allclose(apart, train(model, params, state, KEY)[0].logits)
    taught = teachers.teacher(model, params, state)
    np.testing.assert_allclose(jax.jit(taught)(INPUTS).logits, evaluated(module), atol=1e-6)
    module.head.bias[...] = jnp.zeros(3)
    again = model.init(jax.random.key(9), INPUTS)[0]
    chex.assert_trees_all_equal(again["head"]["bias"], jnp.arange(3.0))


def test_a_state_of_nnx_serves_as_params_and_state():
    module = trained_module()
    _, params, rest = nnx.split(module, nnx.Param, ...)
    model = from_nnx(NnxNet)
    got = teachers.teacher(model, params, rest)(INPUTS).logits
    np.testing.assert_allclose(got, evaluated(module), atol=1e-6)


def test_training_starts_from_a_module_that_exists():
    columns = {"inputs": INPUTS, "labels": jnp.arange(6) % 3}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    how = {"key": KEY, "steps": 1, "batch_size": 6}
    state, _ = run(from_nnx(trained_module()), objective, optax.sgd(0.0), columns, **how)
    chex.assert_trees_all_equal(state.params["head"]["bias"], jnp.arange(3.0))


def test_what_is_said_of_modules_that_exist(library_errors):
    module = trained_module()
    with pytest.raises(TypeError, match=r"one that exists already.*from_nnx\(module\)"):
        from_nnx(lambda rngs: module)
    module.eval()
    model = from_nnx(module)
    params, state = model.init(KEY, INPUTS)
    with pytest.raises(ValueError, match=r"in evaluation mode.*Call module.train\(\) before"):
        train(model, params, state, KEY)
    frozen = from_nnx(lambda rngs: nnx.clone(module))
    chex.assert_trees_all_equal(train(frozen, params, state, KEY)[1], state)
    with pytest.raises(TypeError, match="got State: pass .graphdef, state."):
        from_nnx(nnx.state(module))
    with pytest.raises(TypeError, match="a Linen module: it goes through from_linen"):
        from_nnx(LinenNet())


class Seeded(nnx.Module):
    """Two streams of one name and one seed, and a batch norm that must not move."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.second = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.frozen = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.live = nnx.BatchNorm(4, rngs=rngs)
        self.scale = nnx.data(jnp.full(4, 2.0))

    def __call__(self, x):
        ones = jnp.ones_like(x)
        return jnp.concatenate([self.first(ones), self.second(ones)], -1) + 0.0 * jnp.tile(
            self.live(self.frozen(x)) * self.scale[None], 2
        )


def test_streams_built_with_one_seed_follow_the_key_each_on_its_own():
    model = from_nnx(Seeded)
    params, state = model.init(KEY, INPUTS)
    masks = train(model, params, state, jax.random.key(1))[0].logits
    assert not np.array_equal(masks[:, :4], masks[:, 4:])
    again, other = (train(model, params, state, jax.random.key(i))[0].logits for i in (1, 2))
    np.testing.assert_array_equal(masks, again)
    for half in (slice(0, 4), slice(4, 8)):
        assert not np.array_equal(masks[:, half], other[:, half])


def test_layers_stacked_by_vmap_and_cells_that_draw_in_evaluation():
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense = nnx.Linear(4, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.dense(x))

    class Deep(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            build = nnx.split_rngs(splits=2)(nnx.vmap(Block, in_axes=0, out_axes=0))
            self.blocks = build(rngs)
            self.recurrent = nnx.RNN(nnx.SimpleCell(4, 3, rngs=rngs))

        def __call__(self, x):
            scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            over_time = self.recurrent(scan(x, self.blocks)[:, None, :])
            return over_time[:, 0]  # pyright: ignore

    model = from_nnx(Deep)
    params, state = model.init(KEY, INPUTS)
    assert params["blocks"]["dense"]["kernel"].shape == (2, 4, 4)
    evaluated = jax.jit(model.predict)(params, state, INPUTS).logits
    np.testing.assert_allclose(model.predict(params, state, INPUTS).logits, evaluated, atol=1e-6)
    first, again, other = (train(model, params, state, jax.random.key(i))[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)
    with pytest.raises(ValueError, match="key is None, but the module draws random numbers"):
        model.apply(params, state, INPUTS, train=True)


def test_batch_norm_that_was_built_frozen_stays_frozen():
    model = from_nnx(Seeded)
    params, state = model.init(KEY, INPUTS)
    assert state.keys() == {"frozen", "live", "scale"}
    _, after = train(model, params, state, KEY)
    chex.assert_trees_all_equal(after["frozen"], state["frozen"])
    assert not np.allclose(after["live"]["mean"], state["live"]["mean"])


def test_nnx_modules_may_be_given_their_mode_and_rngs_in_the_call():
    class Told(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.head = nnx.Linear(4, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, *, train: bool, rngs: nnx.Rngs | None = None):
            return self.head(self.dropout(x, deterministic=not train, rngs=rngs))

    model = from_nnx(Told)
    params, state = model.init(KEY, INPUTS)
    first, again, other = (train(model, params, state, jax.random.key(i))[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)
    model.predict(params, state, INPUTS)
    with pytest.raises(ValueError, match="key is None"):
        model.apply(params, state, INPUTS, train=True)


@pytest.mark.parametrize(
    "model", [from_linen(nn.Dense(1)), from_nnx(lambda rngs: nnx.Linear(4, 1, rngs=rngs))]
)
def test_one_output_becomes_two_classes(model):
    params, state = model.init(KEY, INPUTS)
    logits = model.predict(params, state, INPUTS).logits
    np.testing.assert_array_equal(logits[:, 0], 0.0)
    z = INPUTS @ params["kernel"][:, 0] + params["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 1], jax.nn.sigmoid(z), atol=1e-6)


@pytest.mark.quick
def test_functions_with_and_without_state():
    plain = from_function(lambda key, x: jnp.zeros((4, 3)), lambda params, inputs: inputs @ params)
    params, state = plain.init(KEY, INPUTS)
    outputs, after = plain.apply(params, state, INPUTS, key=KEY, train=True)
    assert outputs.logits.shape == (6, 3) and state == after == {}

    def apply(params, state, x, *, train, key):
        assert key is None or train
        return Outputs(x @ params, {"x": x}), state + train

    counting = from_function(lambda key, x: (jnp.zeros((4, 1)), jnp.zeros(())), apply)
    params, state = counting.init(KEY, INPUTS)
    outputs, after = counting.apply(params, state, INPUTS, key=KEY, train=True)
    assert outputs.logits.shape == (6, 2) and outputs.features["x"] is INPUTS
    assert after == 1.0 and counting.apply(params, state, INPUTS)[1] == 0.0


def test_bad_functions_and_modules_are_refused(library_errors):
    with pytest.raises(TypeError, match=r"apply must take \(params, inputs\)"):
        from_function(lambda key, x: {}, lambda inputs: inputs)
    with pytest.raises(TypeError, match=r"apply must take \(params, inputs\)"):
        from_function(lambda key, x: {}, lambda params, inputs, state: inputs)
    stateful = from_function(lambda key, x: {}, lambda params, state, inputs: inputs)
    with pytest.raises(TypeError, match=r"init must return \(params, state\)"):
        stateful.init(KEY, INPUTS)
    with pytest.raises(TypeError, match=r"apply must return \(logits, state\)"):
        stateful.apply({}, {}, INPUTS)
    pair = from_function(lambda key, x: {}, lambda params, inputs: (inputs, inputs))
    with pytest.raises(TypeError, match="logits as one array .* got tuple"):
        pair.predict({}, {}, INPUTS)
    named = from_linen(nn.Dense(3), classes=("a", "b"))
    with pytest.raises(ValueError, match=r"classes must name every logit.*2 names.*\(6, 3\)"):
        named.predict(*named.init(KEY, INPUTS), INPUTS)
    with pytest.raises(TypeError, match="through from_nnx"):
        from_linen(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="through from_linen"):
        from_nnx(lambda rngs: nn.Dense(3))  # pyright: ignore[reportArgumentType]


def test_nnx_arrays_that_a_trace_would_leak_are_refused():
    class Bare(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.table = jnp.ones(4)

        def __call__(self, x):
            return x * self.table[None]

    if _bare_arrays_are_data():
        params, state = from_nnx(Bare).init(KEY, INPUTS)
        assert list(state) == ["table"] and not params
    else:
        with pytest.raises(TypeError, match=r"bare array .* nnx.data"):
            from_nnx(Bare)


def _bare_arrays_are_data():
    """Flax before 0.12.7 takes an array as an attribute for data; later, for a static value."""
    version = importlib.metadata.version("flax").split(".")
    return tuple(int(part) for part in version[:3]) < (0, 12, 7)


def test_params_of_another_module_are_refused():
    params, state = NNX.init(KEY, INPUTS)
    wrong = {**params, "tail": params["head"]}
    del wrong["head"]
    with pytest.raises(ValueError, match=r"params must be .* missing \['head/bias'.*'tail/bias'"):
        NNX.predict(wrong, state, INPUTS)


def test_linen_state_must_keep_its_structure():
    class Growing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "norm", x.sum())
            return nn.Dense(3)(x)

    model = from_linen(Growing())
    params, state = model.init(KEY, INPUTS)
    with pytest.raises(ValueError, match="state changed its structure"):
        model.apply(params, state, INPUTS, train=True)


class TestModesAndKeys:
    """Parameters of a forward pass by which it is told its mode, or given a key."""

    @pytest.mark.parametrize(
        ("name", "default", "training"),
        [
            ("is_training", False, True),
            ("training", None, True),
            ("is_train", False, True),
            ("enable_dropout", True, True),
            ("inference", True, False),
            ("is_eval", True, False),
            ("deterministic", True, False),
        ],
    )
    def test_the_mode_by_its_names(self, name, default, training):
        space = {"jnp": jnp}
        for first in ("self", "params"):
            text = f"def {first}({first}, x, *, {name}={default}):"
            exec(f"{text} return jnp.full((6, 2), 1.0 * {name})", space)  # noqa: S102
        module = type("Told", (nn.Module,), {"__call__": space["self"]})
        for model in (from_linen(module()), from_function(lambda key, x: {}, space["params"])):
            for train in (True, False):
                made, _ = model.apply({}, {}, INPUTS, key=KEY, train=train)
                assert made.logits[0, 0] == (train == training)

    @pytest.mark.parametrize("name", ["key", "rng", "rngs"])
    def test_the_key_of_a_function_by_its_names(self, name):
        space = {"jax": jax}
        exec(  # noqa: S102
            f"def apply(params, x, {name}=None): return jax.random.normal({name}, (len(x), 2))",
            space,
        )
        model = from_function(lambda key, x: {}, space["apply"])
        made = model.apply({}, {}, INPUTS, key=KEY, train=True)[0].logits
        np.testing.assert_array_equal(made, jax.random.normal(KEY, (6, 2)))

    def test_the_key_of_a_linen_module(self):
        class Dropped(nn.Module):
            @nn.compact
            def __call__(self, x, training=False, rng=None):
                return nn.Dropout(0.5, deterministic=not training)(x, rng=rng)

        model, keys = from_linen(Dropped()), (KEY, jax.random.key(1))
        first, second = (model.apply({}, {}, INPUTS, key=k, train=True)[0].logits for k in keys)
        assert (first == 0).any() and (first != second).any()

    @pytest.mark.parametrize(
        ("parameter", "message"),
        [
            ("mode='eval'", r"'mode' \(by default 'eval'\), which looks like the mode"),
            ("phase='eval'", r"'phase' \(by default 'eval'\), which looks like the mode"),
            ("testing=True", r"'testing' \(by default True\), which looks like the mode"),
            ("use_dropout=False", r"'use_dropout' \(by default False\), which looks like the mo"),
            ("seed=0", r"'seed' \(by default 0\), which looks like the mode or a random key"),
            ("noise_key=None", r"'noise_key' \(by default None\), which looks like the mode"),
        ],
    )
    def test_what_is_not_understood_is_refused_at_once(self, parameter, message):
        space = {"nn": nn, "nnx": nnx}
        exec(  # noqa: S102
            f"def call(self, x, *, {parameter}): return x\n"
            f"def apply(params, x, *, {parameter}): return x",
            space,
        )
        linen = type("Linen", (nn.Module,), {"__call__": space["call"]})
        other = type("Nnx", (nnx.Module,), {"__call__": space["call"]})
        for make in (
            lambda: from_linen(linen()),
            lambda: from_nnx(lambda rngs: other()),
            lambda: from_function(lambda key, x: {}, space["apply"]),
        ):
            with pytest.raises(TypeError, match=message):
                make()

    def test_what_nothing_fills_is_refused(self):
        space = {}
        exec(  # noqa: S102
            "def call(self, x, *, mask): return x\ndef apply(params, x, *, mask): return x", space
        )
        message = "needs 'mask', which nothing fills: besides the inputs it is given, by name"
        with pytest.raises(TypeError, match=message):
            from_function(lambda key, x: {}, space["apply"])
        linen = type("Linen", (nn.Module,), {"__call__": space["call"]})
        other = type("Nnx", (nnx.Module,), {"__call__": space["call"]})
        for model in (from_linen(linen()), from_nnx(lambda rngs: other())):  # inputs may fill it
            with pytest.raises(TypeError, match=message):
                model.apply({}, {}, INPUTS)
            named = {"x": INPUTS, "mask": INPUTS}
            assert model.predict({}, {}, named).logits is INPUTS

    def test_other_options_keep_their_defaults(self):
        def apply(params, inputs, padding="SAME", train_steps=3, *, scale=1.0, mode=None):
            return inputs * scale

        with pytest.raises(TypeError, match="'mode'"):
            from_function(lambda key, x: {}, apply)
        model = from_function(lambda key, x: {}, functools.partial(apply, mode="x", scale=2.0))
        np.testing.assert_array_equal(model.predict({}, {}, INPUTS).logits, 2 * INPUTS)

    @pytest.mark.parametrize(("name", "passed"), [("train", True), ("deterministic", False)])
    def test_a_mode_that_is_none_by_default_in_nnx(self, name, passed):
        """Flax's own ``deterministic=None`` leaves the mode to ``train()`` and ``eval()``."""
        space = {"jnp": jnp}
        exec(  # noqa: S102
            f"def call(self, x, {name}=None): return jnp.full((6, 2), 1.0 * ({name} is None))",
            space,
        )
        model = from_nnx(lambda rngs: type("Told", (nnx.Module,), {"__call__": space["call"]})())
        made = model.apply({}, {}, INPUTS, key=KEY, train=True)[0].logits
        assert made[0, 0] == (0 if passed else 1)

    @pytest.mark.usefixtures("library_errors")
    def test_an_nnx_module_whose_attribute_holds_it_in_one_mode(self):
        class Inner(nnx.Module):
            def __init__(self, rngs: nnx.Rngs):
                self.inference = True

        class Fixed(nnx.Module):
            def __init__(self, rngs: nnx.Rngs):
                self.blocks = nnx.List([Inner(rngs)])

            def __call__(self, x):
                return x

        with pytest.raises(TypeError, match=r"Inner \(blocks/0\) has the attribute inference=True"):
            from_nnx(Fixed)

    def test_a_linen_module_whose_field_holds_it_in_evaluation(self):
        class Fixed(nn.Module):
            train: bool = False

            @nn.compact
            def __call__(self, x):
                return nn.Dropout(0.5, deterministic=not self.train)(x)

        model = from_linen(Fixed())
        model.predict({}, {}, INPUTS)
        with pytest.raises(ValueError, match="was made with train=False, and would be trained in"):
            model.apply({}, {}, INPUTS, key=KEY, train=True)
