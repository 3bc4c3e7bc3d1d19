"""The networks that come along: against references in NumPy, and their own promises."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import (
    cast,
    convnet,
    from_nnx,
    images,
    logistic_regression,
    mlp,
    resnet,
)
from tests.models.drawing import drawn

KEY = jax.random.key(0)
FLAT = jax.random.normal(jax.random.key(1), (6, 4))
IMAGES = jax.random.normal(jax.random.key(2), (4, 6, 6, 2))
CONVNET = convnet([3, 4], 3)
RESNET = resnet(8, 3, width=2)


@functools.cache
def variables(model, flat: bool):
    return drawn(model, FLAT if flat else IMAGES)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def forward(model, params, state, inputs, *, train=False):
    """One program for all tests of a model."""
    return model.apply(params, state, inputs, train=train)


@pytest.fixture(autouse=True)
def count_traces_afresh():
    chex.clear_trace_counter()


@pytest.mark.quick
@pytest.mark.parametrize(("num_classes", "outputs"), [(2, 1), (3, 3)])
def test_logistic_regression_starts_at_zero_and_has_two_classes_or_more(num_classes, outputs):
    model = logistic_regression(num_classes)
    params, state = model.init(KEY, FLAT)
    assert params["kernel"].shape == (4, outputs) and state == {}
    logits = model.predict(params, state, FLAT).logits
    np.testing.assert_array_equal(logits, np.zeros((6, num_classes)))
    moved = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), params)
    got = model.predict(moved, state, FLAT.reshape(6, 2, 2)).logits
    z = np.asarray(FLAT) @ np.asarray(moved["kernel"]) + np.asarray(moved["bias"])
    want = np.concatenate([np.zeros((6, 1)), z], 1) if num_classes == 2 else z
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.quick
def test_mlp_dropout_keeps_the_mean_and_the_rate():
    model = mlp([64], 3, dropout=0.25, input_dropout=0.5, activation=lambda x: x)
    inputs = jnp.ones((128, 16))
    params, state = model.init(KEY, inputs)
    eye = {"kernel": jnp.tile(jnp.eye(16), (1, 4)), "bias": jnp.zeros(64)}
    params = {"hidden": {"0": eye}, "head": params["head"]}
    outputs, _ = model.apply(params, state, inputs, key=KEY, train=True)
    kept = outputs.features["hidden/0"]  # before its own dropout, after that of the inputs
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 1.0) < 0.1
    np.testing.assert_array_equal(model.predict(params, state, inputs).features["hidden/0"], 1.0)


def test_mlp_dropout_follows_the_key_layer_by_layer():
    model = mlp([5, 5], 3, dropout=(0.5, 0.0))
    params, state = variables(model, True)
    apply = jax.jit(lambda key: model.apply(params, state, FLAT, key=key, train=True)[0])
    first, again, other = (apply(jax.random.key(i)) for i in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    np.testing.assert_array_equal(first.features["hidden/0"], other.features["hidden/0"])
    assert not np.allclose(first.logits, other.logits)
    with pytest.raises(ValueError, match="key is None, but dropout in training needs one"):
        model.apply(params, state, FLAT, train=True)
    still = mlp([5, 5], 3)
    trained, _ = still.apply(params, state, FLAT, train=True)
    np.testing.assert_allclose(trained.logits, still.predict(params, state, FLAT).logits, rtol=1e-6)


def test_kernels_start_with_the_stated_variance():
    params, _ = mlp([500], 400).init(KEY, jnp.ones((1, 300)))
    assert abs(float(params["hidden"]["0"]["kernel"].var()) * 300 / 2 - 1) < 0.05
    assert abs(float(params["head"]["kernel"].var()) * 500 - 1) < 0.05
    params, _ = convnet([64], 300).init(KEY, jnp.ones((1, 4, 4, 32)))
    assert abs(float(params["blocks"]["0"]["conv"]["kernel"].var()) * 9 * 32 / 2 - 1) < 0.05
    assert abs(float(params["head"]["kernel"].var()) * 64 - 1) < 0.05
    assert float(params["head"]["kernel"].max()) > 3 / 8  # normal, not truncated at two sigmas


def test_mlp_vmaps_over_keys():
    model = mlp([5], 3, dropout=0.5)

    def first_logits(key):
        params, state = model.init(key, FLAT)
        return model.apply(params, state, FLAT, key=key, train=True)[0].logits

    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(first_logits))(keys)
    np.testing.assert_allclose(many[1], first_logits(keys[1]), atol=1e-5)
    assert not np.allclose(many[0], many[1])


def reference_layer(params, state, x, stride=1, *, train):
    """3x3 convolution and batch norm in float64, from their definitions; and the new state."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    x = np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], params["conv"]["kernel"])
    params, state = params["norm"], state["norm"]
    now = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))} if train else state
    after = {name: 0.9 * state[name] + 0.1 * now[name] for name in state} if train else state
    x = (x - now["mean"]) / np.sqrt(now["var"] + 1e-5) * params["scale"] + params["bias"]
    return x, {"norm": after}


