"""Teachers as pytrees: one program a kind, no constants, no gradient; and what is made of them."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from distill_jax import teachers
from distill_jax.models import mlp
from distill_jax.types import Outputs

MODEL = mlp([8], 3, classes=("a", "b", "c"))
INPUTS = jax.random.normal(jax.random.key(9), (5, 4))


def make(seed: int) -> teachers.Teacher:
    return teachers.teacher(MODEL, *MODEL.init(jax.random.key(seed), INPUTS))


def add(params, inputs):
    return inputs + params


def fixed(logits) -> teachers.Teacher:
    """A teacher that says ``logits`` of zeros."""
    return teachers.from_function(add, jnp.asarray(logits, jnp.float32))


@pytest.fixture(autouse=True)
def count_traces_afresh():
    chex.clear_trace_counter()


@pytest.mark.parametrize(
    "build",
    [
        make,
        lambda seed: fixed(np.full((5, 4), seed)),
        lambda seed: teachers.ensemble([make(seed), make(seed + 1)], [1.0, seed + 1.0]),
        lambda seed: teachers.reorder(make(seed), ["c", "a", "b"]),
    ],
    ids=["model", "function", "ensemble", "reordered"],
)
def test_two_teachers_of_one_kind_share_a_program_without_constants(build):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def predict(teacher, inputs):
        return teacher(inputs)

    first, second = build(0), build(1)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert not np.allclose(predict(first, INPUTS).logits, predict(second, INPUTS).logits)
    np.testing.assert_allclose(predict(second, INPUTS).logits, second(INPUTS).logits, atol=1e-6)
    traced = jax.make_jaxpr(lambda teacher, inputs: teacher(inputs))(first, INPUTS)
    assert all(np.size(const) <= 1 for const in traced.consts)


def test_no_gradient_reaches_a_teacher_nor_the_inputs_through_it():
    def loss(teacher, inputs):
        outputs = teacher(inputs)
        return (outputs.logits**2).sum() + outputs.features["hidden/0"].sum()

    grads = jax.grad(loss, argnums=(0, 1))(make(0), INPUTS)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))

    def mixed(teacher, inputs):
        return (teachers.ensemble([teacher, make(1)])(inputs).logits ** 2).sum()

    assert all(np.all(g == 0) for g in jax.tree.leaves(jax.grad(mixed)(make(0), INPUTS)))


def test_a_teacher_runs_in_evaluation_mode():
    model = mlp([8], 3, dropout=0.5)  # in training it would ask for a key
    params, state = model.init(jax.random.key(0), INPUTS)
    want = MODEL.predict(params, state, INPUTS).logits
    np.testing.assert_allclose(teachers.teacher(model, params, state)(INPUTS).logits, want)


def test_teachers_stack_and_vmap():
    both = [make(0), make(1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *both)
    logits = jax.vmap(lambda teacher: teacher(INPUTS).logits)(stacked)
    want = np.stack([teacher(INPUTS).logits for teacher in both])
    np.testing.assert_allclose(logits, want, atol=1e-6)


def test_a_function_with_one_output_teaches_two_classes():
    teacher = fixed([[2.0]])
    np.testing.assert_array_equal(teacher(jnp.zeros((2, 1))).logits, [[0.0, 2.0], [0.0, 2.0]])
    full = teachers.from_function(lambda p, x: Outputs(x, {"x": x}), {}, classes=("a", "b"))
    assert full(jnp.zeros((2, 2))).features.keys() == {"x"} and full.classes == ("a", "b")


@pytest.mark.quick
@pytest.mark.parametrize("mix", ["probability", "log"])
def test_ensembles_match_numpy(mix):
    members = [make(0), make(1), make(2)]
    raw = np.array([1.0, 0.5, 2.5])
    log_p = np.stack([log_softmax(np.float64(t(INPUTS).logits), -1) for t in members])
    weights = (raw / raw.sum())[:, None, None]
    if mix == "log":
        want = (weights * log_p).sum(0)
    else:
        want = logsumexp(np.log(weights) + log_p, axis=0)
    got = jax.jit(lambda w: teachers.ensemble(members, w, mix=mix)(INPUTS).logits)(jnp.array(raw))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    alike = teachers.ensemble([members[0]] * 2, mix=mix)(INPUTS).logits
    np.testing.assert_allclose(alike, log_p[0], rtol=1e-5, atol=1e-6)


def test_impossible_classes_in_ensembles():
    inf = np.inf
    x = jnp.zeros((1, 3))
    first, second = fixed([[0.0, 0.0, -inf]]), fixed([[-inf, 0.0, -inf]])
    either = teachers.ensemble([first, second])(x).logits
    np.testing.assert_allclose(jnp.exp(either), [[0.25, 0.75, 0.0]], rtol=1e-6)
    both = teachers.ensemble([first, second], mix="log")(x).logits
    np.testing.assert_allclose(jax.nn.softmax(both), [[0.0, 1.0, 0.0]])
    for mix in ("probability", "log"):
        silent = teachers.ensemble([first, fixed([[np.nan] * 3])], [1.0, 0.0], mix=mix)
        np.testing.assert_allclose(jnp.exp(silent(x).logits), [[0.5, 0.5, 0.0]], rtol=1e-6)


def test_ensembles_of_bfloat16_are_float32():
    half = teachers.from_function(add, jnp.zeros((1, 3), jnp.bfloat16))
    assert teachers.ensemble([half])(jnp.zeros((2, 3), jnp.bfloat16)).logits.dtype == jnp.float32


def test_wrong_ensembles_are_refused(library_errors):
    one, two = fixed([[0.0, 1.0]]), fixed([[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="teachers must be one or more"):
        teachers.ensemble([])
    with pytest.raises(ValueError, match="mix must be"):
        teachers.ensemble([one], mix="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"weights must have shape \(1,\), got \(2,\)"):
        teachers.ensemble([one], [0.5, 0.5])
    for weights in ([-1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="weights must be finite and >= 0"):
            teachers.ensemble([one], weights)
    with pytest.raises(ValueError, match="weights must not all be 0"):
        teachers.ensemble([one, one], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"teachers\[1\] must have the shape"):
        teachers.ensemble([one, two])(jnp.zeros((1, 1)))
    other = teachers.reorder(make(0), ["c", "a", "b"])
    with pytest.raises(ValueError, match=r"same order: teachers\[2\] has .*see reorder"):
        teachers.ensemble([fixed([[0.0] * 3]), make(0), other])


def test_reorder_moves_logits_with_their_names():
    teacher = make(0)
    moved = teachers.reorder(teacher, ["c", "a", "b"])
    assert moved.classes == ("c", "a", "b")
    np.testing.assert_array_equal(moved(INPUTS).logits, teacher(INPUTS).logits[:, [2, 0, 1]])
    assert moved(INPUTS).features.keys() == {"hidden/0"}
    back = teachers.reorder(moved, ("a", "b", "c"))
    np.testing.assert_array_equal(back(INPUTS).logits, teacher(INPUTS).logits)
    for classes in (["a", "b"], ["a", "b", "b"], ["a", "b", "d"]):
        with pytest.raises(ValueError, match="classes must be those of the teacher"):
            teachers.reorder(teacher, classes)
    with pytest.raises(ValueError, match=r"teacher must declare its classes .* classes="):
        teachers.reorder(fixed([[0.0, 1.0]]), ["a", "b"])


def test_average_follows_its_recurrence_in_float32():
    key = jax.random.key(0)
    params = {"w": jnp.ones(3, jnp.bfloat16), "step": jnp.array(1), "key": key}
    average = teachers.start_average(params)
    assert average["w"].dtype == jnp.float32 and average["step"].dtype == params["step"].dtype
    update, want = jax.jit(teachers.update_average), np.ones(3)
    for step in range(2, 12):
        params = {"w": jnp.full(3, step, jnp.bfloat16), "step": jnp.array(step), "key": key}
        average = update(average, params, 0.999)
        want = 0.999 * want + 0.001 * step
    assert average["w"].dtype == jnp.float32 and average["step"] == 11
    np.testing.assert_allclose(average["w"], want, rtol=1e-6)  # bfloat16 would not have moved
    same = teachers.update_average({"w": jnp.array([0.1])}, {"w": jnp.array([0.1])}, 0.9)
    np.testing.assert_array_equal(same["w"], jnp.array([0.1]))


def test_wrong_averages_are_refused(library_errors):
    with pytest.raises(ValueError, match="params must have the structure of average"):
        teachers.update_average({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, 0.9)
    with pytest.raises(ValueError, match="params must have the shape of average"):
        teachers.update_average({"a": jnp.ones(2)}, {"a": jnp.ones(1)}, 0.9)
    with pytest.raises(ValueError, match=r"decay must lie in \[0.0, 1.0\], got 1.5"):
        teachers.update_average({}, {}, 1.5)


def test_an_average_of_the_student_is_a_teacher():
    params, state = MODEL.init(jax.random.key(0), INPUTS)
    other, _ = MODEL.init(jax.random.key(1), INPUTS)
    average = teachers.update_average(teachers.start_average(params), other, 0.0)
    got = teachers.teacher(MODEL, average, state)(INPUTS).logits
    np.testing.assert_allclose(got, MODEL.predict(other, state, INPUTS).logits, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_precomputed_logits_are_those_of_the_whole(batch_size):
    logits = teachers.precompute(make(0), INPUTS, batch_size=batch_size)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits, make(0)(INPUTS).logits, atol=1e-6)


def test_precompute_takes_trees_and_compiles_once_for_all_batches():
    shapes = []

    def predict(params, inputs):
        shapes.append(inputs["x"].shape)
        return inputs["x"] * params + inputs["y"]

    teacher = teachers.from_function(predict, jnp.array(2.0))
    inputs = {"x": np.arange(10.0).reshape(5, 2), "y": np.ones((5, 2))}
    want = 2 * inputs["x"] + 1
    np.testing.assert_allclose(teachers.precompute(teacher, inputs, batch_size=2), want)
    assert shapes == [(2, 2)]


def test_wrong_inputs_to_precompute_are_refused():
    for inputs in (INPUTS[:0], {"x": INPUTS, "y": INPUTS[:2]}, {}, jnp.array(1.0)):
        with pytest.raises(ValueError, match=r"inputs must be arrays \[n, ...\] with one n > 0"):
            teachers.precompute(make(0), inputs)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        teachers.precompute(make(0), INPUTS, batch_size=0)


@pytest.mark.parametrize(
    ("compact", "share"),
    [
        (teachers.cast, 0.5),
        (lambda t: teachers.quantize(t, smallest=16), 0.6),
        (lambda t: teachers.quantize(teachers.cast(t), smallest=16), 0.5),
    ],
    ids=["bfloat16", "int8", "both"],
)
def test_compact_teachers_say_the_same_in_less_memory(compact, share):
    def held(teacher):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(teacher.params))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def predict(teacher, inputs):
        return teacher(inputs)

    wide = make(0)
    small = compact(wide)
    assert held(small) <= share * held(wide)
    assert jax.tree.structure(small) == jax.tree.structure(compact(make(1)))
    assert small.classes == wide.classes and small.missing == wide.missing
    outputs = predict(small, INPUTS)
    predict(compact(make(1)), INPUTS)
    assert outputs.logits.dtype == jnp.float32 and outputs.features.keys() == {"hidden/0"}
    np.testing.assert_allclose(outputs.logits, wide(INPUTS).logits, atol=0.08)
    assert not np.array_equal(outputs.logits, wide(INPUTS).logits)
    both = teachers.ensemble([small, wide])
    np.testing.assert_allclose(
        both(INPUTS).logits, jax.nn.log_softmax(wide(INPUTS).logits), atol=0.08
    )


def test_no_weight_moves_by_more_than_half_a_step():
    wide = jnp.arange(8.0).reshape(1, 1, 8)  # channel 0 is 0
    kernel = jax.random.normal(jax.random.key(0), (3, 5, 8)) * wide
    tree = {"kernel": kernel, "bias": jnp.ones(8), "ids": jnp.ones((40, 40), jnp.int32)}
    small = teachers.quantize(teachers.from_function(add, tree), smallest=1).params
    assert small["bias"].dtype == jnp.float32 and small["ids"].dtype == jnp.int32
    got = small["kernel"]
    assert got.values.dtype == jnp.int8 and got.scale.shape == (1, 1, 8)
    step = np.abs(np.asarray(kernel, np.float64)).max((0, 1)) / 127
    error = np.abs(np.asarray(got.values, np.float64) * np.asarray(got.scale) - kernel).max((0, 1))
    assert (error <= 0.5001 * step).all() and (error[1:] > 0.2 * step[1:]).all()
    left = teachers.quantize(teachers.from_function(add, tree), smallest=121).params
    np.testing.assert_array_equal(left["kernel"], kernel)
    again = teachers.quantize(teachers.from_function(add, small), smallest=1).params
    chex.assert_trees_all_equal(again, small)


def test_compact_teachers_keep_impossible_classes_and_vmap():
    def forbids(params, inputs):
        return (inputs @ params).at[:, 1].set(-jnp.inf)

    wide = teachers.from_function(forbids, jax.random.normal(jax.random.key(0), (4, 3)))
    for small in (teachers.cast(wide), teachers.quantize(wide, smallest=1)):
        logits = small(INPUTS).logits
        assert np.isneginf(logits[:, 1]).all() and np.isfinite(logits[:, [0, 2]]).all()
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), small)
        many = jax.vmap(lambda teacher: teacher(INPUTS).logits)(stacked)
        np.testing.assert_allclose(many[1], logits, atol=1e-6)
        grads = jax.grad(lambda x, t=small: t.predict(t.params, t.state, x).logits[:, 0].sum())(
            INPUTS
        )
        np.testing.assert_allclose(grads, jnp.tile(wide.params[:, 0], (5, 1)), atol=0.03)


def test_kernels_are_not_multiplied_out_before_a_loop():
    wide = teachers.from_function(lambda p, x: jnp.tanh(x @ p[0]) @ p[1],
                                  (jnp.ones((64, 2000)), jnp.ones((2000, 64))))  # fmt: skip
    small = teachers.quantize(wide)

    def loop(teacher, inputs):
        return jax.lax.scan(lambda x, _: (teacher(x).logits / 2000, None), inputs, length=4)[0]

    memory: Any = jax.jit(loop).lower(small, jnp.ones((4, 64))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * 4 * 64 * 2000  # one kernel, not two


def test_wrong_compact_teachers_are_refused(library_errors):
    with pytest.raises(ValueError, match="loss scaling; use jnp.bfloat16"):
        teachers.cast(make(0), jnp.float16)
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        teachers.cast(make(0), jnp.int8)
    with pytest.raises(ValueError, match=r"write quantize\(cast\(teacher, dtype\)\)"):
        teachers.cast(teachers.quantize(make(0), smallest=1))
    with pytest.raises(ValueError, match="smallest must be 1 or more, got 0"):
        teachers.quantize(make(0), smallest=0)
    params = {"kernel": jnp.full((40, 40), jnp.nan)}
    with pytest.raises(ValueError, match="the kernel 'kernel' of teacher must be finite"):
        teachers.quantize(teachers.from_function(add, params))


def test_a_function_may_say_what_inputs_it_takes():
    made = teachers.from_function(add, jnp.zeros((1, 3)), missing=True, exact_inputs=True)
    assert made.missing and made.exact_inputs
