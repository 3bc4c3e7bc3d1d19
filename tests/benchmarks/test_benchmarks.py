"""The benchmarks run, check their own results, and write what a result file holds."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run_quick(script: str, out: pathlib.Path, *options: str) -> tuple[dict, list[dict], str]:
    # A process of its own: the scripts choose the number of devices before JAX starts.
    env = os.environ | {
        "OMP_NUM_THREADS": "1",  # threads that wait for each other take long
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of a quick run
    }
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", "--quick", *options, "--out", str(out)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(out.read_text()), lines, done.stdout


def check_rows(result: dict) -> None:
    assert result["command"].startswith("python benchmarks/")
    assert result["versions"]["jax"] and result["device"]["platform"]
    for row in result["rows"]:
        assert row["better"] in ("lower", "higher")
        assert min(row["ours"], row["limit"], *row["peers"].values()) > 0
        assert set(row["times_faster"]) - {"run"} <= set(row["peers"])


def test_losses(tmp_path):
    chosen = ["soft_targets", "total_variation"]
    result, lines, _ = run_quick("losses", tmp_path / "losses.json", "--only", *chosen)
    check_rows(result)
    names = {row["name"] for row in result["rows"]}
    assert {"soft_targets 8x10", "soft_targets 8x10 two devices", "total_variation 8x10"} <= names
    cases = {line["case"] for line in lines}
    assert {"plain", "total", "two devices", "optax", "jax.numpy", "limit"} <= cases
    for row in result["rows"]:
        assert {"plain", "total", "two devices"} < row["temp_megabytes"].keys()


def test_training(tmp_path):
    result, lines, printed = run_quick("training", tmp_path / "training.json")
    check_rows(result)
    names = [row["name"] for row in result["rows"]]
    assert names == ["mlp live", "mlp live fit", "mlp cached", "mlp cached fit"]
    assert {"run", "fit", "jax loop", "limit"} <= {line["case"] for line in lines}
    assert printed.count("of run; wanted") == 2


def test_rules(tmp_path):
    result, lines, printed = run_quick("rules", tmp_path / "rules.json")
    assert result["command"].startswith("python benchmarks/")
    rows = {row["name"]: row for row in result["rows"]}
    assert {"crisp 12x300", "coverage 12x300", "energies 12x300", "fuzzy gradient 12x300"} <= set(
        rows
    )
    assert "numpy" in rows["crisp 12x300"]["peers"]
    for row in result["rows"]:
        assert row["better"] == "higher" and min(row["ours"], *row["peers"].values(), 1e9) > 0
        assert row["compile_seconds"] >= 0 and row["temp_megabytes"] >= 0
        assert set(row.get("times_faster", {})) == set(row["peers"])
    assert {"ours", "numpy", "coverage", "autodiff", "limit"} <= {
        line["case"] for line in lines if "case" in line
    }
    assert printed.count("goal ") >= 1


def test_scaling(tmp_path):
    sections = ["sizes", "accumulation", "checkpoints", "prefetching"]
    result, lines, _ = run_quick("scaling", tmp_path / "scaling.json", "--only", *sections)
    check_rows(result)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "data of 64 rows", "batch of 8 rows", "microbatches 1", "microbatches 2",
        "checkpoints every 4 steps", "batches drawn ahead",
    ]  # fmt: skip
    assert rows["microbatches 2"]["temp_megabytes"] > 0
    overhead = rows["checkpoints every 4 steps"]["overhead_percent"]
    assert set(overhead) == {"in the background", "waited for"}
    assert {"fit", "step alone", "none", "saving"} <= {line["case"] for line in lines}


@pytest.mark.slow
def test_scaling_over_devices(tmp_path):
    result, lines, _ = run_quick("scaling", tmp_path / "scaling.json", "--only", "devices")
    check_rows(result)
    names = ["2 devices data_parallel", "2 devices fsdp", "2 processes data_parallel"]
    assert [row["name"] for row in result["rows"]] == names
    assert {"1 device", *names} < {line["case"] for line in lines}


def test_sweep(tmp_path):
    result, lines, printed = run_quick("sweep", tmp_path / "sweep.json")
    check_rows(result)
    [row] = result["rows"]
    assert row["name"] == "H=4" and row["mode"] in ("vmap", "sequential")
    assert "jax sequential" in row["peers"] and row["first_call_seconds"] > 0
    assert sum(row["first_call_modes"].values()) == row["students"] == 16
    assert {"ours", "jax sequential", "limit one by one"} <= {line["case"] for line in lines}
    assert "as fast as jax sequential; wanted 0.95" in printed


def test_memory(tmp_path):
    result, lines, _ = run_quick("memory", tmp_path / "memory.json")
    check_rows(result)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {
        *(f"gradient of mlp 4x16, 32 rows: {x}" for x in ("remat", "bfloat16", "remat bfloat16")),
        *(f"teacher on digits: {x}" for x in ("bfloat16", "int8", "int8 bfloat16")),
    }
    assert (
        rows["teacher on digits: bfloat16"]["ours"] == rows["teacher on digits: bfloat16"]["limit"]
    )
    cases = {line["case"] for line in lines}
    assert {"plain", "whole", "whole dots", "remat", "float32", "int8"} <= cases