def reference_convnet(params, state, x, *, train):
    features, after = {}, {"blocks": {}}
    for i, block in params["blocks"].items():
        x, after["blocks"][i] = reference_layer(block, state["blocks"][i], x, train=train)
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4)).clip(0)
        features[f"blocks/{i}"] = x
    return _reference_head(params, features, x), after


def reference_resnet(params, state, x, *, train):
    features, after = {}, {"blocks": {}}
    x, after["stem"] = reference_layer(params["stem"], state["stem"], x, train=train)
    x = features["stem"] = x.clip(0)
    for i, block in params["blocks"].items():
        stored, stride = state["blocks"][i], 1 if i == "0" else 2
        y, first = reference_layer(block["first"], stored["first"], x, stride, train=train)
        y, second = reference_layer(block["second"], stored["second"], y.clip(0), train=train)
        y[..., : x.shape[3]] += x[:, ::stride, ::stride]
        x = features[f"blocks/{i}"] = y.clip(0)
        after["blocks"][i] = {"first": first, "second": second}
    return _reference_head(params, features, x), after


def _reference_head(params, features, x):
    features["pooled"] = x.mean((1, 2))
    return features["pooled"] @ params["head"]["kernel"] + params["head"]["bias"], features


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize(
    ("model", "reference"),
    [(CONVNET, reference_convnet), (RESNET, reference_resnet)],
    ids=["convnet", "resnet"],
)
def test_convolutional_networks_match_numpy(model, reference, train):
    params, state = variables(model, False)
    outputs, after = forward(model, params, state, IMAGES, train=train)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, state, IMAGES))
    (logits, features), state_after = reference(*wide, train=train)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(dict(outputs.features), features, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(after, state_after, rtol=1e-4, atol=1e-5)


def conv_layer(rngs):
    return images._ConvLayer(2, 2, images._unchanged, rngs)


def test_statistics_of_bfloat16_are_float32():
    model = cast(from_nnx(conv_layer, features=("conv",)), jnp.bfloat16)
    outputs, state = model.apply(*model.init(KEY, IMAGES), IMAGES + 100, train=True)
    seen = outputs.features["conv"]
    assert seen.dtype == jnp.bfloat16 and state["norm"]["mean"].dtype == jnp.float32
    seen = np.asarray(seen, np.float64)
    np.testing.assert_allclose(state["norm"]["mean"], 0.1 * seen.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(state["norm"]["var"], 0.9 + 0.1 * seen.var((0, 1, 2)), rtol=1e-5)


def test_a_large_mean_costs_the_variance_no_digits():
    norm = from_nnx(lambda rngs: conv_layer(rngs).norm)
    _, state = norm.apply(*norm.init(KEY, IMAGES), IMAGES + 5000, train=True)
    want = np.asarray(IMAGES + 5000, np.float64).var((0, 1, 2))
    np.testing.assert_allclose((state["var"] - 0.9) / 0.1, want, rtol=1e-4)


@pytest.mark.parametrize("model", [CONVNET, RESNET], ids=["convnet", "resnet"])
def test_convolutional_networks_train_and_evaluate(model):
    params, state = variables(model, False)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        def loss(params):
            outputs, after = model.apply(params, state, IMAGES, train=True)
            return (outputs.logits**2).sum(), (outputs, after)

        return jax.grad(loss, has_aux=True)(params)

    grads, (trained, after) = step(params, state)
    step(params, after)
    chex.assert_tree_all_finite((grads, trained, after))
    chex.assert_trees_all_equal_structs(grads, params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads["head"]))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, after)
    assert all(jax.tree.leaves(moved))
    outputs, same = forward(model, params, after, IMAGES)
    chex.assert_trees_all_equal(same, after)
    other = forward(model, params, after, IMAGES.at[1:].add(1.0))[0]
    np.testing.assert_allclose(other.logits[0], outputs.logits[0], atol=1e-5)  # rows do not mix
    assert not np.allclose(other.logits[1], outputs.logits[1])
    assert not np.allclose(trained.logits, outputs.logits)
    wrong = r"conv/kernel' has \(3, 3, 2, .\), and needs \(3, 3, 1, .\): .* other inputs"
    with pytest.raises(ValueError, match=wrong):
        model.predict(params, state, IMAGES[..., :1])


