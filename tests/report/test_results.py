"""Result files: plain, whole, and with what is needed to get them again."""

from __future__ import annotations

import errno
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.report import mean_std, result_file, save_json


def round_trip(tmp_path, payload):
    return json.loads(save_json(tmp_path / "new" / "a.json", payload).read_text(encoding="utf-8"))


@pytest.mark.quick
def test_numbers_and_arrays_become_plain(tmp_path):
    payload = {
        "numpy": np.float32(0.5),
        "integer": np.int64(3),
        "flag": np.bool_(True),
        "jax": jnp.arange(3),
        "half": jnp.ones((1, 2), jnp.bfloat16),
        "scalar": jnp.float32(2.0),
        "tuple": (1, None, "±"),
        3: pathlib.PurePath("figure.png"),
        "spread": mean_std([1.0, 3.0]),
    }
    assert round_trip(tmp_path, payload) == {
        "numpy": 0.5,
        "integer": 3,
        "flag": True,
        "jax": [0, 1, 2],
        "half": [[1.0, 1.0]],
        "scalar": 2.0,
        "tuple": [1, None, "±"],
        "3": "figure.png",
        "spread": {"mean": 2.0, "std": 2**0.5, "n": 2},
    }


def test_what_json_has_no_number_for_becomes_text(tmp_path):
    payload = [float("nan"), np.inf, jnp.array([-jnp.inf, 1.0])]
    assert round_trip(tmp_path, payload) == ["nan", "inf", ["-inf", 1.0]]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": [1, object()]}, r"payload\['a'\]\[1\] must be plain data or an array, got object"),
        ({"a": 1j}, r"payload\['a'\] must be .* got complex"),
        ({(1, 2): 1}, "the names in payload must be strings"),
        (jax.random.key(0), "payload must be plain data or an array"),
    ],
)
def test_anything_else_is_named_and_leaves_the_old_file(tmp_path, payload, message):
    path = save_json(tmp_path / "a.json", "old")
    with pytest.raises(TypeError, match=message):
        save_json(path, payload)
    assert json.loads(path.read_text()) == "old"


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_json(path, "new")
    assert json.loads(path.read_text()) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_result_file_says_where_it_comes_from(tmp_path):
    script = tmp_path / "quickstart.py"
    found = round_trip(tmp_path, result_file(script, [{"errors": np.int32(3)}], "python x.py"))
    assert list(found) == ["script", "command", "device", "versions", "rows"]
    assert found["script"] == "quickstart.py"
    assert found["command"] == "python x.py"
    assert found["rows"] == [{"errors": 3}]
    assert found["device"]["platform"] == jax.devices()[0].platform
    assert found["device"]["cpus"] >= 1
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert str(tmp_path) not in json.dumps(found)


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr("distill_jax.report.results._PACKAGES", ("jax", "no-such-package"))
    assert list(result_file("a.py", [], "")["versions"]) == ["python", "jax"]
