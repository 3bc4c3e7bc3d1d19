"""What ``check`` refuses, and what it lets pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import check


def good():
    return {"inputs": np.ones((4, 2), np.float32), "labels": np.array([0, 1, 2, 0])}


def with_value(value, *, rows=(1, 2), name="inputs"):
    column = np.ones((4, 2), np.float32)
    column[list(rows), 0] = value
    return good() | {name: column}


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_sound_data_passes(dtype):
    check(good() | {"inputs": jnp.ones((4, 2), dtype)}, batch_size=4, num_classes=3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ({}, {}, ValueError, "data must have a column or more"),
        ({"inputs": np.ones((0, 2))}, {}, ValueError, "data must have a row or more"),
        ({"inputs": np.float32(1)}, {}, ValueError, "inputs in data must have a leading axis"),
        (good() | {"x": np.ones(3)}, {}, ValueError, "one length, got {'inputs': 4.*'x': 3}"),
        (good(), {"batch_size": 5}, ValueError, "batch_size .* 1 and the 4 rows, got 5"),
        (good(), {"batch_size": 0}, ValueError, "batch_size .* got 0"),
        (with_value(np.nan), {}, ValueError, "inputs must be finite.* 2 of 4 rows"),
        (with_value(-np.inf, rows=[0]), {}, ValueError, "inputs must be finite.* 1 of 4 rows"),
        (with_value(np.inf, name="teacher_logits"), {}, ValueError, "teacher_logits must be fin"),
        (good() | {"labels": np.ones(4)}, {}, TypeError, "labels must be integers"),
        (good() | {"labels": np.array([0, -1, 2, 0])}, {}, ValueError, "0 or more, got -1"),
        (good(), {"num_classes": 2}, ValueError, "labels must lie in 0 ... 1 for 2 classes"),
        (good() | {"where": np.ones(4)}, {}, TypeError, "where must be booleans"),
        (good() | {"where": np.ones((4, 2), bool)}, {}, ValueError, "where must have the shape"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_names_what_is_wrong(data, options, error, message):
    with pytest.raises(error, match=message):
        check(data, **options)


def test_a_forbidden_class_may_stand_in_logits():
    check(with_value(-np.inf, name="teacher_logits"))
    with pytest.raises(ValueError, match="cached must be .*; if -inf excludes a class, end the"):
        check(good() | {"cached": with_value(-np.inf, name="teacher_logits")["teacher_logits"]})


def test_nan_in_bfloat16_is_found():
    with pytest.raises(ValueError, match="inputs must be finite"):
        check({"inputs": jnp.array([1.0, jnp.nan], jnp.bfloat16)})


def test_rows_that_do_not_count_may_hold_anything():
    data = with_value(np.nan) | {"labels": np.array([0, -1, 99, 1])}
    check(data | {"where": np.array([True, False, False, True])}, num_classes=3)
    with pytest.raises(ValueError, match="inputs must be finite, got NaN or inf in 1 of 3 rows"):
        check(data | {"where": np.array([True, True, False, True])}, num_classes=3)


def test_tokens_that_do_not_count_may_hold_any_label():
    data = {"inputs": np.ones((2, 2)), "labels": np.array([[0, -1], [1, -1]])}
    check(data | {"where": np.array([[True, False], [True, False]])}, num_classes=2)


def test_traced_values_pass_but_not_their_shapes():
    def traced(inputs, labels, where):
        check({"inputs": inputs, "labels": labels, "where": where}, num_classes=2)
        check({"inputs": inputs, "labels": labels}, num_classes=2)
        with pytest.raises(ValueError, match="one length"):
            check({"inputs": inputs[:2], "labels": labels})
        with pytest.raises(TypeError, match="labels must be integers"):
            check({"inputs": inputs, "labels": inputs})
        return labels

    jax.jit(traced)(jnp.full((3, 2), jnp.nan), jnp.full(3, 9), jnp.ones(3, bool))