def test_features_of_convolutional_networks():
    features = jax.eval_shape(CONVNET.predict, *variables(CONVNET, False), IMAGES).features
    assert {path: x.shape for path, x in features.items()} == {
        "blocks/0": (4, 3, 3, 3),
        "blocks/1": (4, 1, 1, 4),
        "pooled": (4, 4),
    }
    features = jax.eval_shape(RESNET.predict, *variables(RESNET, False), IMAGES).features
    assert {path: x.shape for path, x in features.items()} == {
        "stem": (4, 6, 6, 2),
        "blocks/0": (4, 6, 6, 2),
        "blocks/1": (4, 3, 3, 4),
        "blocks/2": (4, 2, 2, 8),
        "pooled": (4, 8),
    }


def test_convnet_without_batch_norm_has_biases_and_no_state():
    model = convnet([3], 2, batch_norm=False)
    params, state = jax.eval_shape(model.init, KEY, IMAGES)
    assert params["blocks"]["0"]["conv"].keys() == {"kernel", "bias"}
    assert jax.tree.leaves(state) == []


def test_resnet_sizes_are_those_of_the_paper():
    # Table 6 of He et al. (2016): 0.27, 0.46, 0.66, 0.85 million.
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)):
        params, _ = jax.eval_shape(resnet(depth, 10).init, KEY, jnp.ones((1, 32, 32, 3)))
        assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 2) == millions


def test_a_resnet_block_without_weights_is_the_shortcut():
    params, state = variables(RESNET, False)
    zero = jax.tree.map(jnp.zeros_like, params["blocks"]["1"])
    params = {**params, "blocks": {**params["blocks"], "1": zero}}
    features = forward(RESNET, params, state, IMAGES)[0].features
    np.testing.assert_array_equal(
        features["blocks/1"][..., :2], features["blocks/0"][:, ::2, ::2, :]
    )
    np.testing.assert_array_equal(features["blocks/1"][..., 2:], 0.0)


@pytest.mark.parametrize("model", [mlp([5], 3), logistic_regression(), CONVNET, RESNET])
def test_integers_are_refused(model):
    with pytest.raises(TypeError, match=r"inputs must be floating point, got uint8: .* / 255"):
        model.init(KEY, jnp.ones((2, 8, 8, 1), jnp.uint8))


def test_wrong_arguments_are_named(library_errors):
    with pytest.raises(ValueError, match="num_classes must be 2 or more, got 1"):
        logistic_regression(1)
    with pytest.raises(ValueError, match="classes must name each of the 3 classes, got 2"):
        mlp([5], 3, classes=("a", "b"))
    with pytest.raises(ValueError, match=r"sizes\[0\] must be 1 or more, got 0"):
        mlp([0], 3)
    with pytest.raises(ValueError, match=r"dropout must be one rate or one per hidden layer \(2\)"):
        mlp([5, 5], 3, dropout=[0.5])
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        mlp([5], 3, dropout=1.0)
    with pytest.raises(ValueError, match=r"input_dropout must lie in \[0, 1\), got -0.1"):
        mlp([5], 3, input_dropout=-0.1)
    with pytest.raises(ValueError, match="depth must be 6 n . 2 .* got 18"):
        resnet(18, 10)
    with pytest.raises(ValueError, match="channels must have one number per stage"):
        convnet([], 3)
    with pytest.raises(ValueError, match=r"batch, height, width, channels\], got \(6, 4\)"):
        CONVNET.init(KEY, FLAT)
    with pytest.raises(ValueError, match=r"batch, ...features\], got \(6,\)"):
        logistic_regression().init(KEY, FLAT[:, 0])
    params, state = variables(mlp([5], 3), True)
    with pytest.raises(ValueError, match="must have the 4 features of the kernel"):
        mlp([5], 3).predict(params, state, FLAT[:, :3])


@pytest.mark.usefixtures("library_errors")
def test_numpy_numbers_and_lists_of_classes_are_taken():
    model = mlp([np.int64(4)], 3, dropout=np.float32(0.0), classes=["a", "b", "c"])
    assert model.classes == ("a", "b", "c")
    assert hash(model) == hash(model)
    params, state = model.init(KEY, FLAT)
    assert params["hidden"]["0"]["kernel"].shape == (4, 4)
    np.testing.assert_array_equal(
        model.predict(params, state, np.asarray(FLAT)).logits,
        model.predict(params, state, FLAT).logits,
    )
    with pytest.raises(TypeError, match=r"sizes\[0\] must be an integer, got True"):
        mlp([True], 3)


@pytest.mark.parametrize("model", [convnet([2], 3), mlp([2], 3)])
def test_params_are_float64_where_floats_are(model):
    inputs = np.ones((1, 4, 4, 1))
    with jax.enable_x64(True):
        made = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert {x.dtype for x in jax.tree.leaves(made)} == {np.dtype(np.float64)}
