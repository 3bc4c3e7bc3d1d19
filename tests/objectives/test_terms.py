"""A term: its mask, its options, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.types import Outputs
from tests.objectives.examples import both, context_of, example


@pytest.mark.quick
def test_masks_of_rows_and_of_tokens_meet_row_by_row():
    batch = {"inputs": jnp.zeros((4, 4, 2)), "mine": jnp.array([True, False, False, False])}
    batch["where"] = jnp.ones((4, 4), bool)
    rows_first = term("t", 1.0, lambda context: jnp.ones((4, 4)), where="mine").mask(batch)
    np.testing.assert_array_equal(rows_first.sum(1), [4, 0, 0, 0])
    batch = {**batch, "mine": batch["where"], "where": batch["mine"]}
    tokens_first = term("t", 1.0, lambda context: jnp.ones((4, 4)), where="mine").mask(batch)
    np.testing.assert_array_equal(tokens_first, rows_first)


def test_settings_are_fixed_in_the_program_and_numbers_are_leaves():
    def loss(context, *, layers, flag, scale, nothing):
        assert layers == ("a", "b") and flag and nothing is None
        return jnp.full(2, scale)

    options = {"layers": ["a", "b"], "flag": np.bool_(True), "nothing": None}
    made = term("t", 1, loss, scale=np.int64(2), **options)
    assert made.options["scale"].dtype == jnp.float32
    context = Context(Outputs(jnp.zeros((2, 2))), {}, {"inputs": jnp.zeros((2, 1))})
    assert jax.jit(lambda o: o({}, {}, context)[0])(weighted_sum(made)) == 2


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize("weight", [float("nan"), float("inf"), -np.inf])
    def test_a_weight_that_is_not_finite(self, weight):
        with pytest.raises(ValueError, match="weight of term 'labels' must be finite"):
            term("labels", weight, cross_entropy)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_an_option_out_of_range(self, temperature):
        with pytest.raises(ValueError, match="term 'teacher': temperature must be finite and > 0"):
            term("teacher", 1.0, soft_targets, temperature=temperature)

    def test_an_option_that_the_loss_does_not_have(self):
        with pytest.raises(TypeError, match=r"no option 'temprature'; it has \['temperature'\]"):
            term("teacher", 1.0, soft_targets, temprature=2.0)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (jnp.float32, "must not be a class, got float32: a function is read as a schedule"),
            (lambda: 1.0, r"must give numbers for a step, got a function that does not \(.*\): "),
            (
                lambda step: "log",
                r"must give numbers for a step, got a function that does not \(.*\): ",
            ),
            (("a", 1.0), "must be numbers or arrays, or else strings, .* got 'a'"),
            (np.dtype("int8"), r"must be numbers or arrays, or else strings, .* got dtype\('int8"),
        ],
    )
    def test_an_option_that_is_neither_numbers_nor_a_schedule(self, value, message):
        with pytest.raises(TypeError, match=f"option 'how' of term 't' {message}"):
            term("t", 1.0, lambda student_logits, how: student_logits.sum(-1), how=value)

    @pytest.mark.parametrize("weight", [cross_entropy, lambda: 1.0])
    def test_a_weight_that_is_no_schedule(self, weight):
        with pytest.raises(TypeError, match="weight of term 't' must give numbers for a step"):
            term("t", weight, cross_entropy)

    @pytest.mark.parametrize("default", ["linear", False, jnp.abs])
    def test_a_schedule_of_an_option_that_is_fixed(self, default):
        def loss(student_logits, *, how=default):
            return student_logits.sum(-1)

        with pytest.raises(TypeError, match=r"'how' of term 't' is fixed in the program \(its def"):
            term("t", 1.0, loss, how=lambda step: step)

    @pytest.mark.parametrize("dtype", [bool, jnp.int32])
    def test_rows_without_a_gradient(self, dtype):
        def wrong(student_logits, labels):
            return (student_logits.argmax(-1) != labels).astype(dtype)

        batch = {"inputs": jnp.zeros((2, 1)), "labels": jnp.array([0, 1])}
        objective = weighted_sum(term("wrong", 1.0, wrong))
        with pytest.raises(TypeError, match="'wrong' gave rows of dtype .*, through which no grad"):
            objective({}, {}, Context(Outputs(jnp.zeros((2, 2))), {}, batch))

    def test_reads_of_a_parameter_that_the_loss_does_not_have(self):
        with pytest.raises(ValueError, match="names 'label'; its loss has"):
            term("labels", 1.0, cross_entropy, reads={"label": "noisy"})

    def test_a_loss_with_init_that_takes_no_parameters(self):
        with pytest.raises(TypeError, match=r"must take the term's own params and state first"):
            term("own", 1.0, lambda student_logits: 0, init=lambda key: ({}, {}))
        with pytest.raises(TypeError, match="init of term 'own' must take a key first"):
            term("own", 1.0, lambda params, state: 0, init=lambda: ({}, {}))

    def test_reads_of_a_term_with_parameters_that_nothing_takes(self):
        with pytest.raises(ValueError, match=r"names 'labels'; its loss has \['student_logits'\]"):
            term(
                "own",
                1.0,
                lambda params, state, student_logits: 0,
                init=lambda key: ({}, {}),
                reads={"labels": "noisy"},
            )

    def test_a_mask_that_is_not_boolean(self):
        batch, _ = example()
        batch["labelled"] = batch["labelled"].astype(jnp.float32)
        with pytest.raises(TypeError, match="where of term 'labels' must be booleans"):
            both().counts(batch)

    def test_a_name_that_metrics_have(self):
        with pytest.raises(ValueError, match="may not be named 'loss'"):
            term("loss", 1.0, cross_entropy)


def top_hits(student_logits, labels, *, k, activation=None):
    """The probability outside the k most likely classes, so that k shapes the program."""
    top, places = jax.lax.top_k(student_logits, k)
    top = top if activation is None else activation(top)
    return jnp.where((places == labels[:, None]).any(-1), 0.0, 1.0) + 0.0 * top.sum(-1)


class TestStatic:
    def test_integers_and_functions_are_fixed_in_the_program(self):
        batch, kernel = example()
        value = jax.jit(lambda objective, context: objective({}, {}, context)[0])
        for k in (1, 2, 3):
            for activation in (jnp.tanh, jax.nn.relu):
                options = {"k": k, "activation": activation, "static": ("k", "activation")}
                built = weighted_sum(term("top", 1.0, top_hits, **options))
                got = value(built, context_of(kernel, batch))
                logits = np.asarray(batch["inputs"] @ kernel)
                places = np.argsort(-logits, axis=1)[:, :k]
                miss = ~(places == np.asarray(batch["labels"])[:, None]).any(1)
                keep = np.asarray(batch["where"])
                np.testing.assert_allclose(got, miss[keep].mean(), rtol=1e-6)
        assert not jax.tree.leaves(dataclasses.replace(built.terms[0], weight=None))

    def test_values_that_are_equal_but_of_other_kinds_are_other_programs(self):
        built = [term("t", 1.0, top_hits, k=k, static="k") for k in (1, 1.0, True, np.int64(1))]
        structures = [jax.tree.structure(t) for t in built]
        assert structures[0] == structures[3] and len(set(structures)) == 3

    @pytest.mark.usefixtures("library_errors")
    def test_messages(self):
        def make(static, **options):
            return term("top", 1.0, top_hits, static=static, **{"k": 2} | options)

        with pytest.raises(ValueError, match="static of term 'top' names 'size', which is none of"):
            make(("k", "size"))
        with pytest.raises(ValueError, match="names 'activation', which is none of the options"):
            make("activation")
        with pytest.raises(TypeError, match="loss of term 'top' has no option 'size'"):
            make("size", size=3)
        for value in (jnp.ones(2), np.ones(2), {"a": 1}):
            with pytest.raises(TypeError, match="option 'k' of term 'top' is static, so it must"):
                make("k", k=value)
        with pytest.raises(TypeError, match="static, so it must have a hash, got .*Tracer"):
            jax.jit(lambda k: make("k", k=k).weight)(2)
        with pytest.raises(TypeError, match="to pass one to the loss itself, name the option"):
            make((), activation=jnp.ones)
        batch, kernel = example()
        with pytest.raises(TypeError) as caught:
            weighted_sum(make(()))({}, {}, context_of(kernel, batch))
        assert "static=('k',)" in caught.value.__notes__[0]
