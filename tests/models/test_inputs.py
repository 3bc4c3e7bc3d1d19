"""Inputs that are trees of arrays, and modules that return several entries."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.models import cast, from_function, from_linen, from_nnx, remat
from distill_jax.types import Outputs

KEY = jax.random.key(0)
TOKENS = jnp.array([[1, 2, 3, 0], [4, 0, 0, 0], [5, 1, 0, 0]])
INPUTS = {"tokens": TOKENS, "mask": TOKENS > 0}


@flax.struct.dataclass
class Answer:
    scores: jax.Array
    hidden: tuple
    missing: jax.Array | None = None


def answer(pooled, hidden, form):
    logits = pooled[:, :2]
    if form == "dictionary":
        return {"scores": logits, "hidden": {"last": hidden}, "loss": jnp.ones(())}
    if form == "tuple":
        return hidden, logits
    return Answer(logits, (hidden,))


class LinenReader(nn.Module):
    form: str = "array"

    @nn.compact
    def __call__(self, tokens, mask, segments=None, *, train=False):
        hidden = nn.Embed(6, 3)(tokens) * mask[..., None]
        if segments is not None:
            hidden += segments[..., None]
        pooled = nn.Dropout(0.5, deterministic=not train)(hidden.sum(1))
        return pooled if self.form == "array" else answer(pooled, hidden, self.form)


class NnxReader(nnx.Module):
    def __init__(self, rngs, form="array"):
        self.embed, self.drop = nnx.Embed(6, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.form = form

    def __call__(self, tokens, mask, segments=None):
        hidden = self.embed(tokens) * mask[..., None]
        if segments is not None:
            hidden += segments[..., None]
        pooled = self.drop(hidden.sum(1))
        return pooled if self.form == "array" else answer(pooled, hidden, self.form)


def readers(form="array", **options):
    yield from_linen(LinenReader(form), **options)
    yield from_nnx(lambda rngs: NnxReader(rngs, form), **options)


@pytest.mark.quick
def test_a_dictionary_is_passed_by_name_and_a_tuple_in_order():
    for model in readers():
        params, state = model.init(KEY, jax.eval_shape(lambda: INPUTS))
        (embedding,) = jax.tree.leaves(params)
        want = (embedding[TOKENS] * INPUTS["mask"][..., None]).sum(1)
        for inputs in (INPUTS, (TOKENS, INPUTS["mask"])):
            np.testing.assert_allclose(model.predict(params, state, inputs).logits, want, 1e-6)
        more = INPUTS | {"segments": jnp.ones(TOKENS.shape)}
        for inputs in (more, tuple(more.values())):
            np.testing.assert_allclose(model.predict(params, state, inputs).logits, want + 4, 1e-6)
        trained, _ = model.apply(params, state, INPUTS, key=KEY, train=True)
        assert (trained.logits == 0).any()
        np.testing.assert_array_equal(
            remat(model).apply(params, state, INPUTS, key=KEY, train=True)[0].logits, trained.logits
        )
        half = cast(model, jnp.bfloat16).predict(params, state, INPUTS)  # tokens stay integers
        np.testing.assert_allclose(half.logits, want, rtol=0.02, atol=0.02)


def test_a_module_of_one_argument_is_given_the_whole():
    class One(nn.Module):
        def __call__(self, batch, scale=2.0, *, bias=None, train=False):
            return scale * sum(jax.tree.leaves(batch))

    class OneNnx(nnx.Module):
        def __call__(self, batch):
            return 2.0 * sum(jax.tree.leaves(batch))

    x = jnp.ones((3, 2))
    for model in (from_linen(One()), from_nnx(OneNnx())):
        for inputs in (x, {"batch": x}, (x,), {"batch": {"a": x}}):
            assert (model.predict({}, {}, inputs).logits == 2).all()
    assert (from_nnx(OneNnx()).predict({}, {}, {"a": x}).logits == 2).all()
    assert (from_linen(One()).predict({}, {}, {"batch": x, "scale": 3.0}).logits == 3).all()


def test_open_parameters():
    class Named(nn.Module):
        def __call__(self, **inputs):
            return inputs["a"] - inputs["b"]

    class Listed(nn.Module):
        def __call__(self, *inputs):
            return inputs[0] - inputs[1]

    x = jnp.ones((3, 2))
    chained = from_nnx(nnx.Sequential(lambda a, b: (a, b), lambda a, b: a - b))
    for inputs in ({"b": x, "a": 3 * x}, (3 * x, x)):  # as Sequential passes on what a layer made
        assert (chained.predict({}, {}, inputs).logits == 2).all()
    assert (from_linen(Named()).predict({}, {}, {"b": x, "a": 3 * x}).logits == 2).all()
    assert (from_linen(Listed()).predict({}, {}, (3 * x, x)).logits == 2).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            INPUTS | {"segment": TOKENS},
            r"\['segment'\], which .* does not take: it takes \['tokens'",
        ),
        ({"tokens": TOKENS}, r"needs \['mask'\], and inputs have \['tokens'\]"),
        ({"ids": TOKENS}, r"takes \['tokens', 'mask', 'segments'.*a dictionary of \['ids'\]"),
        (INPUTS | {"train": TOKENS}, r"\['train'\], which .* its mode|does not take"),
        (TOKENS, "needs 'mask', which nothing fills"),
        ((TOKENS,), "of which it needs 2, and inputs are a tuple of 1"),
        ((TOKENS,) * 5, "inputs are a tuple of 5"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    for model in readers():
        with pytest.raises(TypeError, match=message):
            model.init(KEY, inputs)
            model.predict({"embed": {"embedding": jnp.ones((6, 3))}}, {}, inputs)


@pytest.mark.usefixtures("library_errors")
def test_what_could_be_meant_in_two_ways_is_refused():
    class Perhaps(nn.Module):
        def __call__(self, image, metadata=None):
            return image

    model, x = from_linen(Perhaps()), jnp.ones((3, 2))
    for inputs in ((x, x), {"picture": x}):
        with pytest.raises(TypeError, match=r"inputs=\{'image': ..., 'metadata': ...\}"):
            model.init(KEY, inputs)
    assert model.predict({}, {}, {"image": x}).logits is x


@pytest.mark.parametrize(
    ("form", "logits", "features"),
    [
        ("dictionary", "scores", {"hidden/last"}),
        ("tuple", 1, {"0"}),
        ("tuple", -1, {"0"}),
        ("dataclass", "scores", {"hidden/0"}),
        ("dataclass", lambda made: made.scores, {"scores", "hidden/0"}),
    ],
)
def test_one_entry_is_the_logits_and_the_others_are_features(form, logits, features):
    for model in readers(form, logits=logits):
        params, state = model.init(KEY, INPUTS)
        outputs = model.predict(params, state, INPUTS)
        assert outputs.logits.shape == (3, 2) and outputs.features.keys() == features
        hidden = next(x for name, x in outputs.features.items() if name != "scores")
        np.testing.assert_array_equal(hidden.sum(1)[:, :2], outputs.logits)


@pytest.mark.usefixtures("library_errors")
def test_an_entry_that_is_not_named_or_not_there():
    for form, names in (("dictionary", "scores"), ("tuple", "0"), ("dataclass", "hidden")):
        for model in readers(form):
            params, state = model.init(KEY, INPUTS)
            with pytest.raises(TypeError, match=f"of .*'{names}'.*say which holds the logits"):
                model.predict(params, state, INPUTS)
        for model in readers(form, logits="logits"):
            params, state = model.init(KEY, INPUTS)
            with pytest.raises(ValueError, match=f"logits='logits' is no entry .*'{names}'"):
                model.predict(params, state, INPUTS)
    with pytest.raises(TypeError, match="logits must be the name of an entry"):
        from_linen(LinenReader(), logits=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must return its logits as one array .* got dict"):
        from_function(lambda key, x: {}, lambda params, x: {"scores": x}).predict({}, {}, TOKENS)


def test_outputs_need_no_entry():
    class Made(nnx.Module):
        def __call__(self, x):
            return Outputs(x, {"hidden": x})

    outputs = from_nnx(Made(), logits="logits").predict({}, {}, jnp.ones((3, 2)))
    assert set(outputs.features) == {"hidden"}
