"""The shipped networks against Flax's layers, and their own promises."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.models import _layers, convnet, logistic_regression, mlp, resnet

KEY = jax.random.key(0)
FLAT = jax.random.normal(jax.random.key(1), (6, 4))
IMAGES = jax.random.normal(jax.random.key(2), (4, 6, 6, 2))
CONVNET = convnet([3, 4], 3)
RESNET = resnet(8, 3, width=2)


@functools.cache
def variables(model, flat: bool):
    return jax.jit(model.init)(KEY, FLAT if flat else IMAGES)


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
    with pytest.raises(ValueError, match="key is None, and dropout in training needs one"):
        model.apply(params, state, FLAT, train=True)
    still = mlp([5, 5], 3)
    trained, _ = still.apply(params, state, FLAT, train=True)
    np.testing.assert_allclose(trained.logits, still.predict(params, state, FLAT).logits, rtol=1e-6)


def test_kernels_start_with_the_stated_variance():
    params, _ = mlp([500], 400).init(KEY, jnp.ones((1, 300)))
    assert abs(float(params["hidden"]["0"]["kernel"].var()) * 300 / 2 - 1) < 0.05
    assert abs(float(params["head"]["kernel"].var()) * 500 - 1) < 0.05
    kernel = _layers.conv_init(KEY, 3, 64, 64)["kernel"]
    assert abs(float(kernel.var()) * 9 * 64 / 2 - 1) < 0.05


def test_mlp_vmaps_over_keys():
    model = mlp([5], 3, dropout=0.5)

    def first_logits(key):
        params, state = model.init(key, FLAT)
        return model.apply(params, state, FLAT, key=key, train=True)[0].logits

    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(first_logits))(keys)
    np.testing.assert_allclose(many[1], first_logits(keys[1]), atol=1e-5)
    assert not np.allclose(many[0], many[1])


def test_conv_and_batch_norm_are_those_of_flax():
    ours = _layers.conv_init(KEY, 3, 2, 3)
    theirs = nnx.Conv(
        2, 3, (3, 3), strides=2, padding=[(1, 1), (1, 1)], use_bias=False, rngs=nnx.Rngs(0)
    )
    theirs.kernel = nnx.Param(ours["kernel"])
    np.testing.assert_allclose(_layers.conv(ours, IMAGES, 2), theirs(IMAGES), atol=1e-5)

    params, state = _layers.batch_norm_init(2)
    params = {"scale": params["scale"] * 2, "bias": params["bias"] + 1}
    norm = nnx.BatchNorm(2, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    norm.scale, norm.bias = nnx.Param(params["scale"]), nnx.Param(params["bias"])
    for train in (True, False):
        norm.set_attributes(use_running_average=not train)
        got, state = _layers.batch_norm(params, state, IMAGES, train=train)
        np.testing.assert_allclose(got, norm(IMAGES), atol=1e-5)
        np.testing.assert_allclose(state["mean"], norm.mean.get_value(), atol=1e-6)
        np.testing.assert_allclose(state["var"], norm.var.get_value(), atol=1e-5)


def test_batch_norm_of_bfloat16_has_float32_statistics():
    params, state = _layers.batch_norm_init(2)
    got, state = _layers.batch_norm(params, state, IMAGES.astype(jnp.bfloat16) + 100, train=True)
    assert got.dtype == jnp.bfloat16 and state["mean"].dtype == jnp.float32
    rounded = np.asarray((IMAGES.astype(jnp.bfloat16) + 100).astype(jnp.float32), np.float64)
    np.testing.assert_allclose(state["mean"], 0.1 * rounded.mean((0, 1, 2)), rtol=1e-5)


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
    evaluate = jax.jit(model.apply)
    outputs, same = evaluate(params, after, IMAGES)
    chex.assert_trees_all_equal(same, after)
    other = evaluate(params, after, IMAGES.at[1:].add(1.0))[0]
    np.testing.assert_allclose(other.logits[0], outputs.logits[0], atol=1e-5)  # rows do not mix
    assert not np.allclose(other.logits[1], outputs.logits[1])
    assert not np.allclose(trained.logits, outputs.logits)
    with pytest.raises(ValueError, match="2 channels of the kernel"):
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
    features = jax.jit(RESNET.predict)(params, state, IMAGES).features
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
    with pytest.raises(ValueError, match="sizes must be integers >= 1, got 0"):
        mlp([0], 3)
    with pytest.raises(ValueError, match=r"dropout must be one rate or one a hidden layer \(2\)"):
        mlp([5, 5], 3, dropout=[0.5])
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        mlp([5], 3, dropout=1.0)
    with pytest.raises(ValueError, match=r"input_dropout must lie in \[0, 1\), got -0.1"):
        mlp([5], 3, input_dropout=-0.1)
    with pytest.raises(ValueError, match="depth must be 6 n . 2 .* got 18"):
        resnet(18, 10)
    with pytest.raises(ValueError, match="channels must have one number a stage"):
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
    with pytest.raises(ValueError, match="True"):
        mlp([True], 3)
