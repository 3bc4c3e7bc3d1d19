"""What the checks refuse, by name, and that what is traced passes."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import _checks, losses, models

NAN, INF = float("nan"), float("inf")

REFUSED = [
    (lambda: _checks.floating(x=jnp.zeros(2, int)), TypeError, "x must be floating point, got int"),
    (lambda: _checks.integer(x=jnp.zeros(2)), TypeError, "x must be integers, got float32"),
    (lambda: _checks.boolean(x=jnp.zeros(2)), TypeError, "x must be booleans (True counts)"),
    (lambda: _checks.shape((3,), x=jnp.zeros(2)), ValueError, "x must have shape (3,), got (2,)"),
    (
        lambda: _checks.same_shape(x=jnp.zeros((2, 3)), y=jnp.zeros((2, 1, 3))),
        ValueError,
        "y must have the shape of x, (2, 3), got (2, 1, 3)",
    ),
    (
        lambda: _checks.shape(("batch", 3), hint=", as encode gives it", x=jnp.zeros((4, 2))),
        ValueError,
        "x must have shape [batch, 3], as encode gives it, got (4, 2)",
    ),
    (lambda: _checks.shape(("batch", 3), x=jnp.zeros(3)), ValueError, "[batch, 3], got (3,)"),
    (lambda: _checks.shape((), x=[1.0]), ValueError, "x must have shape (), got (1,)"),
    (
        lambda: _checks.same_tree({"a": jnp.zeros(2)}, x={"b": jnp.zeros(2)}),
        ValueError,
        "x must have the structure PyTreeDef({'a': *}), got PyTreeDef({'b': *})",
    ),
    (
        lambda: _checks.same_tree({"a": jnp.zeros(2)}, x={"a": jnp.zeros((2, 1))}),
        ValueError,
        "x must have the shapes [((2,), dtype('float32'))], got [((2, 1), dtype('float32'))]",
    ),
    (
        lambda: _checks.same_tree([jnp.zeros(2)], x=[jnp.zeros(2, int)]),
        ValueError,
        "x must have the shapes",
    ),
    (lambda: _checks.classes_axis(x=jnp.zeros((4, 1))), ValueError, "see two_class"),
    (lambda: _checks.classes_axis(x=jnp.zeros(())), ValueError, "x must have shape [..., classes]"),
    (lambda: _checks.scalar(x=jnp.zeros(1)), ValueError, "x must be a scalar, got shape (1,)"),
    (lambda: _checks.positive(x=0.0), ValueError, "x must be finite and > 0, got 0.0"),
    (lambda: _checks.positive(x=INF), ValueError, "x must be finite and > 0, got inf"),
    (lambda: _checks.positive(x=NAN), ValueError, "x must be finite and > 0, got nan"),
    (lambda: _checks.at_least(1, x=0), ValueError, "x must be finite and >= 1, got 0"),
    (lambda: _checks.at_least(1, x=NAN), ValueError, "x must be finite and >= 1, got nan"),
    (lambda: _checks.between(0, 1, x=1.5), ValueError, "x must lie in [0, 1], got 1.5"),
    (lambda: _checks.between(0, 1, x=NAN), ValueError, "x must lie in [0, 1], got nan"),
    (lambda: _checks.finite(x=np.array([1, INF])), ValueError, "x must be finite"),
    (
        lambda: _checks.labels_below(3, x=np.array([0, 3])),
        ValueError,
        "x must lie in 0 ... 2 for 3 classes, got values from 0 to 3",
    ),
    (
        lambda: _checks.class_order(("a", "b"), ("b", "a"), "teacher"),
        ValueError,
        "teacher orders its classes as ['b', 'a'], the student as ['a', 'b']",
    ),
    (
        lambda: _checks.class_order(("a", "b"), ("a", "c"), "teacher"),
        ValueError,
        "teacher has the classes ['a', 'c'], the student ['a', 'b']",
    ),
    (lambda: _checks.classes_axis(least=1, x=jnp.zeros((4, 0))), ValueError, "[..., outputs], got"),
    (
        lambda: _checks.integer_or_boolean(x=jnp.zeros(2)),
        TypeError,
        "integers or booleans, got",
    ),
    (lambda: _checks.choice(("a", "b"), x="c"), ValueError, "x must be one of 'a', 'b', got 'c'"),
    (
        lambda: _checks.same_outputs("softmax", "regression", "teacher"),
        ValueError,
        "teacher has outputs='regression', the student outputs='softmax'",
    ),
    (
        lambda: _checks.fits_device(x=np.array([1, -(2**31) - 1])),
        ValueError,
        "x has the value -2147483649, which does not fit in int32, the type in which JAX",
    ),
    (
        lambda: _checks.fits_device(x=np.array([np.nan, -np.inf, 1e39])),
        ValueError,
        "x has the value 1e+39, which does not fit in float32",
    ),
]


@pytest.mark.quick
@pytest.mark.parametrize(("check", "error", "message"), REFUSED)
def test_refuses(check, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check()


@pytest.mark.quick
def test_lets_good_values_pass():
    _checks.floating(x=jnp.zeros(2, jnp.bfloat16), y=1.0)
    _checks.integer(x=jnp.zeros(2, jnp.uint8), y=1)
    _checks.boolean(x=np.ones(2, bool))
    _checks.same_shape(x=jnp.zeros((2, 3)), y=np.zeros((2, 3)))
    _checks.classes_axis(x=jnp.zeros((0, 2)))
    _checks.scalar(x=1.0, y=jnp.zeros(()))
    _checks.positive(x=1e-9, y=jnp.ones(3))
    _checks.at_least(0, x=0.0)
    _checks.between(0, 1, x=0.0, y=1.0)
    _checks.finite(x=np.zeros((2, 2)))
    _checks.labels_below(3, x=np.array([0, 2]), y=np.zeros(0, int))
    _checks.class_order(("a", "b"), ("a", "b"), "teacher")
    _checks.class_order(None, ("a", "b"), "teacher")
    _checks.classes_axis(least=1, x=jnp.zeros((2, 1)))
    _checks.integer_or_boolean(x=np.ones(2, bool), y=1)
    _checks.choice(("a", "b"), x="b")
    _checks.same_outputs("softmax", "softmax", "teacher")
    extremes = np.array([-(2**31), 2**31 - 1]), np.array([np.inf, np.nan, 3.4e38])
    _checks.fits_device(x=extremes[0], y=extremes[1], z=np.array([2**32 - 1], np.uint64), s="a")
    with jax.enable_x64(True):
        _checks.fits_device(x=np.array([2**40]), y=np.array([1e300]))


def test_what_is_traced_passes():
    @jax.jit
    def traced(x, labels):
        _checks.positive(x=x)
        _checks.at_least(0, x=x)
        _checks.between(0, 1, x=x)
        _checks.finite(x=x)
        _checks.labels_below(3, labels=labels)
        assert _checks.known(x) is None
        return x

    assert traced(-2.0, jnp.array([7])) == -2.0
    assert _checks.known(3.0) == 3.0


def test_a_function_of_other_arguments_is_named() -> None:
    _checks.takes("(key, batch)", augment=lambda key, batch: batch, other=print)
    with pytest.raises(TypeError, match=r"augment must be a function of \(key, batch\), got a "):
        _checks.takes("(key, batch)", augment=lambda batch: batch)
    with pytest.raises(TypeError, match=r"augment must be a function of \(key, batch\), got int"):
        _checks.takes("(key, batch)", augment=3)


def test_variables_of_another_model_are_named() -> None:
    model = models.logistic_regression(2)
    inputs = jnp.ones((3, 4))
    params, state = model.init(jax.random.key(0), inputs)
    for wrong, words in (
        ({"params": params["bias"]}, r"params must be the model's own.*\{'bias': \(1,\), "),
        ({"params": "nonsense"}, "params must be an array, got 'nonsense'"),
        ({"state": {"a": jnp.ones(1)}}, r"state must be the model's own.*got \{'a': \(1,\)\}"),
    ):
        given = {"params": params, "state": state, **wrong}
        with pytest.raises((TypeError, ValueError), match=words):
            with _checks.variables_of(model, inputs=inputs, **given):
                raise KeyError("deep")
    with pytest.raises(KeyError, match="deep"), _checks.variables_of(model, params, state, inputs):
        raise KeyError("deep")


@pytest.mark.usefixtures("library_errors")
def test_a_mask_is_not_dropped() -> None:
    masked = np.ma.array([[1.0], [1e20]], mask=[[False], [True]])
    with pytest.raises(ValueError, match="targets has 1 masked entries.*where="):
        losses.squared_error_with_targets(jnp.zeros((2, 1)), masked)  # pyright: ignore[reportArgumentType]
    labels = np.ma.array([0, 7], mask=[False, True])
    with pytest.raises(ValueError, match="labels has 1 masked entries.*where="):
        losses.cross_entropy(jnp.zeros((2, 2)), labels)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_labels_of_any_width_under_strict_promotion(dtype: Any) -> None:
    logits, labels = jnp.zeros((2, 2), jnp.bfloat16), jnp.array([[1, 0], [0, 1]], dtype)
    with jax.numpy_dtype_promotion("strict"):
        many = losses.binary_cross_entropy(logits, labels)
        level = losses.ordinal_cross_entropy(logits, labels[0].astype(jnp.uint8))
        one = losses.cross_entropy(logits, labels[0].astype(jnp.uint8))
    np.testing.assert_allclose(many, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(level, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(one, np.log(2), rtol=1e-6)
