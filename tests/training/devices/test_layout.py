"""Layouts: rules for parameters, and eight devices that must give what one gives."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distill_jax.training import (
    Layout,
    data_parallel,
    fsdp,
    replicate,
    shard_by_name,
    shard_by_size,
)
from tests.training.devices import on_eight_devices

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """What went wrong on eight devices, by check."""
    folder = tmp_path_factory.mktemp("eight")
    # Compiling takes most of the time, and what LLVM does with the programs is not looked at here.
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            on_eight_devices.__name__,
            folder / "wrong.json",
            folder,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads((folder / "wrong.json").read_text())


@pytest.mark.parametrize("name", on_eight_devices.CHECKS)
def test_on_eight_devices(wrong, name):
    assert name not in wrong, wrong[name]


def spec(rule, path, shape, **axes):
    return tuple(rule(path, shape, axes))


def test_by_size_cuts_the_longest_axis_that_divides():
    rule = shard_by_size("data", least=16)
    assert spec(rule, "kernel", (4, 8), data=4) == (None, "data")
    assert spec(rule, "kernel", (8, 4), data=4) == ("data",)
    assert spec(rule, "kernel", (8, 8), data=4) == ("data",)
    assert spec(rule, "kernel", (8, 9), data=4) == ("data",)
    assert spec(rule, "kernel", (7, 9), data=4) == ()
    assert spec(rule, "kernel", (3, 5), data=1) == ()  # too small
    assert spec(rule, "kernel", (0, 64), data=4) == ()
    assert spec(shard_by_size("data"), "kernel", (2**8, 2**8 - 1), data=4) == ()
    assert spec(shard_by_size("data"), "kernel", (2**8, 2**8), data=4) == ("data",)
    both = shard_by_size(("replicas", "shards"), least=1)
    assert spec(both, "kernel", (4, 8), replicas=2, shards=4) == (None, ("replicas", "shards"))


def test_by_name_takes_the_first_pattern_of_whole_names_at_the_end():
    rule = shard_by_name(
        {"head/kernel": P("a"), "kernel": P(None, "a"), "blocks/.*": P("b")},
        otherwise=shard_by_size("c", least=1),
    )
    axes = {"a": 2, "b": 2, "c": 2}
    assert spec(rule, "head/kernel", (4, 4), **axes) == ("a",)
    assert spec(rule, "average/head/kernel", (4, 4), **axes) == ("a",)
    assert spec(rule, "overhead/kernel", (4, 4), **axes) == (None, "a")
    assert spec(rule, "blocks/0/bias", (4,), **axes) == ("b",)
    assert spec(rule, "my_kernel", (4, 6), **axes) == (None, "c")
    assert rule.axes == {"a", "b", "c"}
    assert rule.unmatched(["blocks/0/bias", "x/kernel"]) == ["head/kernel"]


def test_rules_that_say_nothing_sensible(library_errors):
    with pytest.raises(TypeError, match=r"specs\['kernel'\] must be a PartitionSpec, got str"):
        shard_by_name({"kernel": "data"})  # pyright: ignore
    with pytest.raises(ValueError, match=r"'\(' *, which is no regular expression"):
        shard_by_name({"(": P()})
    with pytest.raises(TypeError, match="otherwise must be a rule, got P"):
        shard_by_name({}, otherwise=P())  # pyright: ignore
    with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh, got list"):
        Layout(jax.devices())  # pyright: ignore
    with pytest.raises(TypeError, match="params must be a rule"):
        Layout(data_parallel().mesh, params=P("data"))  # pyright: ignore


@pytest.mark.quick
def test_one_device_is_a_layout_too():
    for layout in (data_parallel(), fsdp(), fsdp(shards=1)):
        assert (layout.parts, layout.processes) == (1, 1)
        layout.check(3)
        placed = layout.place({"kernel": np.ones((256, 256), np.float32)})
        assert placed["kernel"].sharding.is_fully_replicated
    assert data_parallel().params is replicate
