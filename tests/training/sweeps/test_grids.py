"""Grids become configurations; what is wrong with one is said before anything runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.training import integers, log_uniform, sampled, uniform
from distill_jax.training.sweeps.grids import check_names, configurations, split, trial_name


def trial(key, *, temperature, rate=0.1, data):
    return {}


@pytest.mark.quick
def test_a_dictionary_is_a_product_whose_last_name_runs_fastest():
    grid = {"a": [1, 2], "b": ("x", "y"), "c": np.array([0.5])}
    assert configurations(grid) == [
        {"a": 1, "b": "x", "c": 0.5},
        {"a": 1, "b": "y", "c": 0.5},
        {"a": 2, "b": "x", "c": 0.5},
        {"a": 2, "b": "y", "c": 0.5},
    ]


def test_values_become_plain_python():
    grid = [{"a": np.float32(0.5), "b": jnp.asarray(3), "c": (np.int64(1), "x"), "d": np.bool_(1)}]
    [row] = configurations(grid)
    assert row == {"a": 0.5, "b": 3, "c": (1, "x"), "d": True}
    assert [type(x) for x in row.values()] == [float, int, tuple, bool]


def test_numbers_are_columns_and_the_rest_is_fixed():
    made = configurations({"a": [1, 2.5], "n": [1, 2], "s": ["x"], "f": [True], "w": [8, 16]})
    fixed, columns = split(made, ["w"])
    assert fixed == ["s", "f", "w"]
    assert {name: x.dtype.name for name, x in columns.items()} == {"a": "float32", "n": "int32"}
    np.testing.assert_array_equal(columns["a"], [1.0] * 4 + [2.5] * 4)


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"a": []}, ValueError, "'a' must have one value or more"),
        ([], ValueError, "one configuration or more"),
        ({"a": 0.1}, TypeError, r"write \[0.1\]"),
        ({"a": "relu"}, TypeError, r"write \['relu'\]"),
        ({"a": np.float32(1)}, TypeError, "must have a list"),
        ("relu", TypeError, "dictionary of lists"),
        (3, TypeError, "dictionary of lists"),
        ([{"a": 1}, 3], TypeError, r"grid\[1\] must be a dictionary"),
        ([{"a": 1}, {"b": 1}], ValueError, r"grid\[0\] has \['a'\], grid\[1\] \['b'\]"),
        ({"a": [0.1, float("nan")]}, ValueError, "'a' must not be NaN"),
        ({"a": [(1.0, float("nan"))]}, ValueError, "'a' must not be NaN"),
        ({"a": [0.1, 0.2, 0.1]}, ValueError, "numbers 0 and 2 are both"),
        ({"a": [np.ones(2)]}, TypeError, "data go into shared="),
        ({"a": [jax.nn.relu]}, TypeError, "look it up in the trial"),
    ],
)
def test_grids_that_are_none(grid, error, message):
    with pytest.raises(error, match=message):
        configurations(grid)


def test_values_of_a_name_are_of_one_kind_unless_static():
    made = configurations({"a": [0.1, None]})
    with pytest.raises(TypeError, match=r"one kind, got None and numbers.*static=\('a',\)"):
        split(made, [])
    assert split(made, ["a"]) == (["a"], {})
    with pytest.raises(TypeError, match="booleans and numbers"):
        split([{"a": True}, {"a": 2}], [])
    with pytest.raises(ValueError, match="fit 32 bits"):
        split([{"a": 2**31}], [])


@pytest.mark.parametrize(
    ("names", "shared", "static", "message"),
    [
        (["temprature"], ["data"], [], r"does not have \(did you mean 'temperature'\?\); its "
         r"parameters are \['temperature', 'rate', 'data'\]"),
        (["rate"], ["data"], [], r"needs \['temperature'\], which neither grid \['rate'\]"),
        (["temperature"], ["date"], [], "shared names 'date'"),
        (["temperature"], [], [], r"needs \['data'\]"),
        (["temperature", "data"], ["data"], [], "'data' is in grid and in shared"),
        (["temperature", "seed"], ["data"], [], "does not have"),
        (["temperature"], ["data"], ["rate"], "static names 'rate', which is not in grid"),
    ],
)  # fmt: skip
def test_names_must_be_the_trials(names, shared, static, message):
    with pytest.raises(ValueError, match=message):
        check_names(trial, names, shared, static)


def test_names_of_trials_that_are_wrapped_or_open_ended():
    check_names(jax.jit(trial), ["temperature"], ["data"], [])
    check_names(functools.partial(trial, data=1), ["temperature", "rate"], [], ["rate"])
    check_names(lambda key, **anything: {}, ["anything", "else"], [], [])
    for name, advice in (("seed", "seeds="), ("mode", "mode=")):
        with pytest.raises(ValueError, match=f"column of the results already.*{advice}"):
            check_names(lambda key, **anything: {}, [name], [], [])
    assert trial_name(functools.partial(trial, rate=1.0)) == trial_name(jax.jit(trial)) == "trial"


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_samples_keep_their_values_as_the_grid_grows(impl):
    how = {"rate": log_uniform(1e-4, 1e-1), "width": [8, 16, 32], "steps": integers(1, 3)}
    key = jax.random.key(0, impl=impl)
    few, many = sampled(key, 5, **how), sampled(key, 200, extra=uniform(0.0, 1.0), **how)
    assert few == [{name: row[name] for name in how} for row in many[:5]]
    assert few == sampled(key, 100, **how)[:5]
    assert many[:100] == sampled(key, 100, extra=uniform(0.0, 1.0), **how)
    assert few != sampled(jax.random.key(1, impl=impl), 5, **how)
    assert len(configurations(many)) == 200
    assert {row["width"] for row in many} == {8, 16, 32}
    assert {row["steps"] for row in many} == {1, 2, 3}
    logs = np.log10([row["rate"] for row in many])
    assert logs.min() >= -4 and logs.max() <= -1
    # 200 even draws of (-4, -1): the mean's standard deviation is 0.06.
    assert abs(logs.mean() + 2.5) < 0.25
    assert all(row["rate"] == float(f"{row['rate']:.6g}") for row in many)


def test_samples_of_few_values_are_different():
    key, how = jax.random.key(0), {"width": [8, 16, 32], "steps": integers(1, 3)}
    few, all_of_them = sampled(key, 4, **how), sampled(key, 9, **how)
    assert few == all_of_them[:4] and len(configurations(all_of_them)) == 9
    with pytest.raises(
        ValueError, match="n must be at most.* got 10, and 6400 draws hold 9: lower"
    ):
        sampled(key, 10, **how)


@pytest.mark.usefixtures("library_errors")
def test_numbers_of_samples_are_integers_and_values_plain():
    assert len(sampled(jax.random.key(0), np.int64(2), a=[1, 2])) == 2
    with pytest.raises(TypeError, match="n must be an integer, got 2.5"):
        sampled(jax.random.key(0), 2.5, a=[1])
    with pytest.raises(TypeError, match="values of 'a' must be numbers"):
        sampled(jax.random.key(0), 1, a=[[1]])


def test_distributions_stay_within_their_ends():
    draws = (0.0, 0.3, 1 - 2**-32)
    for distribution, low, high in (
        (uniform(-1.0, 1 / 3), -1.0, 1 / 3),
        (log_uniform(1e-3, 1 / 3), 1e-3, 1 / 3),
        (integers(-2, 2), -2, 2),
    ):
        values = [distribution(u) for u in draws]
        assert low == values[0] < values[1] < values[2] <= high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform(1.0, 1.0), "low must be below high"),
        (lambda: uniform(0.0, float("inf")), "both finite"),
        (lambda: log_uniform(0.0, 1.0), "low must be > 0"),
        (lambda: integers(3, 1), "low must be below high"),
        (lambda: sampled(jax.random.key(0), 0, a=[1]), "n must be 1 or more"),
        (lambda: sampled(jax.random.key(0), 2), "a distribution for one name"),
        (lambda: sampled(jax.random.key(0), 2, a=[]), "one value or more"),
    ],
)
def test_distributions_that_are_none(call, message):
    with pytest.raises(ValueError, match=message):
        call()
